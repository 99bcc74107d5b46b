//! `queue …`, `status`

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_testkit::{wait_for, wait_until};

use crate::stage::{PATIENCE, Stage};

#[tokio::test]
async fn a_paused_queue_hands_out_nothing_until_it_is_resumed() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    assert_eq!(stage.ask("queue pause default --json").await.failure(2)["code"], "confirmation_needed");
    assert_eq!(stage.ask("queue pause nosuch --yes --json").await.failure(3)["code"], "queue_not_found");
    stage.ask("queue pause default --yes --reason deploy").await.text(0);
    stage.ask("jobs enqueue diagnostic.probe --id p").await.text(0);
    let shown = stage.ask("jobs show p --json").await.json(0);
    assert_eq!((&shown["state"], &shown["why_not"][0]["reason"]), (&json!("waiting"), &json!("paused")));
    assert_eq!(line(&stage, "default").await["state"], "paused");

    // Redis emptied of the setting: the leader brings it back from its row.
    stage.redis.cli(&["HDEL", "voiceai:queue:{default}:cfg", "paused"]).await;
    wait_until(PATIENCE, "the pause is back", async || {
        stage.redis.cli(&["HGET", "voiceai:queue:{default}:cfg", "paused"]).await == "1"
    })
    .await;
    stage.ask("queue resume default --yes").await.text(0);
    stage.wait_for_state("p", "completed").await;
    let reason = stage.value("SELECT reason FROM ops.audit WHERE action = 'queue.pause'").await;
    assert_eq!(reason, "deploy");
}

async fn line(stage: &Stage, queue: &str) -> Value {
    let list = stage.ask("queue list --json").await.json(0);
    list["queues"].as_array().unwrap().iter().find(|line| line["queue"] == queue).unwrap().clone()
}

#[tokio::test]
async fn paused_producers_write_to_the_outbox() {
    let stage = Stage::new().await;
    stage.ask("queue pause default --enqueue --yes").await.text(0);
    let answer = stage.ask("jobs enqueue diagnostic.probe --id e --json").await;
    assert_eq!(answer.json(0)["route"], "outbox");
    let line = |id: &str, queue: &str| {
        format!("{{\"kind\":\"diagnostic.probe\",\"payload\":{{}},\"id\":\"{id}\",\"queue\":\"{queue}\"}}\n")
    };
    let lines = [line("f1", "default"), line("g", "email-queue"), line("f2", "default")].concat();
    let file = stage.file("many.ndjson", &lines);
    let many = stage.ask_all(&["jobs", "enqueue", "--file", &file, "--json"]).await.json(0);
    let routes: Vec<_> = many["jobs"].as_array().unwrap().iter().map(|job| &job["route"]).collect();
    assert_eq!(routes, ["outbox", "queue", "outbox"], "{many}");
    let _tasker = stage.tasker("one").await;
    let status = stage.ask("status --json").await.json(0);
    assert_eq!(status["outbox"][0]["waiting"], 3, "{status}");
    stage.ask("queue resume default --yes").await.text(0);
    for id in ["e", "f1", "f2"] {
        stage.wait_for_state(id, "completed").await;
    }
}

#[tokio::test]
async fn drain_refuses_new_work_and_ends_when_the_queue_is_empty() {
    let stage = Stage::new().await;
    stage.ask("jobs enqueue diagnostic.probe --id d").await.text(0);
    let late = stage.ask("queue drain default --wait 300ms --yes --json").await;
    assert_eq!(late.failure(6)["code"], "not_drained");
    assert_eq!(stage.ask("jobs enqueue diagnostic.probe --json").await.failure(4)["code"], "queue_draining");
    let _tasker = stage.tasker("one").await;
    let done = stage.ask("queue drain default --yes --json").await.json(0);
    assert_eq!((&done["drained"], &done["left"]), (&json!(true), &json!(0)));
    stage.wait_for_state("d", "completed").await;
    stage.ask("queue resume default --yes").await.text(0);
    stage.ask("jobs enqueue diagnostic.probe --id after").await.text(0);
    stage.wait_for_state("after", "completed").await;
}

#[tokio::test]
async fn purge_and_clean_say_how_many() {
    let stage = Stage::new().await;
    let lines = "{\"kind\":\"k\",\"payload\":{}}\n".repeat(450);
    let file = stage.file("many.ndjson", &lines);
    stage.ask_all(&["jobs", "enqueue", "--file", &file]).await.text(0);
    let dry = stage.ask("queue purge default --state waiting --dry-run --json").await.json(0);
    assert_eq!((&dry["count"], &dry["dry_run"]), (&json!(450), &json!(true)));
    stage.ask("queue purge default --state active --yes --json").await.failure(2);
    let purged = stage.ask("queue purge default --state waiting --yes --reason flood --json").await.json(0);
    assert_eq!(purged["count"], 450);
    let stats = stage.ask("jobs stats --json").await.json(0);
    assert_eq!((&stats["waiting"], &stats["queues"][0]["discarded"]), (&json!(0), &json!(450)));
    let kept = stage
        .value("SELECT count(*)::text FROM ops.job_history WHERE outcome = 'discarded' AND error = 'flood'")
        .await;
    assert_eq!(kept, 450);

    let _tasker = stage.tasker("one").await;
    stage.ask("jobs enqueue diagnostic.probe --id done").await.text(0);
    stage.ask("jobs enqueue nobody --id dead").await.text(0);
    stage.wait_for_record("done", "completed").await;
    stage.wait_for_state("dead", "dead").await;
    let none = stage.ask("queue clean default --state dead --older-than 1h --yes --json").await.json(0);
    assert_eq!(none["count"], 0);
    let dead = stage.ask("queue clean default --state dead --older-than 0s --yes --json").await.json(0);
    assert_eq!(dead["count"], 1);
    let completed =
        stage.ask("queue clean default --state completed --older-than 0s --yes --json").await.json(0);
    assert_eq!(completed["count"], 1);
    let left = stage.ask("jobs list --state completed --json").await.json(0);
    assert_eq!(left["jobs"], json!([]));
}

