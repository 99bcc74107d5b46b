//! The whole loop: load rises and falls, servers come and go, no call is cut.

use std::time::Duration;

use serde_json::json;
use voiceai_postgres::sqlx;
use voiceai_testkit::{Exit, wait_for, wait_until};

use crate::harness::{Call, Stack, WITHIN};

#[tokio::test]
async fn load_rises_and_falls_and_no_call_is_cut() {
    let stack = Stack::new().await;
    stack.group("eu", 1, 3, &stack.config()).await;
    let scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01"]).await;

    let before = stack.dispatcher.cli(&["GET", "voiceai:dispatcher:generation"]).await;
    let before: i64 = before.parse().expect("a number");
    let mut calls: Vec<Call> = (0..8).map(|_| stack.call("test-voice-01")).collect();
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    // 0.7 × 20 is not exceeded by 14, but by 15.
    calls.extend((0..7).map(|_| stack.call("test-voice-02")));
    stack.wait_settled(&["test-voice-01", "test-voice-02", "test-voice-03"]).await;
    // At the maximum nothing more is made, however busy it gets.
    calls.extend((0..10).map(|_| stack.call("test-voice-03")));
    wait_until(WITHIN, "held at the maximum", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'at_maximum'").await > 1
    })
    .await;
    assert_eq!(stack.running().len(), 3);
    assert!(calls.iter_mut().all(Call::lives));

    // Two calls stay on each of the first two: they drain one after the other, and only when their calls have ended.
    calls.truncate(15);
    let mut second = calls.split_off(13);
    calls.truncate(2);
    wait_until(WITHIN, "the emptiest one is gone", async || {
        stack.running() == ["test-voice-01", "test-voice-02"] && stack.processes() == 2
    })
    .await;
    let draining = wait_for(WITHIN, "a second drain", async || {
        let records = stack.records().await;
        let draining = records.iter().find(|(_, flags)| flags == "12").map(|(name, _)| name.clone());
        draining.ok_or_else(|| format!("{records:?}"))
    })
    .await;
    // While its calls run, it stays: its record disabled, its process alive.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(calls.iter_mut().all(Call::lives) && second.iter_mut().all(Call::lives));
    assert!(stack.running().contains(&draining));
    let ended = if draining == "test-voice-01" { &mut calls } else { &mut second };
    ended.clear();
    let left = if draining == "test-voice-01" { "test-voice-02" } else { "test-voice-01" };
    stack.wait_settled(&[left]).await;
    assert!(calls.iter_mut().all(Call::lives) && second.iter_mut().all(Call::lives), "no call was cut");

    // Nothing of the removed ones is left.
    let beats = stack.redis.cli(&["KEYS", "voiceai:heartbeat:*"]).await;
    assert_eq!(beats, format!("voiceai:heartbeat:{left}"));
    assert_eq!(stack.processes(), 1);
    let after: i64 =
        stack.dispatcher.cli(&["GET", "voiceai:dispatcher:generation"]).await.parse().expect("a number");
    assert!(after - before >= 8, "each change was counted: {before} to {after}");
    scaler.terminate();
    assert_eq!(scaler.wait_exit(WITHIN).await, Exit::Code(0));
    assert!(!scaler.stderr().contains("panicked"), "{}", scaler.stderr());
}

#[tokio::test]
async fn a_server_enters_routing_only_after_its_own_new_heartbeat() {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["bootDelayMs"] = json!(2500);
    config["routingSettleSeconds"] = json!(3);
    // Whoever beats under a name has it: it is not given to a server of ours.
    let other =
        json!({"service": "voice", "group": "other", "active": 3, "atMs": 1_790_000_000_000_u64}).to_string();
    stack.redis.cli(&["SET", "voiceai:heartbeat:test-voice-01", &other]).await;
    stack.group("eu", 1, 3, &config).await;
    let _scaler = stack.scaler("a");
    wait_until(WITHIN, "the server runs", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE state = 'running'").await == 1
    })
    .await;
    assert_eq!(stack.records().await, [], "not in routing before its heartbeat");
    // It enters inactive and probed, and becomes active later.
    wait_until(WITHIN, "inactive and probed", async || {
        stack.records().await == [("test-voice-02".to_owned(), "9".to_owned())]
    })
    .await;
    stack.wait_settled(&["test-voice-02"]).await;
    let key = "dispatcher:entry::test-voice-02";
    let fields = stack.dispatcher.cli(&["HMGET", key, "setid", "priority", "attrs"]).await;
    assert_eq!(fields, "1\n1\nduid=test-voice-02");
    assert_eq!(stack.dispatcher.cli(&["HLEN", key]).await, "5");
    let destination = stack.dispatcher.cli(&["HGET", key, "destination"]).await;
    assert!(destination.starts_with("sip:127.") && destination.ends_with(":5060"), "{destination}");
}

