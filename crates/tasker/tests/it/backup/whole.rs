//! The way that is meant to be gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use voiceai_tasker::jobs::backup::{BackupError, find, list, newest, restore, run, verify};

use super::{Bench, address, context, never};

#[tokio::test]
async fn a_backup_is_listed_proved_and_restored() {
    let bench = Bench::new().await;
    let taken = bench.run().await;
    let manifest = &taken.manifest;
    assert!(taken.new && taken.proof.is_none());
    assert!(manifest.bytes > 1000 && manifest.sha256.len() == 64 && manifest.id.len() == 14);
    let table = |schema: &str, name: &str| {
        let found = manifest.content.tables.iter().find(|table| table.schema == schema && table.name == name);
        found.unwrap_or_else(|| panic!("{schema}.{name} is not in the manifest")).clone()
    };
    assert_eq!(table("public", "odd \"name\" é").rows, 2000);
    assert_eq!(table("billing", "calls_1").rows + table("billing", "calls_2").rows, 3000);
    assert_eq!((table("public", "twice").rows, table("public", "none").rows), (3, 0));
    assert!(table("ops", "backups").digest.is_some(), "our own tables are part of it");
    assert!(manifest.content.schemas.iter().any(|schema| schema == "billing"));
    assert_eq!(manifest.content.large_objects, 1);

    let stem = format!(
        "database-dumps/{}-{}-{}",
        manifest.started_at.strftime("%Y%m%dT%H%M%SZ"),
        bench.database.name,
        manifest.id
    );
    assert_eq!(bench.s3.keys().await, [format!("{stem}.dump"), format!("{stem}.manifest.json")]);
    let listed = list(&bench.ctx, 10, None).await.expect("a list").backups;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].manifest.as_ref(), Ok(manifest));
    assert!(listed[0].proof.is_none() && listed[0].problem.is_none());

    let proof = verify(&bench.ctx, "latest", &never()).await.expect("a proof");
    assert!(proof.proved && proof.duration_ms > 0 && proof.problems.is_empty());
    assert_eq!((proof.tables, proof.rows), (manifest.content.tables.len(), manifest.content.rows()));
    assert_eq!(list(&bench.ctx, 10, None).await.expect("a list").backups[0].proof.as_ref(), Some(&proof));
    assert_eq!(scratch_databases(&bench).await, 0);

    let target = voiceai_testkit::empty_database().await;
    let restored =
        restore(&bench.ctx, &manifest.id[..10], &address(&target.url), &never()).await.expect("restored");
    assert_eq!((restored.tables, restored.rows), (proof.tables, proof.rows));
    let found: i64 =
        voiceai_postgres::sqlx::query_scalar("SELECT sum(amount)::int8 FROM \"odd \"\"name\"\" é\"")
            .fetch_one(&mut target.connect().await)
            .await
            .expect("the table is there");
    assert_eq!(found, 285_857);

    let state =
        bench.text("SELECT state || ' ' || (proved_at IS NOT NULL) || ' ' || rows FROM ops.backups").await;
    assert_eq!(state, Some(format!("stored true {}", manifest.content.rows())));
    let newest = newest(bench.ctx.pool.as_ref().expect("a pool")).await.expect("a row");
    assert_eq!(newest.proved_at, Some(manifest.snapshot_at));
}

async fn scratch_databases(bench: &Bench) -> i64 {
    let count = "SELECT count(*)::text FROM pg_database WHERE datname LIKE 'voiceai_verify_' || left((SELECT id FROM ops.backups LIMIT 1), 6) || '%'";
    bench.text(count).await.and_then(|count| count.parse().ok()).expect("a count")
}

