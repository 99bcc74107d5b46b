//! What bounds a group: quota, caps and deadlines, by the service itself.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use voiceai_testkit::{Exit, wait_for, wait_until};

use crate::crash::Stub;
use crate::harness::{Stack, WITHIN};

impl Stub {
    /// Another script of the stub's provider.
    pub(crate) fn replace(&self, script: &str, body: &str) {
        let path = self.stack.folder.path().join("providers/local").join(script);
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{}{body}\n", crate::crash::COMMON)).expect("a script");
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("executable");
        // In one go: the service may be about to start it.
        std::fs::rename(&new, &path).expect("replaced");
    }

    async fn wait_reason(&self, reason: &str, times: i64) {
        let sql = "SELECT count(*) FROM ops.decisions WHERE reason = $1";
        wait_for(WITHIN, format!("held by {reason}"), async || {
            let (held,): (i64,) = voiceai_postgres::sqlx::query_as(sql)
                .bind(reason)
                .fetch_one(&self.stack.pool)
                .await
                .expect("a number");
            if held >= times { Ok(()) } else { Err(format!("{held}")) }
        })
        .await;
    }
}

const ASKED: &str = "SELECT count(*) FROM ops.operations WHERE kind = 'up'";

#[tokio::test]
async fn a_quota_stops_the_group_and_tells() {
    let stub = Stub::new().await;
    let error = r#"{"code":"resource_limit_exceeded","message":"server limit reached"}"#;
    let says =
        format!(r#"printf '{{"name":"%s","status":"failed","error":{error}}}\n' "$INSTANCE_NAME"; exit 12"#);
    stub.replace("scaleUp.sh", &says);
    stub.group(2, 4, json!({"candidates": [{"type": "a"}, {"type": "b"}]})).await;
    let _scaler = stub.stack.scaler("a");
    stub.wait_reason("provider_held", 5).await;
    wait_until(WITHIN, "what was asked for has ended", async || stub.open().await == 0).await;
    assert_eq!(stub.stack.number(ASKED).await, 2, "no other candidate, and no further server");
    let quota = "SELECT count(*) FROM ops.operations WHERE state = 'failed_clean' AND error_code = 'quota'";
    assert_eq!(stub.stack.number(quota).await, 2);
    assert_eq!(
        (stub.told("degraded").await, stub.told("failed").await),
        (1, 2),
        "the group's quota is told once"
    );
    let status = stub.stack.json(&["status"]).await;
    let timer = &status["timers"][0];
    assert_eq!((&timer["group"], &timer["rule"]), (&json!("eu"), &json!("provider_held")), "{status}");
    assert!(timer["why"].as_str().is_some_and(|why| why.contains("server limit reached")), "{timer}");
    let rest = "SELECT count(*) FROM ops.scaling_groups WHERE no_creates_until BETWEEN now() + interval '25 minutes' \
                AND now() + interval '30 minutes'";
    assert_eq!(stub.stack.number(rest).await, 1);
    // Then it is tried again.
    stub.stack.database.execute("UPDATE ops.scaling_groups SET no_creates_until = now()").await;
    wait_until(WITHIN, "asked again", async || stub.stack.number(ASKED).await > 2).await;
}

#[tokio::test]
async fn the_fleets_cap_and_the_creates_an_hour_hold_every_addition() {
    let mut stub = Stub::new().await;
    stub.stack.set("SCALING_FLEET_MAX", "1");
    stub.group(3, 4, json!({})).await;
    let scaler = stub.stack.scaler("capped");
    stub.wait_reason("fleet_limit", 5).await;
    assert_eq!((stub.stack.number(ASKED).await, stub.there().len()), (1, 1));
    scaler.terminate();
    assert_eq!(scaler.wait_exit(WITHIN).await, Exit::Code(0));
    stub.stack.set("SCALING_FLEET_MAX", "");
    // The one of before counts in the hour: it was another leader's.
    stub.group(3, 4, json!({"maxCreatesPerHour": 2})).await;
    let _scaler = stub.stack.scaler("free");
    stub.wait_reason("create_limit", 5).await;
    assert_eq!(stub.stack.number(ASKED).await, 2);
    stub.stack
        .database
        .execute("UPDATE ops.operations SET created_at = created_at - interval '1 hour'")
        .await;
    wait_until(WITHIN, "an hour later the third is made", async || stub.there().len() == 3).await;
}

#[tokio::test]
async fn a_boot_is_given_up_after_a_quarter_of_an_hour() {
    let stub = Stub::new().await;
    stub.replace("scaleUp.sh", r#"mkdir "$D/$INSTANCE_NAME"; say creating"#);
    let status = r#"echo >>"$D/../asked"; [ -d "$D/$INSTANCE_NAME" ] || { say absent; exit 14; }
                    [ -e "$D/../runs" ] && say ready || say creating"#;
    stub.replace("scalingStatus.sh", status);
    let folder = stub.stack.folder.path().to_path_buf();
    let asked = || std::fs::read_to_string(folder.join("asked")).unwrap_or_default().lines().count();
    stub.group(1, 1, json!({"maxCreatesPerHour": 1, "heartbeatTimeoutSeconds": 600})).await;
    let _scaler = stub.stack.scaler("a");
    let state = async |state: &str| {
        let sql = "SELECT count(*) FROM ops.operations WHERE state = $1";
        let (found,): (i64,) = voiceai_postgres::sqlx::query_as(sql)
            .bind(state.to_owned())
            .fetch_one(&stub.stack.pool)
            .await
            .expect("a number");
        found == 1
    };
    wait_until(WITHIN, "it was accepted", async || state("created").await).await;
    let age = "UPDATE ops.operations SET created_at = now() - interval '15 minutes'";
    stub.stack.database.execute(age).await;
    wait_until(WITHIN, "it is given up", async || state("failed_clean").await).await;
    let code = "SELECT count(*) FROM ops.operations WHERE error_code = 'not_running'";
    assert_eq!((stub.stack.number(code).await, stub.there()), (1, Vec::new()), "and nothing is leaked");

    stub.silence();
    // Late, but in time: what is left of the quarter is all that its heartbeat may take.
    stub.stack.database.execute("UPDATE ops.operations SET created_at = now() - interval '2 hours'").await;
    wait_until(WITHIN, "another one was accepted", async || state("created").await).await;
    let age = "UPDATE ops.operations SET created_at = now() - interval '14 minutes' WHERE state = 'created'";
    stub.stack.database.execute(age).await;
    // The look that is under way may have read the row before.
    let before = asked();
    wait_until(WITHIN, "two more looks", async || asked() >= before + 2).await;
    std::fs::write(folder.join("runs"), "").expect("it runs");
    wait_until(WITHIN, "it runs", async || state("running").await).await;
    let left = "SELECT extract(epoch FROM deadline - created_at)::bigint FROM ops.operations WHERE state = 'running'";
    let left = stub.stack.number(left).await;
    assert!((895..=900).contains(&left), "{left} s from the decision on");
}

const OVERDUE: &str = "SELECT count(*) FROM ops.outbox WHERE payload->>'event' = 'drain_overdue'";

/// Two servers with a call each, of which one is drained for longer than it may take.
async fn overdue(at_deadline: &str) -> (Stack, String, Vec<crate::harness::Call>, voiceai_testkit::Process) {
    let stack = Stack::new().await;
    let mut config = stack.config();
    config["drainTimeoutSeconds"] = json!(1);
    config["drainDeadline"] = json!(at_deadline);
    stack.group("eu", 2, 2, &config).await;
    let scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01", "test-voice-02"]).await;
    let calls = ["test-voice-01", "test-voice-02"].map(|name| stack.call(name)).into();
    stack.group("eu", 1, 2, &config).await;
    wait_until(WITHIN, "it is overdue", async || stack.number(OVERDUE).await == 1).await;
    let servers = stack.servers().await;
    let (draining, _) = servers.into_iter().find(|(_, status)| status == "draining").expect("one drains");
    (stack, draining, calls, scaler)
}

/// Nothing of a server is left but its history.
async fn is_gone(stack: &Stack, name: &str, left: &str) {
    stack.wait_settled(&[left]).await;
    assert_eq!(
        stack.redis.cli(&["EXISTS", &format!("voiceai:heartbeat:{name}")]).await,
        "0",
        "its heartbeat"
    );
    assert_eq!(
        stack.dispatcher.cli(&["EXISTS", &format!("dispatcher:entry::{name}")]).await,
        "0",
        "its record"
    );
    assert_eq!(stack.processes(), 1, "its process");
    let open = "SELECT count(*) FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                WHERE o.finished_at IS NULL OR (s.status = 'gone') <> (s.gone_at IS NOT NULL)";
    assert_eq!(stack.number(open).await, 0, "its rows are closed");
    assert_eq!(stack.number("SELECT count(*) FROM ops.operation_steps WHERE to_state = 'forced'").await, 0);
}

#[tokio::test]
async fn an_overdue_drain_is_extended_and_told_each_time_until_its_calls_end() {
    let (stack, draining, mut calls, _scaler) = overdue("extend").await;
    wait_until(WITHIN, "it is overdue again", async || stack.number(OVERDUE).await == 2).await;
    assert!(calls.iter_mut().all(crate::harness::Call::lives), "no call was cut");
    let status = stack.json(&["status"]).await;
    assert!(status["operations"][0]["deadline"].is_string(), "{status}");
    calls.clear();
    let left = if draining == "test-voice-01" { "test-voice-02" } else { "test-voice-01" };
    is_gone(&stack, &draining, left).await;
}

#[tokio::test]
async fn an_overdue_drain_that_is_left_has_no_end_but_that_of_its_calls() {
    let (stack, draining, mut calls, _scaler) = overdue("leave").await;
    let status = stack.json(&["status"]).await;
    let operation = &status["operations"][0];
    assert!(operation["state"] == "draining" && operation["deadline"].is_null(), "{status}");
    let decisions = stack.number("SELECT count(*) FROM ops.decisions").await;
    wait_until(WITHIN, "time passes", async || {
        stack.number("SELECT count(*) FROM ops.decisions").await > decisions + 6
    })
    .await;
    assert_eq!(stack.number(OVERDUE).await, 1, "told once");
    assert!(calls.iter_mut().all(crate::harness::Call::lives), "no call was cut");
    calls.clear();
    let left = if draining == "test-voice-01" { "test-voice-02" } else { "test-voice-01" };
    is_gone(&stack, &draining, left).await;
}

#[tokio::test]
async fn a_provider_that_hangs_keeps_no_other_one_waiting() {
    let mut stub = Stub::new().await;
    stub.stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "120000");
    let providers = stub.stack.folder.path().join("providers");
    std::fs::create_dir_all(providers.join("custom")).expect("a folder");
    for entry in std::fs::read_dir(providers.join("local")).expect("a folder").flatten() {
        std::fs::copy(entry.path(), providers.join("custom").join(entry.file_name())).expect("a copy");
    }
    stub.replace("scaleUp.sh", "echo >>\"$D/../hangs\"; sleep 1000");
    let hanging = stub.stack.folder.path().join("hangs");
    stub.group(20, 20, json!({"maxSurge": 20})).await;
    let _scaler = stub.stack.scaler("a");
    wait_until(WITHIN, "as many hang as may run at a time", async || {
        std::fs::read_to_string(&hanging).is_ok_and(|lines| lines.lines().count() == 16)
    })
    .await;
    let sql = r#"INSERT INTO "ServerGroup" (id, name, "scalingEnabled", "minInstances", "scalingProvider", "scalingConfig")
                 SELECT 'other', 'other', true, 1, 'custom', "scalingConfig" FROM "ServerGroup" WHERE id = 'eu'"#;
    stub.stack.database.execute(sql).await;
    wait_until(WITHIN, "the other provider's server runs", async || {
        let running =
            "SELECT count(*) FROM ops.operations WHERE state IN ('running', 'heartbeat', 'routed', 'done')";
        stub.stack.number(running).await == 1
    })
    .await;
}
