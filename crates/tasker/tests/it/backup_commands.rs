//! `backup …` and the nightly schedule, by the real binary.

use serde_json::json;
use voiceai_testkit::{Program, S3};

use crate::stage::{PATIENCE, Stage, answer};

fn with_bucket(program: Program, s3: &S3) -> Program {
    program.envs([
        ("S3_BUCKET", s3.bucket.as_str()),
        ("S3_ENDPOINT", s3.endpoint.as_str()),
        ("S3_ACCESS_KEY", s3.access_key.as_str()),
        ("S3_SECRET_KEY", s3.secret_key.as_str()),
        ("S3_REGION", "us-east-1"),
    ])
}

#[tokio::test]
async fn a_scheduled_backup_is_listed_proved_and_restored_from_the_bucket_alone() {
    let stage = Stage::new().await;
    let s3 = voiceai_testkit::s3().await;
    let ask = async |line: &str| answer(with_bucket(stage.program(), &s3).args(line.split(' '))).await;
    let process = with_bucket(stage.program(), &s3).arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let schedules = ask("cron list --json").await.json(0);
    let nightly =
        schedules["schedules"].as_array().unwrap().iter().find(|line| line["name"] == "database-backup");
    assert_eq!(nightly.unwrap()["state"], "active", "a bucket is set");
    let ran = ask("cron run database-backup --json").await.json(0);
    stage.wait_for_state(ran["id"].as_str().unwrap(), "completed").await;

    let backups = ask("backup list --json").await.json(0);
    let backup = &backups["backups"][0];
    assert_eq!((&backup["state"], &backups["next"]), (&json!("stored"), &json!(null)), "{backups}");
    let id = backup["id"].as_str().unwrap();
    let status = ask("status --json").await.json(0);
    assert!(
        status["backups"]["newest_age_seconds"].is_u64() && status["backups"]["newest_proved_at"].is_null(),
        "{status}"
    );
    assert_eq!(ask("backup verify --json").await.json(0)["proved"], true);
    assert!(ask("status --json").await.json(0)["backups"]["newest_proved_at"].is_string());

    // Neither our tables nor Redis: their settings are not even there.
    let bare = |line: String| {
        let program = Program::new(env!("CARGO_BIN_EXE_voiceai-tasker")).env("VOICEAI_OPERATOR", "tester");
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        answer(with_bucket(program, &s3).args(arguments))
    };
    assert_eq!(bare("backup list --json".into()).await.json(0)["backups"][0]["id"], id);
    let empty = voiceai_testkit::empty_database().await;
    let restore = format!("backup restore {id} --into {} --json", empty.url);
    let restored = bare(restore.clone()).await.json(0);
    assert_eq!(restored["manifest"]["id"], id);
    assert_eq!(bare(restore).await.failure(4)["code"], "backup_target", "it holds tables now");
    let own = ask(&format!("backup restore {id} --into {} --json", stage.database.url)).await;
    assert_eq!(own.failure(4)["code"], "backup_target", "the service's own");
    let unknown = ask(&format!("backup restore 00000000000000 --into {} --json", empty.url)).await;
    assert_eq!(unknown.failure(3)["code"], "backup_not_found");
}

#[tokio::test]
async fn a_backup_is_taken_by_hand_and_needs_a_bucket() {
    let stage = Stage::new().await;
    for line in ["backup list --json", "backup run --json", "backup verify --json"] {
        assert_eq!(stage.ask(line).await.failure(4)["code"], "no_bucket", "{line}");
    }
    let s3 = voiceai_testkit::s3().await;
    let run = async |more: &str| {
        let line = format!("backup run --json{more}");
        answer(with_bucket(stage.program(), &s3).args(line.split(' '))).await.json(0)
    };
    assert_eq!(run(" --dry-run").await["dry_run"], true);
    assert_eq!(s3.keys().await, Vec::<String>::new());
    let taken = run("").await;
    assert_eq!((&taken["state"], s3.keys().await.len()), (&json!("stored"), 2), "{taken}");
    assert_eq!(stage.value("SELECT actor FROM ops.audit WHERE action = 'backup.run'").await, "tester");
}
