use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;
use voiceai_testkit::{Process, Program};

/// Where the stores are.
#[derive(Clone, Debug)]
pub struct Stores {
    /// REDIS_URL.
    pub redis_url: String,
    /// DISPATCHER_REDIS_URL.
    pub dispatcher_url: String,
    /// DATABASE_URL.
    pub database_url: String,
    /// S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_BUCKET.
    pub s3: [(&'static str, String); 4],
}

/// How one command ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// When it is none; the message holds both streams.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("not JSON (exit {}): {:?} {:?}", self.code, self.stdout, self.stderr))
    }
}

/// A server group for the local provider.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Its name.
    pub name: &'a str,
    /// Fewest servers.
    pub min: i32,
    /// Most servers.
    pub max: i32,
    /// Calls one server carries.
    pub capacity: u32,
    /// Seconds between decisions.
    pub cooldown_seconds: i32,
    /// From start to first heartbeat.
    pub boot_delay_ms: i64,
}

/// The built binaries on one set of stores.
#[derive(Debug)]
pub struct Platform {
    stores: Stores,
    settings: Vec<(String, String)>,
    binaries: PathBuf,
    repository: PathBuf,
    work: TempDir,
}

impl Platform {
    /// A platform on `stores`, with short intervals.
    ///
    /// # Errors
    /// When the binaries are not built or no folder can be made.
    pub fn new(stores: Stores) -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let binaries = std::env::current_exe()?
            .ancestors()
            .find(|folder| folder.join("voiceai-scaler").is_file() && folder.join("voiceai-tasker").is_file())
            .context("voiceai-scaler and voiceai-tasker are not built: run `cargo build --workspace`")?
            .to_owned();
        let work = tempfile::Builder::new().prefix("voiceai-").tempdir()?;
        let mut settings: Vec<(String, String)> = [
            ("ENVIRONMENT", "demo"),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "1000"),
            ("LEADER_LOCK_TTL_MS", "3000"),
            ("SCALING_EVALUATION_INTERVAL_MS", "500"),
            ("SCALING_STATUS_POLL_INTERVAL_MS", "200"),
            ("PROVIDER_SCRIPT_TIMEOUT_MS", "10000"),
            ("WORKER_POLL_INTERVAL_MS", "1000"),
            ("SCHEDULER_POLL_INTERVAL_MS", "1000"),
            ("SHUTDOWN_TIMEOUT", "20s"),
            ("PROVIDER_ENV_PASS", "REDIS_URL"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let path = |text: &Path| text.display().to_string();
        settings.push(("PROVIDER_SCRIPTS_DIR".into(), path(&repository.join("scripts/providers"))));
        settings.push(("RUNTIME_DIR".into(), path(&work.path().join("run"))));
        settings.push(("REDIS_URL".into(), stores.redis_url.clone()));
        settings.push(("DISPATCHER_REDIS_URL".into(), stores.dispatcher_url.clone()));
        settings.push(("DATABASE_URL".into(), stores.database_url.clone()));
        settings.extend(stores.s3.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Ok(Self { stores, settings, binaries, repository, work })
    }

    /// Sets or replaces one setting of both services.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.settings.retain(|(have, _)| have != name);
        self.settings.push((name.to_owned(), value.into()));
    }

    /// Where the stores are.
    #[must_use]
    pub const fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The repository's top folder.
    #[must_use]
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// Where the local provider keeps its servers' state.
    #[must_use]
    pub fn provider_state(&self) -> PathBuf {
        self.work.path().join("servers")
    }

    fn program(&self, binary: &str) -> Program {
        Program::new(self.binaries.join(binary))
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Starts `binary run` as instance `instance`.
    #[must_use]
    pub fn start(&self, binary: &str, instance: &str) -> Process {
        self.program(binary).env("INSTANCE_ID", instance).arg("run").start()
    }

    /// Starts `binary run` with further settings.
    #[must_use]
    pub fn start_with(&self, binary: &str, instance: &str, settings: &[(&str, &str)]) -> Process {
        let program = self.program(binary).env("INSTANCE_ID", instance).arg("run");
        program.envs(settings.iter().copied()).start()
    }

    /// Runs one command to its end, at most two minutes.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub async fn command(&self, binary: &str, args: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new(self.binaries.join(binary));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("VOICEAI_OPERATOR", "demo")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = tokio::time::timeout(Duration::from_secs(120), command.output())
            .await
            .with_context(|| format!("{binary} {args:?} did not end within 120 s"))?
            .with_context(|| format!("start {binary}"))?;
        Ok(Output {
            code: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// A pool on the database.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn pool(&self) -> Result<PgPool> {
        Ok(PgPool::connect(&self.stores.database_url).await?)
    }

    /// Writes the row of a server group, as the platform's admin form would.
    ///
    /// # Errors
    /// As the database says.
    pub async fn put_group(&self, pool: &PgPool, group: &Group<'_>) -> Result<()> {
        let config = serde_json::json!({
            "stateDir": self.provider_state().display().to_string(),
            "heartbeatMs": 300,
            "heartbeatTtlMs": 3000,
            "capacity": group.capacity,
            "bootDelayMs": group.boot_delay_ms,
            "dispatcher": {"setid": 1, "port": 5060},
            "minAgeSeconds": 0,
        });
        sqlx::query(AssertSqlSafe(
            r#"INSERT INTO "ServerGroup" (id, name, service, enabled, "maxConcurrentCalls", priority, "scalingEnabled",
                "minInstances", "maxInstances", "scaleUpThreshold", "scaleDownThreshold", "cooldownSeconds",
                "scalingProvider", "scalingConfig")
            VALUES ($1, $1, 'voice', true, $2, 5, true, $3, $4, 0.7, 0.3, $5, 'local', $6)
            ON CONFLICT (id) DO UPDATE SET "minInstances" = $3, "maxInstances" = $4, "scalingConfig" = $6"#
                .to_owned(),
        ))
        .bind(group.name)
        .bind(i32::try_from(group.capacity)?)
        .bind(group.min)
        .bind(group.max)
        .bind(group.cooldown_seconds)
        .bind(config)
        .execute(pool)
        .await?;
        Ok(())
    }
}
