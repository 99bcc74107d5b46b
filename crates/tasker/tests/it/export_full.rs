//! PostgreSQL's disk full while an order, or the row of a backup, is written: nothing is lost, and the error says it.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_queue::Inline;
use voiceai_tasker::jobs::export::{Export, Format, create, get};
use voiceai_testkit::{PostgresServer, S3, TcpProxy, wait_for, wait_until};

use crate::export_bench::Bench;
use crate::small_disk::{self, SmallDisk};
use crate::stage::PATIENCE;

/// A server whose tables of orders and backups lie on the small disk, beside something that fills it.
async fn server(disk: &SmallDisk) -> (PostgresServer, PgPool) {
    let server = PostgresServer::start().await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    voiceai_postgres::migrate(&pool, voiceai_postgres::ALL).await.unwrap();
    disk.tablespace(&pool).await;
    for table in ["export_jobs", "backups"] {
        let moved = format!("ALTER TABLE ops.{table} SET TABLESPACE small");
        sqlx::query(sqlx::AssertSqlSafe(moved)).execute(&pool).await.unwrap();
    }
    small_disk::prepare_filler(&pool).await;
    let tables = "CREATE TABLE public.devices AS SELECT i AS device_id, repeat(md5(i::text), 31) AS note FROM generate_series(1, 30000) i";
    sqlx::raw_sql(tables).execute(&pool).await.unwrap();
    (server, pool)
}

/// Leaves no room, neither on the disk nor in the pages of a table whose rows are `filled_by`.
async fn fill(pool: &PgPool, filled_by: &str) {
    small_disk::fill(pool).await;
    small_disk::until_full(pool, filled_by).await;
}

/// Orders that are taken for others' and fill the table's page.
const ORDERS: &str = "INSERT INTO ops.export_jobs (export_type, status, lease_until) VALUES ('devices', 'PROCESSING', now() + interval '1 hour')";

/// Backups of another database that fill the table's page.
const BACKUPS: &str = "INSERT INTO ops.backups (id, key, bucket, environment, database, instance, started_at, state, error)
                       VALUES (left(md5(random()::text), 14), repeat('k', 200), 'b', 'e', 'd', 'i', now(), 'failed', 'e')";

