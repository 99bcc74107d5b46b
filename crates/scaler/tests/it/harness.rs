//! A stack of its own for one test: two Redis databases, a PostgreSQL database, a folder for the provider `local`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use voiceai_postgres::{COMMON, PgPool, SCALER, sqlx};
use voiceai_testkit::{Database, Exit, Process, Program, RedisDb, postgres, redis, wait_for};

pub(crate) const WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_voiceai-scaler"))
}

fn code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(_) => -1,
    }
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) struct Stack {
    pub(crate) database: Database,
    pub(crate) pool: PgPool,
    pub(crate) redis: RedisDb,
    pub(crate) dispatcher: RedisDb,
    pub(crate) folder: TempDir,
    environment: Vec<(String, String)>,
}

/// What a script run by hand says.
pub(crate) struct ByHand {
    pub(crate) exit: i32,
    pub(crate) answer: Value,
}

impl Stack {
    pub(crate) async fn new() -> Self {
        let (database, redis, dispatcher) = tokio::join!(postgres(&[COMMON, SCALER]), redis(), redis());
        let folder = tempfile::tempdir().expect("a folder");
        let pool = database.pool().await;
        let environment = [
            ("REDIS_URL", redis.url.as_str()),
            ("DISPATCHER_REDIS_URL", &dispatcher.url),
            ("DATABASE_URL", &database.url),
            ("ENVIRONMENT", "test"),
            ("VOICEAI_OPERATOR", "tester"),
            ("RUNTIME_DIR", &folder.path().join("run").display().to_string()),
            ("PROVIDER_SCRIPTS_DIR", &repository().join("scripts/providers").display().to_string()),
            ("PROVIDER_ENV_PASS", "REDIS_URL"),
            ("PROVIDER_SCRIPT_TIMEOUT_MS", "20000"),
            ("SCALING_EVALUATION_INTERVAL_MS", "300"),
            ("SCALING_STATUS_POLL_INTERVAL_MS", "100"),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "200"),
            ("LEADER_LOCK_TTL_MS", "1000"),
            ("SHUTDOWN_TIMEOUT", "10s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        Self { database, pool, redis, dispatcher, folder, environment }
    }

    /// Sets a variable for every process started from here on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(have, _)| have != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn program(&self, arguments: &[&str]) -> Program {
        Program::new(binary())
            .args(arguments)
            .envs(self.environment.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }

    /// A running scaler.
    pub(crate) fn scaler(&self, instance: &str) -> Process {
        self.program(&["run"]).env("INSTANCE_ID", instance).start()
    }

    /// A running scaler that stops or aborts at a point.
    pub(crate) fn scaler_with_failpoint(&self, instance: &str, point: &str) -> Process {
        self.program(&["run"]).env("INSTANCE_ID", instance).env("VOICEAI_FAILPOINT", point).start()
    }

    /// Runs a command to its end: exit code and output.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let process = self.program(arguments).start();
        let exit = process.wait_exit(WITHIN).await;
        (code(exit), process.stdout(), process.stderr())
    }

    /// Runs a command with `--json` that must succeed.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let (code, stdout, stderr) = self.run(&arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The `scalingConfig` of a group on the provider `local`.
    pub(crate) fn config(&self) -> Value {
        json!({
            "stateDir": self.state(), "heartbeatMs": 100, "heartbeatTtlMs": 3000, "capacity": 10,
            "routingSettleSeconds": 0,
        })
    }