#[tokio::test]
async fn a_server_without_a_heartbeat_is_taken_away_and_the_circuit_opens() {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["bootDelayMs"] = json!(-1);
    config["heartbeatTimeoutSeconds"] = json!(1);
    stack.group("eu", 1, 3, &config).await;
    let _scaler = stack.scaler("a");
    wait_until(Duration::from_secs(40), "the circuit opens", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'provider_held'").await > 0
    })
    .await;
    wait_until(WITHIN, "all is cleaned up", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE finished_at IS NULL").await == 0
    })
    .await;
    assert_eq!(stack.processes(), 0, "nothing is leaked");
    assert_eq!(stack.records().await, []);
    assert_eq!(
        stack.number("SELECT count(*) FROM ops.operations").await,
        3,
        "no fourth try while the circuit is open"
    );
    assert_eq!(
        stack.number("SELECT count(DISTINCT name) FROM ops.servers").await,
        3,
        "a name rests after its server's end"
    );
    let told = stack.number(
        "SELECT count(*) FROM ops.outbox WHERE kind = 'notification.send' AND queue = 'email-queue' \
         AND payload->>'event' = 'degraded' AND payload->>'group' = 'eu'",
    );
    assert_eq!(told.await, 1);
    let status = stack.json(&["status"]).await;
    let timer = &status["timers"][0];
    assert_eq!(
        (timer["group"].as_str(), timer["rule"].as_str()),
        (Some("eu"), Some("provider_held")),
        "{status}"
    );
    assert!(timer["until"].is_string());
}

#[tokio::test]
async fn one_failed_server_a_group_is_kept_for_inspection_and_named() {
    const LOG: &str = "/var/log/cloud-init-output.log";
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["bootDelayMs"] = json!(-1);
    config["heartbeatTimeoutSeconds"] = json!(1);
    config["keepFailed"] = json!(true);
    config["keepFailedSeconds"] = json!(8);
    stack.group("eu", 2, 2, &config).await;
    let _scaler = stack.scaler("a");
    wait_until(WITHIN, "one is kept, the other one is not", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE state = 'failed_clean'").await >= 1
    })
    .await;
    let kept = "SELECT count(*) FROM ops.operations WHERE state = 'failed' AND deadline IS NOT NULL";
    assert_eq!(stack.number(kept).await, 1);
    assert!(stack.processes() >= 1, "the evidence is there");
    assert_eq!(stack.records().await, [], "and out of routing");
    wait_until(WITHIN, "it counts in the caps", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'at_maximum'").await > 0
    })
    .await;
    let (name,): (String,) = sqlx::query_as(
        "SELECT s.name FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                        WHERE o.state = 'failed' AND o.deadline IS NOT NULL",
    )
    .fetch_one(&stack.pool)
    .await
    .expect("its name");
    let status = stack.json(&["status"]).await;
    let timers = status["timers"].as_array().expect("timers");
    let timer = timers.iter().find(|timer| timer["rule"] == "kept_failed").expect("the kept one");
    assert_eq!((timer["group"].as_str(), timer["server"].as_str()), (Some("eu"), Some(name.as_str())));
    assert!(
        timer["until"].is_string() && timer["why"].as_str().is_some_and(|why| why.contains(LOG)),
        "{timer}"
    );
    let (_, text, _) = stack.run(&["status"]).await;
    assert!(text.contains("kept_failed") && text.contains(LOG), "{text}");
    // The mail says what `status` says: which one, where to read, until when.
    let (reason,): (String,) =
        sqlx::query_as("SELECT payload->>'reason' FROM ops.outbox WHERE payload->>'event' = 'failed' \
                        AND payload->>'server' = $1 AND payload->>'reason' LIKE '%kept for inspection until%'")
            .bind(&name)
            .fetch_one(&stack.pool)
            .await
            .expect("a notice that it is kept");
    assert!(reason.contains(LOG), "{reason}");
    wait_until(WITHIN, "it is taken away after its time", async || {
        !stack.servers().await.iter().any(|(one, _)| *one == name)
    })
    .await;
}

#[tokio::test]
async fn a_drain_is_called_off_before_anything_is_bought() {
    let stack = Stack::new().await;
    stack.group("eu", 2, 2, &stack.config()).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    let mut calls: Vec<Call> = (0..2).map(|_| stack.call("test-voice-01")).collect();
    calls.push(stack.call("test-voice-02"));
    stack.group("eu", 1, 2, &stack.config()).await;
    wait_until(WITHIN, "the emptier one drains", async || {
        stack.servers().await.contains(&("test-voice-02".to_owned(), "draining".to_owned()))
            && stack.records().await.contains(&("test-voice-02".to_owned(), "12".to_owned()))
    })
    .await;
    calls.extend((0..6).map(|_| stack.call("test-voice-01")));
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    assert_eq!(
        stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'up'").await,
        2,
        "nothing was bought"
    );
    assert_eq!(stack.number("SELECT count(*) FROM ops.operations WHERE state = 'cancelled'").await, 1);
    assert!(calls.iter_mut().all(Call::lives));
}