async fn look(pool: &PgPool, order: &Export) -> Export {
    get(pool, order.id).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_full_loses_no_order_and_takes_it_up_again() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let (_server, pool) = server(&disk).await;
    let mut bench = Bench::new("").await;
    bench.ctx.pool = pool.clone();

    // Before the claim.
    let order = bench.order(Format::Csv, None, json!({})).await;
    fill(&pool, ORDERS).await;
    let end = bench.run(&order).await;
    assert!(
        matches!(&end, Inline::Retry { error, .. } if error.contains("No space left on device")),
        "{end:?}"
    );
    assert_eq!((look(&pool, &order).await.status.as_str(), bench.s3.keys().await.len()), ("PENDING", 0));
    let another = create(
        &pool,
        &voiceai_tasker::jobs::export::Order {
            export_type: "devices".to_owned(),
            format: Format::Csv,
            tenant: None,
            filters: json!({}),
            created_by: "tester".to_owned(),
            callback_url: None,
        },
    )
    .await;
    assert!(
        another.unwrap_err().to_string().contains("No space left on device"),
        "an order that is not kept is refused"
    );
    disk.make_room(&pool).await;
    let end = bench.run(&order).await;
    assert!(matches!(end, Inline::Done(Some(_))), "{end:?}");
    assert_eq!((look(&pool, &order).await.row_count, bench.s3.keys().await.len()), (Some(30_000), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_stored_although_its_row_finds_no_room() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let (server, pool) = server(&disk).await;
    let s3 = voiceai_testkit::s3().await;
    let mut ctx = crate::backup::context(&server.url(), &s3).await;
    ctx.pool = Some(pool.clone());
    fill(&pool, BACKUPS).await;
    let never = CancellationToken::new();
    let taken = voiceai_tasker::jobs::backup::run(&ctx, None, &never).await.unwrap().manifest;
    let known: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ops.backups WHERE state IN ('running', 'stored')")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(known, 0, "there was no room for the row");
    let listed = voiceai_tasker::jobs::backup::list(&ctx, 10, None).await.unwrap().backups;
    assert_eq!(listed.iter().map(|entry| entry.keys.id()).collect::<Vec<_>>(), [taken.id.as_str()]);
    disk.make_room(&pool).await;
    assert!(voiceai_tasker::jobs::backup::verify(&ctx, "latest", &never).await.unwrap().proved);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_end_finds_no_room_is_made_again_and_leaves_one_object() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let (_server, pool) = server(&disk).await;
    let mut bench = Bench::new("").await;
    bench.ctx.pool = pool.clone();
    bench.ctx.settings.lease = Duration::from_secs(2);
    let order = bench.order(Format::Csv, None, json!({})).await;
    // Between the claim and the upload, and so before the end.
    bench.way.pause();
    let fill_meanwhile = async {
        wait_until(PATIENCE, "the claim", async || look(&pool, &order).await.status == "PROCESSING").await;
        fill(&pool, ORDERS).await;
        // What the claim has left behind is room for one more row: a look takes it away.
        sqlx::query("SELECT count(*) FROM ops.export_jobs").execute(&pool).await.unwrap();
        small_disk::until_full(&pool, ORDERS).await;
        bench.way.resume();
    };
    let (end, ()) = tokio::join!(bench.run(&order), fill_meanwhile);
    assert!(
        matches!(&end, Inline::Retry { error, .. } if error.contains("No space left on device")),
        "{end:?}"
    );
    assert_eq!(look(&pool, &order).await.status, "PROCESSING", "its end could not be written");
    assert_eq!(bench.s3.keys().await.len(), 1, "it was stored in vain");

    disk.make_room(&pool).await;
    let made = wait_for(PATIENCE, "the order is taken up once its claim is over", async || {
        match bench.run(&order).await {
            Inline::Done(Some(_)) => Ok(look(&pool, &order).await),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!((made.status.as_str(), made.row_count, made.attempt), ("COMPLETED", Some(30_000), 2));
    assert_eq!(bench.s3.keys().await, [made.file_path.unwrap()], "what was stored in vain is gone");
    assert_eq!(bench.s3.unfinished_uploads().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_end_finds_no_room_is_stored_once_and_known_once_there_is_room() {
    let Some(disk) = SmallDisk::mount(3) else { return };
    let (server, pool) = server(&disk).await;
    let s3 = voiceai_testkit::s3().await;
    let port: u16 = s3.endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let way = TcpProxy::start(port).await;
    let outside = S3 { endpoint: format!("http://127.0.0.1:{}", way.port()), ..s3.clone() };
    let mut ctx = crate::backup::context(&server.url(), &outside).await;
    ctx.pool = Some(pool.clone());
    let state = async || -> Vec<String> {
        sqlx::query_scalar("SELECT state FROM ops.backups WHERE database <> 'd'")
            .fetch_all(&pool)
            .await
            .unwrap()
    };
    let fill_meanwhile = async {
        wait_until(PATIENCE, "the row of its beginning", async || state().await == ["running"]).await;
        way.pause();
        fill(&pool, BACKUPS).await;
        sqlx::query("SELECT count(*) FROM ops.backups").execute(&pool).await.unwrap();
        small_disk::until_full(&pool, BACKUPS).await;
        way.resume();
    };
    let never = CancellationToken::new();
    let (taken, ()) = tokio::join!(voiceai_tasker::jobs::backup::run(&ctx, None, &never), fill_meanwhile);
    let taken = taken.unwrap().manifest;
    assert_eq!(state().await, ["running"], "its end could not be written");
    let listed = voiceai_tasker::jobs::backup::list(&ctx, 10, None).await.unwrap().backups;
    assert_eq!(listed.iter().map(|entry| entry.keys.id()).collect::<Vec<_>>(), [taken.id.as_str()]);
    disk.make_room(&pool).await;
    assert!(voiceai_tasker::jobs::backup::verify(&ctx, "latest", &never).await.unwrap().proved);
    assert_eq!(s3.unfinished_uploads().await, 0);
    // The next one, which knows that nobody else is at work, finds it whole: it was not a failure.
    let next = voiceai_tasker::jobs::backup::run(&ctx, None, &never).await.unwrap().manifest;
    assert_ne!(next.id, taken.id);
    assert_eq!(state().await, ["stored", "stored"]);
}
