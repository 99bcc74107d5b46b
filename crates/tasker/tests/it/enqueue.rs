//! `jobs enqueue`

use serde_json::json;

use crate::stage::{PATIENCE, Stage};

#[tokio::test]
async fn a_job_is_enqueued_once_under_its_id_and_runs() {
    let stage = Stage::new().await;
    let payload = r#"{"effect":"A"}"#;
    let enqueue = ["jobs", "enqueue", "diagnostic.probe", "--id", "x1", "--payload", payload, "--json"];
    let first = stage.ask_all(&enqueue).await.json(0);
    assert_eq!(
        first,
        json!({"id": "x1", "kind": "diagnostic.probe", "queue": "default", "known": false, "route": "queue"})
    );
    let again = stage.ask_all(&enqueue).await.json(0);
    assert_eq!((&again["known"], &again["id"]), (&json!(true), &json!("x1")));

    let _tasker = stage.tasker("one").await;
    stage.wait_for_state("x1", "completed").await;
    assert_eq!(stage.effects("A").await, 1);
    assert_eq!(stage.ask_all(&enqueue).await.json(0)["known"], true, "its id is remembered after its end");
    let audited = stage
        .value("SELECT actor FROM ops.audit WHERE action = 'jobs.enqueue' AND subject = 'x1' LIMIT 1")
        .await;
    assert_eq!(audited, "tester");
}

#[tokio::test]
async fn an_unknown_kind_is_accepted_with_a_warning_and_parked_for_a_person() {
    let stage = Stage::new().await;
    let answer = stage.ask("jobs enqueue future.kind --id f --json").await;
    assert!(answer.stderr.contains("warning: no handler for kind `future.kind`"), "{answer:?}");
    assert!(answer.json(0)["warning"].as_str().unwrap().contains("no_handler"));
    let _tasker = stage.tasker("one").await;
    let dead = stage.wait_for_state("f", "dead").await;
    assert_eq!(dead["dead_reason"], "no_handler");
}

