//! Backups on a real PostgreSQL and a real S3 store.

mod damage;
mod digest;
mod faults;
mod job;
mod series;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use voiceai_aws::{ObjectStore, S3Settings};
use voiceai_runtime::Secret;
use voiceai_tasker::jobs::backup::{Address, BackupContext, BackupPolicy, BackupRecord, Tools, list, run};
use voiceai_testkit::{Database, S3};

/// A database with our tables and some of the platform's, a bucket, and the two joined.
struct Bench {
    database: Database,
    s3: S3,
    ctx: BackupContext,
}

impl Bench {
    async fn new() -> Self {
        let database = voiceai_testkit::database().await;
        database.execute(TABLES).await;
        let s3 = voiceai_testkit::s3().await;
        let mut ctx = context(&database.url, &s3).await;
        ctx.pool = Some(database.pool().await);
        Self { database, s3, ctx }
    }

    async fn run(&self) -> BackupRecord {
        run(&self.ctx, None, &never()).await.expect("a backup")
    }

    /// Asserts that nothing of a failed backup is left.
    async fn assert_nothing_left(&self) {
        assert_eq!(self.s3.keys().await, Vec::<String>::new());
        assert_eq!(self.s3.unfinished_uploads().await, 0);
        assert!(list(&self.ctx, 10, None).await.expect("a list").backups.is_empty());
    }

    async fn text(&self, sql: &'static str) -> Option<String> {
        let pool = self.ctx.pool.as_ref().expect("a pool");
        voiceai_postgres::sqlx::query_scalar(sql).fetch_one(pool).await.expect(sql)
    }
}

const TABLES: &str = r#"
    CREATE TABLE "odd ""name"" é" (id int PRIMARY KEY, amount numeric, ratio float8, at timestamptz, raw bytea, doc jsonb);
    INSERT INTO "odd ""name"" é"
        SELECT i, i / 7.0, sqrt(i), timestamptz '2026-03-29 01:30+00' + i * interval '1 hour', decode(md5(i::text), 'hex'),
               jsonb_build_object('i', i, 'text', E'tab\tnew\nline \\ "quote" ü')
        FROM generate_series(1, 2000) i;
    CREATE SCHEMA billing;
    CREATE TABLE billing.calls (id bigint, at date, note text) PARTITION BY RANGE (at);
    CREATE TABLE billing.calls_1 PARTITION OF billing.calls FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE billing.calls_2 PARTITION OF billing.calls FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
    INSERT INTO billing.calls SELECT i, date '2026-01-01' + (i % 50), repeat('x', i % 90) FROM generate_series(1, 3000) i;
    CREATE TABLE twice (v text);
    INSERT INTO twice VALUES ('same'), ('same'), (NULL);
    CREATE TABLE none (v text);
    CREATE MATERIALIZED VIEW stale AS SELECT count(*) FROM twice;
    CREATE VIEW seen AS SELECT * FROM twice;
    SELECT lo_from_bytea(0, '\x0123');
"#;

pub(crate) async fn context(url: &str, s3: &S3) -> BackupContext {
    let settings = S3Settings {
        bucket: s3.bucket.clone(),
        prefix: "database-dumps".to_owned(),
        endpoint: Some(s3.endpoint.clone()),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        keys: Some((Secret::new(s3.access_key.clone()), Secret::new(s3.secret_key.clone()))),
        renewed: None,
        checksums: false,
        instance_profile: false,
        way: Default::default(),
    };
    BackupContext {
        store: ObjectStore::new(&settings).await,
        prefix: settings.prefix.clone(),
        database: address(url),
        pool: None,
        environment: "test".to_owned(),
        instance: "tasker-1".to_owned(),
        tools: Tools::default(),
        policy: BackupPolicy::default(),
        others: BTreeMap::new(),
        target: None,
        schemas: Vec::new(),
    }
}

fn address(url: &str) -> Address {
    Address::parse("DATABASE_URL", &Secret::new(url)).expect("an address")
}

fn never() -> CancellationToken {
    CancellationToken::new()
}

/// A folder with a `pg_dump` that is this shell script, which finds the real one as `$REAL`, and the real `pg_restore`.
fn tools_with(script: &str) -> (tempfile::TempDir, Tools) {
    use std::os::unix::fs::PermissionsExt as _;
    let real = real_tools();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pg_dump");
    let script = format!(
        "#!/bin/bash\nREAL={}\nHERE={}\ncase \"$1\" in --version) exec $REAL --version;; esac\n{script}\n",
        real.join("pg_dump").display(),
        folder.path().display()
    );
    std::fs::write(&path, script).expect("write the script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
    let tools = Tools::in_folders(vec![folder.path().to_owned(), real]);
    (folder, tools)
}

fn real_tools() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut folders: Vec<_> = versions.map(|entry| entry.expect("an entry").path().join("bin")).collect();
    folders.retain(|folder| folder.join("pg_dump").exists());
    folders.sort();
    folders.pop().expect("a pg_dump")
}

async fn exists(path: &Path) {
    until("the dump is under way", async || path.exists()).await;
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), wait).await.is_ok(), "waited in vain: {what}");
}