#[tokio::test]
async fn the_bucket_alone_is_enough() {
    let bench = Bench::new().await;
    let first = bench.run().await.manifest;
    let second = bench.run().await.manifest;
    bench.database.execute("DROP SCHEMA ops CASCADE").await;
    let mut elsewhere = context(&bench.database.url, &bench.s3).await;
    elsewhere.instance = "a laptop".to_owned();
    let page = list(&elsewhere, 1, None).await.expect("a list");
    assert_eq!(page.backups.len(), 1);
    let rest = list(&elsewhere, 1, page.next.as_deref()).await.expect("a list");
    assert_eq!((rest.backups.len(), rest.next), (1, None));
    let mut ids = [page.backups[0].keys.id().to_owned(), rest.backups[0].keys.id().to_owned()];
    ids.sort();
    let mut both = [first.id.clone(), second.id.clone()];
    both.sort();
    assert_eq!(ids, both);
    assert!(verify(&elsewhere, &first.id, &never()).await.expect("a proof").proved);
    assert!(matches!(find(&elsewhere, "0000000").await, Err(BackupError::NotFound { .. })));
    assert!(matches!(find(&elsewhere, "").await, Err(BackupError::NotFound { .. })));
    let ambiguous = find(&elsewhere, &first.id[..6]).await.expect_err("both begin so").to_string();
    assert!(ambiguous.contains("several"), "{ambiguous}");
}

#[tokio::test]
async fn the_same_request_takes_one_backup() {
    let bench = Bench::new().await;
    let first = run(&bench.ctx, Some("job-1"), &never()).await.expect("a backup");
    let again = run(&bench.ctx, Some("job-1"), &never()).await.expect("the same backup");
    assert!(first.new && !again.new);
    assert_eq!(first.manifest, again.manifest);
    let other = run(&bench.ctx, Some("job-2"), &never()).await.expect("another");
    assert!(other.new && other.manifest.id != first.manifest.id);
    assert_eq!(list(&bench.ctx, 10, None).await.expect("a list").backups.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_and_dump_are_of_one_moment_while_others_write() {
    let bench = Bench::new().await;
    let fill = "CREATE TABLE busy (id serial PRIMARY KEY, v text);
                INSERT INTO busy (v) SELECT md5(i::text) || md5((i + 1)::text) || md5((i * 7)::text) || md5((i * 11)::text)
                FROM generate_series(1, 120000) i";
    bench.database.execute(fill).await;
    let done = Arc::new(AtomicBool::new(false));
    let (stop, mut session) = (Arc::clone(&done), bench.database.connect().await);
    let writer = tokio::spawn(async move {
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            let write =
                "WITH gone AS (DELETE FROM busy WHERE id IN (SELECT id FROM busy ORDER BY id LIMIT 3))
                         INSERT INTO busy (v) VALUES (md5(random()::text))";
            voiceai_postgres::sqlx::query(write).execute(&mut session).await.expect("written");
            written += 1;
        }
        written
    });
    let taken = bench.run().await;
    done.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("no panic") > 10, "the writer ran beside the dump");
    assert!(verify(&bench.ctx, &taken.manifest.id, &never()).await.expect("a proof").proved);
}

#[tokio::test]
async fn a_restore_goes_into_an_empty_database_of_its_own_only() {
    let bench = Bench::new().await;
    let taken = bench.run().await;
    let before = bench.text("SELECT count(*)::text FROM pg_class").await;
    let other = bench.database.url.replace("127.0.0.1", "localhost");
    assert_ne!(other, bench.database.url);
    let full = voiceai_testkit::empty_database().await;
    full.execute("CREATE SCHEMA app; CREATE TABLE app.customers (id int)").await;
    let missing = bench.database.url.replace(&bench.database.name, "no_such_database");
    for (into, said) in [
        (&bench.database.url, "service's own"),
        (&other, "service's own database under another address"),
        (&full.url, "app.customers"),
    ] {
        let refused =
            restore(&bench.ctx, &taken.manifest.id, &address(into), &never()).await.expect_err(said);
        assert!(matches!(refused, BackupError::Target { .. }), "{refused:?}");
        assert!(refused.to_string().contains(said), "{refused}");
        assert_eq!(refused.exit_code().code(), 4);
    }
    let refused =
        restore(&bench.ctx, &taken.manifest.id, &address(&missing), &never()).await.expect_err("missing");
    assert_eq!(refused.exit_code().code(), 4, "{refused}");
    assert_eq!(bench.text("SELECT count(*)::text FROM pg_class").await, before, "nothing was done");
}
