//! `cron …`

use serde_json::{Value, json};
use voiceai_testkit::wait_for;

use crate::stage::{PATIENCE, Stage};

async fn schedule(stage: &Stage, name: &str) -> Value {
    let list = stage.ask("cron list --json").await.json(0);
    list["schedules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["name"] == name)
        .cloned()
        .unwrap_or(Value::Null)
}

async fn set(stage: &Stage, more: &[&str]) -> crate::stage::Answer {
    let mut arguments = vec!["cron", "set", "probe", "--json"];
    arguments.extend(more);
    stage.ask_all(&arguments).await
}

#[tokio::test]
async fn a_schedule_is_set_run_paused_and_resumed() {
    let stage = Stage::new().await;
    assert_eq!(
        set(&stage, &["--kind", "diagnostic.probe", "--cron", "0 3 * * *"]).await.failure(2)["code"],
        "confirmation_needed"
    );
    let payload = r#"{"effect":"C"}"#;
    let new = [
        "--kind",
        "diagnostic.probe",
        "--cron",
        "30 3 * * *",
        "--zone",
        "Europe/Berlin",
        "--payload",
        payload,
        "--yes",
    ];
    assert_eq!(set(&stage, &new).await.json(0)["created"], true);
    let line = schedule(&stage, "probe").await;
    assert_eq!(
        (&line["state"], &line["zone"], &line["queue"]),
        (&json!("active"), &json!("Europe/Berlin"), &json!("default"))
    );
    assert_eq!(line["next_runs"].as_array().unwrap().len(), 5);

    let _tasker = stage.tasker("one").await;
    let ran = stage.ask("cron run probe --json").await.json(0);
    let id = ran["id"].as_str().unwrap();
    let shown = stage.wait_for_record(id, "completed").await;
    assert_eq!(shown["history"][0]["schedule"], "probe");
    assert_eq!(stage.effects("C").await, 1);

    stage.ask("cron pause probe --for 1h --yes --reason quiet").await.text(0);
    assert_eq!(schedule(&stage, "probe").await["state"], "paused");
    stage.ask("cron resume probe --yes").await.text(0);
    assert_eq!(schedule(&stage, "probe").await["state"], "active");
    let all = stage.ask("cron pause --all --yes --json").await.json(0);
    let built_in = crate::kinds::built_in().len();
    assert_eq!(all["schedules"].as_array().unwrap().len(), built_in + 1, "those that come by themselves too");
    set(&stage, &["--enabled", "false", "--yes"]).await.json(0);
    assert_eq!(schedule(&stage, "probe").await["state"], "disabled");
}

#[tokio::test]
async fn what_is_no_schedule_is_refused() {
    let stage = Stage::new().await;
    assert_eq!(stage.ask("cron run nosuch --json").await.failure(3)["code"], "schedule_not_found");
    stage.ask("cron pause nosuch --yes --json").await.failure(3);
    let half = set(&stage, &["--kind", "k", "--yes"]).await.failure(2);
    assert!(half["message"].as_str().unwrap().contains("--cron"));
    let zone =
        set(&stage, &["--kind", "k", "--cron", "0 3 * * *", "--zone", "Mars/Base", "--yes"]).await.failure(2);
    assert!(zone["message"].as_str().unwrap().contains("Mars/Base"), "{zone}");
    set(&stage, &["--kind", "k", "--cron", "61 3 * * *", "--yes"]).await.failure(2);
    set(&stage, &["--kind", "k", "--cron", "0 3 * * *", "--payload", "{", "--yes"]).await.failure(2);
    assert_eq!(schedule(&stage, "probe").await, Value::Null);
}

#[tokio::test]
async fn the_nightly_backup_is_declared_and_an_operators_change_stays() {
    let stage = Stage::new().await;
    let first = stage.tasker("one").await;
    let line = schedule(&stage, "database-backup").await;
    assert_eq!(
        (&line["state"], &line["expression"], &line["kind"]),
        (&json!("disabled"), &json!("0 2 * * *"), &json!("backup.database")),
        "no bucket is set"
    );
    stage.ask_all(&["cron", "set", "database-backup", "--cron", "0 4 * * *", "--yes"]).await.text(0);
    drop(first);
    let _second = stage.tasker("two").await;
    assert_eq!(schedule(&stage, "database-backup").await["expression"], "0 4 * * *");
}

#[tokio::test]
async fn the_leader_fires_a_due_slot_once_though_two_taskers_run() {
    let stage = Stage::new().await;
    let _one = stage.tasker("one").await;
    let _two = stage.tasker("two").await;
    let payload = r#"{"effect":"S"}"#;
    let every_minute = ["--kind", "diagnostic.probe", "--cron", "* * * * *", "--payload", payload, "--yes"];
    set(&stage, &every_minute).await.json(0);
    // A slot that is just due.
    stage
        .database
        .execute("UPDATE ops.schedules SET last_slot = now() - interval '61 seconds' WHERE name = 'probe'")
        .await;
    wait_for(PATIENCE, "the slot fires", async || {
        let effects = stage.effects("S").await;
        let fired = schedule(&stage, "probe").await["fired_total"].clone();
        if effects >= 1 && fired == json!(effects) {
            Ok(())
        } else {
            Err(format!("{effects} effects, fired {fired}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_schedule_whose_part_is_not_set_up_is_refused_and_the_setting_named() {
    let stage = Stage::new().await;
    // Has agents, and no bucket; the commands have neither.
    let tasker = stage.program().env("ORCHESTRATION_AGENTS_URL", "http://127.0.0.1:1").arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    for (name, setting) in [
        ("database-backup", "S3_BUCKET"),
        ("backup-verify", "S3_BUCKET"),
        ("export-cleanup", "EXPORTS_S3_BUCKET"),
    ] {
        for more in ["", " --dry-run"] {
            let refused = stage.ask(&format!("cron run {name} --json{more}")).await.failure(4);
            assert_eq!(refused["code"], "not_configured", "{refused}");
            let text = refused.to_string();
            assert!(text.contains(setting) && text.contains(name), "{refused}");
        }
    }
    let enqueued = stage.value("SELECT count(*)::text FROM ops.outbox WHERE id LIKE 'cron:%:manual-%'").await;
    assert_eq!(enqueued, 0, "nothing waits for a handler that nobody has");
    // The running worker takes this one, whatever the command's own settings are.
    let ran = stage.ask("cron run orchestration-cleanup --json").await.json(0);
    stage.wait_for_state(ran["id"].as_str().unwrap(), "completed").await;
    // A kind that this version does not know may be another version's.
    set(&stage, &["--kind", "of.tomorrow", "--cron", "0 3 * * *", "--yes"]).await.json(0);
    let ran = stage.ask("cron run probe --json").await;
    assert!(ran.stderr.contains("of.tomorrow") && ran.stderr.contains("no_handler"), "{ran:?}");
    ran.json(0);
    let enqueue = ["jobs", "enqueue", "backup.verify", "--payload", "{}", "--json"];
    let warned = stage.ask_all(&enqueue).await.json(0);
    assert!(warned["warning"].as_str().unwrap().contains("S3_BUCKET is not set"), "{warned}");
}
