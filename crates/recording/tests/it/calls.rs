//! The end of calls.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use voiceai_recording::missing_calls;

use crate::stage::{Stage, discarded, done, retried};

const CALL: &str = "11111111-1111-4111-8111-111111111111";
const CONVERSATION: &str = "22222222-2222-4222-8222-222222222222";

async fn post_call(stage: &Stage, id: &str) -> Value {
    done(stage.run("post-call", json!({ "call_id": id })).await)
}

/// A call that has ended, whose conversation nobody closed.
async fn ended_call(stage: &Stage) {
    let sql = format!(
        "INSERT INTO calls (id, tenant_id, status, started_at, ended_at)
             VALUES ('{CALL}', 't', 'completed', '2026-11-22 03:00+00', '2026-11-22 03:01:30+00');
         INSERT INTO conversations (id, tenant_id, call_id, started_at) VALUES ('{CONVERSATION}', 't', '{CALL}', '2026-11-22 03:00+00');
         INSERT INTO recordings (tenant_id, call_id, object_key) VALUES ('t', '{CALL}', 'calls/1.wav')"
    );
    stage.database.execute(&sql).await;
}

#[tokio::test]
async fn a_call_is_closed_and_its_recording_and_event_come_once() {
    let stage = Stage::with_platform().await;
    ended_call(&stage).await;
    let result = post_call(&stage, CALL).await;
    assert_eq!((&result["record"], &result["known"]), (&json!("closed"), &json!(false)), "{result}");
    let conversation = stage.value("SELECT row_to_json(c)::text FROM conversations c").await;
    assert_eq!(
        (&conversation["status"], &conversation["duration_seconds"]),
        (&json!("completed"), &json!(90)),
        "{conversation}"
    );
    assert!(conversation["ended_at"].as_str().unwrap().starts_with("2026-11-22T03:01:30"), "{conversation}");
    assert_eq!(stage.events().await, ["call.ended"]);
    let job = stage.value("SELECT row_to_json(o)::text FROM ops.outbox o").await;
    assert_eq!(
        (&job["kind"], &job["queue"], &job["critical"]),
        (&json!("recording.process"), &json!("recordings"), &json!(true))
    );
    assert_eq!(job["payload"]["key"], "calls/1.wav");
    assert_eq!(job["id"], format!("recording:{}", stage.row().await["id"].as_str().unwrap()));

    // Again, and by its conversation's id: nothing more.
    for id in [CALL, CONVERSATION] {
        let result = post_call(&stage, id).await;
        assert_eq!(
            (&result["record"], &result["known"]),
            (&json!("was closed before"), &json!(true)),
            "{result}"
        );
        assert_eq!(result["recordings"][0]["why"], "known");
    }
    assert_eq!(stage.events().await, ["call.ended"]);
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.outbox").await, 1);
    let unchanged = stage.value("SELECT row_to_json(c)::text FROM conversations c").await;
    assert_eq!(unchanged, conversation);
}

#[tokio::test]
async fn nothing_is_written_when_a_part_of_it_cannot_be() {
    let stage = Stage::with_platform().await;
    ended_call(&stage).await;
    stage.database.execute("ALTER TABLE ops.outbox ADD CHECK (kind <> 'recording.process')").await;
    retried(stage.run("post-call", json!({ "call_id": CALL })).await);
    let open = stage.value("SELECT (ended_at IS NULL)::text FROM conversations").await;
    assert_eq!(open, true, "all or nothing");
    assert!(stage.events().await.is_empty());
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.post_calls").await, 0);
}

#[tokio::test]
async fn without_recordings_the_call_is_closed_all_the_same() {
    let mut stage = Stage::with_platform().await;
    ended_call(&stage).await;
    stage.recordings_on = false;
    let result = post_call(&stage, CALL).await;
    assert_eq!(result["recordings"][0]["why"], "RECORDING_ENABLED is false");
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.outbox").await, 0);

    // Once they are on, the finder knows what was left.
    let since = Timestamp::now() - SignedDuration::from_mins(5);
    let missing =
        voiceai_recording::missing_recordings(&stage.pool, &stage.s3.bucket, since, None, 10).await.unwrap();
    assert_eq!(missing.iter().map(|m| m.key.as_str()).collect::<Vec<_>>(), ["calls/1.wav"]);
}

#[tokio::test]
async fn without_the_platforms_table_the_rest_is_done() {
    let stage = Stage::new().await;
    let payload = json!({ "call_id": "c/1", "tenant": "t", "recording_key": "s3://elsewhere/x.wav" });
    let result = done(stage.run("post-call", payload).await);
    assert!(result["record"].as_str().unwrap().starts_with("table absent, skipped"), "{result}");
    assert!(result["recordings"][0]["why"].as_str().unwrap().contains("not in the bucket"), "{result}");
    assert_eq!(stage.events().await, ["call.ended"]);
    let error = missing_calls(&stage.pool, None, Timestamp::UNIX_EPOCH, None, 10).await.unwrap_err();
    assert!(error.to_string().contains("table absent"), "{error}");
}