#[tokio::test]
async fn a_drains_deadline_ends_the_calls_only_when_the_policy_says_so() {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["drainTimeoutSeconds"] = json!(1);
    config["drainDeadline"] = json!("leave");
    stack.group("eu", 2, 2, &config).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    let mut first = stack.call("test-voice-01");
    let mut second = stack.call("test-voice-02");
    stack.group("eu", 1, 2, &config).await;
    wait_until(WITHIN, "the delay is told", async || {
        stack.number("SELECT count(*) FROM ops.outbox WHERE payload->>'event' = 'drain_overdue'").await == 1
    })
    .await;
    assert!(first.lives() && second.lives());
    // Told once for each time that the wait was over, not once for all.
    stack.database.execute("UPDATE ops.operations SET deadline = now() WHERE state = 'draining'").await;
    wait_until(WITHIN, "the next delay is told", async || {
        stack.number("SELECT count(*) FROM ops.outbox WHERE payload->>'event' = 'drain_overdue'").await == 2
    })
    .await;
    let servers = stack.servers().await;
    let (draining, _) = servers.iter().find(|(_, status)| status == "draining").expect("one drains").clone();
    let (code, _, stderr) = stack.run(&["undrain", &draining, "--yes"]).await;
    assert_eq!(code, 0, "{stderr}");
    config["drainDeadline"] = json!("end");
    stack.group("eu", 2, 2, &config).await;
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    stack.group("eu", 1, 2, &config).await;
    wait_until(WITHIN, "one is removed with its call", async || {
        stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down' AND state = 'done'").await == 1
    })
    .await;
    assert_ne!(first.lives(), second.lives(), "the time of one was over, the other goes on");
    assert_eq!(stack.number("SELECT count(*) FROM ops.operation_steps WHERE to_state = 'forced'").await, 1);
}

#[tokio::test]
async fn a_group_that_is_gone_lets_its_operations_end() {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["bootDelayMs"] = json!(1500);
    stack.group("eu", 1, 1, &config).await;
    let _scaler = stack.scaler("a");
    wait_until(WITHIN, "a server is being made", async || stack.processes() == 1).await;
    sqlx::query(r#"DELETE FROM "ServerGroup""#).execute(&stack.pool).await.expect("no group");
    stack.wait_settled(&["test-voice-01"]).await;
}

#[tokio::test]
async fn a_server_that_died_is_cleared_from_rows_and_routing_and_replaced() {
    let mut stack = Stack::new().await;
    stack.set("HEARTBEAT_STALE_AFTER", "1s");
    let mut config = stack.config();
    config["heartbeatTtlMs"] = json!(800);
    stack.group("eu", 1, 1, &config).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01"]).await;
    let file = std::fs::read(stack.state().join("test-voice-01.json")).expect("a running server");
    let state: serde_json::Value = serde_json::from_slice(&file).expect("its state");
    let pid = i32::try_from(state["pid"].as_i64().expect("a pid")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    std::fs::remove_file(stack.state().join("test-voice-01.json")).expect("its state");
    // It was the only one and the maximum is one: its end has to be found out before another may be made.
    stack.wait_settled(&["test-voice-02"]).await;
    let reasons = stack.number(
        "SELECT count(*) FROM ops.operations WHERE kind = 'down' AND reason = 'ghost' AND state = 'done'",
    );
    assert_eq!(reasons.await, 1);
}

#[tokio::test]
async fn a_silent_server_that_the_provider_has_is_never_deleted() {
    let mut stack = Stack::new().await;
    stack.set("HEARTBEAT_STALE_AFTER", "1s");
    let mut config = stack.config();
    config["heartbeatTtlMs"] = json!(800);
    stack.group("eu", 1, 2, &config).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01"]).await;
    let file = std::fs::read(stack.state().join("test-voice-01.json")).expect("a running server");
    let state: serde_json::Value = serde_json::from_slice(&file).expect("its state");
    let pid = i32::try_from(state["pid"].as_i64().expect("a pid")).expect("a pid");
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a signal");
    signal(nix::sys::signal::Signal::SIGSTOP);
    // Asked for by name more than twice, and answered that it is there.
    wait_until(WITHIN, "blind for a while", async || {
        stack.number("SELECT count(*) FROM ops.decisions WHERE reason = 'blind'").await > 12
    })
    .await;
    assert_eq!(stack.number("SELECT count(*) FROM ops.operations").await, 1, "nothing was begun");
    signal(nix::sys::signal::Signal::SIGCONT);
    stack.wait_settled(&["test-voice-01"]).await;
}
