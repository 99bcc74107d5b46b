//! A test's own stores, and the binary on them.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use voiceai_queue::cron::{self, Definition};
use voiceai_testkit::{Database, Exit, Process, Program, RedisDb, wait_for};

/// Longest wait for anything: a loaded machine, not an expectation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Stores of a test's own.
pub(crate) struct Stage {
    pub(crate) redis: RedisDb,
    pub(crate) database: Database,
    folder: TempDir,
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// Standard output as JSON; the command must have ended with `exit`.
    #[track_caller]
    pub(crate) fn json(&self, exit: i32) -> Value {
        assert_eq!(self.exit, exit, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The failure on standard error: `code`, `message`, `remedy`, all of them said.
    #[track_caller]
    pub(crate) fn failure(&self, exit: i32) -> Value {
        assert_eq!(self.exit, exit, "{self:?}");
        let line = self.stderr.lines().find(|line| line.starts_with('{'));
        let failure: Value = line
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_else(|| panic!("no failure in JSON: {self:?}"));
        for field in ["code", "message", "remedy"] {
            assert!(failure[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {self:?}");
        }
        failure
    }

    #[track_caller]
    pub(crate) fn text(&self, exit: i32) -> &str {
        assert_eq!(self.exit, exit, "{self:?}");
        &self.stdout
    }
}

impl Stage {
    /// Databases with every migration.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { redis: voiceai_testkit::redis().await, database: voiceai_testkit::database().await, folder }
    }

    /// No schedule that comes by itself fires, whatever minute begins while the test runs; `cron run` still does.
    pub(crate) async fn quiet(self) -> Self {
        let pool = self.database.pool().await;
        let off =
            crate::kinds::built_in().into_iter().map(|schedule| Definition { enabled: false, ..schedule });
        cron::declare(&pool, &off.collect::<Vec<_>>()).await.unwrap();
        // As if an operator had switched them off: a start leaves them as they are.
        let kept = voiceai_postgres::sqlx::query("UPDATE ops.schedules SET overridden = true");
        kept.execute(&pool).await.unwrap();
        self
    }

    /// The binary with this stage's settings.
    pub(crate) fn program(&self) -> Program {
        Program::new(env!("CARGO_BIN_EXE_voiceai-tasker")).envs([
            ("REDIS_URL", self.redis.url.as_str()),
            ("DATABASE_URL", self.database.url.as_str()),
            ("RUNTIME_DIR", self.folder.path().to_str().unwrap()),
            ("INSTANCE_ID", "one"),
            ("VOICEAI_OPERATOR", "tester"),
            ("DIAGNOSTIC_JOBS", "true"),
            ("QUEUE_DEFAULT_ATTEMPTS", "2"),
            ("QUEUE_DEFAULT_BACKOFF", "20ms"),
            ("LEADER_HEARTBEAT_INTERVAL_MS", "200"),
            ("LEADER_LOCK_TTL_MS", "1000"),
            ("SHUTDOWN_TIMEOUT", "20s"),
        ])
    }

    /// A file of the test's own.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command to its end; blanks separate arguments.
    pub(crate) async fn ask(&self, line: &str) -> Answer {
        self.ask_all(&line.split_whitespace().collect::<Vec<_>>()).await
    }

    pub(crate) async fn ask_all(&self, arguments: &[&str]) -> Answer {
        answer(self.program().args(arguments)).await
    }

    /// A tasker that is ready.
    pub(crate) async fn tasker(&self, instance: &str) -> Process {
        let process = self.program().arg("run").env("INSTANCE_ID", instance).start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    /// Waits until `jobs show` says that the job is in this state.
    pub(crate) async fn wait_for_state(&self, id: &str, state: &str) -> Value {
        wait_for(PATIENCE, format!("job {id} is {state}"), async || {
            let answer = self.ask_all(&["jobs", "show", id, "--json"]).await;
            let shown: Value = serde_json::from_str(&answer.stdout).map_err(|_| format!("{answer:?}"))?;
            if shown["state"] == state { Ok(shown) } else { Err(shown.to_string()) }
        })
        .await
    }

    /// Waits until the history knows how the job ended: it is written a moment after the fact.
    pub(crate) async fn wait_for_record(&self, id: &str, state: &str) -> Value {
        wait_for(PATIENCE, format!("the history says that job {id} is {state}"), async || {
            let answer = self.ask_all(&["jobs", "show", id, "--json"]).await;
            let shown: Value = serde_json::from_str(&answer.stdout).map_err(|_| format!("{answer:?}"))?;
            let records = shown["history"].as_array();
            let recorded =
                records.is_some_and(|records| records.iter().any(|record| record["state"] == state));
            if recorded { Ok(shown) } else { Err(shown.to_string()) }
        })
        .await
    }

    /// How often the probe's effect happened.
    pub(crate) async fn effects(&self, key: &str) -> u32 {
        let count = self.redis.cli(&["HGET", "voiceai:diagnostic:effects", key]).await;
        count.parse().unwrap_or(0)
    }

    /// One value of one row.
    pub(crate) async fn value(&self, sql: &'static str) -> Value {
        let text: Option<String> = voiceai_postgres::sqlx::query_scalar(sql)
            .fetch_optional(&self.database.pool().await)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// Runs a program to its end.
pub(crate) async fn answer(program: Program) -> Answer {
    let process = program.start();
    let exit = match process.wait_exit(Duration::from_secs(60)).await {
        Exit::Code(code) => code,
        Exit::Signal(signal) => panic!("ended by {signal}: {}", process.stderr()),
    };
    Answer { exit, stdout: process.stdout(), stderr: process.stderr() }
}
