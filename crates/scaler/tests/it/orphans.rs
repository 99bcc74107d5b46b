//! Servers with our labels that no row stands for, and what a provider's faults may never lead to.
//!
//! The provider is a stub of a few lines: a server is a folder that holds its operation, and `list` is a file that says how
//! the listing goes wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;
use voiceai_testkit::wait_until;

use crate::harness::{Stack, WITHIN};

const COMMON: &str = r#"#!/bin/bash
D=$(printf '%s' "$PROVIDER_CONFIG" | sed 's/.*"folder":"\([^"]*\)".*/\1/')
op() { printf '%s' "$LABELS" | sed 's/.*"operation":"\([^"]*\)".*/\1/'; }
say() { printf '{"id":"id-%s","name":"%s","status":"%s","ip":"10.0.0.1"%s}\n' "$INSTANCE_NAME" "$INSTANCE_NAME" "$1" "$2"; }
fault() { [ ! -e "$D/../$1" ] || { cat "$D/../$1"; exit "$(cat "$D/../$1.exit")"; }; }
"#;

struct Stub {
    stack: Stack,
}

impl Stub {
    async fn new() -> Self {
        let mut stack = Stack::new().await;
        let scripts = stack.folder.path().join("providers/local");
        std::fs::create_dir_all(&scripts).expect("a folder");
        std::fs::create_dir_all(stack.folder.path().join("servers")).expect("a folder");
        for (file, body) in [
            ("scaleUp.sh", r#"fault up; mkdir "$D/$INSTANCE_NAME"; op >"$D/$INSTANCE_NAME/op"; say ready"#),
            (
                "scalingStatus.sh",
                r#"fault status; [ -d "$D/$INSTANCE_NAME" ] || { say absent; exit 14; }; say ready"#,
            ),
            (
                "scaleDown.sh",
                r#"echo "$INSTANCE_NAME $PROVIDER_ID" >>"$D/../downs"; fault down
                   [ ! -d "$D/$INSTANCE_NAME" ] || [ "$(cat "$D/$INSTANCE_NAME/op")" = "$(op)" ] || { say failed; exit 20; }
                   rm -rf "$D/$INSTANCE_NAME"; say absent"#,
            ),
            (
                "list.sh",
                r#"echo x >>"$D/../lists"; fault list
                   [ -z "$INSTANCE_NAME$GROUP_NAME$SERVICE$CANDIDATE" ] || exit 3
                   case $LABELS in *'"environment":"test"'*'"managed-by":"voiceai-scaler"'*) ;; *) exit 3 ;; esac
                   all=; for one in "$D"/*/; do [ -d "$one" ] || continue; n=$(basename "$one")
                     all="$all,{\"id\":\"id-$n\",\"name\":\"$n\",\"status\":\"ready\",\"labels\":{\"managed-by\":\"$(cat "$one/by" 2>/dev/null || echo voiceai-scaler)\",\"group\":\"eu\",\"role\":\"voice\",\"environment\":\"test\",\"operation\":\"$(cat "$one/op")\"}}"
                   done; printf '{"servers":[%s]}\n' "${all#,}""#,
            ),
        ] {
            let path = scripts.join(file);
            std::fs::write(&path, format!("{COMMON}{body}\n")).expect("a script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        stack.set("PROVIDER_SCRIPTS_DIR", &scripts.parent().expect("its parent").display().to_string());
        stack.set("PROVIDER_SCRIPT_TIMEOUT_MS", "1000");
        stack.set("ORPHAN_SWEEP_INTERVAL", "300ms");
        Self { stack }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.stack.folder.path().join(name)
    }

    fn lines(&self, name: &str) -> usize {
        std::fs::read_to_string(self.file(name)).unwrap_or_default().lines().count()
    }

    /// A server that is there, whoever made it.
    fn place(&self, name: &str, operation: &str) {
        let folder = self.file("servers").join(name);
        std::fs::create_dir_all(&folder).expect("a server");
        std::fs::write(folder.join("op"), operation).expect("its label");
    }

    fn is_there(&self, name: &str) -> bool {
        self.file("servers").join(name).is_dir()
    }

    /// From now on the script of this name says `output` and ends with `exit`; `None`: as it should.
    fn fault(&self, name: &str, fault: Option<(&str, i32)>) {
        let _ = std::fs::remove_file(self.file(name));
        if let Some((output, exit)) = fault {
            std::fs::write(self.file(&format!("{name}.exit")), exit.to_string()).expect("a fault");
            std::fs::write(self.file(name), output).expect("a fault");
        }
    }

    async fn group(&self, min: i32, change: serde_json::Value) {
        let mut config = json!({
            "folder": self.file("servers"), "routingSettleSeconds": 0, "heartbeatTimeoutSeconds": 1,
        });
        for (name, value) in change.as_object().expect("an object") {
            config[name] = value.clone();
        }
        self.stack.group("eu", min, 4, &config).await;
    }

    /// A server that was made by us and ended as given; returns its operation.
    async fn ended(&self, name: &str, kind: &str, state: &str, reason: &str) -> String {
        let (server, operation) = (Uuid::new_v4(), Uuid::new_v4());
        self.stack
            .database
            .execute(&format!(
                "INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, provider, spec, gone_at) \
                 VALUES ('{server}', '{name}', 'eu', 'eu', 'voice', 'gone', '{operation}', 'local', '{{}}', now() - interval '1 hour'); \
                 INSERT INTO ops.operations (id, server_id, kind, state, actor, reason, finished_at) \
                 VALUES ('{}', '{server}', '{kind}', '{state}', 't', '{reason}', now())",
                Uuid::new_v4()
            ))
            .await;
        operation.to_string()
    }

    async fn sweeps(&self, more: usize) {
        let before = self.lines("lists");
        wait_until(WITHIN, "sweeps", async || self.lines("lists") >= before + more).await;
    }

    async fn verdicts(&self) -> Vec<(String, String)> {
        voiceai_postgres::sqlx::query_as("SELECT name, verdict FROM ops.orphans ORDER BY name")
            .fetch_all(&self.stack.pool)
            .await
            .expect("orphans")
    }
}

#[tokio::test]
async fn an_orphan_is_deleted_when_its_operation_is_known_and_else_reported() {
    let stub = Stub::new().await;
    stub.group(0, json!({})).await;
    let deleted = stub.ended("test-voice-81", "down", "done", "idle").await;
    let failed = stub.ended("test-voice-82", "up", "failed_clean", "busy").await;
    let vanished = stub.ended("test-voice-83", "down", "done", "ghost").await;
    let busy = stub.ended("test-voice-84", "down", "done", "idle").await;
    stub.place("test-voice-81", &deleted);
    stub.place("test-voice-82", &failed);
    stub.place("test-voice-83", &vanished);
    stub.place("test-voice-84", &busy);
    stub.place("test-voice-85", &Uuid::new_v4().to_string());
    stub.place("test-voice-86", "by-hand");
    stub.place("somebody-elses", &deleted);
    std::fs::write(stub.file("servers/somebody-elses/by"), "somebody").expect("another's label");
    let beat = json!({"service": "voice", "group": "eu", "active": 3, "capacity": 9, "atMs": jiff::Timestamp::now().as_millisecond()});
    stub.stack.redis.cli(&["SET", "voiceai:heartbeat:test-voice-84", &beat.to_string()]).await;
    let scaler = stub.stack.scaler("a");
    wait_until(WITHIN, "the two whose end is known are deleted", async || {
        !stub.is_there("test-voice-81") && !stub.is_there("test-voice-82")
    })
    .await;
    stub.sweeps(3).await;
    let verdicts = stub.verdicts().await;
    let verdicts: Vec<(&str, &str)> =
        verdicts.iter().map(|(name, verdict)| (name.as_str(), verdict.as_str())).collect();
    assert_eq!(
        verdicts,
        [
            ("test-voice-83", "may_carry_calls"),
            ("test-voice-84", "carries_calls"),
            ("test-voice-85", "unknown_operation"),
            ("test-voice-86", "unknown_operation"),
        ]
    );
    for name in ["test-voice-83", "test-voice-84", "test-voice-85", "test-voice-86", "somebody-elses"] {
        assert!(stub.is_there(name), "{name}");
    }
    let downs = std::fs::read_to_string(stub.file("downs")).expect("calls");
    assert!(downs.contains("test-voice-81 id-test-voice-81\n"), "by its id: {downs}");
    assert_eq!(downs.lines().count(), 2, "{downs}");
    // Told once each, however often they are seen.
    let told =
        stub.stack.number("SELECT count(*) FROM ops.outbox WHERE payload->>'event' = 'degraded'").await;
    assert_eq!(told, 6);
    let status = stub.stack.json(&["status"]).await;
    assert_eq!(status["orphans"].as_array().map(Vec::len), Some(4), "{status}");
    let (_, text, _) = stub.stack.run(&["status"]).await;
    assert!(text.contains("unknown_operation"), "{text}");
    // One that a person removed is no longer shown.
    std::fs::remove_dir_all(stub.file("servers/test-voice-86")).expect("removed");
    wait_until(WITHIN, "forgotten", async || stub.verdicts().await.len() == 3).await;
    assert!(scaler.exit().is_none());
}

#[tokio::test]
async fn a_list_that_is_empty_partial_or_broken_by_fault_leads_to_nothing() {
    let stub = Stub::new().await;
    // Its heartbeats do not come: what is in service is silent, so that nothing but the provider's word is left.
    stub.group(0, json!({})).await;
    stub.stack
        .database
        .execute(
            "INSERT INTO ops.servers (id, name, group_id, group_name, service, status, made_by, provider, provider_id, spec, in_service_at) \
             SELECT gen_random_uuid(), 'test-voice-0' || n, 'eu', 'eu', 'voice', 'active', \
                    ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'local', 'id-test-voice-0' || n, \
                    jsonb_build_object('candidates', '[{}]'::jsonb, 'provider_config', \
                        (SELECT \"scalingConfig\" FROM \"ServerGroup\"), 'dispatcher', '{\"setid\":1,\"port\":5060,\"transport\":\"udp\"}'::jsonb), now() \
             FROM generate_series(1, 3) n",
        )
        .await;
    for n in 1..=3 {
        stub.place(&format!("test-voice-0{n}"), &format!("00000000-0000-0000-0000-00000000000{n}"));
    }
    let _scaler = stub.stack.scaler("a");
    for (output, exit) in [
        (r#"{"servers":[]}"#, 0),
        (r#"{"servers":[{"id":"id-test-voice-01","name":"test-voice-01","status":"ready","labels":{}}]}"#, 0),
        (r#"{"servers":[]}"#, 10),
        (r#"{"servers":null}"#, 0),
        ("", 0),
        ("", 1),
        ("nonsense", 0),
    ] {
        stub.fault("list", Some((output, exit)));
        stub.sweeps(2).await;
    }
    stub.fault("list", None);
    stub.sweeps(2).await;
    assert_eq!(stub.lines("downs"), 0, "nothing was deleted");
    assert_eq!(stub.stack.number("SELECT count(*) FROM ops.operations").await, 0, "nothing was begun");
    assert_eq!(stub.verdicts().await, [], "all of them are known");
    // Even the answer by name may be wrong for a while: rows and routing are cleared, and the servers stay.
    stub.stack.database.execute(r#"UPDATE "ServerGroup" SET "scalingEnabled" = false"#).await;
    stub.fault("status", Some((r#"{"name":"test-voice-01","status":"absent"}"#, 14)));
    tokio::time::timeout(Duration::from_secs(1), stub.sweeps(1)).await.expect("it goes on");
    assert_eq!(stub.lines("downs"), 0);
}

#[tokio::test]
async fn a_refusal_to_say_what_became_of_a_creation_ends_it_at_once() {
    for (code, leaves) in [("not_ours", "refused"), ("unauthorized", "status_refused")] {
        let stub = Stub::new().await;
        // The outcome is unknown, so it is asked for by name; that is refused for good.
        stub.fault("up", Some(("", 1)));
        let answer = format!(
            r#"{{"name":"test-voice-01","status":"failed","error":{{"code":"{code}","message":"m","retry_after_s":null}}}}"#
        );
        stub.fault("status", Some((&answer, 20)));
        stub.group(1, json!({"maxCreatesPerHour": 1})).await;
        let _scaler = stub.stack.scaler("a");
        wait_until(WITHIN, "it is given up", async || {
            stub.stack.number("SELECT count(*) FROM ops.operation_steps WHERE to_state = 'cleaning'").await
                == 1
        })
        .await;
        let (said,): (String,) = voiceai_postgres::sqlx::query_as("SELECT error_code FROM ops.operations")
            .fetch_one(&stub.stack.pool)
            .await
            .expect("its error");
        assert_eq!(said, leaves);
        if code == "unauthorized" {
            wait_until(WITHIN, "what may be there is deleted", async || stub.lines("downs") > 0).await;
        } else {
            wait_until(WITHIN, "it is over", async || {
                stub.stack.number("SELECT count(*) FROM ops.operations WHERE state = 'failed_clean'").await
                    == 1
            })
            .await;
            assert_eq!(stub.lines("downs"), 0, "another's server is nothing to delete");
        }
    }
}

#[tokio::test]
async fn stock_and_rate_limits_outlive_the_leader_and_hold_for_every_group() {
    let stub = Stub::new().await;
    let limited = r#"{"name":"test-voice-01","status":"failed","error":{"code":"rate_limit_low","message":"m","retry_after_s":600}}"#;
    stub.fault("up", Some((limited, 13)));
    stub.group(1, json!({})).await;
    let first = stub.stack.scaler("first");
    wait_until(WITHIN, "the limit is written down", async || {
        stub.stack
            .number("SELECT count(*) FROM ops.provider_holds WHERE kind = 'rate_limit' AND until > now() + interval '9 minutes'")
            .await
            == 1
    })
    .await;
    // Another group of the same provider buys nothing either, and says why.
    let config = json!({"folder": stub.file("servers")});
    stub.stack.group("us", 1, 2, &config).await;
    wait_until(WITHIN, "the other group is held", async || {
        stub.stack
            .number("SELECT count(*) FROM ops.decisions WHERE group_name = 'us' AND reason = 'provider_held'")
            .await
            > 0
    })
    .await;
    first.kill9();
    first.wait_exit(WITHIN).await;
    stub.fault("up", None);
    let heir = stub.stack.scaler("heir");
    wait_until(WITHIN, "the successor holds it as well", async || {
        stub.stack
            .number("SELECT count(*) FROM ops.decisions WHERE term = 2 AND reason = 'provider_held'")
            .await
            > 2
    })
    .await;
    assert!(!stub.is_there("test-voice-01") && !stub.is_there("test-voice-02"), "nothing was asked for");
    assert_eq!(stub.stack.number("SELECT count(*) FROM ops.operations").await, 1);
    heir.kill9();
    heir.wait_exit(WITHIN).await;
    // Out of stock: the successor begins with the next candidate.
    stub.stack
        .database
        .execute("DELETE FROM ops.provider_holds; DELETE FROM \"ServerGroup\" WHERE name = 'us'")
        .await;
    stub.stack
        .database
        .execute(
            "INSERT INTO ops.provider_holds (kind, provider, machine, location, until, why) \
             VALUES ('out_of_stock', 'local', 'big', 'here', now() + interval '9 minutes', 'x'); \
             UPDATE ops.operations SET state = 'failed_clean', finished_at = now(); \
             UPDATE ops.servers SET status = 'gone', gone_at = now()",
        )
        .await;
    let candidates = json!([{"type": "big", "location": "here"}, {"type": "big", "location": "there"}]);
    stub.group(1, json!({"candidates": candidates})).await;
    let _last = stub.stack.scaler("last");
    wait_until(WITHIN, "the second candidate is asked for", async || {
        stub.stack
            .number("SELECT count(*) FROM ops.operations WHERE candidate_index = 1 AND intent_at IS NOT NULL")
            .await
            > 0
    })
    .await;
}
