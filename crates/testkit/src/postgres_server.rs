//! A PostgreSQL server of a test's own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::ports::Port;
use crate::process::{Process, Program};
use crate::shared::workspace;
use crate::wait::{wait_for, wait_until};

const START_WITHIN: Duration = Duration::from_secs(60);
const END_WITHIN: Duration = Duration::from_secs(20);

/// A PostgreSQL server that may be killed, paused and restarted on the same port. Its user and its database are
/// `voiceai`; nothing is ever synced to disk, so a test of power loss needs another. Ended on drop.
#[derive(Debug)]
pub struct PostgresServer {
    port: Port,
    directory: TempDir,
    settings: Vec<String>,
    process: Option<Process>,
}

impl PostgresServer {
    /// Starts one on a free port of 127.0.0.1 with an empty database and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with settings such as `max_connections=5`.
    pub async fn start_with(settings: &[&str]) -> Self {
        let directory =
            tempfile::Builder::new().prefix("postgres-").tempdir().expect("make a directory for PostgreSQL");
        let target = directory.path().to_owned();
        tokio::task::spawn_blocking(move || copy_template(&target))
            .await
            .expect("copy PostgreSQL's data directory");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { port: Port::reserve(), directory, settings, process: None };
        server.launch().await;
        server
    }

