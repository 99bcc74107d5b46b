//! Notices through the binary: from the outbox to a mail server.

use serde_json::{Value, json};
use voiceai_testkit::{Act, Process, Program, SmtpSink, Step, wait_for};

use crate::stage::{PATIENCE, Stage, answer};

struct Watch {
    stage: Stage,
    sink: SmtpSink,
    throttle: &'static str,
}

impl Watch {
    async fn new(throttle: &'static str) -> Self {
        Self { stage: Stage::new().await.quiet().await, sink: SmtpSink::start().await, throttle }
    }

    fn program(&self) -> Program {
        self.stage.program().envs([
            ("SMTP_HOST", self.sink.address().ip().to_string()),
            ("SMTP_PORT", self.sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("MAIL_RETRY_LADDER", "50ms,50ms".to_owned()),
            ("MAIL_PROVIDER_PAUSE", "300ms".to_owned()),
            ("ALERT_RECIPIENTS", "ops@example.com, night@example.com".to_owned()),
            ("ALERT_THROTTLE", self.throttle.to_owned()),
        ])
    }

    async fn tasker(&self) -> Process {
        let process = self.program().arg("run").start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    /// As the scaler does it.
    async fn enqueue(&self, id: &str, payload: &Value) {
        voiceai_postgres::sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json) \
             ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(payload.to_string())
        .execute(&self.stage.database.pool().await)
        .await
        .unwrap();
    }

    /// Waits until so many notices are kept back until their mail's rest is over.
    async fn until_held(&self, count: u64) {
        wait_for(PATIENCE, format!("{count} notices are held back"), async || {
            let held = self.stage.value("SELECT count(*)::text FROM ops.notices WHERE mail_id IS NULL").await;
            if held == count { Ok(()) } else { Err(held) }
        })
        .await;
    }

    async fn until_received(&self, count: usize) {
        wait_for(PATIENCE, format!("{count} mails arrive"), async || {
            let have = self.sink.count();
            if have >= count { Ok(()) } else { Err(have) }
        })
        .await;
    }

    fn subjects(&self) -> Vec<String> {
        self.sink.received().iter().filter_map(|mail| mail.header("Subject")).collect()
    }
}

fn failed(server: &str, reason: &str) -> Value {
    json!({ "event": "failed", "group": "eu-voice", "server": server, "reason": reason, "at": "2026-11-22T11:40:00Z" })
}

#[tokio::test]
async fn a_notice_of_the_scaler_is_mailed_once_and_what_follows_comes_in_one_mail() {
    // Long enough for four notices to be taken by a busy machine.
    let watch = Watch::new("15s").await;
    let tasker = watch.tasker().await;
    tasker.wait_for_line(PATIENCE, "NotificationService: notices leave by mail").await;
    watch.enqueue("scaler:failed:1", &failed("voice-1", "no stock in fsn1")).await;
    watch.until_received(2).await;
    for n in 2..=5 {
        watch.enqueue(&format!("scaler:failed:{n}"), &failed("voice-2", "boot took too long")).await;
    }
    watch.until_held(4).await;
    let other = json!({ "event": "backup_overdue", "subject": "main", "reason": "none since Monday" });
    watch.enqueue("tasker:backup_overdue:main", &other).await;
    // Each mail has two recipients, an envelope each.
    watch.until_received(6).await;
    for n in 1..=5 {
        watch.stage.wait_for_state(&format!("scaler:failed:{n}"), "completed").await;
    }
    let mut subjects = watch.subjects();
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), 3, "{subjects:?}");
    for part in ["] backup overdue: main", "] failed: eu-voice", "] failed: eu-voice (4 notices)"] {
        assert!(subjects.iter().any(|subject| subject.ends_with(part)), "{part}: {subjects:?}");
    }
    assert_eq!(watch.sink.count(), 6, "held notices leave together: {subjects:?}");
    let told = watch
        .stage
        .value("SELECT count(*)::text FROM ops.notices WHERE told_at IS NOT NULL AND mail_id IS NOT NULL")
        .await;
    assert_eq!(told, 6);
    let mails = watch.stage.value("SELECT count(DISTINCT mail_id)::text FROM ops.notices").await;
    assert_eq!(mails, 3);
    let second = watch.stage.value("SELECT payload.command::text FROM mail.delivery_payloads payload JOIN ops.notices notice ON notice.mail_id = payload.delivery_id WHERE notice.id = 'scaler:failed:2'").await;
    let listed = &second["variables"]["notices"];
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["times"]), (Some(1), &json!(4)), "{second}");

    // The same notice under its id, after everything about it is forgotten by the queue.
    watch.stage.redis.cli(&["FLUSHDB"]).await;
    drop(tasker);
    let _tasker = watch.tasker().await;
    voiceai_postgres::sqlx::query("DELETE FROM ops.outbox")
        .execute(&watch.stage.database.pool().await)
        .await
        .unwrap();
    watch.enqueue("scaler:failed:1", &failed("voice-1", "no stock in fsn1")).await;
    // The history still shows how it ended the first time.
    wait_for(PATIENCE, "it is known to have been told", async || {
        let shown = watch.stage.ask("jobs show scaler:failed:1 --json").await;
        let shown: Value = serde_json::from_str(&shown.stdout).map_err(|_| format!("{shown:?}"))?;
        if shown["result"]["known"] == true { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(watch.sink.count(), 6);
}

#[tokio::test]
async fn notices_that_a_killed_tasker_held_back_are_told_by_the_next_one() {
    let watch = Watch::new("1h").await;
    let tasker = watch.tasker().await;
    watch.enqueue("first", &failed("voice-1", "one")).await;
    watch.until_received(2).await;
    watch.enqueue("second", &failed("voice-2", "two")).await;
    watch.until_held(1).await;
    tasker.kill9();
    watch.stage.redis.cli(&["FLUSHDB"]).await;
    // The hour is over.
    watch.stage.database.execute("UPDATE ops.notice_throttles SET open_at = now()").await;
    let _tasker = watch.tasker().await;
    watch.enqueue("third", &failed("voice-3", "three")).await;
    watch.until_received(4).await;
    watch.stage.wait_for_state("third", "completed").await;
    assert!(
        watch.subjects().iter().any(|subject| subject.ends_with("(2 notices)")),
        "{:?}",
        watch.subjects()
    );
}

#[tokio::test]
async fn without_a_throttle_each_is_a_mail_and_a_mail_server_that_refuses_loses_none() {
    let watch = Watch::new("0s").await;
    watch.sink.once(Step::Mail, Act::reply("451 4.3.0 come back later"));
    let _tasker = watch.tasker().await;
    for n in 0..5 {
        watch.enqueue(&format!("n-{n}"), &failed("voice-1", "the same")).await;
        watch.stage.wait_for_state(&format!("n-{n}"), "completed").await;
    }
    watch.until_received(10).await;
    assert_eq!(watch.sink.count(), 10);
}

#[tokio::test]
async fn without_recipients_nobody_is_told_and_a_wrong_one_stops_the_start() {
    let stage = Stage::new().await;
    let tasker = stage.tasker("one").await;
    assert!(tasker.stderr().contains("set ALERT_RECIPIENTS"), "{}", tasker.stderr());
    let payload = failed("voice-1", "nobody hears").to_string();
    stage
        .ask_all(&["jobs", "enqueue", "notification.send", "--id", "n", "--payload", &payload])
        .await
        .text(0);
    let shown = stage.wait_for_state("n", "completed").await;
    assert_eq!(shown["result"]["told"], false, "{shown}");
    tasker.wait_for_line(PATIENCE, "NotificationService: nobody to tell").await;
    drop(tasker);
    let refused = answer(stage.program().env("ALERT_RECIPIENTS", "ops@example.com,a@b@c").arg("run")).await;
    assert!(refused.exit == 4 && refused.stderr.contains("ALERT_RECIPIENTS"), "{refused:?}");
}

#[tokio::test]
async fn a_notice_that_says_nothing_is_refused_and_none_silences_its_event_for_ever() {
    let watch = Watch::new("0s").await;
    let _tasker = watch.tasker().await;
    watch.enqueue("blank", &json!({ "event": " ", "reason": "r" })).await;
    let shown = watch.stage.wait_for_state("blank", "dead").await;
    assert_eq!(shown["dead_reason"], "discarded_by_handler", "{shown}");
    assert!(shown["error"].as_str().unwrap().starts_with("event: "), "{shown}");
    watch.enqueue("loud", &json!({ "event": "e", "reason": "r", "throttle_ms": u64::MAX })).await;
    watch.stage.wait_for_state("loud", "completed").await;
    let bounded = "SELECT bool_and(open_at < now() + interval '25 hours')::text FROM ops.notice_throttles";
    assert_eq!(watch.stage.value(bounded).await, true);

    // What cannot be kept is parked and not tried for hours; whose preferences cannot be read, those who run the platform hear of it.
    watch.enqueue("odd", &json!({ "event": "e", "reason": "r", "locale": "d\0e" })).await;
    let shown = watch.stage.wait_for_state("odd", "dead").await;
    assert_eq!(
        (&shown["dead_reason"], &shown["attempts"]),
        (&json!("discarded_by_handler"), &json!(1)),
        "{shown}"
    );
    watch
        .stage
        .database
        .execute(
            "CREATE TABLE notification_channels (channel_id int, tenant_id text, channel_type text, config jsonb, is_enabled bool);
             CREATE TABLE notification_routing_rules (channel_id int, tenant_id text, min_severity int, alert_type text, deliver_on jsonb,
                 throttle_minutes int, is_enabled bool)",
        )
        .await;
    watch.enqueue("unreadable", &json!({ "event": "unreadable", "reason": "r", "tenant": "t" })).await;
    watch.stage.wait_for_state("unreadable", "completed").await;
    let told = "SELECT (mail_id IS NOT NULL)::text FROM ops.notices WHERE id = 'unreadable'";
    assert_eq!(watch.stage.value(told).await, true);
}
