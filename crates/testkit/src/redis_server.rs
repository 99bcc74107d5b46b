//! A Redis server of a test's own.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::ports::Port;
use crate::process::{Process, Program};

const START_WITHIN: Duration = Duration::from_secs(20);
const END_WITHIN: Duration = Duration::from_secs(10);

/// How a Redis of one's own is set up. The default keeps nothing on disk and refuses writes when full.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Keep an append-only file.
    pub appendonly: bool,
    /// `always`, `everysec` (the default) or `no`.
    pub fsync: Option<&'static str>,
    /// Such as `8mb`; without it there is no limit.
    pub maxmemory: Option<&'static str>,
    /// What to do when full; `noeviction` by default.
    pub policy: Option<&'static str>,
    /// A password for the default user.
    pub requirepass: Option<&'static str>,
    /// Another server than `redis-server`, such as Valkey's.
    pub program: Option<std::path::PathBuf>,
    /// Any further settings: name and value.
    pub extra: Vec<(String, String)>,
}

/// A Redis server that may be killed, paused and restarted on the same port. Ended on drop.
#[derive(Debug)]
pub struct RedisServer {
    options: RedisOptions,
    port: Port,
    directory: TempDir,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts one on a free port of 127.0.0.1 and waits until it answers.
    pub async fn start(options: RedisOptions) -> Self {
        let directory =
            tempfile::Builder::new().prefix("redis-").tempdir().expect("make a directory for Redis");
        let mut server = Self { options, port: Port::reserve(), directory, process: None };
        server.launch().await;
        server
    }

    /// `redis://[:password@]127.0.0.1:PORT/0`.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.options.requirepass.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}127.0.0.1:{}/0", self.port.number())
    }

    /// The port it listens on, also while it is down.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where its files lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process, while it is up.
    #[must_use]
    pub const fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill9(&mut self) {
        self.end(Signal::SIGKILL).await;
    }

    /// SIGTERM, and waits until it is gone; it saves what it is set up to save.
    pub async fn stop(&mut self) {
        self.end(Signal::SIGTERM).await;
    }

    /// SIGSTOP: connections stay open, nothing is answered.
    pub fn pause(&self) {
        self.process.as_ref().expect("Redis is up").pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("Redis is up").resume();
    }

    /// Ends it if it is up and starts it again on the same port; `empty` as after the loss of its disk.
    pub async fn restart(&mut self, empty: bool) {
        self.end(Signal::SIGTERM).await;
        if empty {
            for entry in fs::read_dir(self.directory.path()).expect("read Redis's directory").flatten() {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
            }
        }
        self.launch().await;
    }

    /// Runs one command with `redis-cli` and returns its raw output, trimmed. Errors of the server are part of the output.
    pub async fn cli(&self, args: &[&str]) -> String {
        redis_cli(&["-h", "127.0.0.1", "-p", &self.port.number().to_string()], self.options.requirepass, args)
            .await
    }

    async fn end(&mut self, signal: Signal) {
        if let Some(process) = self.process.take() {
            process.signal(signal);
            // A paused server would keep the signal waiting.
            process.resume();
            process.wait_exit(END_WITHIN).await;
        }
    }

    async fn launch(&mut self) {
        let port = self.port.number().to_string();
        let server = self.options.program.clone().unwrap_or_else(|| "redis-server".into());
        let mut program = Program::new(server)
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no", "--dir"])
            .arg(self.directory.path())
            .args(["--appendonly", if self.options.appendonly { "yes" } else { "no" }])
            .args(["--appendfsync", self.options.fsync.unwrap_or("everysec")])
            .args(["--maxmemory-policy", self.options.policy.unwrap_or("noeviction")]);
        if let Some(limit) = self.options.maxmemory {
            program = program.args(["--maxmemory", limit]);
        }
        if let Some(password) = self.options.requirepass {
            // By file: an argument would show it to every process of the machine.
            let path = self.directory.path().join("password.conf");
            fs::write(&path, {
                let quoted = password.replace('\\', "\\\\").replace('"', "\\\"");
                format!("requirepass \"{quoted}\"\nmasterauth \"{quoted}\"\n")
            })
            .expect("write Redis's password file");
            program = program.arg("--include").arg(path);
        }
        for (name, value) in &self.options.extra {
            program = program.args([format!("--{name}"), value.clone()]);
        }
        let process = program.start();
        process
            .wait_until(START_WITHIN, &format!("Redis answers on port {port}"), async || {
                self.cli(&["PING"]).await == "PONG"
            })
            .await;
        self.process = Some(process);
    }
}

/// `redis-cli` with a bound on its time; the password goes by the environment.
pub(crate) async fn redis_cli(server: &[&str], password: Option<&str>, args: &[&str]) -> String {
    let mut command = tokio::process::Command::new("redis-cli");
    command
        .args(server)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(password) = password {
        command.env("REDISCLI_AUTH", password);
    }
    let run = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
    let output = run
        .unwrap_or_else(|_| panic!("redis-cli {server:?} {args:?} gave no answer within 10 s"))
        .unwrap_or_else(|error| panic!("run redis-cli: {error}; install the package redis-tools"));
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).trim_end().to_owned()
}