#[tokio::test]
async fn a_call_that_the_platform_does_not_know_is_looked_for_and_given_up() {
    let stage = Stage::with_platform().await;
    for id in ["33333333-3333-4333-8333-333333333333", "no uuid at all"] {
        let error = retried(stage.run("post-call", json!({ "call_id": id })).await);
        assert!(error.contains(id), "{error}");
    }
    discarded(stage.attempt("post-call", json!({ "call_id": "x" }), 3).await);
    assert_eq!(stage.value("SELECT count(*)::text FROM ops.post_calls").await, 0);
}

#[tokio::test]
async fn prismas_spelling_its_enums_and_its_clock_without_a_zone_are_understood() {
    let stage = Stage::new().await;
    stage
        .database
        .execute(
            r#"CREATE TYPE "ConversationStatus" AS ENUM ('IN_PROGRESS', 'ENDED', 'FAILED');
               CREATE TABLE "Conversation" (id text PRIMARY KEY, "teamId" text, status "ConversationStatus" NOT NULL,
                   "startedAt" timestamp(3) NOT NULL, "endedAt" timestamp(3), "durationSeconds" integer,
                   "recordingUrl" text, "updatedAt" timestamp(3) NOT NULL);
               INSERT INTO "Conversation" VALUES
                   ('c1', 't', 'IN_PROGRESS', '2026-11-22 03:00', NULL, NULL, NULL, '2026-11-22 03:00'),
                   ('c2', 't', 'FAILED', '2026-11-22 03:00', '2026-11-22 03:00:05', 5, NULL, '2026-11-22 03:00')"#,
        )
        .await;
    let payload = json!({ "call_id": "c1", "ended_at": "2026-11-22T03:02:00Z" });
    done(stage.run("post-call", payload).await);
    post_call(&stage, "c2").await;
    let rows = r#"SELECT json_agg(json_build_array(status, "endedAt", "durationSeconds") ORDER BY id)::text FROM "Conversation""#;
    assert_eq!(
        stage.value(rows).await,
        json!([["ENDED", "2026-11-22T03:02:00", 120], ["FAILED", "2026-11-22T03:00:05", 5]]),
        "a verdict stays"
    );
}

#[tokio::test]
async fn calls_that_ended_while_nobody_was_there_are_found() {
    let stage = Stage::with_platform().await;
    stage
        .database
        .execute(
            "INSERT INTO calls (id, tenant_id, ended_at) VALUES
                 ('11111111-1111-4111-8111-000000000001', 'a', now() - interval '3 hours'),
                 ('11111111-1111-4111-8111-000000000002', 'a', now() - interval '1 hour'),
                 ('11111111-1111-4111-8111-000000000003', 'b', now() - interval '30 minutes'),
                 ('11111111-1111-4111-8111-000000000004', 'b', NULL);
             INSERT INTO conversations (tenant_id, call_id, ended_at) VALUES
                 ('a', '11111111-1111-4111-8111-000000000002', NULL),
                 ('b', '11111111-1111-4111-8111-000000000004', NULL),
                 ('b', NULL, now() - interval '10 minutes')",
        )
        .await;
    let since = Timestamp::now() - SignedDuration::from_hours(2);
    let found = missing_calls(&stage.pool, None, since, None, 10).await.unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].call_id.ends_with("0002") && found[1].call_id.ends_with("0003"), "{found:?}");
    assert_eq!(missing_calls(&stage.pool, None, since, Some("a"), 10).await.unwrap().len(), 1);
    assert_eq!(missing_calls(&stage.pool, None, since, None, 2).await.unwrap().len(), 2);
    for call in &found {
        post_call(&stage, &call.call_id).await;
    }
    assert!(missing_calls(&stage.pool, None, since, None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_clock_that_was_never_set_and_what_no_attempt_can_write() {
    let stage = Stage::with_platform().await;
    let sql = format!(
        "INSERT INTO calls (id, tenant_id, started_at) VALUES ('{CALL}', 't', '1970-01-01 00:00+00')"
    );
    stage.database.execute(&sql).await;
    assert_eq!(post_call(&stage, CALL).await["record"], "closed");
    let row = "SELECT json_build_array(status, ended_at IS NOT NULL, duration_seconds)::text FROM calls";
    assert_eq!(stage.value(row).await, json!(["completed", true, null]), "no call of a lifetime");

    stage.database.execute("UPDATE calls SET ended_at = NULL, status = 'active'; ALTER TABLE calls ADD CHECK (status <> 'completed')").await;
    let error = discarded(stage.run("post-call", json!({ "call_id": CALL })).await);
    assert!(error.contains("close the platform's record of a call"), "{error}");
    for field in ["recording_key", "tenant", "status"] {
        let payload = json!({ "call_id": CALL, field: "a\0b" });
        assert!(serde_json::from_value::<voiceai_recording::PostCall>(payload).is_err(), "{field}");
    }
}
