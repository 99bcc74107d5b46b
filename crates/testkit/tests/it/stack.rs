//! `make stack` and `make stack-down`, as a person uses them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::runs;
use tempfile::TempDir;
use voiceai_testkit::{Exit, Process, Program};

/// Installing the Python tools on a fresh machine is the longest part.
const LONG: Duration = Duration::from_secs(100);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// A stack of this test's own.
struct Stack {
    directory: TempDir,
}

impl Stack {
    fn new() -> Self {
        Self { directory: tempfile::Builder::new().prefix("stack-").tempdir().unwrap() }
    }

    fn make(&self, target: &str) -> Program {
        Program::new("make").arg(target).directory(root()).env("VOICEAI_STACK_DIR", self.directory.path())
    }

    async fn up(&self) -> BTreeMap<String, String> {
        let made = self.make("stack").start();
        assert_eq!(made.wait_exit(LONG).await, Exit::Code(0), "{}", made.stderr());
        variables(&made.stdout())
    }

    async fn down(&self) -> String {
        let made = self.make("stack-down").start();
        assert_eq!(made.wait_exit(LONG).await, Exit::Code(0), "{}", made.stderr());
        assert_eq!(made.stdout(), "");
        made.stderr()
    }

    fn pid_file(&self, part: &str) -> PathBuf {
        self.directory.path().join("run").join(part).join(format!("{part}.pid"))
    }

    fn pid(&self, part: &str) -> String {
        let text = fs::read_to_string(self.pid_file(part)).unwrap();
        text.split(' ').next().unwrap().to_owned()
    }

    fn pids(&self) -> Vec<String> {
        ["redis", "postgres", "s3", "smtp"].map(|part| self.pid(part)).to_vec()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // After a failed test as well.
        let _ = std::process::Command::new("bash")
            .arg(root().join("scripts/stack/stack-down.sh"))
            .env("VOICEAI_STACK_DIR", self.directory.path())
            .output();
    }
}

