//! Backups that do not end well leave nothing, and say why.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use voiceai_aws::{ObjectStore, S3Settings};
use voiceai_postgres::PgPool;
use voiceai_runtime::Secret;
use voiceai_tasker::jobs::backup::{BackupError, Tools, list, run, verify};
use voiceai_testkit::PostgresServer;

use super::{Bench, context, exists, never, tools_with, until};

/// Writes the first part of a real dump, tells so, and waits for ever.
const STUCK: &str = "$REAL \"$@\" | head -c 4000; touch $HERE/begun; exec sleep 300";

#[tokio::test]
async fn a_dump_that_is_killed_midway_is_no_backup() {
    let mut bench = Bench::new().await;
    let (_folder, tools) = tools_with("$REAL \"$@\" | head -c 50000; kill -9 $$");
    bench.ctx.tools = tools;
    let failed = run(&bench.ctx, None, &never()).await.expect_err("killed");
    assert!(failed.to_string().contains("pg_dump was ended by signal 9"), "{failed}");
    bench.assert_nothing_left().await;
    let row = bench.text("SELECT state || ': ' || error FROM ops.backups").await.expect("a row");
    assert!(row.starts_with("failed: pg_dump was ended by signal 9"), "{row}");
}

#[tokio::test]
async fn what_pg_dump_says_reaches_the_operator_and_a_good_backup_stays() {
    let mut bench = Bench::new().await;
    let good = bench.run().await.manifest;
    let (_folder, tools) = tools_with("$REAL \"$@\"; echo 'pg_dump: error: disk is on fire' >&2; exit 1");
    bench.ctx.tools = tools;
    let failed = run(&bench.ctx, None, &never()).await.expect_err("exit 1 after a whole dump");
    assert!(failed.to_string().contains("exit code 1: pg_dump: error: disk is on fire"), "{failed}");
    let left = list(&bench.ctx, 10, None).await.expect("a list").backups;
    assert_eq!(left.iter().map(|entry| entry.keys.id()).collect::<Vec<_>>(), [good.id.as_str()]);
    assert_eq!((bench.s3.keys().await.len(), bench.s3.unfinished_uploads().await), (2, 0));
}

