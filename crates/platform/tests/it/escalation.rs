//! Escalation, on-call and the channels of tenants, on rows before and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};
use voiceai_egress::Rule;
use voiceai_platform::escalation::{AlertEscalate, AlertPost, EscalationContext, NotificationDispatch};
use voiceai_platform::outgoing::Outgoing;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{query, query_as, query_scalar, raw_sql};
use voiceai_webhook::{Allowed, Client, Guard, SystemResolver, WebhookSettings};

use crate::duty::{Receiver, attempt, run};
use crate::stage;

/// Ways out that may reach this machine, or none of its addresses.
pub(crate) fn outgoing(local: bool) -> Outgoing {
    let resolved = voiceai_config::Resolved::from_pairs::<&str, &str>(voiceai_config::Binary::Tasker, []);
    let settings = resolved.read(WebhookSettings::read).unwrap().settings;
    let client = |networks: &[&str]| {
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let allowed = Allowed::parse(&networks, true).unwrap();
        Client::new(&settings, Guard::new(allowed, Arc::new(SystemResolver)), Rule::default()).unwrap()
    };
    let guarded = client(if local { &["127.0.0.1"] } else { &[] });
    Outgoing { guarded, trusted: client(&["0.0.0.0/0", "::/0"]) }
}

fn context(pool: &PgPool) -> EscalationContext {
    EscalationContext { pool: pool.clone(), outgoing: outgoing(true) }
}

