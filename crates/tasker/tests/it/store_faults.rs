//! A store that is full, forgets who we are, or has moved, in the middle of an upload: nothing of the object stays, the row says
//! why, and the next attempt is whole. By exports and by backups.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use voiceai_aws::ObjectStore;
use voiceai_queue::Inline;
use voiceai_tasker::jobs::backup::{list, run, verify};
use voiceai_tasker::jobs::export::Format;

use crate::export_bench::Bench;
use crate::store_front::{Fault, Front};

/// Three parts.
const TABLE: &str = "CREATE TABLE devices (device_id int, note text);
                     INSERT INTO devices SELECT i, repeat(md5(i::text), 31) FROM generate_series(1, 20000) i";

fn is_part(first: &str, number: u8) -> bool {
    first.starts_with("PUT ") && first.contains(&format!("partNumber={number}"))
}

/// What the store does, and what is said of it.
const FAULTS: [(Fault, &str); 6] = [
    (
        |first| is_part(first, 2).then_some((507, "InsufficientStorage")),
        "the store is full (InsufficientStorage",
    ),
    (
        |first| is_part(first, 3).then_some((403, "ExpiredToken")),
        "does not accept the credentials (ExpiredToken",
    ),
    (
        |first| is_part(first, 1).then_some((403, "RequestTimeTooSkewed")),
        "clock is wrong (RequestTimeTooSkewed",
    ),
    (
        |first| {
            (first.starts_with("POST ") && first.contains("uploads")).then_some((301, "PermanentRedirect"))
        },
        "the bucket is in another region (PermanentRedirect",
    ),
    (
        |first| {
            (first.starts_with("POST ") && first.contains("uploadId=")).then_some((507, "XMinioStorageFull"))
        },
        "the store is full (XMinioStorageFull",
    ),
    (|first| is_part(first, 2).then_some((500, "InternalError")), "the store is unavailable (InternalError"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_store_fails_in_the_middle_leaves_nothing_and_is_whole_the_next_time() {
    let mut bench = Bench::new(TABLE).await;
    let front = Front::of(&bench.s3.endpoint).await;
    let mut settings = Bench::store(&bench.s3, &bench.way, &bench.s3.bucket);
    settings.endpoint = Some(front.endpoint.clone());
    bench.ctx.store = ObjectStore::new(&settings).await;
    for (fault, says) in FAULTS {
        let order = bench.order(Format::Ndjson, None, json!({})).await;
        front.answer(fault);
        let end = bench.run(&order).await;
        assert!(matches!(&end, Inline::Retry { error, .. } if error.contains(says)), "{says}: {end:?}");
        let failed = bench.look(&order).await;
        assert_eq!((failed.status.as_str(), failed.file_path), ("PENDING", None), "{says}");
        assert!(failed.error.is_some_and(|error| error.contains(says)), "{says}");
        assert_eq!((bench.s3.keys().await, bench.s3.unfinished_uploads().await), (vec![], 0), "{says}");
        front.heal();
        let (made, _) = bench.made(&order).await;
        assert_eq!((made.row_count, made.error), (Some(20_000), None), "{says}");
        bench.ctx.store.delete(&made.file_path.unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_the_store_refuses_for_good_fails_after_its_attempts_with_the_remedy() {
    let mut bench = Bench::new("CREATE TABLE devices (device_id text)").await;
    let front = Front::of(&bench.s3.endpoint).await;
    let mut settings = Bench::store(&bench.s3, &bench.way, &bench.s3.bucket);
    settings.endpoint = Some(front.endpoint.clone());
    bench.ctx.store = ObjectStore::new(&settings).await;
    let order = bench.order(Format::Csv, None, json!({})).await;
    front.answer(|first| first.starts_with("PUT ").then_some((507, "InsufficientStorage")));
    for _ in 0..4 {
        assert!(matches!(bench.run(&order).await, Inline::Retry { .. }));
    }
    let last = bench.run(&order).await;
    assert!(matches!(last, Inline::Dead { .. }), "{last:?}");
    let failed = bench.look(&order).await;
    assert_eq!(failed.status, "FAILED");
    assert!(failed.error.is_some_and(|error| error.contains("Make room in the store")));
    assert_eq!((bench.s3.keys().await, bench.s3.unfinished_uploads().await), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_odd_characters_is_a_folder_as_any_other() {
    let mut bench =
        Bench::new("CREATE TABLE devices (device_id text); INSERT INTO devices VALUES ('a')").await;
    bench.ctx.settings.prefix = "ex ports+/ü%41/#?&='\"()*!".to_owned();
    let order = bench.order(Format::Csv, None, json!({})).await;
    assert!(matches!(bench.run(&order).await, Inline::Done(Some(_))));
    let made = bench.look(&order).await;
    let key = made.file_path.unwrap();
    assert_eq!(key, format!("{}/{}-1.csv", bench.ctx.settings.prefix, order.id));
    let link = bench.ctx.store.presigned(&key, Duration::from_secs(60)).await.unwrap();
    let got = tokio::process::Command::new("curl").args(["-sSfg", &link]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got.stdout), "device_id\na\n", "{got:?}");
    bench.database.execute("UPDATE ops.export_jobs SET expires_at = now() - interval '1 s'").await;
    assert_eq!(bench.cleanup().await["removed"], 1);
    assert_eq!(bench.s3.keys().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_store_fails_in_the_middle_leaves_nothing_and_is_whole_the_next_time() {
    const FAULTS: [(Fault, &str, u8); 5] = [
        (|first| is_part(first, 1).then_some((507, "InsufficientStorage")), "the store is full", 1),
        (|first| is_part(first, 1).then_some((403, "ExpiredToken")), "does not accept the credentials", 4),
        (
            |first| {
                (first.starts_with("POST ") && first.contains("uploadId="))
                    .then_some((301, "PermanentRedirect"))
            },
            "another region",
            4,
        ),
        (
            |first| first.contains(".manifest.json").then_some((507, "InsufficientStorage")),
            "the store is full",
            1,
        ),
        // A store that gives back something else than it was given.
        (
            |first| (first.starts_with("GET ") && first.contains(".dump")).then_some((200, "Swapped")),
            "is damaged: its SHA-256 is",
            1,
        ),
    ];
    let database = voiceai_testkit::database().await;
    database.execute(TABLE).await;
    let s3 = voiceai_testkit::s3().await;
    let front = Front::of(&s3.endpoint).await;
    let behind = voiceai_testkit::S3 { endpoint: front.endpoint.clone(), ..s3.clone() };
    let mut ctx = crate::backup::context(&database.url, &behind).await;
    ctx.pool = Some(database.pool().await);
    let never = CancellationToken::new();
    for (fault, says, exit) in FAULTS {
        front.answer(fault);
        let failed = run(&ctx, None, &never).await.expect_err(says);
        assert!(failed.to_string().contains(says), "{says}: {failed}");
        assert_eq!(failed.exit_code().code(), exit, "{failed}");
        assert_eq!((s3.keys().await, s3.unfinished_uploads().await), (vec![], 0), "{says}");
        assert!(list(&ctx, 10, None).await.expect("a list").backups.is_empty());
        front.heal();
    }
    let rows: Vec<String> =
        voiceai_postgres::sqlx::query_scalar("SELECT error FROM ops.backups ORDER BY started_at")
            .fetch_all(ctx.pool.as_ref().unwrap())
            .await
            .unwrap();
    assert_eq!(rows.len(), FAULTS.len());
    assert!(rows.iter().zip(FAULTS).all(|(row, (_, says, _))| row.contains(says)), "{rows:?}");
    run(&ctx, None, &never).await.expect("a sound store");
    assert!(verify(&ctx, "latest", &never).await.expect("a proof").proved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_needs_no_disk_of_this_host_and_takes_odd_names() {
    let database = voiceai_testkit::database().await;
    let name = format!("{} odd/\"ü'", database.name);
    let quoted = name.replace('"', "\"\"");
    database.execute(&format!("CREATE DATABASE \"{quoted}\"")).await;
    let encoded = name
        .replace(' ', "%20")
        .replace('/', "%2F")
        .replace('"', "%22")
        .replace('ü', "%C3%BC")
        .replace('\'', "%27");
    let s3 = voiceai_testkit::s3().await;
    let mut ctx = crate::backup::context(&database.url.replace(&database.name, &encoded), &s3).await;
    ctx.prefix = "dumps of/ü+%41".to_owned();
    let never = CancellationToken::new();
    let taken = run(&ctx, None, &never).await.expect("a backup").manifest;
    assert!(taken.key.starts_with("dumps of/ü+%41/"), "{}", taken.key);
    assert_eq!(taken.database.name, name);
    assert!(verify(&ctx, &taken.id, &never).await.expect("a proof").proved);
    assert_eq!(list(&ctx, 10, None).await.expect("a list").backups.len(), 1);
    database.execute(&format!("DROP DATABASE \"{quoted}\" WITH (FORCE)")).await;
}
