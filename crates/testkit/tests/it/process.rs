use std::time::Duration;

use crate::runs;
use nix::sys::signal::Signal;
use voiceai_testkit::{Exit, Process, Program, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Process {
    Program::new("bash").args(["-c", script]).start()
}

#[tokio::test]
async fn output_and_exit_code_are_kept() {
    let process = shell("echo out; echo err >&2; exit 7");
    assert_eq!(process.wait_exit(SOON).await, Exit::Code(7));
    assert_eq!((process.stdout().as_str(), process.stderr().as_str()), ("out", "err"));
    // Also after the end, and for a line that came before the call.
    assert_eq!(process.wait_for_line(SOON, "er").await, "err");
}

#[tokio::test]
#[should_panic(expected = "without a line with \"never\"")]
async fn a_line_that_cannot_come_any_more_fails_at_once() {
    shell("echo something else").wait_for_line(Duration::from_secs(600), "never").await;
}

#[tokio::test]
async fn the_environment_is_empty_but_for_what_is_given() {
    let process = Program::new("env").env("GIVEN", "yes").start();
    process.wait_exit(SOON).await;
    let output = process.stdout();
    assert!(output.lines().any(|line| line == "GIVEN=yes"));
    assert!(!output.contains("CARGO"), "cargo's variables leaked into {output}");
}

#[tokio::test]
async fn signals_arrive() {
    let process = shell("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.02; done");
    process.wait_for_line(SOON, "ready").await;
    assert_eq!(process.exit(), None);
    process.terminate();
    assert_eq!(process.wait_exit(SOON).await, Exit::Code(3));
    assert_eq!(process.stdout(), "ready\nasked");

    let process = shell("echo ready; while :; do sleep 0.02; done");
    process.wait_for_line(SOON, "ready").await;
    process.kill9();
    assert_eq!(process.wait_exit(SOON).await, Exit::Signal(Signal::SIGKILL));
}

#[tokio::test]
async fn a_paused_process_does_nothing_until_resumed() {
    let process = shell("n=0; while :; do n=$((n+1)); echo line$n; sleep 0.01; done");
    process.wait_for_line(SOON, "line2").await;
    process.pause();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    wait_until(SOON, "it is stopped", async || state().contains(") T ")).await;
    process.resume();
    process.wait_for_line(SOON, "line20").await;
}

#[tokio::test]
async fn drop_ends_the_children_too() {
    let process = shell("sleep 600 & echo child $!; wait");
    let line = process.wait_for_line(SOON, "child").await;
    let child = line.trim_start_matches("child ").to_owned();
    assert!(runs(&child));
    drop(process);
    wait_until(SOON, "the child has ended", async || !runs(&child)).await;
}

/// The kernel ends what a killed test has started. The test here is this very binary, run again.
#[tokio::test]
async fn nothing_outlives_a_killed_test() {
    if std::env::var_os("TESTKIT_VICTIM").is_some() {
        let process = shell("echo up; sleep 600");
        process.wait_for_line(SOON, "up").await;
        println!("started {}", process.pid());
        std::future::pending::<()>().await;
    }
    let victim = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::nothing_outlives_a_killed_test", "--nocapture"])
        .env("TESTKIT_VICTIM", "1")
        .start();
    let line = victim.wait_for_line(SOON, "started ").await;
    let pid = line.split("started ").nth(1).unwrap().to_owned();
    assert!(runs(&pid));
    victim.kill9();
    wait_until(SOON, "the process has ended", async || !runs(&pid)).await;
}