async fn set(pool: &PgPool, sql: &str) {
    raw_sql(voiceai_postgres::sqlx::AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn alert(pool: &PgPool, tenant: &str, due: bool) -> i64 {
    query_scalar(
        "INSERT INTO fleet_alert (tenant_id, site_id, device_id, alert_type, fingerprint, severity, summary, rule_id, next_escalation_at) \
         VALUES ($1, 's1', 'dev-1', 'HIGH_TEMP', gen_random_uuid()::text, 4, 'too hot', 'r1', \
             now() + CASE WHEN $2 THEN interval '-1 second' ELSE interval '1 hour' END) RETURNING id",
    )
    .bind(tenant)
    .bind(due)
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Two levels: Ann and Ben take turns by the week, Dan stands in now; then a mailing list and an address to post to.
async fn policy(pool: &PgPool, webhook: &str) {
    set(
        pool,
        &format!(
            "INSERT INTO escalation_policies (policy_id, tenant_id, name, is_default) VALUES (1, 't1', 'p', false), (2, 't2', 'p', true);
             INSERT INTO oncall_schedules (schedule_id, tenant_id, name, timezone) VALUES (1, 't1', 'nights', 'Europe/Berlin');
             INSERT INTO oncall_layers (schedule_id, responders) VALUES (1, '[\"ann@example.com\", \"ben@example.com\"]');
             INSERT INTO oncall_overrides (schedule_id, responder, start_at, end_at)
                 VALUES (1, 'dan@example.com', now() - interval '1 hour', now() + interval '1 hour');
             INSERT INTO escalation_levels (level_id, policy_id, level_number, delay_minutes, notify_email, notify_webhook, oncall_schedule_id)
                 VALUES (1, 1, 1, 15, 'list@example.com', NULL, 1), (2, 1, 2, 30, NULL, '{webhook}', NULL), (3, 2, 1, 5, NULL, NULL, NULL);
             INSERT INTO alert_rules (rule_id, tenant_id, name, escalation_policy_id) VALUES ('r1', 't1', 'r', 1);"
        ),
    )
    .await;
}

async fn jobs(pool: &PgPool) -> Vec<(String, String, Value)> {
    query_as(
        "SELECT id, kind, payload::jsonb FROM ops.outbox WHERE kind <> 'notifications.dispatch' ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

async fn stand(pool: &PgPool, alert: i64) -> (i32, Option<i64>) {
    query_as(
        "SELECT escalation_level, round(extract(epoch FROM next_escalation_at - now()) / 60)::bigint FROM fleet_alert WHERE id = $1",
    )
    .bind(alert)
    .fetch_one(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn an_alert_goes_up_level_by_level_and_each_is_told_once() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 200).await;
    policy(&pool, &receiver.url()).await;
    let due = alert(&pool, "t1", true).await;
    let later = alert(&pool, "t1", false).await;
    let context = context(&pool);
    let result = run(&AlertEscalate {}, &context).await.unwrap();
    assert_eq!((&result["escalated"], &result["ended"]), (&json!(1), &json!(0)), "{result}");
    assert_eq!(stand(&pool, due).await, (1, Some(15)));
    assert_eq!(stand(&pool, later).await, (0, Some(60)));
    let told = jobs(&pool).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let (id, kind, notice) = &told[0];
    assert_eq!((id.as_str(), kind.as_str()), (&*format!("escalation:{due}:1"), "notification.send"));
    assert_eq!(
        notice["to"],
        json!(["list@example.com", "dan@example.com"]),
        "the one who stands in: {notice}"
    );
    assert_eq!((&notice["template"], &notice["throttle_ms"]), (&json!("alert.escalated"), &json!(0)));
    assert_eq!(notice["variables"]["on_call"], "dan@example.com");

    // Nothing is due: nothing happens, however often it runs.
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["escalated"], 0);
    // The override has ended; level 2 has an address to post to, and nobody that mail reaches.
    set(&pool, "UPDATE fleet_alert SET next_escalation_at = now() WHERE escalation_level = 1").await;
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["escalated"], 1);
    assert_eq!(stand(&pool, due).await, (2, Some(30)));
    let told = jobs(&pool).await;
    assert_eq!(told.len(), 2, "{told:?}");
    let (id, kind, payload) = &told[1];
    assert_eq!((id.as_str(), kind.as_str()), (&*format!("escalation:{due}:2:post"), "alerts.post"));
    assert!(!payload.to_string().contains("http"), "no address stands in a job: {payload}");
    let post: AlertPost = serde_json::from_value(payload.clone()).unwrap();
    assert_eq!(run(&post, &context).await.unwrap()["posted"], true);
    let received = receiver.received();
    assert_eq!(received[0].header("webhook-id"), format!("alert:{due}:2"));
    let body = received[0].json();
    assert_eq!((&body["type"], &body["data"]["summary"]), (&json!("alert.escalated"), &json!("too hot")));

    // No third level.
    set(&pool, "UPDATE fleet_alert SET next_escalation_at = now() WHERE escalation_level = 2").await;
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["ended"], 1);
    assert_eq!(stand(&pool, due).await, (2, None));
    assert_eq!(jobs(&pool).await.len(), 2);
}

#[tokio::test]
async fn silenced_closed_and_locked_alerts_are_left_and_a_default_policy_tells_the_operators() {
    let pool = stage::platform().await.pool().await;
    policy(&pool, "").await;
    let context = context(&pool);
    for change in
        ["silenced_until = now() + interval '1 hour'", "status = 'CLOSED'", "status = 'ACKNOWLEDGED'"]
    {
        let id = alert(&pool, "t1", true).await;
        set(&pool, &format!("UPDATE fleet_alert SET {change} WHERE id = {id}")).await;
    }
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["escalated"], 0);
    let held = alert(&pool, "t2", true).await;
    let mut tx = pool.begin().await.unwrap();
    query("SELECT FROM fleet_alert WHERE id = $1 FOR UPDATE").bind(held).execute(&mut *tx).await.unwrap();
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["escalated"], 0, "another process has it");
    tx.rollback().await.unwrap();
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["escalated"], 1);
    let told = jobs(&pool).await;
    let notice = &told[0].2;
    assert!(notice.get("to").is_none(), "those who run the platform: {notice}");
    assert!(notice["reason"].as_str().is_some_and(|reason| reason.contains("names nobody")), "{notice}");
    // Without any policy an escalation simply ends.
    let none = alert(&pool, "t3", true).await;
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap()["ended"], 1);
    assert_eq!(stand(&pool, none).await, (0, None));
}

#[tokio::test]
async fn two_processes_at_once_tell_each_alert_once() {
    let pool = stage::platform().await.pool().await;
    policy(&pool, "").await;
    for _ in 0..20 {
        alert(&pool, "t1", true).await;
    }
    let context = context(&pool);
    let (a, b) = tokio::join!(run(&AlertEscalate {}, &context), run(&AlertEscalate {}, &context));
    let count = |result: Result<Value, String>| result.unwrap()["escalated"].as_u64().unwrap();
    assert_eq!(count(a) + count(b), 20);
    assert_eq!(jobs(&pool).await.len(), 20);
    let levels: Vec<i32> =
        query_scalar("SELECT DISTINCT escalation_level FROM fleet_alert").fetch_all(&pool).await.unwrap();
    assert_eq!(levels, [1]);
}

