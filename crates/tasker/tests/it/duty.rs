//! Duties and notices to others than those who run the platform, through the binary: from rows to a mail server and a receiver.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use voiceai_postgres::sqlx::{AssertSqlSafe, query, raw_sql};
use voiceai_testkit::{Process, Received, SmtpSink, wait_for};

use crate::stage::{PATIENCE, Stage};

const PLATFORM: &str = include_str!("../../../../tests/fixtures/platform.sql");
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

struct Watch {
    stage: Stage,
    sink: SmtpSink,
    url: String,
    posts: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// A stage with the platform's tables, a mail server, and a receiver that takes everything.
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let posts: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = posts.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = Vec::new();
                while !is_whole(&text) {
                    if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                kept.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                let _ = stream.write_all(b"HTTP/1.1 204 Taken\r\nconnection: close\r\n\r\n").await;
            }
        });
        let watch =
            Self { stage: Stage::new().await.quiet().await, sink: SmtpSink::start().await, url, posts };
        watch.sql(PLATFORM).await;
        watch
    }

    async fn tasker(&self) -> Process {
        let program = self.stage.program().envs([
            ("SMTP_HOST", self.sink.address().ip().to_string()),
            ("SMTP_PORT", self.sink.port().to_string()),
            ("SMTP_TLS", "off".to_owned()),
            ("ALERT_RECIPIENTS", "ops@example.com".to_owned()),
            ("ALERT_THROTTLE", "0s".to_owned()),
            ("ALERT_WEBHOOK_URL", format!("{}/ops", self.url)),
            ("ALERT_WEBHOOK_SECRET", SECRET.to_owned()),
            ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1".to_owned()),
            ("WEBHOOK_ALLOW_HTTP", "true".to_owned()),
        ]);
        let process = program.arg("run").start();
        process.wait_for_line(PATIENCE, "service ready").await;
        process
    }

    async fn sql(&self, sql: &str) {
        raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.stage.database.pool().await).await.unwrap();
    }

    async fn enqueue(&self, id: &str, payload: &Value) {
        query("INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json)")
            .bind(id)
            .bind(payload.to_string())
            .execute(&self.stage.database.pool().await)
            .await
            .unwrap();
    }

    /// The only mail to this address, once it is there.
    async fn mail_to(&self, address: &str) -> Received {
        wait_for(PATIENCE, format!("a mail to {address}"), async || {
            let all: Vec<_> = self
                .sink
                .received()
                .into_iter()
                .filter(|mail| mail.to.iter().any(|to| to == address))
                .collect();
            if all.len() == 1 { Ok(all[0].clone()) } else { Err(all.len()) }
        })
        .await
    }

    /// The posts to a path, once there are so many.
    async fn posts_to(&self, path: &str, count: usize) -> Vec<String> {
        wait_for(PATIENCE, format!("{count} posts to {path}"), async || {
            let start = format!("POST {path} ");
            let all: Vec<_> =
                self.posts.lock().unwrap().iter().filter(|text| text.starts_with(&start)).cloned().collect();
            if all.len() == count { Ok(all) } else { Err(all.len()) }
        })
        .await
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    body.len() >= length.unwrap_or(0_usize)
}

