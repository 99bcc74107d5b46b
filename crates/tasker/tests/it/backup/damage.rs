//! Dumps that rot in the bucket.

use voiceai_tasker::jobs::backup::{BackupError, list, restore, verify};

use super::{Bench, address, never};

#[tokio::test]
async fn every_damage_at_rest_is_found_and_restores_nothing() {
    let bench = Bench::new().await;
    let manifest = bench.run().await.manifest;
    let sound = bench.s3.get(&manifest.key).await.expect("the dump");
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cut = |percent: usize| sound[..sound.len() * percent / 100].to_vec();
    let swapped = {
        // The right length and a sound archive, but of another moment.
        bench.database.execute("UPDATE twice SET v = 'diff' WHERE v IS NOT NULL").await;
        let other = bench.run().await.manifest;
        let mut bytes = bench.s3.get(&other.key).await.expect("the other dump");
        bytes.resize(sound.len(), 0);
        bytes
    };
    let target = voiceai_testkit::empty_database().await;
    for (what, bytes) in [
        ("bit in the middle", flipped(sound.len() / 2)),
        ("bit near the end", flipped(sound.len() - 20)),
        ("bit in the contents", flipped(200)),
        ("99 %", cut(99)),
        ("90 %", cut(90)),
        ("50 %", cut(50)),
        ("10 %", cut(10)),
        ("another dump", swapped),
    ] {
        bench.s3.put(&manifest.key, &bytes).await;
        let found = verify(&bench.ctx, &manifest.id, &never()).await.expect_err(what);
        assert!(matches!(found, BackupError::Damaged { .. }), "{what}: {found:?}");
        let refused =
            restore(&bench.ctx, &manifest.id, &address(&target.url), &never()).await.expect_err(what);
        assert!(matches!(refused, BackupError::Damaged { .. }), "{what}: {refused:?}");
        let held: i64 = voiceai_postgres::sqlx::query_scalar(
            "SELECT count(*) FROM pg_tables WHERE schemaname !~ '^pg_|information_schema'",
        )
        .fetch_one(&mut target.connect().await)
        .await
        .expect("a count");
        assert_eq!(held, 0, "{what}: the target is as it was");
    }
    let listed = list(&bench.ctx, 10, None).await.expect("a list").backups;
    let entry = listed.iter().find(|entry| entry.keys.id() == manifest.id).expect("listed");
    let proof = entry.proof.as_ref().expect("the failed proof is kept");
    assert!(!proof.proved && !proof.problems.is_empty());

    bench.s3.put(&manifest.key, &sound).await;
    assert!(verify(&bench.ctx, &manifest.id, &never()).await.expect("sound again").proved);
    let left = bench.text("SELECT count(*)::text FROM pg_database WHERE datname LIKE 'voiceai\\_verify\\_' || left((SELECT id FROM ops.backups LIMIT 1), 6) || '%'").await;
    assert_eq!(left.as_deref(), Some("0"), "scratch databases are removed after failures too");
}

#[tokio::test]
async fn a_proof_finds_what_the_checksum_cannot() {
    let bench = Bench::new().await;
    let manifest = bench.run().await.manifest;
    // A manifest that promises more than the dump holds, as a backup that missed rows would.
    let key = format!("{}.manifest.json", manifest.key.trim_end_matches(".dump"));
    let text = String::from_utf8(bench.s3.get(&key).await.expect("the manifest")).expect("text");
    bench.s3.put(&key, text.replace("\"rows\": 2000", "\"rows\": 2001").as_bytes()).await;
    let differs = verify(&bench.ctx, &manifest.id, &never()).await.expect_err("a row is missing");
    let said = differs.to_string();
    assert!(
        matches!(differs, BackupError::Differs { .. }) && said.contains("2000 rows instead of 2001"),
        "{said}"
    );
    assert_eq!(differs.exit_code().code(), 1);
}

#[tokio::test]
async fn a_dump_that_is_gone_and_a_manifest_that_is_rubbish_are_told() {
    let bench = Bench::new().await;
    let gone = bench.run().await.manifest;
    let rubbish = bench.run().await.manifest;
    bench.ctx.store.delete(&gone.key).await.expect("deleted");
    let key = format!("{}.manifest.json", rubbish.key.trim_end_matches(".dump"));
    bench.s3.put(&key, b"<html>").await;
    let listed = list(&bench.ctx, 10, None).await.expect("a list is made all the same").backups;
    let entry = |id: &str| listed.iter().find(|entry| entry.keys.id() == id).expect("listed");
    assert_eq!(entry(&gone.id).problem.as_deref(), Some("the dump is missing"));
    assert!(entry(&rubbish.id).manifest.is_err());
    assert!(matches!(verify(&bench.ctx, &gone.id, &never()).await, Err(BackupError::Damaged { .. })));
    assert!(matches!(verify(&bench.ctx, &rubbish.id, &never()).await, Err(BackupError::Manifest { .. })));
}