#[tokio::test]
async fn a_post_is_tried_again_refused_for_good_or_kept_from_private_addresses() {
    let pool = stage::platform().await.pool().await;
    let status = Arc::new(AtomicU16::new(503));
    let answers = status.clone();
    let receiver = Receiver::start(move |_| answers.load(Ordering::SeqCst)).await;
    policy(&pool, &receiver.url()).await;
    let alert_id = alert(&pool, "t1", true).await;
    let post = AlertPost { alert_id, level_id: 2, level: 2, on_call: None };
    let context = context(&pool);
    let error = run(&post, &context).await.unwrap_err();
    assert!(error.starts_with("retry: http_503"), "{error}");
    status.store(410, Ordering::SeqCst);
    assert!(attempt(&post, &context, 2).await.unwrap_err().starts_with("discard: http_410"));
    let guarded = EscalationContext { outgoing: outgoing(false), ..context.clone() };
    let error = run(&post, &guarded).await.unwrap_err();
    assert!(error.starts_with("discard") && error.contains("not a public address"), "{error}");
    let ids: Vec<String> = receiver.received().iter().map(|r| r.header("webhook-id").to_owned()).collect();
    assert_eq!(ids, [format!("alert:{alert_id}:2"), format!("alert:{alert_id}:2")], "the same each time");
    let gone = AlertPost { level_id: 99, ..post };
    assert_eq!(run(&gone, &context).await.unwrap()["skipped"], true);
}

#[tokio::test]
async fn rules_bring_alerts_to_channels_once() {
    let pool = stage::platform().await.pool().await;
    let status = Arc::new(AtomicU16::new(200));
    let answers = status.clone();
    let receiver = Receiver::start(move |_| answers.load(Ordering::SeqCst)).await;
    let url = receiver.url();
    set(
        &pool,
        &format!(
            "INSERT INTO notification_channels (channel_id, tenant_id, name, channel_type, config, is_enabled) VALUES
                 (1, 't1', 'hook', 'webhook', '{{\"url\": \"{url}/hook\", \"secret\": \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"}}', true),
                 (2, 't1', 'mail', 'email', '{{\"to\": [\"noc@example.com\"]}}', true),
                 (3, 't1', 'odd', 'pigeon', '{{}}', true),
                 (4, 't1', 'off', 'webhook', '{{\"url\": \"{url}/off\"}}', false),
                 (5, 't2', 'other', 'webhook', '{{\"url\": \"{url}/other\"}}', true);
             INSERT INTO notification_routing_rules (tenant_id, channel_id, min_severity, alert_type, site_ids, device_prefixes, deliver_on, created_at) VALUES
                 ('t1', 1, 4, NULL, NULL, ARRAY['dev-'], ARRAY['OPEN', 'CLOSED'], now() - interval '1 day'),
                 ('t1', 1, 5, NULL, NULL, NULL, NULL, now() - interval '1 day'),
                 ('t1', 2, NULL, 'HIGH_TEMP', ARRAY['s1', 's2'], NULL, NULL, now() - interval '1 day'),
                 ('t1', 3, NULL, NULL, NULL, NULL, NULL, now() - interval '1 day'),
                 ('t1', 4, NULL, NULL, NULL, NULL, NULL, now() - interval '1 day'),
                 ('t2', 5, NULL, NULL, NULL, ARRAY['nothing-'], NULL, now() - interval '1 day');"
        ),
    )
    .await;
    let id = alert(&pool, "t1", false).await;
    alert(&pool, "t2", false).await;
    let context = context(&pool);
    let result = run(&NotificationDispatch {}, &context).await.unwrap();
    assert_eq!(
        (&result["routed"], &result["delivered"], &result["failed"]),
        (&json!(3), &json!(2), &json!(1)),
        "{result}"
    );
    let received = receiver.received();
    assert_eq!((received.len(), received[0].target.as_str()), (1, "/hook"));
    assert!(received[0].header("webhook-signature").starts_with("v1,"));
    assert_eq!(received[0].json()["type"], "alert.opened");
    let states: Vec<(i32, String, Option<String>)> =
        query_as("SELECT channel_id, status, last_error FROM notification_jobs ORDER BY channel_id")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(states[0].1, "COMPLETED");
    assert_eq!(states[1].1, "COMPLETED");
    assert!(
        states[2].1 == "FAILED" && states[2].2.as_deref().is_some_and(|error| error.contains("pigeon")),
        "{states:?}"
    );
    let told = jobs(&pool).await;
    assert_eq!(
        (told[0].0.as_str(), &told[0].2["to"]),
        (&*format!("alert:{id}:open:2"), &json!(["noc@example.com"]))
    );
    let logged: i64 =
        query_scalar("SELECT count(*) FROM notification_log WHERE success").fetch_one(&pool).await.unwrap();
    assert_eq!(logged, 2);
    assert_eq!(run(&NotificationDispatch {}, &context).await.unwrap()["routed"], 0, "once");

    // Closed: told where the rule wants it; a receiver that is down is tried again, five times in all.
    status.store(500, Ordering::SeqCst);
    query("UPDATE fleet_alert SET status = 'CLOSED', closed_at = now() WHERE id = $1")
        .bind(id)
        .execute(&pool)
        .await
        .unwrap();
    for attempt in 1..=5 {
        let result = run(&NotificationDispatch {}, &context).await.unwrap();
        let wanted = if attempt < 5 { "later" } else { "failed" };
        assert_eq!(result[wanted], 1, "attempt {attempt}: {result}");
        let wait: Option<i64> = query_scalar(
            "SELECT round(extract(epoch FROM next_run_at - now()))::bigint FROM notification_jobs WHERE status = 'PENDING'",
        )
        .fetch_optional(&pool)
        .await
        .unwrap();
        assert_eq!(wait, (attempt < 5).then(|| 30 << (attempt - 1)));
        set(&pool, "UPDATE notification_jobs SET next_run_at = now() WHERE status = 'PENDING'").await;
    }
    assert_eq!(receiver.received().len(), 6);
}

