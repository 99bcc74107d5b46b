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
async fn a_digest_tells_every_two_contents_apart_and_survives_a_restore() {
    let database = voiceai_testkit::empty_database().await;
    // A pair of tables of each shape, whose rows differ in nothing but what the name says.
    let pairs = [
        ("null", "(a text, b text)", "VALUES (NULL, 'x')", "VALUES ('', 'x')"),
        ("which_null", "(a int, b int)", "VALUES (NULL, 7)", "VALUES (7, NULL)"),
        ("beside", "(a text, b int)", "VALUES ('x', 1), ('y', 2)", "VALUES ('x', 2), ('y', 1)"),
        ("column", "(a text, b text)", "VALUES ('x', 'y')", "VALUES ('y', 'x')"),
        ("boundary", "(a text, b text)", "VALUES ('xy', 'z')", "VALUES ('x', 'yz')"),
        ("scale", "(a numeric)", "VALUES (1.0)", "VALUES (1.00)"),
        ("zero", "(a float8)", "VALUES (0.0)", "VALUES ('-0'::float8)"),
        ("last_bit", "(a float8)", "VALUES (0.3)", "VALUES (0.1::float8 + 0.2::float8)"),
        (
            "microsecond",
            "(a timestamptz)",
            "VALUES ('2026-03-29 01:30Z')",
            "VALUES ('2026-03-29 01:30:00.000001Z')",
        ),
        ("array", "(a text[])", "VALUES (ARRAY['a,b'])", "VALUES (ARRAY['a', 'b'])"),
        ("empty_array", "(a int[])", "VALUES (NULL)", "VALUES ('{}'::int[])"),
        ("composite", "(a pair)", "VALUES (NULL)", "VALUES (ROW(NULL, NULL)::pair)"),
        ("twice", "(a text NOT NULL)", "VALUES ('x'), ('x'), ('y')", "VALUES ('x'), ('y'), ('y')"),
        ("bytes", "(a bytea)", "VALUES ('\\x00ff')", "VALUES ('\\x00fe')"),
        ("json", "(a json)", "VALUES ('{\"a\": 1}')", "VALUES ('{\"a\":1}')"),
        (
            "padded",
            "(a char(4), b \"char\", c name, d xml, e mood)",
            "VALUES ('x', 'y', 'z', '<a/>', 'odd')",
            "VALUES ('x', 'y', 'z', '<a/>', 'even')",
        ),
        ("\"t\"", "(t int, \"T\"\"x\" int)", "VALUES (1, 2)", "VALUES (1, 3)"),
    ];
    database.execute("CREATE TYPE pair AS (x int, y int); CREATE TYPE mood AS ENUM ('odd', 'even')").await;
    let name = |shape: &str, side: &str| format!("{}_{side}", shape.trim_matches('"'));
    for (shape, columns, one, other) in pairs {
        for (side, rows) in [("one", one), ("other", other)] {
            let table = name(shape, side);
            database
                .execute(&format!("CREATE TABLE \"{table}\" {columns}; INSERT INTO \"{table}\" {rows}"))
                .await;
        }
    }
    for count in [100, 101, 1500] {
        let columns: Vec<String> = (1..=count).map(|number| format!("c{number} bool")).collect();
        let table = format!(
            "CREATE TABLE wide_{count} ({}); INSERT INTO wide_{count} (c1) VALUES (true)",
            columns.join(", ")
        );
        database.execute(&table).await;
    }
    // After a restore this one's columns are in another order, and that one's are fewer by the dropped one.
    database
        .execute(
            "CREATE TABLE parent (a int, b text); CREATE TABLE child (b text, c int, a int); ALTER TABLE child INHERIT parent;
             INSERT INTO child VALUES ('x', 1, 2); CREATE TABLE dropped (a int, b int, c int); ALTER TABLE dropped DROP COLUMN b;
             INSERT INTO dropped VALUES (1, 2); CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES;
             CREATE TABLE made (a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO made VALUES (4)",
        )
        .await;
    let s3 = voiceai_testkit::s3().await;
    let ctx = context(&database.url, &s3).await;
    let manifest = run(&ctx, None, &never()).await.expect("a backup").manifest;
    assert_eq!(manifest.content.row_hash, RowHash::HashText);
    for (shape, ..) in pairs {
        let (one, other) = (name(shape, "one"), name(shape, "other"));
        assert_ne!(digest(&manifest, &one), digest(&manifest, &other), "{shape}");
    }
    assert!(manifest.content.tables.iter().all(|table| table.digest.is_some()), "{:?}", manifest.content);
    assert!(verify(&ctx, "latest", &never()).await.expect("a proof").proved);
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
