//! Retention, encryption, compression, several series, the scheduled proof and the alarm.

use std::time::Duration;

use jiff::Timestamp;
use voiceai_queue::{DeadReason, Inline, InlineRunner, NewJob, Registry};
use voiceai_tasker::jobs::backup::{
    BackupError, BackupVerify, Keep, Watch, find, list, newest, restore, run, verify,
};

use super::{Bench, address, never};

#[tokio::test]
async fn retention_removes_the_oldest_wholly_and_never_the_newest_proved_one() {
    let mut bench = Bench::new().await;
    let first = bench.run().await.manifest;
    let proved = bench.run().await.manifest;
    verify(&bench.ctx, &proved.id, &never()).await.expect("a proof");
    let third = bench.run().await;
    assert!(third.removed.is_empty(), "no rule, nothing removed");
    // What a kill between manifest and dump leaves, and a proof that came after the end of its backup.
    let stem = format!("database-dumps/20200101T000000Z-x-{}", &first.id[..6]);
    bench.s3.put(&format!("{stem}00000000.dump"), b"half").await;
    bench.s3.put(&format!("{stem}00000001.proof.json"), b"{}").await;
    bench.ctx.policy.keep = Keep { last: 1, ..Keep::default() };
    let fourth = bench.run().await;
    assert_eq!(fourth.removed, [first.id.clone(), third.manifest.id.clone()]);
    let mut left: Vec<String> = list(&bench.ctx, 10, None)
        .await
        .expect("a list")
        .backups
        .iter()
        .map(|entry| entry.keys.id().to_owned())
        .collect();
    left.sort();
    let mut kept = vec![proved.id.clone(), fourth.manifest.id.clone()];
    kept.sort();
    assert_eq!(left, kept);
    let keys = bench.s3.keys().await;
    assert_eq!(keys.len(), 5, "two backups and one proof: {keys:?}");
    let removed = bench.text("SELECT count(*)::text FROM ops.backups WHERE removed_at IS NOT NULL").await;
    assert_eq!(removed.as_deref(), Some("2"));
}

#[tokio::test]
async fn an_encrypted_backup_is_proved_and_restored_by_its_key_alone() {
    let mut bench = Bench::new().await;
    let key = age::x25519::Identity::generate();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, identity: &age::x25519::Identity| {
        let path = folder.path().join(name);
        std::fs::write(&path, age::secrecy::ExposeSecret::expose_secret(&identity.to_string()))
            .expect("a key file");
        path
    };
    bench.ctx.policy.recipients = vec![key.to_public().to_string()];
    bench.ctx.policy.compression = "none".to_owned();
    let taken = bench.run().await.manifest;
    assert_eq!(taken.encryption.as_ref().map(|encryption| encryption.method.as_str()), Some("age"));
    let stored = bench.s3.get(&taken.key).await.expect("the dump");
    assert!(stored.starts_with(b"age-encryption.org/v1\n"));
    assert!(!stored.windows(5).any(|window| window == b"PGDMP"), "nothing of the archive shows");

    let target = voiceai_testkit::empty_database().await;
    for (identity, says) in [
        (None, "no identity"),
        (Some(file("wrong", &age::x25519::Identity::generate())), "none of the identities"),
        (Some(folder.path().join("absent")), "absent"),
    ] {
        bench.ctx.policy.identity_file = identity;
        for error in [
            verify(&bench.ctx, "latest", &never()).await.map(drop).expect_err(says),
            restore(&bench.ctx, "latest", &address(&target.url), &never()).await.map(drop).expect_err(says),
        ] {
            assert!(
                matches!(&error, BackupError::Encryption { problem } if problem.contains(says)),
                "{error}"
            );
        }
    }
    assert!(
        list(&bench.ctx, 1, None).await.expect("a list").backups[0].proof.is_none(),
        "says nothing of the backup"
    );
    bench.ctx.policy.identity_file = Some(file("right", &key));
    assert!(verify(&bench.ctx, "latest", &never()).await.expect("a proof").proved);
    restore(&bench.ctx, "latest", &address(&target.url), &never()).await.expect("restored");
    let again = bench.run().await.manifest;
    let mut rotten = bench.s3.get(&again.key).await.expect("the dump");
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    bench.s3.put(&again.key, &rotten).await;
    let damaged = verify(&bench.ctx, "latest", &never()).await.expect_err("one bit");
    assert!(matches!(damaged, BackupError::Damaged { .. }), "{damaged}");
}

