//! Upkeep of the platform's tables by the real binary: with them, without them, and by hand.

use std::path::Path;

use serde_json::{Value, json};
use voiceai_testkit::wait_until;

use crate::kinds::built_in;
use crate::stage::{PATIENCE, Stage};

/// What `cron run` or `jobs enqueue` left as the result of its job.
async fn result(stage: &Stage, id: &str) -> Value {
    stage.wait_for_state(id, "completed").await["result"].clone()
}

/// The platform's tables.
fn platform() -> String {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/platform.sql");
    std::fs::read_to_string(fixture).unwrap()
}

fn is_ours(kind: &str) -> bool {
    const OURS: [&str; 9] = [
        "retention.",
        "commands.",
        "executions.",
        "credits.",
        "subscriptions.",
        "usage.",
        "analytics.",
        "newsletter.",
        "llm.",
    ];
    OURS.iter().any(|family| kind.starts_with(family))
}

#[tokio::test]
async fn every_schedule_runs_by_hand_and_skips_what_is_absent() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    let ours: Vec<_> = built_in().into_iter().filter(|schedule| is_ours(&schedule.kind)).collect();
    assert!(ours.len() >= 20, "{ours:?}");
    let mut ran = Vec::new();
    for schedule in &ours {
        let answer = stage.ask_all(&["cron", "run", &schedule.name, "--json"]).await.json(0);
        ran.push((schedule, answer["id"].as_str().unwrap().to_owned()));
    }
    for (schedule, id) in ran {
        let result = result(&stage, &id).await;
        let tables = result.as_object().unwrap();
        let skipped = if schedule.kind == "retention.sweep" {
            tables.iter().all(|(name, table)| table["skipped"] == true || name.starts_with("ops."))
        } else {
            result["reason"] == "table absent"
        };
        assert!(skipped, "{}: {result}", schedule.name);
    }
}

#[tokio::test]
async fn with_the_tables_a_run_does_its_work_and_a_wrong_payload_is_refused() {
    let stage = Stage::new().await;
    stage.database.execute(&platform()).await;
    stage
        .database
        .execute(
            "INSERT INTO device_commands (tenant_id, device_id, command_type, expires_at) VALUES ('t', 'd', 'x', now());
             INSERT INTO audit_log (event_type, \"timestamp\") VALUES ('x', now() - interval '2 years');",
        )
        .await;
    let _tasker = stage.tasker("one").await;
    let run = async |kind: &str, payload: &str| {
        let answer = stage.ask_all(&["jobs", "enqueue", kind, "--payload", payload, "--json"]).await.json(0);
        answer["id"].as_str().map_or_else(|| answer["ids"][0].as_str().unwrap().to_owned(), str::to_owned)
    };
    let swept = result(&stage, &run("retention.sweep", r#"{"set":"logs"}"#).await).await;
    assert_eq!(swept["audit_log"], json!({"rows": 1}));
    // The schedule of every minute may have been faster; the state is what counts.
    result(&stage, &run("commands.expire", "{}").await).await;
    assert_eq!(stage.value("SELECT status FROM device_commands").await, "expired");
    assert_eq!(
        stage.value("SELECT status FROM ops.maintenance_log WHERE details ->> 'table' = 'audit_log'").await,
        "COMPLETED"
    );

    let wrong = run("retention.sweep", r#"{"set":"everything"}"#).await;
    let dead = stage.wait_for_state(&wrong, "dead").await;
    assert_eq!(dead["dead_reason"], "bad_payload", "{dead}");
}

#[tokio::test]
async fn billing_is_put_back_only_while_stripe_answers() {
    let stage = Stage::new().await;
    let tasker = stage.tasker("one").await;
    let payload = r#"{"subscription":"s","stripe_subscription":"sub_1","term_end":"2026-11-22T00:00:00Z"}"#;
    stage.ask_all(&["jobs", "enqueue", "billing.pause", "--id", "bill", "--payload", payload]).await.text(0);
    let dead = stage.wait_for_state("bill", "dead").await;
    assert_eq!(dead["dead_reason"], "discarded_by_handler", "{dead}");
    let plan = ["jobs", "replay", "--kind", "billing.pause", "--reason-is", "discarded_by_handler", "--json"];
    for (settings, says) in [
        (&[][..], "STRIPE_SECRET_KEY is not set"),
        (&[("STRIPE_SECRET_KEY", "sk_test"), ("STRIPE_API_URL", "http://127.0.0.1:1")][..], "not reachable"),
    ] {
        let program = stage.program().envs(settings.iter().copied()).args(plan);
        let plan = crate::stage::answer(program).await.json(0).to_string();
        assert!(plan.contains("stripe_unreachable") && plan.contains(says), "{plan}");
    }
    drop(tasker);
}

#[tokio::test]
async fn a_sweep_of_a_killed_process_is_brought_to_its_end() {
    let stage = Stage::new().await;
    stage.database.execute(&platform()).await;
    stage
        .database
        .execute("INSERT INTO email_logs (created_at) SELECT now() - interval '1 year' FROM generate_series(1, 2000)")
        .await;
    let slow = [("HOUSEKEEPING_BATCH_SIZE", "20"), ("HOUSEKEEPING_BATCH_PAUSE", "200ms")];
    let first = stage.program().envs(slow).arg("run").start();
    first.wait_for_line(PATIENCE, "service ready").await;
    let payload = r#"{"set":"platform","tables":["email_logs"]}"#;
    stage
        .ask_all(&["jobs", "enqueue", "retention.sweep", "--id", "sweep", "--payload", payload])
        .await
        .text(0);
    wait_until(PATIENCE, "some are gone", async || {
        stage.value("SELECT count(*)::text FROM email_logs").await.as_i64().is_some_and(|left| left < 2_000)
    })
    .await;
    first.kill9();
    let left = stage.value("SELECT count(*)::text FROM email_logs").await;
    assert!(left.as_i64().is_some_and(|left| left > 0), "killed on the way: {left}");

    let _second = stage.tasker("two").await;
    let swept = result(&stage, "sweep").await;
    // The database may have ended the killed process's last batch after that look.
    let rows = swept["email_logs"]["rows"].as_i64().unwrap();
    assert!(
        0 < rows && rows <= left.as_i64().unwrap(),
        "what was gone is not counted twice: {rows} of {left}"
    );
    assert_eq!(stage.value("SELECT count(*)::text FROM email_logs").await, 0);
    let log = "SELECT string_agg(status || ':' || COALESCE(error_message, ''), ' ' ORDER BY id) FROM ops.maintenance_log";
    assert_eq!(stage.value(log).await, "FAILED:cut off: its process ended COMPLETED:");
}