    /// `postgres://voiceai@127.0.0.1:PORT/voiceai`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://voiceai@127.0.0.1:{}/voiceai", self.port.number())
    }

    /// The port it listens on, also while it is down.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// The first process, while it is up.
    #[must_use]
    pub const fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// SIGKILL to all its processes, and waits until they are gone.
    pub async fn kill9(&mut self) {
        if let Some(process) = self.process.take() {
            let family = family(process.pid());
            process.kill9();
            process.resume();
            for pid in &family {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
            }
            process.wait_exit(END_WITHIN).await;
            wait_until(END_WITHIN, "PostgreSQL's processes are gone", async || {
                family.iter().all(|pid| !runs(*pid))
            })
            .await;
        }
    }

    /// A fast shutdown (SIGINT): open transactions are rolled back. Waits until it is gone.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            for pid in family(process.pid()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
            }
            process.resume();
            process.signal(Signal::SIGINT);
            process.wait_exit(END_WITHIN).await;
        }
    }

    /// SIGSTOP to all its processes: connections stay open, nothing is answered.
    pub fn pause(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// SIGCONT to all its processes.
    pub fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// Ends it if it is up and starts it again on the same port; `empty` puts a new, empty database there.
    pub async fn restart(&mut self, empty: bool) {
        self.stop().await;
        if empty {
            let target = self.directory.path().to_owned();
            fs::remove_dir_all(target.join("data")).expect("remove PostgreSQL's data directory");
            tokio::task::spawn_blocking(move || copy_template(&target))
                .await
                .expect("copy PostgreSQL's data directory");
        }
        self.launch().await;
    }

    fn signal_all(&self, signal: Signal) {
        let process = self.process.as_ref().expect("PostgreSQL is up");
        process.signal(signal);
        for pid in family(process.pid()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }

    async fn launch(&mut self) {
        let port = self.port.number();
        let program = Program::new(bin_directory().join("postgres"))
            .wrapped_in(unprivileged())
            .arg("-D")
            .arg(self.directory.path().join("data"))
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                &format!("port={port}"),
                "-c",
                "unix_socket_directories=",
            ])
            .args([
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
                "-c",
                "timezone=UTC",
                "-c",
                "shared_buffers=32MB",
            ])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]));
        let process = program.start();
        let url = self.url();
        wait_for(START_WITHIN, format!("PostgreSQL answers on port {port}"), async || {
            assert!(process.exit().is_none(), "PostgreSQL ended while starting:\n{}", process.stderr());
            let connection = PgConnection::connect(&url).await.map_err(|error| error.to_string())?;
            connection.close().await.map_err(|error| error.to_string())
        })
        .await;
        self.process = Some(process);
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // Its children are in sessions of their own; they end by themselves when the first process has, unless paused.
        if let Some(process) = &self.process {
            for pid in family(process.pid()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The children of a process.
fn family(parent: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A data directory is made once for each PostgreSQL version and checkout (half a second), then copied.
fn copy_template(target: &Path) {
    let bin = bin_directory();
    let version =
        Command::new(bin.join("postgres")).arg("--version").output().expect("run postgres --version");
    let version: String = String::from_utf8_lossy(&version.stdout)
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let home = workspace().join(".stack/test/postgres-template");
    fs::create_dir_all(&home).unwrap_or_else(|error| panic!("create {}: {error}", home.display()));
    let template = home.join(&version);
    let lock = File::create(home.join("lock")).expect("create the template's lock");
    lock.lock().expect("lock the template");
    if !template.join("whole").exists() {
        let _ = fs::remove_dir_all(&template);
        fs::create_dir_all(&template).expect("create the template's directory");
        chown(&template);
        let data = template.join("data");
        unprivileged_run(
            &bin.join("initdb"),
            &["-U", "voiceai", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"],
            &data,
            None,
        );
        // Single-user mode needs no port.
        unprivileged_run(
            &bin.join("postgres"),
            &["--single", "-D"],
            &data,
            Some("CREATE DATABASE voiceai;\n"),
        );
        File::create(template.join("whole")).expect("mark the template as whole");
    }
    drop(lock);
    chown(target);
    let copied = Command::new("cp").arg("-a").arg(template.join("data")).arg(target.join("data")).status();
    assert!(matches!(copied, Ok(status) if status.success()), "copy {}: {copied:?}", template.display());
}

fn chown(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let done = Command::new("chown").arg("postgres:").arg(path).status();
        assert!(
            matches!(done, Ok(status) if status.success()),
            "give {} to postgres: {done:?}",
            path.display()
        );
    }
}

fn unprivileged_run(program: &Path, args: &[&str], data: &Path, input: Option<&str>) {
    let mut words = unprivileged();
    words.push(program.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(args).arg(data).current_dir("/");
    if input.is_some() {
        command.arg("postgres");
    }
    let input_file = tempfile::NamedTempFile::new().expect("make a file for standard input");
    fs::write(input_file.path(), input.unwrap_or_default()).expect("write standard input");
    let input = File::open(input_file.path()).expect("open standard input");
    let output =
        command.stdin(input).output().unwrap_or_else(|error| panic!("run {}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{} failed:\n{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// PostgreSQL refuses root. As root it runs as `postgres`, with the right to pass through directories that only root may
/// enter; `scripts/stack/lib.sh` says why. The change of user clears the parent-death signal, so it is set once more.
fn unprivileged() -> Vec<OsString> {
    const AS_POSTGRES: [&str; 4] = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];
    const CAPS: [&str; 2] =
        ["--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search"];
    if !nix::unistd::geteuid().is_root() {
        // `setpriv` without a change still runs the command.
        return ["setpriv", "--pdeathsig", "KILL"].map(OsString::from).to_vec();
    }
    let with_caps = Command::new(AS_POSTGRES[0]).args(&AS_POSTGRES[1..]).args(CAPS).arg("true").output();
    let caps: &[&str] = if with_caps.is_ok_and(|output| output.status.success()) { &CAPS } else { &[] };
    AS_POSTGRES.iter().chain(caps).chain(&["setpriv", "--pdeathsig", "KILL"]).map(OsString::from).collect()
}

/// The newest installed server's programs; Debian keeps them out of PATH.
fn bin_directory() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    if let Some((_, bin)) = versions.pop() {
        return bin;
    }
    let asked = Command::new("pg_config").arg("--bindir").output();
    let bin =
        asked.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())).unwrap_or_default();
    assert!(
        bin.join("initdb").exists(),
        "PostgreSQL's server programs were not found; install the package postgresql"
    );
    bin
}