#[tokio::test]
async fn a_dump_of_some_schemas_is_a_series_of_its_own() {
    let bench = Bench::new().await;
    let whole = bench.run().await.manifest;
    let series = bench.ctx.series(None, &["public".to_owned(), "billing".to_owned()]).expect("a series");
    let part = run(&series, None, &never()).await.expect("a backup").manifest;
    assert_eq!(part.only_schemas, ["billing", "public"]);
    assert!(part.content.tables.iter().all(|table| part.only_schemas.contains(&table.schema)));
    assert_eq!(find(&bench.ctx, "latest").await.expect("the whole one").1.id, whole.id);
    assert_eq!(find(&series, "latest").await.expect("the part").1.id, part.id);
    assert!(verify(&series, "latest", &never()).await.expect("a proof").proved);
    let target = voiceai_testkit::empty_database().await;
    let restored = restore(&bench.ctx, &part.id, &address(&target.url), &never()).await.expect("restored");
    assert_eq!(restored.rows, part.content.rows());
    let newest = newest(bench.ctx.pool.as_ref().expect("a pool")).await.expect("a row");
    assert_eq!(
        (newest.stored_at, newest.proved_at),
        (Some(whole.snapshot_at), None),
        "a part proves no whole"
    );
    let absent = bench.ctx.series(None, &["nope".to_owned()]).expect("a series");
    let error = run(&absent, None, &never()).await.expect_err("no such schema");
    assert!(matches!(&error, BackupError::NoSchema { schema, .. } if schema == "nope"), "{error}");
}

#[tokio::test]
async fn a_further_database_has_its_own_backups() {
    let mut bench = Bench::new().await;
    let other = voiceai_testkit::empty_database().await;
    other.execute("CREATE TABLE invoices AS SELECT i FROM generate_series(1, 7) i").await;
    bench.ctx.others.insert("billing".to_owned(), address(&other.url));
    let series = bench.ctx.series(Some("billing"), &[]).expect("a series");
    let taken = run(&series, None, &never()).await.expect("a backup").manifest;
    assert_eq!((taken.target.as_deref(), taken.content.rows()), (Some("billing"), 7));
    assert!(verify(&bench.ctx, &taken.id, &never()).await.expect("a proof").proved);
    assert!(
        matches!(find(&bench.ctx, "latest").await, Err(BackupError::NotFound { .. })),
        "it is not the service's own"
    );
    let unknown = bench.ctx.series(Some("biling"), &[]).expect_err("a slip").to_string();
    assert!(unknown.contains("biling") && unknown.contains("there are billing"), "{unknown}");
}

#[tokio::test]
async fn a_failed_scheduled_proof_and_an_overdue_one_are_told_to_people() {
    let bench = Bench::new().await;
    let pool = bench.ctx.pool.clone().expect("a pool");
    let taken = bench.run().await.manifest;
    let runner = InlineRunner::new(Registry::new().register::<BackupVerify>(bench.ctx.clone()));
    let job = NewJob::json("backup.verify", &serde_json::json!({})).expect("a payload");
    let ended = runner.run(&job).await.end;
    assert!(matches!(&ended, Inline::Done(Some(proof)) if proof["proved"] == true), "{ended:?}");

    let watch = Watch::new(pool, Duration::from_secs(3600), []);
    let told = async || {
        bench
            .text("SELECT COALESCE(string_agg(payload->>'event', ',' ORDER BY seq), '') FROM ops.outbox")
            .await
            .expect("a row")
    };
    watch.look(Timestamp::now()).await.expect("a look");
    assert_eq!(told().await, "");
    let later = taken.snapshot_at + jiff::SignedDuration::from_mins(61);
    for _ in 0..2 {
        watch.look(later).await.expect("a look");
    }
    assert_eq!(told().await, "backup_overdue", "once a day");

    bench.s3.put(&taken.key, b"rotten").await;
    let ended = runner.run(&job).await.end;
    assert!(matches!(ended, Inline::Dead { reason: DeadReason::DiscardedByHandler, .. }), "{ended:?}");
    assert_eq!(told().await, "backup_overdue,backup_disproved");
    watch.look(Timestamp::now()).await.expect("a look");
    assert_eq!(told().await, "backup_overdue,backup_disproved", "one that began lately is not overdue yet");
}
