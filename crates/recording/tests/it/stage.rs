//! Stores of a test's own, and sound.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::Command;
use voiceai_aws::{ObjectStore, S3Settings};
use voiceai_config::catalogue::recording::RecordingFormat;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_queue::{Inline, InlineRunner, NewJob, Registry};
use voiceai_recording::{
    PostCall, PostCallContext, RecordingContext, RecordingProcess, RecordingSettings, RecordingSweep,
    SweepContext,
};
use voiceai_runtime::Secret;
use voiceai_testkit::{Database, S3};

pub(crate) struct Stage {
    pub(crate) s3: S3,
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
    pub(crate) folder: TempDir,
    pub(crate) settings: RecordingSettings,
    /// Whether calls that are closed enqueue their recordings.
    pub(crate) recordings_on: bool,
}

pub(crate) fn store_settings(s3: &S3, endpoint: &str, bucket: &str) -> S3Settings {
    S3Settings {
        renewed: None,
        bucket: bucket.to_owned(),
        prefix: String::new(),
        endpoint: Some(endpoint.to_owned()),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        keys: Some((Secret::new(s3.access_key.clone()), Secret::new(s3.secret_key.clone()))),
        checksums: false,
        instance_profile: false,
        way: voiceai_egress::Rule::default(),
    }
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let (s3, database) = tokio::join!(voiceai_testkit::s3(), voiceai_testkit::database());
        let pool = database.pool().await;
        let folder = tempfile::tempdir().unwrap();
        let settings = RecordingSettings {
            store: Some(store_settings(&s3, &s3.endpoint, &s3.bucket)),
            format: RecordingFormat::Opus,
            bitrate: 48,
            loudness: -16.0,
            bytes_max: 64 << 20,
            duration_max: Duration::from_secs(3_600),
            output_bytes_max: 64 << 20,
            memory_max: 2 << 30,
            timeout: Duration::from_secs(60),
            work_dir: folder.path().join("work"),
            work_free_min: 0,
            originals_keep: None,
            call_table: None,
        };
        Self { s3, database, pool, folder, settings, recordings_on: true }
    }

    /// With the platform's tables.
    pub(crate) async fn with_platform() -> Self {
        let stage = Self::new().await;
        stage.database.execute(include_str!("../../../../tests/fixtures/platform.sql")).await;
        stage
    }

    pub(crate) async fn context(&self) -> RecordingContext {
        RecordingContext {
            store: ObjectStore::new(self.settings.store.as_ref().unwrap()).await,
            pool: self.pool.clone(),
            settings: self.settings.clone(),
            event_bytes_max: 262_144,
        }
    }

    async fn runner(&self) -> InlineRunner {
        let context = self.context().await;
        let calls = PostCallContext {
            pool: self.pool.clone(),
            bucket: self.recordings_on.then(|| self.s3.bucket.clone()),
            table: self.settings.call_table.clone(),
            event_bytes_max: 262_144,
        };
        let registry = Registry::new().register::<RecordingProcess>(context.clone());
        let sweep = SweepContext { pool: self.pool.clone(), recordings: Some(context) };
        InlineRunner::new(registry.register::<RecordingSweep>(sweep).register::<PostCall>(calls))
    }

    pub(crate) async fn run(&self, kind: &'static str, payload: Value) -> Inline {
        self.attempt(kind, payload, 1).await
    }

    pub(crate) async fn attempt(&self, kind: &'static str, payload: Value, number: u32) -> Inline {
        let payload = serde_json::value::to_raw_value(&payload).unwrap();
        self.runner().await.attempt(&NewJob::raw(kind, payload), number).await.end
    }

    /// Processes the object `key` of the tenant `t`.
    pub(crate) async fn process(&self, key: &str) -> Inline {
        self.run("recording.process", json!({ "key": key, "tenant": "t", "call_id": "c-1" })).await
    }

    /// Sound as ffmpeg makes it by these words, in the format that the name's ending says.
    pub(crate) async fn sound(&self, name: &str, words: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args(["-v", "error", "-nostdin", "-y"]).args(words.split(' ')).arg(&path);
        let made = ffmpeg.output().await.expect("ffmpeg is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        path
    }

    /// A tone of some seconds, stored under `key`.
    pub(crate) async fn tone(&self, key: &str, seconds: u32) -> Vec<u8> {
        let name = key.rsplit('/').next().unwrap();
        let words = format!("-f lavfi -i sine=frequency=440:duration={seconds}:sample_rate=8000 -ac 1");
        let path = self.sound(name, &words).await;
        self.store(key, &path).await
    }

    pub(crate) async fn store(&self, key: &str, path: &Path) -> Vec<u8> {
        let content = std::fs::read(path).unwrap();
        self.s3.put(key, &content).await;
        content
    }

    /// One value of one row, as JSON or text.
    pub(crate) async fn value(&self, sql: &'static str) -> Value {
        let text: Option<Option<String>> = sqlx::query_scalar(sql)
            .fetch_optional(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        let text = text.flatten();
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The only row of `ops.recordings`.
    pub(crate) async fn row(&self) -> Value {
        assert_eq!(self.value("SELECT count(*)::text FROM ops.recordings").await, 1);
        self.value("SELECT row_to_json(r)::text FROM ops.recordings r").await
    }

    /// The events that were told, in order, by type.
    pub(crate) async fn events(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT type FROM ops.webhook_events ORDER BY created_at, id")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    /// Nothing is left of the work: no folder, no half upload.
    pub(crate) async fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(&self.settings.work_dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.s3.unfinished_uploads().await, 0);
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The result of a job that is done.
#[track_caller]
pub(crate) fn done(end: Inline) -> Value {
    match end {
        Inline::Done(Some(result)) => result,
        other => panic!("{other:?}"),
    }
}

/// The error of a job that nobody tries again.
#[track_caller]
pub(crate) fn discarded(end: Inline) -> String {
    match end {
        Inline::Dead { reason: voiceai_queue::DeadReason::DiscardedByHandler, error } => error,
        other => panic!("{other:?}"),
    }
}

/// The error of a job that is tried again.
#[track_caller]
pub(crate) fn retried(end: Inline) -> String {
    match end {
        Inline::Retry { error, .. } => error,
        other => panic!("{other:?}"),
    }
}
