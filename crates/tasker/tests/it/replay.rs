//! `jobs replay`

use serde_json::{Value, json};

use crate::stage::{Answer, Stage};

/// Dead jobs: attempts 1 and 2 fail, a replayed one as well unless it is told to fail less often.
async fn dead(stage: &Stage, ids: &[&str], payload: &str) {
    let lines: String = ids
        .iter()
        .map(|id| format!("{{\"kind\":\"diagnostic.probe\",\"payload\":{payload},\"id\":\"{id}\"}}\n"))
        .collect();
    let file = stage.file("dead.ndjson", &lines);
    stage.ask_all(&["jobs", "enqueue", "--file", &file]).await.text(0);
    for id in ids {
        stage.wait_for_state(id, "dead").await;
    }
}

async fn replay(stage: &Stage, line: &str) -> Answer {
    stage.ask(&format!("jobs replay --json {line}")).await
}

/// A worker that knows no probe parks it; one that does replays it well.
async fn parked(stage: &Stage, ids: &[String]) {
    for id in ids {
        let enqueue = ["jobs", "enqueue", "diagnostic.probe", "--id", id, "--payload", r#"{"effect":"R"}"#];
        stage.ask_all(&enqueue).await.text(0);
    }
    // As after a bad deployment: given up, though nothing is wrong with the jobs.
    let now = jiff::Timestamp::now().as_millisecond().to_string();
    let record = format!("2 exhausted {now} 0\nprovider away");
    for id in ids {
        let key = |name: &str| format!("voiceai:queue:{{default}}:{name}");
        stage.redis.cli(&["LREM", &key("lane:0||"), "1", id]).await;
        stage.redis.cli(&["ZADD", &key("dead"), &now, id]).await;
        stage.redis.cli(&["HSET", &key("fail"), id, &record]).await;
    }
    stage.redis.cli(&["ZREM", "voiceai:queue:{default}:ready", "0||"]).await;
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:02}")).collect()
}

