//! A leader killed at every point of every operation: a chain of successors finishes that very operation, each killed at the
//! next point, and in the end there is one server, one record and nothing else.
//!
//! The provider here is a stub of a few lines, so that a round costs little: a server is a folder, and this test beats for it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use voiceai_postgres::sqlx;
use voiceai_redis::{Redis, RedisSettings, Value};
use voiceai_scaler_core::State;
use voiceai_testkit::{Exit, Process, wait_until};

use crate::harness::{Stack, WITHIN};

pub(crate) const COMMON: &str = r#"#!/bin/sh
D=$(printf '%s' "$PROVIDER_CONFIG" | sed 's/.*"folder":"\([^"]*\)".*/\1/')
op() { printf '%s' "$LABELS" | sed 's/.*"operation":"\([^"]*\)".*/\1/'; }
pause() { case $PROVIDER_CONFIG in *'"slow":'*) touch "$D/../started"; sleep "$(printf '%s' "$PROVIDER_CONFIG" | sed 's/.*"slow":\([0-9]*\).*/\1/')";; esac; }
say() { printf '{"id":"stub-%s","name":"%s","status":"%s","ip":"10.0.0.1"}\n' "$INSTANCE_NAME" "$INSTANCE_NAME" "$1"; }
"#;

/// A provider whose servers are folders, in place of `local`.
pub(crate) struct Stub {
    pub(crate) stack: Stack,
    beats: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Stub {
    pub(crate) async fn new() -> Self {
        let mut stack = Stack::new().await;
        let scripts = stack.folder.path().join("providers/local");
        let servers = stack.folder.path().join("servers");
        std::fs::create_dir_all(&scripts).expect("a folder");
        std::fs::create_dir_all(&servers).expect("a folder");
        for (file, body) in [
            (
                "scaleUp.sh",
                r#"pause; mkdir "$D/$INSTANCE_NAME" 2>/dev/null && echo "$INSTANCE_NAME $(op)" >> "$D/../made"; say ready"#,
            ),
            ("scalingStatus.sh", r#"[ -d "$D/$INSTANCE_NAME" ] || { say absent; exit 14; }; say ready"#),
            ("scaleDown.sh", r#"rmdir "$D/$INSTANCE_NAME" 2>/dev/null; say absent"#),
        ] {
            let path = scripts.join(file);
            std::fs::write(&path, format!("{COMMON}{body}\n")).expect("a script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        stack.set("PROVIDER_SCRIPTS_DIR", &scripts.parent().expect("its parent").display().to_string());
        stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "1000");
        stack.set("LEADER_LOCK_TTL_MS", "600");
        let settings = RedisSettings::from_url(stack.redis.url.as_str()).expect("an address");
        let redis = Redis::connect(&settings).await.expect("a connection");
        let beats = tokio::spawn(beat(redis, servers));
        Self { stack, beats }
    }

    /// From now on no server beats.
    pub(crate) fn silence(&self) {
        self.beats.abort();
    }

    /// What the stub's scripts need of a group's configuration.
    pub(crate) fn config(&self) -> serde_json::Value {
        json!({
            "folder": self.stack.folder.path().join("servers"), "routingSettleSeconds": 0,
            "maxCreatesPerHour": 100,
        })
    }

    pub(crate) async fn group(&self, min: i32, max: i32, change: serde_json::Value) {
        let mut config = self.config();
        for (name, value) in change.as_object().expect("an object") {
            config[name] = value.clone();
        }
        self.stack.group("eu", min, max, &config).await;
    }

    fn servers(&self) -> usize {
        std::fs::read_dir(self.stack.folder.path().join("servers")).expect("a folder").count()
    }

    /// Names of the servers that are there.
    pub(crate) fn there(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.stack.folder.path().join("servers")).expect("a folder");
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Names in the order in which servers were really made.
    fn made(&self) -> Vec<String> {
        self.made_lines().into_iter().map(|(name, _)| name).collect()
    }

    /// The operations by whose label servers were really made.
    pub(crate) fn made_by(&self) -> Vec<String> {
        self.made_lines().into_iter().map(|(_, operation)| operation).collect()
    }

    fn made_lines(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.stack.folder.path().join("made")).unwrap_or_default();
        let pair = |line: &str| line.split_once(' ').map(|(name, by)| (name.to_owned(), by.to_owned()));
        text.lines().filter_map(pair).collect()
    }

    /// Notices of an event.
    pub(crate) async fn told(&self, event: &str) -> i64 {
        let sql = "SELECT count(*) FROM ops.outbox WHERE payload->>'event' = $1";
        let (told,): (i64,) =
            sqlx::query_as(sql).bind(event).fetch_one(&self.stack.pool).await.expect("a number");
        told
    }

    pub(crate) async fn open(&self) -> i64 {
        self.stack.number("SELECT count(*) FROM ops.operations WHERE finished_at IS NULL").await
    }

    /// Kills one leader before and one after each of these states, one successor after the other, then lets the last one
    /// finish.
    async fn chain(&self, states: &[State], start: impl AsyncFn()) -> Process {
        let points: Vec<String> = states
            .iter()
            .flat_map(|state| ["before", "after"].map(|side| format!("op.{}.{side}=abort", state.as_str())))
            .collect();
        let stack = &self.stack;
        let mut doomed = stack.scaler_with_failpoint("leader-0", &points[0]);
        doomed.wait_for_line(WITHIN, "leader elected").await;
        start().await;
        for (number, point) in points.iter().enumerate() {
            let name = format!("leader-{}", number + 1);
            // Started only now, so that nobody else can take over first.
            let exit = doomed.wait_exit(WITHIN).await;
            assert!(
                matches!(exit, Exit::Signal(_)),
                "{point} was never reached: {exit:?}\n{}",
                doomed.stderr()
            );
            doomed = match points.get(number + 1) {
                Some(next) => stack.scaler_with_failpoint(&name, next),
                None => stack.scaler(&name),
            };
        }
        wait_until(WITHIN, "the operation is finished", async || self.open().await == 0).await;
        doomed
    }
}

/// Beats for every folder, as the server in it would.
async fn beat(redis: Redis, servers: impl AsRef<Path>) {
    loop {
        for entry in std::fs::read_dir(servers.as_ref()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let at_ms = jiff::Timestamp::now().as_millisecond();
            let beat = json!({"service": "voice", "group": "eu", "active": 0, "capacity": 10, "atMs": at_ms});
            let key = format!("voiceai:heartbeat:{name}");
            let args: Vec<Value> = vec![key.into(), beat.to_string().into(), "PX".into(), 2000.into()];
            let _: Result<Value, _> = redis.command("SET", args).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn killed_at_every_state_of_making_a_server() {
    use State as S;
    let stub = Stub::new().await;
    let states = [
        S::Planned,
        S::Secrets,
        S::Rendered,
        S::Requested,
        S::Created,
        S::Running,
        S::Heartbeat,
        S::Routed,
        S::Done,
    ];
    let _last = stub.chain(&states, async || stub.group(1, 1, json!({})).await).await;
    assert_eq!(stub.made(), ["test-voice-01"], "asked for again and again, made once");
    assert_eq!(stub.servers(), 1);
    assert_eq!(
        stub.stack.number("SELECT count(*) FROM ops.operations").await,
        1,
        "it was that very operation"
    );
    let active = [("test-voice-01".to_owned(), "active".to_owned())];
    assert_eq!(stub.stack.servers().await, active);
    wait_until(WITHIN, "one record", async || {
        stub.stack.records().await == [("test-voice-01".to_owned(), "8".to_owned())]
    })
    .await;
    assert_eq!(stub.told("scaled").await, 1, "the leader that wrote it ended right after, and it is told");
    let terms = stub.stack.number("SELECT count(DISTINCT term) FROM ops.operation_steps").await;
    assert!(terms >= 9, "each step by another leader: {terms}");
}

#[tokio::test]
async fn killed_at_every_state_of_removing_a_server() {
    use State as S;
    let stub = Stub::new().await;
    stub.group(2, 2, json!({})).await;
    let maker = stub.stack.scaler("maker");
    wait_until(WITHIN, "two in service", async || {
        stub.stack.number("SELECT count(*) FROM ops.operations WHERE state = 'done'").await == 2
    })
    .await;
    maker.kill9();
    maker.wait_exit(WITHIN).await;
    let states = [
        S::Planned,
        S::Preflight,
        S::Unrouted,
        S::Draining,
        S::Drained,
        S::Unlisted,
        S::Deleting,
        S::Deleted,
        S::Cleaned,
        S::Done,
    ];
    let _last = stub.chain(&states, async || stub.group(1, 2, json!({})).await).await;
    assert_eq!(stub.servers(), 1, "one was removed, and only one");
    assert_eq!(stub.made().len(), 2, "nothing was made in its place");
    assert_eq!(stub.stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down'").await, 1);
    assert_eq!(stub.stack.servers().await.len(), 1);
    assert_eq!(stub.told("scaled").await, 3, "two were made and one was removed");
    wait_until(WITHIN, "its record and its heartbeat are gone", async || {
        let beats = stub.stack.redis.cli(&["KEYS", "voiceai:heartbeat:*"]).await;
        stub.stack.records().await.len() == 1 && beats.lines().count() == 1
    })
    .await;
}

#[tokio::test]
async fn killed_at_every_state_of_a_failure_and_of_a_drain_called_off() {
    use State as S;
    let stub = Stub::new().await;
    // Its heartbeats are another group's: it never becomes healthy.
    stub.stack
        .database
        .execute(r#"ALTER TABLE "ServerGroup" ALTER COLUMN "cooldownSeconds" SET DEFAULT 0"#)
        .await;
    stub.beats.abort();
    let failing = [S::Failed, S::Cleaning, S::FailedClean];
    let config = json!({"heartbeatTimeoutSeconds": 1, "maxCreatesPerHour": 1});
    let last = stub.chain(&failing, async || stub.group(1, 1, config.clone()).await).await;
    assert_eq!(stub.made().len(), 1);
    assert_eq!(stub.servers(), 0, "nothing is leaked");
    assert_eq!(stub.told("failed").await, 1);
    assert_eq!(stub.stack.records().await, []);
    last.kill9();
    last.wait_exit(WITHIN).await;

    let stub = Stub::new().await;
    stub.group(2, 2, json!({})).await;
    let maker = stub.stack.scaler("maker");
    wait_until(WITHIN, "two in service", async || {
        stub.stack.number("SELECT count(*) FROM ops.operations WHERE state = 'done'").await == 2
    })
    .await;
    maker.kill9();
    maker.wait_exit(WITHIN).await;
    let start = async || {
        let (code, _, stderr) = stub.stack.run(&["drain", "test-voice-01", "--yes"]).await;
        assert_eq!(code, 0, "{stderr}");
        stub.stack
            .database
            .execute("UPDATE ops.operations SET cancel_requested = true WHERE finished_at IS NULL")
            .await;
    };
    let _last = stub.chain(&[S::Cancelling, S::Cancelled], start).await;
    assert_eq!(stub.servers(), 2);
    assert!(stub.stack.servers().await.iter().all(|(_, status)| status == "active"));
    wait_until(WITHIN, "both in routing", async || {
        stub.stack.records().await.iter().filter(|(_, flags)| flags == "8").count() == 2
    })
    .await;
}

#[tokio::test]
async fn a_paused_leader_writes_nothing_after_its_successor() {
    let stub = Stub::new().await;
    // Stopped right before it would write that the server was accepted.
    let paused = stub.stack.scaler_with_failpoint("paused", "op.created.before=stop");
    stub.group(1, 1, json!({})).await;
    wait_until(WITHIN, "it asked for the server", async || stub.made().len() == 1).await;
    let heir = stub.stack.scaler("heir");
    wait_until(WITHIN, "the successor has finished it", async || {
        stub.stack.number("SELECT count(*) FROM ops.operations WHERE state = 'done'").await == 1
    })
    .await;
    let steps = stub.stack.number("SELECT count(*) FROM ops.operation_steps").await;
    paused.resume();
    paused.wait_for_line(WITHIN, "leader lost").await;
    let terms = stub.stack.number("SELECT max(term) FROM ops.operation_steps").await;
    heir.terminate();
    assert_eq!(heir.wait_exit(WITHIN).await, Exit::Code(0));
    wait_until(WITHIN, "the paused one leads again", async || {
        stub.stack.number("SELECT max(term) FROM ops.decisions").await > terms
    })
    .await;
    assert_eq!(stub.stack.number("SELECT count(*) FROM ops.operation_steps").await, steps, "no stale step");
    assert_eq!(stub.made().len(), 1);
}

#[tokio::test]
async fn a_heartbeat_from_before_the_call_is_not_the_new_servers() {
    let stub = Stub::new().await;
    stub.beats.abort();
    let doomed = stub.stack.scaler_with_failpoint("doomed", "op.planned.after=abort");
    stub.group(1, 1, json!({"heartbeatTimeoutSeconds": 2})).await;
    doomed.wait_exit(WITHIN).await;
    // Somebody beats under the very name that is fixed by now, fresh, in the very group.
    let at_ms = jiff::Timestamp::now().as_millisecond();
    let beat = json!({"service": "voice", "group": "eu", "active": 0, "capacity": 10, "atMs": at_ms});
    stub.stack.redis.cli(&["SET", "voiceai:heartbeat:test-voice-01", &beat.to_string()]).await;
    let _heir = stub.stack.scaler("heir");
    wait_until(WITHIN, "it is given up for want of a heartbeat", async || {
        stub.stack
            .number(
                "SELECT count(*) FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                 WHERE o.error_code = 'no_heartbeat' AND s.name = 'test-voice-01'",
            )
            .await
            == 1
    })
    .await;
    assert_eq!(stub.stack.records().await, [], "it never entered routing");
}

#[tokio::test]
async fn a_stop_lets_a_running_script_end_and_does_not_wait_for_one_that_hangs() {
    for (slow, state) in [(2, "created"), (1000, "requested")] {
        let mut stub = Stub::new().await;
        stub.stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "60000");
        let scaler = stub.stack.scaler("a");
        stub.group(1, 1, json!({ "slow": slow })).await;
        let started = stub.stack.folder.path().join("started");
        wait_until(WITHIN, "the script runs", async || started.exists()).await;
        scaler.terminate();
        let began = std::time::Instant::now();
        assert_eq!(scaler.wait_exit(WITHIN).await, Exit::Code(0), "{}", scaler.stderr());
        assert!(began.elapsed() < Duration::from_secs(10), "within SHUTDOWN_TIMEOUT: {:?}", began.elapsed());
        let (reached,): (String,) = voiceai_postgres::sqlx::query_as("SELECT state FROM ops.operations")
            .fetch_one(&stub.stack.pool)
            .await
            .expect("its state");
        assert_eq!(reached, state, "slow: {slow}");
    }
}