#[tokio::test]
async fn a_dump_that_ends_well_but_is_not_whole_is_found_out_before_it_counts() {
    let mut bench = Bench::new().await;
    let (_folder, tools) = tools_with("$REAL \"$@\" | head -c 20000; exit 0");
    bench.ctx.tools = tools;
    // Encrypted to somebody whose key is not here, it is read before it is encrypted.
    for recipients in [vec![], vec![age::x25519::Identity::generate().to_public().to_string()]] {
        bench.ctx.policy.recipients = recipients;
        let failed = run(&bench.ctx, None, &never()).await.expect_err("half an archive");
        assert!(failed.to_string().contains("pg_restore"), "{failed}");
        bench.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn a_check_that_ends_early_ends_the_dump_and_says_why() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bench = Bench::new().await;
    // More than fits into a pipe, and no end: only the check's can end this backup.
    let (folder, tools) = tools_with("$REAL \"$@\"; yes | head -c 1000000; exec sleep 300");
    bench.ctx.tools = tools;
    let version = "case \"$1\" in --version) echo 'pg_restore (PostgreSQL) 99.1'; exit;; esac";
    let path = folder.path().join("pg_restore");
    for (script, says) in [
        (
            "echo 'pg_restore: error: odd archive' >&2; exit 1",
            "pg_restore ended with exit code 1: pg_restore: error: odd archive",
        ),
        ("head -c 100 >/dev/null; kill -9 $$", "pg_restore was ended by signal 9"),
        ("head -c 100 >/dev/null; exit 0", "pg_restore stopped reading before the end"),
    ] {
        std::fs::write(&path, format!("#!/bin/bash\n{version}\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        bench.ctx.tools = Tools::in_folders(vec![folder.path().to_owned()]);
        let (limit, cancel) = (Duration::from_secs(60), never());
        let ended = tokio::time::timeout(limit, run(&bench.ctx, None, &cancel));
        let failed = ended.await.expect(says).expect_err(says);
        assert!(failed.to_string().contains(says), "{says}: {failed}");
        bench.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn cancelling_leaves_nothing() {
    let mut bench = Bench::new().await;
    let (folder, tools) = tools_with(STUCK);
    bench.ctx.tools = tools;
    let cancel = CancellationToken::new();
    let stop = async {
        exists(&folder.path().join("begun")).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(run(&bench.ctx, None, &cancel), stop);
    assert!(matches!(ended, Err(BackupError::Cancelled)), "{ended:?}");
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn one_runs_at_a_time_and_a_killed_one_is_cleared_away() {
    let mut bench = Bench::new().await;
    let (folder, tools) = tools_with(STUCK);
    let real = std::mem::replace(&mut bench.ctx.tools, tools);
    let (mut ctx, url) = (bench.ctx.clone(), bench.database.url.clone());
    // A process that ends in the middle: its runtime goes, and with it the lock's session; nothing is aborted.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    process.spawn(async move {
        // Its own, as a process has it: a connection that was opened here would end with this runtime under the others.
        ctx.pool = Some(PgPool::connect(&url).await.expect("a pool"));
        run(&ctx, None, &CancellationToken::new()).await.map(|_| ())
    });
    exists(&folder.path().join("begun")).await;
    let busy = run(&bench.ctx, None, &never()).await.expect_err("one at a time");
    assert!(
        matches!(busy, BackupError::Busy { .. }) && busy.to_string().contains("voiceai-backup"),
        "{busy}"
    );
    assert_eq!(busy.exit_code().code(), 4);
    process.shutdown_background();
    bench.s3.put(&orphan(&bench), b"a dump whose manifest was never written").await;
    assert!(bench.s3.unfinished_uploads().await <= 1);

    bench.ctx.tools = real;
    until("the lock is free", async || {
        !matches!(run(&bench.ctx, Some("x"), &never()).await, Err(BackupError::Busy { .. }))
    })
    .await;
    assert_eq!(bench.s3.unfinished_uploads().await, 0);
    assert_eq!(bench.s3.keys().await.len(), 2, "one dump and its manifest: {:?}", bench.s3.keys().await);
    let states = bench.text("SELECT string_agg(state, ' ' ORDER BY started_at) FROM ops.backups").await;
    assert_eq!(states.as_deref(), Some("failed stored"));
}

/// The key of a dump of this bench's own that has no manifest.
fn orphan(bench: &Bench) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(format!("test\0{}", bench.database.name));
    let mark: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("database-dumps/20260101T000000Z-{}-{mark}00000000.dump", bench.database.name)
}

#[tokio::test]
async fn a_bucket_that_is_missing_or_closed_is_told_before_anything_starts() {
    let mut bench = Bench::new().await;
    let settings = |bucket: &str, secret: &str| S3Settings {
        bucket: bucket.to_owned(),
        prefix: "database-dumps".to_owned(),
        endpoint: Some(bench.s3.endpoint.clone()),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        keys: Some((Secret::new(bench.s3.access_key.clone()), Secret::new(secret))),
        renewed: None,
        checksums: false,
        instance_profile: false,
        way: Default::default(),
    };
    for (settings, said) in [
        (settings("no-such-bucket", &bench.s3.secret_key), "does not exist"),
        (settings(&bench.s3.bucket, "s3cret-canary"), "credentials"),
    ] {
        bench.ctx.store = ObjectStore::new(&settings).await;
        let failed = run(&bench.ctx, None, &never()).await.expect_err(said);
        assert!(failed.to_string().contains(said), "{failed}");
        assert_eq!(failed.exit_code().code(), 4);
        assert!(!format!("{failed} {failed:?}").contains("canary"));
    }
    assert_eq!(bench.text("SELECT count(*)::text FROM ops.backups").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn an_older_pg_dump_is_refused_and_so_is_none() {
    let mut bench = Bench::new().await;
    let (folder, _) = tools_with("");
    let older = "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n";
    std::fs::write(folder.path().join("pg_dump"), older).expect("written");
    for (tools, said) in [
        (Tools::in_folders(vec![folder.path().to_owned()]), "9.6.24"),
        (Tools::in_folders(vec![]), "there is none"),
    ] {
        bench.ctx.tools = tools;
        let refused = run(&bench.ctx, None, &never()).await.expect_err(said);
        assert!(
            matches!(refused, BackupError::NoTool { .. }) && refused.to_string().contains(said),
            "{refused}"
        );
        assert_eq!(refused.exit_code().code(), 4);
        bench.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_without_showing_it_and_the_right_one_is_seen_nowhere() {
    let server = PostgresServer::start().await;
    let lock_down =
        "CREATE ROLE dumper LOGIN SUPERUSER PASSWORD 'r1ght-canary'; CREATE TABLE t AS SELECT 1 AS a;
        COPY (SELECT unnest(ARRAY['host all voiceai all trust', 'host all all all scram-sha-256']))
        TO PROGRAM 'cat > pg_hba.conf'; SELECT pg_reload_conf()";
    execute(&server.url(), lock_down).await;
    let s3 = voiceai_testkit::s3().await;
    let with = |password: &str| server.url().replace("voiceai@", &format!("dumper:{password}@"));
    until("the password is asked for", async || {
        let wrong = run(&context(&with("wr0ng-canary"), &s3).await, None, &never()).await;
        wrong.is_err_and(|error| {
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
            assert_eq!(error.exit_code().code(), 4, "{error}");
            error.to_string().contains("password authentication failed")
        })
    })
    .await;
    assert_eq!(s3.keys().await, Vec::<String>::new());

    let mut ctx = context(&with("r1ght-canary"), &s3).await;
    // What any user of the host can read of a process: its arguments. The script hands on its own to the real pg_dump.
    let (folder, tools) = tools_with("tr '\\0' ' ' < /proc/$$/cmdline > $HERE/arguments; exec $REAL \"$@\"");
    ctx.tools = tools;
    run(&ctx, None, &never()).await.expect("the right password");
    let arguments = std::fs::read_to_string(folder.path().join("arguments")).expect("written");
    assert!(arguments.contains("--snapshot=") && !arguments.contains("canary"), "{arguments}");
    assert!(verify(&ctx, "latest", &never()).await.expect("a proof").proved);
}

pub(super) async fn execute(url: &str, sql: &'static str) {
    use voiceai_postgres::sqlx::{Connection as _, Executor as _, PgConnection, raw_sql};
    let mut session = PgConnection::connect(url).await.expect("connected");
    session.execute(raw_sql(sql)).await.expect(sql);
}

#[tokio::test]
async fn postgres_restarted_in_the_middle_fails_the_backup_and_not_the_next() {
    let mut server = PostgresServer::start().await;
    let fill = "CREATE TABLE big AS SELECT md5(i::text) || md5((i + 1)::text) AS v FROM generate_series(1, 200000) i";
    execute(&server.url(), fill).await;
    let s3 = voiceai_testkit::s3().await;
    let mut ctx = context(&server.url(), &s3).await;
    let (folder, tools) = tools_with(
        "set -o pipefail; $REAL \"$@\" | { head -c 60000; touch $HERE/begun; until [ -e $HERE/go ]; do sleep 0.02; done; cat; }",
    );
    ctx.tools = tools;
    let restart = async {
        exists(&folder.path().join("begun")).await;
        server.kill9().await;
        server.restart(false).await;
        std::fs::write(folder.path().join("go"), "").expect("written");
    };
    let cancel = never();
    let (ended, ()) = tokio::join!(run(&ctx, None, &cancel), restart);
    let failed = ended.expect_err("the server went away");
    assert_ne!(failed.exit_code().code(), 0, "{failed}");
    assert_eq!((s3.keys().await, s3.unfinished_uploads().await), (vec![], 0), "{failed}");
    ctx.tools = Tools::default();
    run(&ctx, None, &never()).await.expect("the next one works");
    assert!(verify(&ctx, "latest", &never()).await.expect("a proof").proved);
}

#[tokio::test]
async fn scratch_databases_of_killed_proofs_are_removed_and_others_are_not() {
    let bench = Bench::new().await;
    let taken = bench.run().await.manifest;
    let mark = &taken.id[..6];
    let (leftover, foreign) =
        (format!("voiceai_verify_{mark}_dead0000"), format!("voiceai_verify_{}_live", &taken.id[8..]));
    for name in [&leftover, &foreign] {
        bench.database.execute(&format!("CREATE DATABASE \"{name}\"")).await;
    }
    verify(&bench.ctx, &taken.id, &never()).await.expect("a proof");
    let pool = bench.ctx.pool.as_ref().expect("a pool");
    let query = voiceai_postgres::sqlx::query_scalar::<_, String>(
        "SELECT datname::text FROM pg_database WHERE datname = ANY($1)",
    );
    let left = query.bind(vec![leftover, foreign.clone()]).fetch_all(pool).await.expect("a list");
    bench.database.execute(&format!("DROP DATABASE \"{foreign}\"")).await;
    assert_eq!(left, [foreign]);

    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(verify(&bench.ctx, &taken.id, &cancel).await, Err(BackupError::Cancelled)));
    tokio::time::timeout(Duration::from_secs(20), async {
        let ours = format!("voiceai_verify_{mark}_");
        let count = "SELECT count(*) FROM pg_database WHERE starts_with(datname::text, $1)";
        while voiceai_postgres::sqlx::query_scalar::<_, i64>(count)
            .bind(&ours)
            .fetch_one(pool)
            .await
            .expect("a count")
            > 0
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a cancelled proof leaves no database");
}
