//! Exports, by the real binary, a real database and a real store.

use serde_json::{Value, json};
use voiceai_queue::{DeadReason, Inline};
use voiceai_tasker::jobs::export::{Format, get};

use crate::export_bench::Bench;
use crate::stage::{PATIENCE, Stage, answer};

const TABLES: &str = r#"
    CREATE TABLE devices (device_id text, tenant_id text, status text, note text);
    INSERT INTO devices SELECT 'd' || i, 't' || (i % 2), CASE WHEN i % 3 = 0 THEN 'ONLINE' ELSE 'STALE' END,
                               E'line one\nline "two", ü \\ ' || i FROM generate_series(1, 60000) i;
"#;

#[tokio::test]
async fn every_format_holds_the_rows_that_were_asked_for() {
    let bench = Bench::new(TABLES).await;
    let mut texts = Vec::new();
    for format in [Format::Csv, Format::Ndjson, Format::Json] {
        let order = bench.order(format, Some("t1"), json!({ "status": ["ONLINE"] })).await;
        assert!(matches!(bench.run(&order).await, Inline::Done(Some(_))));
        let made = bench.look(&order).await;
        assert_eq!((made.status.as_str(), made.row_count), ("COMPLETED", Some(10_000)), "{made:?}");
        let object = bench.s3.get(&made.file_path.expect("a key")).await.expect("the object");
        assert_eq!(Some(object.len() as i64), made.file_size_bytes);
        texts.push(String::from_utf8(object).expect("text"));
    }
    assert!(texts[0].starts_with(
        "device_id,tenant_id,status,note\nd3,t1,ONLINE,\"line one\nline \"\"two\"\", ü \\ 3\"\n"
    ));
    let lines: Vec<Value> = texts[1].lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 10_000);
    assert_eq!(lines[0]["note"], "line one\nline \"two\", ü \\ 3");
    let document: Value = serde_json::from_str(&texts[2]).expect("JSON");
    assert_eq!((&document["count"], &document["data"][9_999]), (&json!(10_000), &lines[9_999]));
}

#[tokio::test]
async fn an_order_of_a_killed_worker_is_taken_over_and_a_held_one_is_waited_for() {
    let bench = Bench::new(TABLES).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    bench.database.execute("UPDATE ops.export_jobs SET status = 'PROCESSING', attempt = 1, lease_until = now() + interval '1 hour'").await;
    assert!(matches!(bench.run(&order).await, Inline::Snoozed(_)), "another worker has it");
    bench.s3.put(&format!("exports/{}-1.csv", order.id), b"half").await;
    bench.database.execute("UPDATE ops.export_jobs SET lease_until = now() - interval '6 minutes'").await;
    assert_eq!(bench.cleanup().await["enqueued_again"], 1);
    assert!(matches!(bench.run(&order).await, Inline::Done(Some(_))));
    let made = bench.look(&order).await;
    assert_eq!((made.status.as_str(), made.attempt, made.row_count), ("COMPLETED", 2, Some(60_000)));
    assert_eq!(bench.s3.keys().await, [format!("exports/{}-2.csv", order.id)]);
}

#[tokio::test]
async fn what_cannot_be_exported_fails_with_its_reason_and_is_gone_with_its_row_when_its_time_is_over() {
    let bench = Bench::new(TABLES).await;
    let good = bench.order(Format::Csv, None, json!({})).await;
    assert!(matches!(bench.run(&good).await, Inline::Done(Some(_))));
    let wrong = bench.order(Format::Csv, None, json!({ "site_ids": ["a"] })).await;
    assert!(matches!(bench.run(&wrong).await, Inline::Dead { reason: DeadReason::DiscardedByHandler, .. }));
    let failed = bench.look(&wrong).await;
    assert_eq!(failed.status, "FAILED");
    assert!(failed.error.is_some_and(|error| error.contains("site_id")));
    bench.database.execute("DROP TABLE devices").await;
    let dropped = bench.order(Format::Json, None, json!({})).await;
    assert!(matches!(bench.run(&dropped).await, Inline::Dead { .. }));
    assert_eq!(bench.s3.unfinished_uploads().await, 0);

    assert_eq!(bench.cleanup().await["removed"], 0, "not yet");
    assert_eq!(bench.s3.keys().await.len(), 1);
    bench.database.execute("UPDATE ops.export_jobs SET expires_at = now() - interval '1 s'").await;
    assert_eq!(bench.cleanup().await["removed"], 3);
    assert_eq!(bench.s3.keys().await, Vec::<String>::new());
    assert!(get(&bench.ctx.pool, good.id).await.expect("an answer").is_none());
}

#[tokio::test]
async fn an_order_of_the_command_line_is_made_by_a_tasker_and_downloaded_by_its_link() {
    let stage = Stage::new().await;
    stage.database.execute(TABLES).await;
    let s3 = voiceai_testkit::s3().await;
    let with = |program: voiceai_testkit::Program| {
        program.envs([
            ("S3_BUCKET", s3.bucket.as_str()),
            ("S3_ENDPOINT", s3.endpoint.as_str()),
            ("S3_ACCESS_KEY", s3.access_key.as_str()),
            ("S3_SECRET_KEY", s3.secret_key.as_str()),
        ])
    };
    let ask = async |line: &str| answer(with(stage.program()).args(line.split(' '))).await;
    let wrong = ask("export create users --json").await;
    assert_eq!(wrong.failure(4)["code"], "export_order");
    let inside = ask("export create devices --callback-url https://169.254.169.254/latest --json").await;
    assert_eq!(inside.failure(4)["code"], "callback_url");
    let process = with(stage.program()).arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let order = ask("export create devices --tenant t0 --json").await.json(0);
    let id = order["id"].as_str().expect("an id").to_owned();
    let shown = voiceai_testkit::wait_for(PATIENCE, "the export is made", async || {
        let shown = ask(&format!("export show {id} --json")).await.json(0);
        if shown["status"] == "COMPLETED" { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(shown["row_count"], 30_000);
    let link = shown["link"].as_str().expect("a link");
    let got = tokio::process::Command::new("curl").args(["-sSf", link]).output().await.expect("curl");
    assert_eq!(
        Some(got.stdout.len() as i64),
        shown["file_size_bytes"].as_i64(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );
    let listed = ask("export list --tenant t0 --json").await.json(0);
    assert_eq!((&listed["exports"][0]["id"], &listed["next"]), (&json!(id), &json!(null)));
    let unknown = ask("export show 00000000-0000-0000-0000-000000000000 --json").await;
    assert_eq!(unknown.failure(3)["code"], "export_not_found");
}