    /// Adds a group, or replaces its row.
    pub(crate) async fn group(&self, name: &str, min: i32, max: i32, config: &Value) {
        sqlx::query(
            r#"INSERT INTO "ServerGroup" (id, name, "scalingEnabled", "minInstances", "maxInstances", "cooldownSeconds",
                   "scalingProvider", "scalingConfig")
               VALUES ($1, $1, true, $2, $3, 0, 'local', $4)
               ON CONFLICT (id) DO UPDATE SET "minInstances" = $2, "maxInstances" = $3, "scalingConfig" = $4"#,
        )
        .bind(name)
        .bind(min)
        .bind(max)
        .bind(config)
        .execute(&self.pool)
        .await
        .expect("a group");
    }

    /// Names of the server processes that run.
    pub(crate) fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.state())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// How many `voice-server.py` processes keep their state in this test's folder, by the kernel's word.
    pub(crate) fn processes(&self) -> usize {
        let folder = format!("STATE_DIR={}", self.state().display());
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                std::fs::read(entry.path().join("environ")).is_ok_and(|environ| {
                    environ.split(|byte| *byte == 0).any(|variable| variable == folder.as_bytes())
                }) && std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| line.windows(15).any(|part| part == b"voice-server.py"))
            })
            .count()
    }

    /// The servers' names and statuses, by the database.
    pub(crate) async fn servers(&self) -> Vec<(String, String)> {
        sqlx::query_as("SELECT name, status FROM ops.servers WHERE status <> 'gone' ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .expect("servers")
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        let (number,): (i64,) = sqlx::query_as(sql).fetch_one(&self.pool).await.expect("a number");
        number
    }

    /// Names of the servers in routing with their flags.
    pub(crate) async fn records(&self) -> Vec<(String, String)> {
        let keys = self.dispatcher.cli(&["KEYS", "dispatcher:entry::*"]).await;
        let mut records = Vec::new();
        for key in keys.lines().filter(|key| !key.is_empty()) {
            let flags = self.dispatcher.cli(&["HGET", key, "flags"]).await;
            records.push((key.trim_start_matches("dispatcher:entry::").to_owned(), flags));
        }
        records.sort();
        records
    }

    /// Waits until exactly these servers are in service and nothing else is going on.
    pub(crate) async fn wait_settled(&self, names: &[&str]) {
        wait_for(WITHIN, format!("in service: {names:?}"), async || {
            let servers = self.servers().await;
            let records = self.records().await;
            let open = self.number("SELECT count(*) FROM ops.operations WHERE finished_at IS NULL").await;
            let wanted: Vec<(String, String)> =
                names.iter().map(|name| ((*name).to_owned(), "active".to_owned())).collect();
            let routed: Vec<(String, String)> =
                names.iter().map(|name| ((*name).to_owned(), "8".to_owned())).collect();
            if servers == wanted && records == routed && open == 0 && self.running() == *names {
                Ok(())
            } else {
                Err(format!("{servers:?} {records:?} {open} open, running {:?}", self.running()))
            }
        })
        .await;
    }

    /// Sends a signal to a server's process.
    pub(crate) fn signal(&self, name: &str, signal: nix::sys::signal::Signal) {
        let file = std::fs::read(self.state().join(format!("{name}.json"))).expect("a running server");
        let state: Value = serde_json::from_slice(&file).expect("its state");
        let pid = i32::try_from(state["pid"].as_i64().expect("a pid")).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a signal");
    }

    /// Opens a call to a server that runs.
    pub(crate) fn call(&self, name: &str) -> Call {
        let file = std::fs::read(self.state().join(format!("{name}.json"))).expect("a running server");
        let state: Value = serde_json::from_slice(&file).expect("its state");
        let port = u16::try_from(state["port"].as_u64().expect("a port")).expect("a port");
        let mut stream =
            TcpStream::connect((state["ip"].as_str().expect("an address"), port)).expect("a call");
        stream.set_read_timeout(Some(WITHIN)).expect("a limit");
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"200 ", "the call was refused");
        let mut rest = [0; 1];
        while rest[0] != b'\n' {
            stream.read_exact(&mut rest).expect("the greeting's end");
        }
        Call(stream)
    }

    /// Runs a script of the provider `local` by hand.
    pub(crate) fn script(&self, script: &str, name: &str, operation: &str) -> ByHand {
        self.script_with(script, name, operation, &self.config(), &json!({ "operation": operation }))
    }

    /// The same with a configuration and labels of one's own.
    pub(crate) fn script_with(
        &self,
        script: &str,
        name: &str,
        operation: &str,
        config: &Value,
        labels: &Value,
    ) -> ByHand {
        let output = Command::new(repository().join("scripts/providers/local").join(script))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("INSTANCE_NAME", name)
            .env("OPERATION_ID", operation)
            .env("SERVICE", "voice")
            .env("GROUP_NAME", "by-hand")
            .env("REDIS_URL", &self.redis.url)
            .env("LABELS", labels.to_string())
            .env("PROVIDER_CONFIG", config.to_string())
            .output()
            .expect("the script runs");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let answer =
            stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        ByHand { exit: output.status.code().unwrap_or(-1), answer }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The servers outlive the scaler on purpose, but not the test.
        for name in self.running() {
            let file = std::fs::read(self.state().join(format!("{name}.json"))).unwrap_or_default();
            let state: Value = serde_json::from_slice(&file).unwrap_or_default();
            let pid = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

/// One running call, as its caller sees it.
pub(crate) struct Call(TcpStream);

impl Call {
    /// True while the server still answers on it.
    pub(crate) fn lives(&mut self) -> bool {
        let mut answer = [0; 5];
        self.0.write_all(b"ping\n").is_ok() && self.0.read_exact(&mut answer).is_ok() && &answer == b"ping\n"
    }
}