#[tokio::test]
async fn limits_act_at_once_on_all_workers_are_kept_and_end_by_themselves() {
    let stage = Stage::new().await;
    let _one = stage.tasker("one").await;
    let in_redis = async |name: &str| stage.redis.cli(&["HGET", "voiceai:queue:{default}:cfg", name]).await;
    stage.ask("queue set default --concurrency 1 --yes").await.text(0);
    let lines: String = (0..3)
        .map(|n| {
            format!("{{\"kind\":\"diagnostic.probe\",\"payload\":{{\"sleep_ms\":900}},\"id\":\"s{n}\"}}\n")
        })
        .collect();
    let file = stage.file("sleepers.ndjson", &lines);
    stage.ask_all(&["jobs", "enqueue", "--file", &file]).await.text(0);
    wait_until(PATIENCE, "the jobs ran one at a time", async || {
        let stats = stage.ask("jobs stats --queue default --json").await.json(0);
        assert!(stats["active"].as_u64() <= Some(1), "{stats}");
        stats["completed"] == 3
    })
    .await;
    let settings = stage.ask("queue show default --json").await.json(0)["settings"].clone();
    let found = settings.as_array().unwrap().iter().find(|s| s["name"] == "worker_concurrency").unwrap();
    assert_eq!((&found["value"], &found["set_by"]), (&json!("1"), &json!("tester")));

    // For a while something else, then what was before.
    stage.ask("queue set default --concurrency 2 --for 1s --yes").await.text(0);
    assert!(["1", "2"].contains(&in_redis("worker_concurrency").await.as_str()));
    let now = "SELECT CASE WHEN temporary = '2' AND value = '1' THEN 'both' END FROM ops.queue_settings \
               WHERE name = 'worker_concurrency'";
    assert_eq!(stage.value(now).await, "both");
    wait_until(PATIENCE, "it ends by itself", async || in_redis("worker_concurrency").await == "1").await;

    stage.ask("queue set default --rate 3/m --yes").await.text(0);
    assert_eq!(in_redis("rate").await, "3 60000");
    stage.ask("queue set default --rate none --yes").await.text(0);
    assert_eq!(in_redis("rate").await, "");
    stage.ask("queue set default --yes --json").await.failure(2);
}

#[tokio::test]
async fn list_and_status_show_workers_queues_and_leader() {
    let stage = Stage::new().await;
    let nobody = stage.ask("status --json").await.json(0);
    assert_eq!((&nobody["leader"], &nobody["workers"]), (&Value::Null, &json!([])));
    let tasker = stage.tasker("one").await;
    wait_for(PATIENCE, "a leader", async || {
        let status = stage.ask("status --json").await.json(0);
        if status["leader"]["instance_id"] == "one" { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let status = stage.ask("status --json").await.json(0);
    assert_eq!(status["workers"][0]["pid"], tasker.pid());
    assert_eq!(status["workers"][0]["capacity"], crate::kinds::capacity());
    assert_eq!(status["schedules"]["total"], crate::kinds::built_in().len());
    let line = line(&stage, "email-queue").await;
    for (field, value) in [
        ("workers", json!(1)),
        ("capacity", json!(5)),
        ("waiting", json!(0)),
        ("time_to_empty_seconds", json!(0.0)),
    ] {
        assert_eq!(line[field], value, "{field}");
    }
    assert!(stage.ask("status").await.text(0).contains("leader     one ("));
    let shown = stage.ask("queue show orchestration-queue --json").await.json(0);
    assert_eq!(shown["worker_processes"][0]["concurrency"], 3);
}

#[tokio::test]
async fn list_tells_how_fast_a_queue_is_worked_and_when_it_will_be_empty() {
    let stage = Stage::new().await;
    let submit = async |n: usize| {
        let id = format!("j{n}");
        let (kind, payload) = ("diagnostic.probe", r#"{"sleep_ms":100}"#);
        let prefix = "voiceai:queue:{default}:";
        stage.redis.cli(&["FCALL", "voiceai_v1_submit", "1", prefix, &id, kind, payload, "{}"]).await;
    };
    for n in 0..200 {
        submit(n).await;
    }
    let idle = line(&stage, "default").await;
    assert_eq!((&idle["rate_per_second"], &idle["time_to_empty_seconds"]), (&json!(0.0), &Value::Null));
    let _tasker = stage.tasker("one").await;
    wait_for(PATIENCE, "a rate", async || {
        let line = line(&stage, "default").await;
        let (rate, left) = (line["rate_per_second"].as_f64(), line["time_to_empty_seconds"].as_f64());
        // 5 at a time, 100 ms each: 50 a second at most.
        match (rate, left) {
            (Some(rate), Some(left)) if rate > 1.0 && rate < 65.0 && left > 0.0 => Ok(()),
            _ => Err(line.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_comes_up_later_is_worked() {
    let stage = Stage::new().await;
    let tasker = stage.tasker("one").await;
    stage.ask("jobs enqueue diagnostic.probe --id n --queue brand-new").await.text(0);
    stage.wait_for_state("n", "completed").await;
    tasker.terminate();
    tasker.wait_exit(Duration::from_secs(30)).await;
    assert!(tasker.stderr().contains(r#""queue":"brand-new""#));
}
