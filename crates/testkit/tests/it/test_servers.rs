//! The shared servers' supervisor: they are there for the tests, and gone afterwards whatever happens.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::runs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use voiceai_testkit::{Exit, Process, Program, wait_for, wait_until};

const LONG: Duration = Duration::from_secs(60);

fn script() -> Program {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    Program::new("bash").arg(root.join("scripts/stack/test-servers.sh"))
}

/// A run that waits, with the process ids of its servers and its directory.
async fn a_run(state: &Path) -> (Process, Vec<String>, PathBuf) {
    let run = script()
        .args(["run", "bash", "-c", "env | grep ^VOICEAI_TEST_ | sort; echo ready; exec sleep 600"])
        .env("VOICEAI_STACK_DIR", state)
        .start();
    run.wait_for_line(LONG, "ready").await;
    let directory = fs::read_dir(state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("tests."))
        .expect("the run's directory");
    let pids = ["redis", "postgres", "s3"]
        .map(|part| fs::read_to_string(directory.join(part).join(format!("{part}.pid"))).unwrap())
        .map(|text| text.split(' ').next().unwrap().to_owned())
        .to_vec();
    assert!(pids.iter().all(|pid| runs(pid)));
    (run, pids, directory)
}

#[tokio::test]
async fn a_run_gives_addresses_hands_on_the_exit_code_and_cleans_up() {
    let state = tempfile::tempdir().unwrap();
    let run = script()
        .args(["run", "bash", "-c"])
        .arg("redis-cli -u $VOICEAI_TEST_REDIS_URL PING && psql $VOICEAI_TEST_DATABASE_URL -Atc 'SHOW fsync' && echo $VOICEAI_TEST_S3_ENDPOINT && exit 7")
        .env("VOICEAI_STACK_DIR", state.path())
        .start();
    assert_eq!(run.wait_exit(LONG).await, Exit::Code(7), "{}", run.stderr());
    let lines: Vec<String> = run.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines[..2], ["PONG", "off"]);
    assert!(lines[2].starts_with("http://127.0.0.1:"));
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "something was left behind");
}

#[tokio::test]
async fn an_interrupted_run_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let (run, pids, directory) = a_run(state.path()).await;
    // As a terminal does on Ctrl-C: to the whole group.
    killpg(Pid::from_raw(run.pid()), Signal::SIGINT).unwrap();
    assert_eq!(run.wait_exit(LONG).await, Exit::Code(130));
    assert!(pids.iter().all(|pid| !runs(pid)));
    assert!(!directory.exists());
}

#[tokio::test]
async fn the_servers_of_a_killed_run_end() {
    let state = tempfile::tempdir().unwrap();
    let (run, pids, _) = a_run(state.path()).await;
    killpg(Pid::from_raw(run.pid()), Signal::SIGKILL).unwrap();
    wait_until(LONG, "the servers have ended", async || pids.iter().all(|pid| !runs(pid))).await;
}

#[tokio::test]
async fn a_supervisor_ends_when_nobody_uses_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let user = File::create(directory.path().join("users.lock")).unwrap();
    user.lock_shared().unwrap();
    let serving = script().args(["serve", "redis"]).arg(directory.path()).arg("2").start();
    let address = directory.path().join("env");
    wait_for(LONG, "the address is written", async || fs::read_to_string(&address)).await;
    // Longer than it waits when idle: it looks every 2 s.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(serving.exit(), None, "it ended under a living test");
    let pid = fs::read_to_string(directory.path().join("redis.pid")).unwrap();
    let pid = pid.split(' ').next().unwrap();
    drop(user);
    assert_eq!(serving.wait_exit(LONG).await, Exit::Code(0), "{}", serving.stderr());
    assert!(!runs(pid));
    assert!(!address.exists(), "an address of a server that is gone");
}

#[tokio::test]
async fn databases_of_ended_processes_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let serving = script().args(["serve", "postgres"]).arg(directory.path()).start();
    let address = directory.path().join("env");
    let text = wait_for(LONG, "the address is written", async || fs::read_to_string(&address)).await;
    let url = text.trim().strip_prefix("VOICEAI_TEST_DATABASE_URL=").unwrap().to_owned();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    // No process has the largest possible number; this one lives.
    let (dead, living) = ("t_4194304_0_cafe".to_owned(), format!("t_{}_0_cafe", std::process::id()));
    for name in [&dead, &living] {
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    }
    let left = async || -> Vec<String> {
        sqlx::query_scalar("SELECT datname FROM pg_database WHERE datname ~ '^t_' ORDER BY 1")
            .fetch_all(&pool)
            .await
            .unwrap()
    };
    wait_until(LONG, "the dead process's database is dropped", async || left().await == [living.clone()])
        .await;
    serving.terminate();
    assert_eq!(serving.wait_exit(LONG).await, Exit::Code(0), "{}", serving.stderr());
}
