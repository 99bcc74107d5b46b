//! Exports whose world breaks while they are made.

use std::time::Duration;

use serde_json::json;
use voiceai_aws::ObjectStore;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_queue::Inline;
use voiceai_tasker::jobs::export::{Export, Format, cancel};
use voiceai_testkit::{Program, wait_until};

use crate::export_bench::Bench;
use crate::stage::{PATIENCE, Stage};

/// More than an upload that stands still can take in.
const LARGE: &str = "CREATE TABLE devices (device_id int, note text);
                     INSERT INTO devices SELECT i, repeat(md5(i::text), 31) FROM generate_series(1, 60000) i";
const ROWS: i64 = 60_000;

async fn is_copying(pool: &PgPool) -> bool {
    let asked =
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                     AND query LIKE 'COPY%' AND pid <> pg_backend_pid())";
    sqlx::query_scalar(asked).fetch_one(pool).await.unwrap()
}

/// Begins an export whose upload stands still, with the rows half read.
async fn halted(bench: &Bench, order: &Export) -> tokio::task::JoinHandle<Inline> {
    bench.way.pause();
    let runner = voiceai_queue::InlineRunner::new(
        voiceai_queue::Registry::new().register::<voiceai_tasker::jobs::export::ExportRun>(bench.ctx.clone()),
    );
    let job = voiceai_queue::NewJob::of(&voiceai_tasker::jobs::export::ExportRun { id: order.id }).unwrap();
    // What an earlier attempt left is looked for before the rows are read.
    bench.way.resume();
    let running = tokio::spawn(async move { runner.run(&job).await.end });
    wait_until(PATIENCE, "the rows are read", async || is_copying(&bench.ctx.pool).await).await;
    bench.way.pause();
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_while_it_is_exported_goes_once_it_is_exported() {
    let bench = Bench::new(LARGE).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    let running = halted(&bench, &order).await;
    let pool = bench.ctx.pool.clone();
    let dropping = tokio::spawn(async move { sqlx::query("DROP TABLE devices").execute(&pool).await });
    let is_waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                          AND wait_event_type = 'Lock' AND query LIKE 'DROP%')";
    wait_until(PATIENCE, "the DROP waits", async || {
        sqlx::query_scalar(is_waiting).fetch_one(&bench.ctx.pool).await.unwrap()
    })
    .await;
    bench.way.resume();
    let end = running.await.unwrap();
    assert!(matches!(end, Inline::Done(Some(_))), "{end:?}");
    dropping.await.unwrap().unwrap();
    let made = bench.look(&order).await;
    assert_eq!((made.status.as_str(), made.row_count), ("COMPLETED", Some(ROWS)));

    let late = bench.order(Format::Parquet, None, json!({})).await;
    assert!(matches!(bench.run(&late).await, Inline::Dead { .. }));
    let error = bench.look(&late).await.error.unwrap();
    assert!(error.contains("no table public.devices"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_in_mid_export_leaves_nothing_and_is_tried_again() {
    for format in [Format::Csv, Format::Parquet] {
        let bench = Bench::new(LARGE).await;
        let order = bench.order(format, None, json!({})).await;
        let running = halted(&bench, &order).await;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND query LIKE 'COPY%' AND pid <> pg_backend_pid()";
        let ended: i64 = sqlx::query_scalar(end).fetch_one(&bench.ctx.pool).await.unwrap();
        assert_eq!(ended, 1);
        bench.way.resume();
        let end = running.await.unwrap();
        assert!(matches!(end, Inline::Retry { .. }), "{end:?}");
        let failed = bench.look(&order).await;
        assert_eq!(failed.status, "PENDING");
        assert!(failed.error.is_some_and(|error| error.contains("read rows")), "its reason is there");
        assert_eq!((bench.s3.unfinished_uploads().await, bench.s3.keys().await.len()), (0, 0));
        assert_eq!(bench.made(&order).await.0.row_count, Some(ROWS));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_cancelled_while_it_is_made_leaves_nothing_and_its_orderer_is_told() {
    for format in [Format::Ndjson, Format::Parquet] {
        let mut bench = Bench::new(LARGE).await;
        bench.ctx.settings.lease = Duration::from_secs(2);
        let order = bench.order(format, None, json!({})).await;
        bench.database.execute("UPDATE ops.export_jobs SET callback_url = 'https://example.com/'").await;
        let running = halted(&bench, &order).await;
        let why = "cancelled by tester";
        let cancelled = cancel(&bench.ctx.pool, order.id, why, &bench.ctx.settings).await.unwrap();
        assert_eq!(cancelled.map(|order| order.status).as_deref(), Some("FAILED"));
        bench.way.resume();
        let end = running.await.unwrap();
        assert!(matches!(end, Inline::Done(None)), "{end:?}");
        assert_eq!((bench.s3.unfinished_uploads().await, bench.s3.keys().await.len()), (0, 0));
        let failed = bench.look(&order).await;
        assert_eq!((failed.status.as_str(), failed.error.as_deref()), ("FAILED", Some(why)));
        let calls = "SELECT count(*) FROM ops.outbox WHERE kind = 'export.callback'";
        let calls: i64 = sqlx::query_scalar(calls).fetch_one(&bench.ctx.pool).await.unwrap();
        assert_eq!(calls, 1);
        let again = cancel(&bench.ctx.pool, order.id, why, &bench.ctx.settings).await.unwrap();
        assert!(again.is_none(), "it has ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_the_server_cancels_is_tried_again() {
    // A standby cancels what stands in the way of its replay, an operator or a limit what takes too long.
    let bench = Bench::new(LARGE).await;
    let order = bench.order(Format::Ndjson, None, json!({})).await;
    let running = halted(&bench, &order).await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
                  WHERE datname = current_database() AND query LIKE 'COPY%' AND pid <> pg_backend_pid()";
    let cancelled: i64 = sqlx::query_scalar(cancel).fetch_one(&bench.ctx.pool).await.unwrap();
    assert_eq!(cancelled, 1);
    bench.way.resume();
    let end = running.await.unwrap();
    assert!(matches!(&end, Inline::Retry { error, .. } if error.contains("canceling statement")), "{end:?}");
    assert_eq!((bench.s3.unfinished_uploads().await, bench.s3.keys().await.len()), (0, 0));
    assert_eq!(bench.made(&order).await.0.row_count, Some(ROWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_gone_is_named_and_the_order_waits_for_it() {
    let mut bench = Bench::new("CREATE TABLE devices (device_id text)").await;
    let gone = format!("{}-gone", bench.s3.bucket);
    let here = bench.ctx.store.clone();
    bench.ctx.store = ObjectStore::new(&Bench::store(&bench.s3, &bench.way, &gone)).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    let end = bench.run(&order).await;
    assert!(matches!(&end, Inline::Retry { error, .. } if error.contains(&gone)), "{end:?}");
    let failed = bench.look(&order).await;
    assert_eq!(failed.status, "PENDING");
    assert!(failed.error.is_some_and(|error| error.contains(&gone)), "{end:?}");
    bench.ctx.store = here;
    assert_eq!(bench.made(&order).await.0.attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_object_cannot_be_removed_keeps_its_row_until_it_can() {
    let mut bench = Bench::new("CREATE TABLE devices (device_id text)").await;
    let orders = [(); 5];
    for () in orders {
        let order = bench.order(Format::Csv, None, json!({})).await;
        bench.made(&order).await;
    }
    bench.database.execute("UPDATE ops.export_jobs SET expires_at = now() - interval '1 s'").await;
    let here = bench.ctx.store.clone();
    let gone = format!("{}-gone", bench.s3.bucket);
    bench.ctx.store = ObjectStore::new(&Bench::store(&bench.s3, &bench.way, &gone)).await;
    let end = bench.clean().await;
    assert!(matches!(end, Inline::Retry { .. }), "{end:?}");
    assert_eq!(bench.s3.keys().await.len(), 5);
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ops.export_jobs").fetch_one(&bench.ctx.pool).await.unwrap();
    assert_eq!(rows, 5, "a row goes with its object or not at all");
    bench.ctx.store = here;
    assert_eq!(bench.cleanup().await["removed"], 5);
    assert_eq!(bench.s3.keys().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_mid_export_leaves_the_order_to_another() {
    let stage = Stage::new().await;
    let bench = Bench::new(LARGE).await;
    let endpoint = format!("http://127.0.0.1:{}", bench.way.port());
    let program = |program: Program| {
        program.envs([
            ("DATABASE_URL", bench.database.url.as_str()),
            ("EXPORTS_S3_BUCKET", bench.s3.bucket.as_str()),
            ("S3_ENDPOINT", endpoint.as_str()),
            ("S3_ACCESS_KEY", bench.s3.access_key.as_str()),
            ("S3_SECRET_KEY", bench.s3.secret_key.as_str()),
        ])
    };
    // The upload crawls, so that the kill comes in its middle.
    bench.way.delay(Duration::from_millis(300));
    let process = program(stage.program()).arg("run").start();
    process.wait_for_line(PATIENCE, "service ready").await;
    let order = bench.order(Format::Parquet, None, json!({})).await;
    wait_until(PATIENCE, "the export is under way", async || {
        is_copying(&bench.ctx.pool).await && bench.s3.unfinished_uploads().await == 1
    })
    .await;
    process.kill9();
    process.wait_exit(PATIENCE).await;
    bench.way.delay(Duration::ZERO);
    let left = bench.look(&order).await;
    assert_eq!((left.status.as_str(), left.attempt), ("PROCESSING", 1));
    assert!(matches!(bench.run(&order).await, Inline::Snoozed(_)), "its lease still runs");
    bench.database.execute("UPDATE ops.export_jobs SET lease_until = now() - interval '1 s'").await;
    let (made, _) = bench.made(&order).await;
    assert_eq!((made.attempt, made.row_count), (2, Some(ROWS)));
    assert_eq!((bench.s3.unfinished_uploads().await, bench.s3.keys().await.len()), (0, 1));
}
