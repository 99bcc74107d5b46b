//! Stopping, dying, taking over.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use voiceai_testkit::{Exit, wait_until};

use crate::stage::{PATIENCE, Stage};

/// Enqueues sleepers of the probe: more than the five slots of the queue.
async fn sleepers(stage: &Stage, count: usize, sleep_ms: u32) {
    let lines: String = (0..count)
        .map(|n| {
            format!(
                "{{\"kind\":\"diagnostic.probe\",\"payload\":{{\"sleep_ms\":{sleep_ms},\"effect\":\"s{n}\"}},\"id\":\"s{n}\"}}\n"
            )
        })
        .collect();
    let file = stage.file("sleepers.ndjson", &lines);
    stage.ask_all(&["jobs", "enqueue", "--file", &file]).await.text(0);
}

async fn active(stage: &Stage) -> u64 {
    stage.ask("jobs stats --queue default --json").await.json(0)["active"].as_u64().unwrap()
}

#[tokio::test]
async fn sigterm_lets_running_jobs_finish_and_hands_back_the_rest() {
    let stage = Stage::new().await;
    let process = stage.tasker("one").await;
    sleepers(&stage, 8, 2_000).await;
    wait_until(PATIENCE, "five run", async || active(&stage).await >= 5).await;
    process.terminate();
    assert_eq!(process.wait_exit(PATIENCE).await, Exit::Code(0), "{}", process.stderr());
    let stats = stage.ask("jobs stats --queue default --json").await.json(0);
    assert_eq!(
        (&stats["completed"], &stats["waiting"], &stats["active"]),
        (&json!(5), &json!(3), &json!(0)),
        "{stats}"
    );
    assert_eq!(stats["queues"][0]["balances"], true);
    let log = process.stderr();
    for line in [
        "service started",
        "leader elected",
        "Email queue initialized",
        "Orchestration queue initialized",
        "worker pool started",
        "scheduler started",
        "outbox relay started",
        "history retention started",
        "scheduler stopped",
        "worker pool stopped",
        "outbox relay stopped",
        "service stopped",
    ] {
        assert!(log.contains(line), "no line `{line}` in\n{log}");
    }
    assert_eq!(stage.redis.cli(&["EXISTS", "voiceai:tasker:leader"]).await, "0", "it resigned");
    assert_eq!(stage.ask("healthcheck").await.exit, 7, "its state file is gone");
    // What was handed back has lost no attempt.
    let back = stage.ask("jobs list --state waiting --json").await.json(0);
    assert!(
        back["jobs"].as_array().unwrap().iter().all(|job| job["attempts"] == 0 && job["crashes"] == 0),
        "{back}"
    );
}

#[tokio::test]
async fn a_second_sigterm_forces() {
    let stage = Stage::new().await;
    let process = stage.tasker("one").await;
    sleepers(&stage, 1, 600_000).await;
    stage.wait_for_state("s0", "active").await;
    process.terminate();
    process.wait_for_line(PATIENCE, "stopping: no new work").await;
    let forced = Instant::now();
    process.signal(Signal::SIGTERM);
    let exit = process.wait_exit(PATIENCE).await;
    assert!(matches!(exit, Exit::Code(_)), "{exit:?}");
    assert!(forced.elapsed() < Duration::from_secs(10), "{:?}", forced.elapsed());
    assert_eq!(stage.effects("s0").await, 0);
}

#[tokio::test]
async fn what_a_killed_tasker_held_is_finished_by_another() {
    let stage = Stage::new().await;
    let first = stage.tasker("one").await;
    sleepers(&stage, 6, 1_500).await;
    wait_until(PATIENCE, "five run", async || active(&stage).await >= 5).await;
    let second = stage.tasker("two").await;
    first.kill9();
    for n in 0..6 {
        stage.wait_for_state(&format!("s{n}"), "completed").await;
    }
    for n in 0..6 {
        assert!(stage.effects(&format!("s{n}")).await >= 1);
    }
    second.wait_for_line(PATIENCE, "leader elected").await;
    let stats = stage.ask("jobs stats --queue default --json").await.json(0);
    assert_eq!((&stats["completed"], &stats["dead"]), (&json!(6), &json!(0)));
    assert_eq!(stats["queues"][0]["balances"], true);
}

#[tokio::test]
async fn losing_a_store_never_ends_the_process() {
    let stage = Stage::new().await;
    let mut redis = voiceai_testkit::RedisServer::start(voiceai_testkit::RedisOptions::default()).await;
    let process = stage.program().arg("run").env("REDIS_URL", redis.url()).start();
    process.wait_for_line(PATIENCE, "service ready").await;
    redis.kill9().await;
    process.wait_until(PATIENCE, "unready", async || stage.ask("healthcheck --ready").await.exit == 7).await;
    // Empty, as after a lost disk: the library, the leases and the leader all come back by themselves.
    redis.restart(true).await;
    process.wait_until(PATIENCE, "ready", async || stage.ask("healthcheck --ready").await.exit == 0).await;
    let payload = r#"{"effect":"after"}"#;
    let enqueue = stage.program().env("REDIS_URL", redis.url());
    crate::stage::answer(enqueue.args(["jobs", "enqueue", "diagnostic.probe", "--payload", payload]))
        .await
        .text(0);
    process
        .wait_until(PATIENCE, "the job ran", async || {
            redis.cli(&["HGET", "voiceai:diagnostic:effects", "after"]).await == "1"
        })
        .await;
    process.terminate();
    assert_eq!(process.wait_exit(PATIENCE).await, Exit::Code(0), "{}", process.stderr());
}

#[tokio::test]
async fn a_handler_that_panics_costs_an_attempt_and_nothing_else() {
    let stage = Stage::new().await;
    let process = stage.tasker("one").await;
    let panics = ["jobs", "enqueue", "diagnostic.probe", "--id", "p", "--payload", r#"{"panic":true}"#];
    stage.ask_all(&panics).await.text(0);
    let dead = stage.wait_for_state("p", "dead").await;
    assert!(dead["error"].as_str().unwrap().contains("panic"), "{dead}");
    stage.ask("jobs enqueue diagnostic.probe --id q").await.text(0);
    stage.wait_for_state("q", "completed").await;
    assert_eq!(process.exit(), None);
}