#[tokio::test]
async fn a_throttle_puts_off_and_a_killed_process_leaves_nothing_behind() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 200).await;
    set(
        &pool,
        &format!(
            "INSERT INTO notification_channels (channel_id, tenant_id, name, channel_type, config) VALUES
                 (1, 't1', 'hook', 'webhook', '{{\"url\": \"{}\"}}');
             INSERT INTO notification_routing_rules (tenant_id, channel_id, deliver_on, throttle_minutes, created_at) VALUES
                 ('t1', 1, ARRAY['OPEN', 'CLOSED'], 10, now() - interval '1 day');",
            receiver.url()
        ),
    )
    .await;
    let id = alert(&pool, "t1", false).await;
    let context = context(&pool);
    run(&NotificationDispatch {}, &context).await.unwrap();
    query("UPDATE fleet_alert SET status = 'CLOSED', closed_at = now() WHERE id = $1")
        .bind(id)
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(
        run(&NotificationDispatch {}, &context).await.unwrap()["routed"],
        0,
        "it was told a moment ago"
    );
    set(&pool, "UPDATE notification_log SET sent_at = now() - interval '11 minutes'").await;
    assert_eq!(run(&NotificationDispatch {}, &context).await.unwrap()["delivered"], 1, "later, not never");
    // Left by a process that was killed while it posted.
    set(
        &pool,
        "UPDATE notification_jobs SET status = 'PROCESSING', updated_at = now() - interval '6 minutes'",
    )
    .await;
    let result = run(&NotificationDispatch {}, &context).await.unwrap();
    assert_eq!((&result["requeued"], &result["delivered"]), (&json!(2), &json!(2)), "{result}");
}

#[tokio::test]
async fn without_the_tables_they_are_skipped() {
    let pool = stage::bare().await.pool().await;
    let context = context(&pool);
    let skipped = json!({ "skipped": true, "reason": "table absent", "table": "fleet_alert", "columns": [] });
    assert_eq!(run(&AlertEscalate {}, &context).await.unwrap(), skipped);
    assert_eq!(run(&NotificationDispatch {}, &context).await.unwrap(), skipped);
    let post = AlertPost { alert_id: 1, level_id: 1, level: 1, on_call: None };
    assert_eq!(run(&post, &context).await.unwrap(), skipped);
}

#[tokio::test]
async fn a_channel_that_does_not_answer_delays_no_other() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|request| if request.target == "/down" { 503 } else { 200 }).await;
    set(
        &pool,
        &format!(
            "INSERT INTO notification_channels (channel_id, tenant_id, name, channel_type, config) VALUES
                 (1, 't1', 'down', 'webhook', '{{\"url\": \"{0}/down\"}}'), (2, 't2', 'up', 'webhook', '{{\"url\": \"{0}/up\"}}');
             INSERT INTO fleet_alert (id, tenant_id, alert_type, fingerprint) SELECT n, 't', 'A', n::text FROM generate_series(1, 40) n;
             INSERT INTO notification_jobs (tenant_id, alert_id, channel_id, next_run_at) SELECT 't1', n, 1, now() - interval '1 hour' FROM generate_series(1, 30) n;
             INSERT INTO notification_jobs (tenant_id, alert_id, channel_id, next_run_at) SELECT 't2', n, 2, now() FROM generate_series(31, 40) n;",
            receiver.url()
        ),
    )
    .await;
    let result = run(&NotificationDispatch {}, &context(&pool)).await.unwrap();
    assert_eq!(result["delivered"], 10, "{result}");
    let received = receiver.received();
    // The first ten of both, in turn; then those of the channel that answers.
    assert_eq!(received.iter().filter(|request| request.target == "/down").count(), 5, "{result}");
    let left: i64 = query_scalar(
        "SELECT count(*) FROM notification_jobs WHERE channel_id = 1 AND status = 'PENDING' AND attempts = 0",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(left, 25, "they keep all their attempts");
}
