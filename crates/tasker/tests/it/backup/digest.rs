//! The digests by which a restore is compared.

use voiceai_tasker::jobs::backup::{BackupError, Manifest, RowHash, restore, run, verify};
use voiceai_testkit::PostgresServer;

use super::faults::execute;
use super::{Bench, address, context, never};

/// Makes a database's server one that hashes text in another way: of the other byte order, or of a version to come.
const OTHER_HASH: &str = "ALTER FUNCTION pg_catalog.hashtextextended(text, bigint) RENAME TO hashtextextended_as_it_was;
     CREATE FUNCTION pg_catalog.hashtextextended(text, bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT 7::bigint'";

fn digest(manifest: &Manifest, table: &str) -> String {
    let found = manifest.content.tables.iter().find(|known| known.name == table).expect(table);
    found.digest.clone().expect("a digest")
}

#[tokio::test]
async fn a_change_of_any_column_changes_the_digest_and_the_order_of_rows_does_not() {
    let bench = Bench::new().await;
    bench
        .database
        .execute("CREATE TABLE timed (t int, note text); INSERT INTO timed VALUES (1, 'a'), (2, 'b')")
        .await;
    let first = bench.run().await.manifest;
    assert_eq!((first.content.row_hash, first.format), (RowHash::HashText, 3));
    bench.database.execute("TRUNCATE timed; INSERT INTO timed VALUES (2, 'b'), (1, 'a')").await;
    let turned = bench.run().await.manifest;
    // One of the name t must not stand for the whole row.
    bench.database.execute("UPDATE timed SET note = 'c' WHERE t = 2").await;
    let changed = bench.run().await.manifest;
    assert_eq!(digest(&first, "timed"), digest(&turned, "timed"));
    assert_ne!(digest(&first, "timed"), digest(&changed, "timed"));
    assert_eq!(digest(&first, "twice"), digest(&changed, "twice"));
    // The digest alone tells rows that were changed at rest: the number is the same.
    let key = format!("{}.manifest.json", changed.key.trim_end_matches(".dump"));
    let text = String::from_utf8(bench.s3.get(&key).await.expect("the manifest")).expect("text");
    let other = text.replace(&digest(&changed, "timed"), &digest(&first, "timed"));
    bench.s3.put(&key, other.as_bytes()).await;
    let differs = verify(&bench.ctx, &changed.id, &never()).await.expect_err("other rows");
    assert!(differs.to_string().contains("table public.timed has other content"), "{differs}");
}

#[tokio::test]
async fn a_server_that_hashes_in_another_way_is_backed_up_with_md5_and_proved() {
    let database = voiceai_testkit::empty_database().await;
    database.execute("CREATE TABLE twice AS SELECT unnest(ARRAY['same', 'same', NULL]) AS v").await;
    let s3 = voiceai_testkit::s3().await;
    let ctx = context(&database.url, &s3).await;
    let usual = run(&ctx, None, &never()).await.expect("a backup").manifest;
    database.execute(OTHER_HASH).await;
    let taken = run(&ctx, None, &never()).await.expect("a backup").manifest;
    assert_eq!((taken.content.row_hash, taken.format), (RowHash::Md5, 1));
    assert_ne!(digest(&taken, "twice"), digest(&usual, "twice"));
    assert!(verify(&ctx, &taken.id, &never()).await.expect("a proof").proved);

    // Where digests cannot be compared, a restore is made all the same.
    let target = voiceai_testkit::empty_database().await;
    target.execute(OTHER_HASH).await;
    let restored = restore(&ctx, &usual.id, &address(&target.url), &never()).await.expect("restored");
    assert_eq!(restored.rows, usual.content.rows());
    assert!(!restored.digests_compared, "by counts alone");
    let target = voiceai_testkit::empty_database().await;
    let restored = restore(&ctx, &usual.id, &address(&target.url), &never()).await.expect("restored");
    assert!(restored.digests_compared);
}

#[tokio::test]
async fn no_proof_is_made_where_digests_cannot_be_compared() {
    let server = PostgresServer::start().await;
    execute(&server.url(), "CREATE TABLE t AS SELECT 1 AS a").await;
    let s3 = voiceai_testkit::s3().await;
    let ctx = context(&server.url(), &s3).await;
    let taken = run(&ctx, None, &never()).await.expect("a backup").manifest;
    // What every scratch database is made of.
    execute(&server.url(), "ALTER DATABASE template0 ALLOW_CONNECTIONS true").await;
    execute(
        &server.url().replace("/voiceai", "/template0").replace("//template0@", "//voiceai@"),
        OTHER_HASH,
    )
    .await;
    let refused = verify(&ctx, &taken.id, &never()).await.expect_err("not comparable");
    assert!(matches!(refused, BackupError::Incomparable { .. }), "{refused}");
    assert_eq!(refused.exit_code().code(), 4);
    assert_eq!(s3.keys().await.len(), 2, "no proof, good or bad");
}