fn body(post: &str) -> Value {
    serde_json::from_str(post.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn an_alert_at_night_reaches_whoever_is_on_call_by_mail_and_webhook() {
    let watch = Watch::new().await;
    watch
        .sql(&format!(
            "INSERT INTO escalation_policies (policy_id, tenant_id, name, is_default) VALUES (1, 't1', 'p', true);
             INSERT INTO oncall_schedules (schedule_id, tenant_id, name) VALUES (1, 't1', 'nights');
             INSERT INTO oncall_layers (schedule_id, responders) VALUES (1, '[{{\"name\": \"Ann\", \"email\": \"ann@example.com\"}}]');
             INSERT INTO escalation_levels (policy_id, level_number, notify_webhook, oncall_schedule_id) VALUES (1, 1, '{}/level', 1);
             INSERT INTO notification_channels (channel_id, tenant_id, name, channel_type, config) VALUES (1, 't1', 's', 'slack', '{{\"webhook_url\": \"{}/slack\"}}');
             INSERT INTO notification_routing_rules (tenant_id, channel_id, created_at) VALUES ('t1', 1, now() - interval '1 day');
             INSERT INTO fleet_alert (tenant_id, device_id, alert_type, fingerprint, severity, summary, next_escalation_at)
                 VALUES ('t1', 'dev-1', 'HIGH_TEMP', 'f', 4, 'too hot', now());",
            watch.url, watch.url
        ))
        .await;
    let _tasker = watch.tasker().await;
    watch.stage.ask("cron run alert-escalation").await.text(0);
    let mail = watch.mail_to("ann@example.com").await;
    let subject = mail.header("Subject").unwrap();
    assert!(subject.contains("Level 1: too hot"), "{subject}");
    assert!(String::from_utf8_lossy(&mail.content).contains("Ann"), "she is named");
    let level = &watch.posts_to("/level", 1).await[0];
    assert_eq!(body(level)["data"]["on_call"], "Ann", "{level}");
    // The escalation has the tenant's channels told at once.
    let slack = &watch.posts_to("/slack", 1).await[0];
    assert!(body(slack)["text"].as_str().is_some_and(|text| text.contains("too hot")), "{slack}");
    assert_eq!(watch.sink.count(), 1, "nobody else is mailed");
    watch.stage.ask("cron run alert-escalation").await.text(0);
    let left = watch
        .stage
        .value("SELECT count(*)::text FROM ops.outbox WHERE kind IN ('alerts.post', 'notification.send')")
        .await;
    assert_eq!(left, 2);
}

#[tokio::test]
async fn notices_are_posted_signed_and_a_template_that_makes_no_mail_is_told_all_the_same() {
    let watch = Watch::new().await;
    let _tasker = watch.tasker().await;
    watch.enqueue("n1", &json!({ "event": "failed", "group": "eu", "server": "voice-1", "reason": "no stock", "severity": 4 })).await;
    let post = &watch.posts_to("/ops", 1).await[0];
    assert!(post.contains("webhook-signature: v1,") && post.contains("webhook-id: notice-"), "{post}");
    let told = body(post);
    assert_eq!(
        (&told["type"], &told["data"]["notices"][0]["reason"]),
        (&json!("notice"), &json!("no stock"))
    );
    watch.mail_to("ops@example.com").await;
    watch.stage.wait_for_state("n1", "completed").await;

    // To named people alone; its template wants variables that are not there; one address is none.
    let odd = json!({ "event": "alert_escalated", "reason": "too hot", "to": ["eve@example.com", "no address"], "template": "alert.escalated" });
    watch.enqueue("n2", &odd).await;
    let mail = watch.mail_to("eve@example.com").await;
    assert!(mail.header("Subject").unwrap().contains("alert escalated"), "{mail:?}");
    watch.stage.wait_for_state("n2", "completed").await;
    assert_eq!((watch.sink.count(), watch.posts.lock().unwrap().len()), (2, 1), "nobody else hears of it");
    // Written down a moment after it was taken.
    wait_for(PATIENCE, "the post is written down", async || {
        let posted = watch
            .stage
            .value("SELECT count(*)::text FROM ops.notice_posts WHERE posted_at IS NOT NULL")
            .await;
        if posted == 1 { Ok(()) } else { Err(posted) }
    })
    .await;
}

#[tokio::test]
async fn a_tenant_is_told_by_its_own_preferences_and_its_contact_of_a_webhook_that_was_switched_off() {
    let watch = Watch::new().await;
    watch
        .sql(&format!(
            "INSERT INTO tenants (tenant_id, name, contact_email) VALUES ('t1', 'A', 'owner@example.com'), ('t2', 'B', 'b@example.com');
             INSERT INTO notification_channels (channel_id, tenant_id, name, channel_type, config) VALUES
                 (1, 't2', 'm', 'email', '{{\"to\": \"noc@example.com\"}}'), (2, 't2', 'w', 'webhook', '{{\"url\": \"{}/t2\"}}');
             INSERT INTO notification_routing_rules (tenant_id, channel_id, min_severity) VALUES ('t2', 1, 3), ('t2', 2, NULL);",
            watch.url
        ))
        .await;
    let _tasker = watch.tasker().await;
    let off = json!({ "event": "webhook.disabled", "tenant": "t1", "group": "ep-1", "reason": "it answered 410", "url": "https://hooks.example.com/x" });
    watch.enqueue("off", &off).await;
    let mail = watch.mail_to("owner@example.com").await;
    assert_eq!(mail.header("Subject").unwrap(), "Your webhook was switched off: https://hooks.example.com/x");
    assert!(String::from_utf8_lossy(&mail.content).contains("it answered 410"));

    watch
        .enqueue("low", &json!({ "event": "usage_high", "tenant": "t2", "reason": "r", "severity": 2 }))
        .await;
    watch.posts_to("/t2", 1).await;
    watch
        .enqueue("high", &json!({ "event": "usage_high", "tenant": "t2", "reason": "r", "severity": 5 }))
        .await;
    watch.mail_to("noc@example.com").await;
    watch.posts_to("/t2", 2).await;

    // A team's own JSON comes first, also when it wants nothing.
    watch
        .sql(
            r#"CREATE TABLE "Team" (id text PRIMARY KEY, notifications jsonb);
               INSERT INTO "Team" VALUES ('t2', '{"recipients": ["team@example.com"], "muted": ["usage_high"]}');"#,
        )
        .await;
    watch
        .enqueue("muted", &json!({ "event": "usage_high", "tenant": "t2", "reason": "r", "severity": 5 }))
        .await;
    let shown = watch.stage.wait_for_state("muted", "completed").await;
    assert_eq!(
        (&shown["result"]["told"], &shown["result"]["unwanted"]),
        (&json!(false), &json!(true)),
        "{shown}"
    );
    watch.enqueue("wanted", &json!({ "event": "plan_ends", "tenant": "t2", "reason": "r" })).await;
    watch.mail_to("team@example.com").await;
    // Nobody knows the tenant: those who run the platform.
    watch.enqueue("unknown", &json!({ "event": "plan_ends", "tenant": "t9", "reason": "r" })).await;
    watch.mail_to("ops@example.com").await;
    assert_eq!(watch.sink.count(), 4);
}

#[tokio::test]
async fn a_secret_that_cannot_sign_stops_the_start() {
    let stage = Stage::new().await;
    let program = stage.program().env("ALERT_WEBHOOK_SECRET", "canary").arg("run");
    let refused = crate::stage::answer(program).await;
    assert!(refused.exit == 4 && refused.stderr.contains("ALERT_WEBHOOK_SECRET"), "{refused:?}");
    assert!(!refused.stderr.contains("canary"));
}

/// Runs a schedule now; the job's result.
async fn run_now(stage: &Stage, schedule: &str) -> Value {
    let ran = stage.ask(&format!("cron run {schedule} --json")).await.json(0);
    let id = ran["id"].as_str().unwrap_or_else(|| panic!("{ran}"));
    stage.wait_for_state(id, "completed").await["result"].clone()
}

#[tokio::test]
async fn every_duty_runs_from_its_schedule_and_is_skipped_without_tables() {
    let stage = Stage::new().await;
    let _tasker = stage.tasker("one").await;
    for (schedule, table) in [
        ("certificates", "device_certificates"),
        ("alert-escalation", "fleet_alert"),
        ("alert-notification", "fleet_alert"),
        ("sla-report", "tenants"),
        ("rollouts", "ota_campaigns"),
    ] {
        let result = run_now(&stage, schedule).await;
        assert_eq!(
            (&result["skipped"], &result["table"]),
            (&json!(true), &json!(table)),
            "{schedule}: {result}"
        );
    }
    let rollouts = stage.value("SELECT enabled::text FROM ops.schedules WHERE name = 'rollouts'").await;
    assert_eq!(rollouts, false, "until there is an address that takes orders");
}

#[tokio::test]
async fn a_report_is_mailed_in_the_tenants_language() {
    let watch = Watch::new().await;
    watch
        .sql(
            "INSERT INTO tenants (tenant_id, name, locale, metadata)
                 VALUES ('t1', 'Acme', 'de', '{\"sla_report\": {\"recipients\": \"boss@example.com\"}}');
             INSERT INTO device_state (tenant_id, device_id, status) VALUES ('t1', 'd1', 'ONLINE'), ('t1', 'd2', 'OFFLINE');",
        )
        .await;
    let _tasker = watch.tasker().await;
    let result = run_now(&watch.stage, "sla-report").await;
    assert_eq!(result["made"], 1, "{result}");
    let mail = watch.mail_to("boss@example.com").await;
    let text = String::from_utf8_lossy(&mail.content).into_owned();
    assert!(text.contains("(50 %)") && text.contains("Alarme: 0"), "{text}");
    assert_eq!(run_now(&watch.stage, "sla-report").await["known"], 1);
}

#[tokio::test]
async fn an_order_of_a_rollout_outlives_the_process_that_was_giving_it() {
    let watch = Watch::new().await;
    // Takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    watch
        .sql(
            "INSERT INTO ota_campaigns (id, tenant_id, name, status) VALUES (7, 't1', 'spring', 'RUNNING');
             INSERT INTO ota_device_status (tenant_id, campaign_id, device_id) VALUES ('t1', 7, 'd1');",
        )
        .await;
    let first = watch.stage.program().env("ROLLOUT_DISPATCH_URL", &silent_url).arg("run").start();
    first.wait_for_line(PATIENCE, "service ready").await;
    watch.stage.ask("cron run rollouts").await.text(0);
    let (_held, _) =
        tokio::time::timeout(PATIENCE, silent.accept()).await.expect("an order is on its way").unwrap();
    first.kill9();
    let left = watch.stage.value("SELECT state FROM ops.rollout_orders").await;
    assert_eq!(left, "claimed");
    watch.sql("UPDATE ops.rollout_orders SET claim_expires_at = now()").await;
    let url = format!("{}/orders/{{device}}", watch.url);
    let second =
        watch.stage.program().envs([("ROLLOUT_DISPATCH_URL", url.as_str()), ("ROLLOUT_INTERVAL", "1s")]);
    let second = second.arg("run").start();
    second.wait_for_line(PATIENCE, "service ready").await;
    watch
        .stage
        .ask_all(&["jobs", "enqueue", "rollouts.step", "--payload", r#"{"once": true}"#])
        .await
        .text(0);
    let order = &watch.posts_to("/orders/d1", 1).await[0];
    assert!(order.contains("webhook-id: rollout:7:d1"), "{order}");
    wait_for(PATIENCE, "the order is written down", async || {
        let row = watch.stage.value("SELECT state || ' ' || attempts FROM ops.rollout_orders").await;
        if row == "sent 2" { Ok(()) } else { Err(row) }
    })
    .await;
}