/// Every line has to be an export of a plain variable.
fn variables(stdout: &str) -> BTreeMap<String, String> {
    stdout
        .lines()
        .map(|line| {
            let assignment =
                line.strip_prefix("export ").unwrap_or_else(|| panic!("not an export line: {line}"));
            let (name, value) = assignment.split_once('=').unwrap();
            assert!(name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'), "{line}");
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

/// Runs a script with the stack's variables, as a shell has them after `eval "$(make stack)"`.
async fn with_stack(variables: &BTreeMap<String, String>, script: &str) -> Process {
    let exports: String = variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect();
    let process = Program::new("bash")
        .args(["-euo", "pipefail", "-c", &format!("{exports}{script}")])
        .directory(root())
        .start();
    let exit = process.wait_exit(LONG).await;
    assert_eq!(exit, Exit::Code(0), "{script}:\n{}\n{}", process.stdout(), process.stderr());
    process
}

#[tokio::test]
async fn the_stack_starts_serves_survives_and_stops() {
    let stack = Stack::new();
    let first = stack.up().await;
    for name in [
        "REDIS_URL",
        "DATABASE_URL",
        "S3_ENDPOINT",
        "S3_BUCKET",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
        "SMTP_HOST",
        "SMTP_PORT",
        "SMTP_SINK_DIR",
    ] {
        assert!(first.contains_key(name), "{name} is missing from {first:?}");
    }
    assert_eq!(first["SMTP_TLS"], "off");
    assert!(!first.keys().any(|name| name.starts_with("AWS_")), "{first:?}");
    assert!(first["REDIS_URL"].starts_with("redis://127.0.0.1:"));
    let all = first.values().cloned().collect::<Vec<_>>().join(" ");
    for default in [":6379", ":5432", ":8333", ":9000"] {
        assert!(!all.contains(default), "a default port in {all}");
    }

    // Each part does its work, and is set up as promised.
    let used = with_stack(
        &first,
        r#"
        redis-cli -u "$REDIS_URL" SET kept yes
        redis-cli -u "$REDIS_URL" CONFIG GET append* | paste -sd' '
        redis-cli -u "$REDIS_URL" CONFIG GET maxmemory-policy | tail -1
        psql "$DATABASE_URL" -qAtc 'CREATE TABLE kept AS SELECT 1 AS id' -c 'SELECT count(*) FROM kept' \
            -c "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        . scripts/stack/lib.sh
        s3_request "$S3_ENDPOINT" "$S3_ACCESS_KEY" "$S3_SECRET_KEY" PUT "/$S3_BUCKET/kept" content
        s3_request "$S3_ENDPOINT" "$S3_ACCESS_KEY" "$S3_SECRET_KEY" GET "/$S3_BUCKET/kept"; echo
        s3_request "$S3_ENDPOINT" "$S3_ACCESS_KEY" wrong GET "/$S3_BUCKET/kept" 2>/dev/null || echo refused
        .stack/venv/bin/python - <<'PYTHON'
import os, smtplib
with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"])) as smtp:
    smtp.sendmail("from@example.org", ["one@example.org", "two@example.org"], "Subject: first\r\n\r\n.dotted body\r\n")
    smtp.sendmail("from@example.org", ["one@example.org"], "Subject: second\r\n\r\nbody\r\n")
PYTHON
        "#,
    )
    .await;
    let output = used.stdout();
    assert!(output.contains("appendonly yes") && output.contains("appendfsync everysec"), "{output}");
    assert!(output.contains("\nnoeviction\n1\nf|t\ncontent\nrefused"), "{output}");
    let mut mails: Vec<String> = fs::read_dir(&first["SMTP_SINK_DIR"])
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    mails.sort_by_key(|mail| mail.contains("second"));
    assert_eq!(mails.len(), 2, "one file for each message");
    assert!(
        mails[0].starts_with(
            "X-MailFrom: from@example.org\r\nX-RcptTo: one@example.org\r\nX-RcptTo: two@example.org\r\n"
        ),
        "{}",
        mails[0]
    );
    assert!(mails[0].ends_with("Subject: first\r\n\r\n.dotted body\r\n"), "{}", mails[0]);

    // A second start finds it running.
    let pids = stack.pids();
    assert_eq!(stack.up().await, first);
    assert_eq!(stack.pids(), pids);

    // A part that has died is started again where it was, over its data; the others are left alone.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pids[1].parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(stack.up().await, first);
    let after = stack.pids();
    assert_ne!(after[1], pids[1]);
    assert_eq!([&after[0], &after[2], &after[3]], [&pids[0], &pids[2], &pids[3]]);
    with_stack(&first, r#"[[ $(psql "$DATABASE_URL" -Atc 'SELECT count(*) FROM kept') == 1 ]]"#).await;

    let said = stack.down().await;
    assert!(said.contains("stopped smtp s3 postgres redis"), "{said}");
    for pid in &after {
        assert!(!runs(pid), "process {pid} is still there");
    }
    assert!(stack.down().await.contains("nothing was running"));

    // The data is still there for the next start.
    let again = stack.up().await;
    with_stack(&again, r#"[[ $(redis-cli -u "$REDIS_URL" GET kept) == yes ]]"#).await;
}

/// The private stack above runs with deploy/redis/redis.conf; these are its companions.
#[tokio::test]
async fn the_shipped_redis_files_are_taken_by_their_servers() {
    let directory = tempfile::tempdir().unwrap();
    let files = root().join("deploy/redis");
    let include = ["redis.conf", "replication.conf"]
        .map(|file| format!("include {}\n", files.join(file).display()))
        .concat();
    let config = directory.path().join("redis.conf");
    let port = voiceai_testkit::Port::reserve();
    let own = format!("port {}\nbind 127.0.0.1\ndir {}\n", port.number(), directory.path().display());
    fs::write(&config, include + &own).unwrap();
    let server = Program::new("redis-server").arg(&config).start();
    server.wait_for_line(LONG, "Ready to accept connections").await;
    let script = format!(
        "redis-cli -p {0} SET key value; redis-cli -p {0} CONFIG GET min-replicas-max-lag; redis-cli -p {0} CONFIG GET maxmemory-policy",
        port.number()
    );
    let asked = Program::new("bash").args(["-c", &script]).start();
    asked.wait_exit(LONG).await;
    let output = asked.stdout();
    assert!(output.contains("NOREPLICAS"), "a primary without replicas took a write: {output}");
    assert!(output.contains("min-replicas-max-lag\n2\nmaxmemory-policy\nnoeviction"), "{output}");

    let port = voiceai_testkit::Port::reserve();
    let config = directory.path().join("sentinel.conf");
    let text = fs::read_to_string(files.join("sentinel.conf")).unwrap();
    fs::write(
        &config,
        text.replace(
            "port 26379",
            &format!("port {}\nbind 127.0.0.1\ndir {}", port.number(), directory.path().display()),
        ),
    )
    .unwrap();
    let sentinel = Program::new("redis-server").arg(&config).arg("--sentinel").start();
    let line = sentinel.wait_for_line(LONG, "+monitor").await;
    assert!(line.contains("mymaster") && line.contains("quorum 2"), "{line}");
}

#[tokio::test]
async fn stopping_spares_a_stranger_with_a_recorded_number() {
    let stack = Stack::new();
    let stranger = Program::new("sleep").arg("600").start();
    let file = stack.pid_file("redis");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // As after a reboot: the number is in use again, by a process that started at another time.
    fs::write(&file, format!("{} 1\n", stranger.pid())).unwrap();
    assert!(stack.down().await.contains("nothing was running"));
    assert_eq!(stranger.exit(), None);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_part_that_does_not_start_is_named_with_its_log() {
    let stack = Stack::new();
    let broken = tempfile::tempdir().unwrap();
    let path = broken.path().join("redis-server");
    fs::write(&path, "#!/bin/sh\n[ \"$1\" = --version ] && exec /usr/bin/redis-server --version\necho 'disk on fire'\nexit 1\n").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let search = format!("{}:{}", broken.path().display(), std::env::var("PATH").unwrap());
    let made = stack.make("stack").env("PATH", search).start();
    assert!(matches!(made.wait_exit(LONG).await, Exit::Code(code) if code != 0));
    assert_eq!(made.stdout(), "", "a shell would eval this");
    let said = made.stderr();
    assert!(
        said.contains("error: Redis ended while starting")
            && said.contains("disk on fire")
            && said.contains("redis.log"),
        "{said}"
    );
}