#[tokio::test]
async fn a_plan_changes_nothing_and_says_why_others_do_not_pass() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    dead(&stage, &["e1"], r#"{"fail_times":9}"#).await;
    dead(&stage, &["b1"], r#"{"sleep_ms":"x"}"#).await;
    stage.ask("jobs enqueue nobody --id n1").await.text(0);
    stage.wait_for_state("n1", "dead").await;

    let plan = replay(&stage, "").await.json(0);
    assert_eq!((&plan["executed"], &plan["matched"], &plan["passed"]), (&json!(false), &json!(3), &json!(1)));
    assert_eq!(plan["refused"], json!({"no_handler": 1, "reason_needs_naming": 1}));
    assert_eq!(
        (&plan["candidates"][0]["id"], &plan["candidates"][0]["kind"]),
        (&json!("e1"), &json!("diagnostic.probe"))
    );
    let named = replay(&stage, "--reason-is bad_payload").await.json(0);
    assert_eq!(named["refused"], json!({"bad_payload": 1}));
    assert_eq!(stage.ask("jobs stats --json").await.json(0)["dead"], 3);
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.replays").await, 0);

    assert_eq!(replay(&stage, "nosuch").await.failure(3)["code"], "job_not_found");
    assert_eq!(replay(&stage, "n1 --execute --yes").await.failure(4)["code"], "nothing_to_replay");
    assert_eq!(replay(&stage, "e1 --execute").await.failure(2)["code"], "confirmation_needed");
    replay(&stage, "--reason-is whatever").await.failure(2);
    replay(&stage, "--limit 0").await.failure(2);
    assert_eq!(
        replay(&stage, "--error-contains told --kind diagnostic.probe --since 1h").await.json(0)["matched"],
        1
    );
    assert_eq!(replay(&stage, "--since 2036-01-01T00:00:00Z").await.json(0)["matched"], 0);
}

#[tokio::test]
async fn a_larger_limit_needs_a_small_batch_that_completed() {
    let stage = Stage::new().await;
    parked(&stage, &names("p", 25)).await;
    let refused = replay(&stage, "--kind diagnostic.probe --limit 100 --execute --yes").await;
    assert_eq!(refused.failure(4)["code"], "limit_needs_proof");
    assert_eq!(stage.ask("jobs stats --json").await.json(0)["dead"], 25);

    let _tasker = stage.tasker("one").await;
    let line = "--kind diagnostic.probe --rate 100/s --execute --yes --reason back";
    let small = replay(&stage, line).await.json(0);
    assert_eq!((&small["executed"], &small["ended"]), (&json!(true), &json!("settled")), "{small}");
    assert_eq!(
        (&small["replay"]["counts"]["items"], &small["replay"]["counts"]["completed"]),
        (&json!(10), &json!(10))
    );
    assert_eq!(stage.effects("R").await, 10);

    let other = replay(&stage, "--kind diagnostic.probe --queue default --limit 100").await;
    assert_eq!(other.failure(4)["code"], "limit_needs_proof", "another filter proves nothing");
    let rest = replay(&stage, &format!("{line} --limit 100")).await.json(0);
    assert_eq!(rest["replay"]["counts"]["completed"], 15);
    assert_eq!(stage.effects("R").await, 25, "each exactly once");
    let lineage = stage.wait_for_record("p00", "completed").await;
    let states: Vec<&Value> =
        lineage["history"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["replayed", "completed"]);
    let audited =
        stage.value("SELECT reason FROM ops.audit WHERE action = 'jobs.replay' ORDER BY id LIMIT 1").await;
    assert_eq!(audited, "back");
}

#[tokio::test]
async fn a_replay_stops_at_three_deaths_and_can_be_gone_on_with() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    let ids = names("d", 8);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    dead(&stage, &ids, r#"{"fail_times":9}"#).await;
    let stopped = replay(&stage, "--rate 4/s --execute --yes --reason try").await;
    assert_eq!(stopped.failure(6)["code"], "replay_stopped");
    let stopped = stopped.json(6);
    let counts = &stopped["replay"]["counts"];
    assert!(counts["died"].as_u64().unwrap() >= 3 && counts["pending"].as_u64().unwrap() > 0, "{stopped}");
    assert_eq!(stage.ask("jobs stats --json").await.json(0)["dead"], 8, "given up again, none lost");

    let id = stopped["replay"]["id"].as_str().unwrap();
    let shown = replay(&stage, &format!("--resume {id}")).await.json(0);
    assert_eq!((&shown["executed"], &shown["replay"]["state"]), (&json!(false), &json!("stopped")));
    let on = replay(&stage, &format!("--resume {id} --execute --yes")).await.json(6);
    assert!(on["replay"]["counts"]["died"].as_u64() > counts["died"].as_u64(), "{on}");
    replay(&stage, &format!("--resume {} --execute --yes", uuid::Uuid::nil())).await.failure(3);
}

#[tokio::test]
async fn a_job_whose_key_a_newer_one_holds_is_skipped() {
    let stage = Stage::new().await;
    let enqueue = ["jobs", "enqueue", "nobody", "--id", "old", "--unique", "u"];
    stage.ask_all(&enqueue).await.text(0);
    let tasker = stage.tasker("one").await;
    stage.wait_for_state("old", "dead").await;
    drop(tasker);
    stage.ask("jobs enqueue nobody --id new --unique u --delay 1h").await.text(0);
    // A worker of a later version that knows the kind.
    let knows =
        r#"{"host":"h","pid":1,"concurrency":1,"kinds":["nobody"],"started_at":"2026-01-01T00:00:00Z"}"#;
    let key = |name: &str| format!("voiceai:queue:{{default}}:{name}");
    stage.redis.cli(&["HSET", &key("info"), "inc1", knows]).await;
    stage.redis.cli(&["ZADD", &key("workers"), "9999999999999", "inc1"]).await;
    let plan = replay(&stage, "old").await.json(0);
    assert_eq!((&plan["passed"], &plan["refused"]["unique_key_held"]), (&json!(0), &json!(1)), "{plan}");
    let why = plan["candidates"][0]["refused"]["message"].as_str().unwrap();
    assert_eq!(why, "a newer job holds its unique key: new");
    let refused = replay(&stage, "old --execute --yes --wait 0s").await;
    assert_eq!(refused.exit, 4, "{refused:?}");
    assert_eq!(stage.ask("jobs show old --json").await.json(0)["key_holder"], "new");

    // Once the newer one is gone, it goes back.
    stage.ask("jobs cancel new --yes").await.text(0);
    assert_eq!(stage.ask("jobs show old --json").await.json(0)["key_holder"], Value::Null);
    let done = replay(&stage, "old --execute --yes --wait 0s").await.json(0);
    assert_eq!(done["replay"]["counts"]["items"], 1, "{done}");
}

#[tokio::test]
async fn work_that_was_never_enqueued_needs_a_finder() {
    let stage = Stage::new().await;
    let none = replay(&stage, "--missing --kind diagnostic.probe --since 1h").await;
    assert_eq!(none.failure(4)["code"], "no_finder");
    let no_bucket = replay(&stage, "--missing --kind backup.database --since 1h").await;
    assert_eq!(no_bucket.failure(4)["code"], "no_bucket");

    let s3 = voiceai_testkit::s3().await;
    let with_bucket = |line: &str| {
        let arguments: Vec<String> =
            format!("jobs replay --json {line}").split(' ').map(str::to_owned).collect();
        stage.program().args(arguments).envs([
            ("S3_BUCKET", s3.bucket.as_str()),
            ("S3_ENDPOINT", s3.endpoint.as_str()),
            ("S3_ACCESS_KEY", s3.access_key.as_str()),
            ("S3_SECRET_KEY", s3.secret_key.as_str()),
            ("S3_REGION", "us-east-1"),
        ])
    };
    let line = "--missing --kind backup.database --since 24h";
    let plan = crate::stage::answer(with_bucket(line)).await.json(0);
    assert_eq!((&plan["matched"], &plan["would_replay"]), (&json!(1), &json!(1)), "{plan}");
    let done = crate::stage::answer(with_bucket(&format!("{line} --execute --yes --wait 0s"))).await.json(0);
    let id = done["items"][0]["id"].as_str().unwrap().to_owned();
    let job = stage.ask(&format!("jobs show {id} --json")).await.json(0);
    assert_eq!((&job["kind"], &job["state"]), (&json!("backup.database"), &json!("waiting")));
}