#[tokio::test]
async fn a_payload_of_another_shape_is_warned_of_and_parked() {
    let stage = Stage::new().await;
    let bad = ["jobs", "enqueue", "diagnostic.probe", "--id", "b", "--payload", r#"{"sleep_ms":"long"}"#];
    let answer = stage.ask_all(&bad).await;
    assert!(answer.stderr.contains("bad_payload"), "{answer:?}");
    assert_eq!(answer.text(0), "b");
    let _tasker = stage.tasker("one").await;
    assert_eq!(stage.wait_for_state("b", "dead").await["dead_reason"], "bad_payload");
}

#[tokio::test]
async fn options_reach_the_job() {
    let stage = Stage::new().await;
    let line = "jobs enqueue k --id d --queue other --priority 7 --delay 1h --unique u --tenant t --json";
    stage.ask(line).await.json(0);
    let shown = stage.ask("jobs show d --json").await.json(0);
    for (field, value) in [
        ("queue", json!("other")),
        ("priority", json!(7)),
        ("unique", json!("u")),
        ("tenant", json!("t")),
        ("state", json!("delayed")),
    ] {
        assert_eq!(shown[field], value, "{field} of {shown}");
    }
    assert_eq!(shown["why_not"][0]["reason"], "delayed_until");
    let second = stage.ask("jobs enqueue k --queue other --unique u --json").await.json(0);
    assert_eq!(
        (&second["id"], &second["known"], &second["duplicate"]),
        (&json!("d"), &json!(true), &json!(true))
    );
    let at = stage.ask("jobs enqueue k --id at --at 2036-01-01T00:00:00+01:00 --json").await;
    at.json(0);
    assert_eq!(stage.ask("jobs show at --json").await.json(0)["due_at"], "2035-12-31T23:00:00Z");
}

#[tokio::test]
async fn what_is_no_job_is_refused_before_anything_is_done() {
    let stage = Stage::new().await;
    let wrong: [&[&str]; 6] = [
        &["jobs", "enqueue", "k", "--payload", "{oops", "--json"],
        &["jobs", "enqueue", "k", "--payload", "@/no/such/file", "--json"],
        &["jobs", "enqueue", "no good", "--json"],
        &["jobs", "enqueue", "k", "--queue", "a/b", "--json"],
        &["jobs", "enqueue", "k", "--id", "a b", "--json"],
        &["jobs", "enqueue", "k", "--priority", "11", "--json"],
    ];
    for arguments in wrong {
        stage.ask_all(arguments).await.failure(2);
    }
    assert_eq!(stage.ask("jobs stats --json").await.json(0)["total"], 0);
}

#[tokio::test]
async fn a_file_is_checked_whole_before_its_first_job() {
    let stage = Stage::new().await;
    let wrong = stage.file("wrong.ndjson", "{\"kind\":\"a\",\"payload\":{}}\nnope\n{\"kind\":\"a\"}\n");
    let refused = stage.ask_all(&["jobs", "enqueue", "--file", &wrong, "--json"]).await.failure(4);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("line 2:") && message.contains("line 3:") && !message.contains("line 1:"),
        "{message}"
    );
    assert_eq!(stage.ask("jobs stats --json").await.json(0)["total"], 0, "nothing was enqueued");

    let lines: String = (0..2_500)
        .map(|n| format!("{{\"kind\":\"k\",\"payload\":{{\"n\":{n}}},\"priority\":{}}}\n", n % 3))
        .collect();
    let right = stage.file("right.ndjson", &lines);
    let done = stage.ask_all(&["jobs", "enqueue", "--file", &right, "--json"]).await.json(0);
    assert_eq!((&done["count"], done["jobs"].as_array().unwrap().len()), (&json!(2_500), 2_500));
    let stats = stage.ask("jobs stats --queue default --json").await.json(0);
    assert_eq!((&stats["waiting"], &stats["queues"][0]["balances"]), (&json!(2_500), &json!(true)));

    let ids = "{\"kind\":\"k\",\"payload\":{},\"id\":\"a\"}\n\n{\"kind\":\"k\",\"payload\":{},\"id\":\"b\",\"delay_ms\":9000000}\n";
    let ids = stage.file("ids.ndjson", ids);
    assert_eq!(stage.ask_all(&["jobs", "enqueue", "--file", &ids]).await.text(0), "a\nb");
    let again = stage.ask_all(&["jobs", "enqueue", "--file", &ids, "--json"]).await.json(0);
    assert_eq!((&again["count"], &again["known"]), (&json!(2), &json!(2)));
    assert_eq!(stage.ask("jobs show b --json").await.json(0)["state"], "delayed");
}

#[tokio::test]
async fn without_redis_a_job_goes_to_the_outbox_and_says_so() {
    let mut server = voiceai_testkit::RedisServer::start(voiceai_testkit::RedisOptions::default()).await;
    let stage = Stage::new().await;
    server.kill9().await;
    let program = stage.program().env("REDIS_URL", server.url());
    let payload = r#"{"effect":"O"}"#;
    let program =
        program.args(["jobs", "enqueue", "diagnostic.probe", "--id", "o", "--payload", payload, "--json"]);
    let answer = crate::stage::answer(program).await;
    assert_eq!(answer.json(0)["route"], "outbox");
    assert!(answer.stderr.contains("outbox"), "{answer:?}");
    let again = ["jobs", "enqueue", "diagnostic.probe", "--id", "o", "--payload", payload, "--json"];
    let again = crate::stage::answer(stage.program().env("REDIS_URL", server.url()).args(again)).await;
    assert_eq!(again.json(0)["known"], true);

    let shown = stage.ask("jobs show o --json").await.json(0);
    assert_eq!((&shown["state"], &shown["kind"]), (&json!("outbox"), &json!("diagnostic.probe")));

    // With Redis, here another one, the relay brings it to its queue.
    let _tasker = stage.tasker("one").await;
    voiceai_testkit::wait_until(PATIENCE, "the job ran", async || stage.effects("O").await == 1).await;
    stage.wait_for_state("o", "completed").await;
}
