//! `notifications.dispatch`: alerts that opened, were acknowledged or closed, to the channels that a tenant's rules name.
//!
//! A row of `notification_jobs` is one alert, one channel, one event, and has the only attempts there are: a mail counts as delivered
//! once its job is committed, a post once it is taken.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgPool, Row as _};
use voiceai_queue::{Attempt, HistoryMode, Job, JobError, Outcome};
use voiceai_webhook::Request;

use super::EscalationContext;
use super::channel::{Delivery, Message, delivery};
use crate::outgoing::{Outgoing, Verdict, judge};
use crate::tables::typed;
use crate::{Needs, PlatformError, finish};

const NEEDS: Needs = Needs(&[
    (
        "fleet_alert",
        &[
            "id",
            "tenant_id",
            "device_id",
            "site_id",
            "alert_type",
            "status",
            "severity",
            "summary",
            "created_at",
            "closed_at",
            "fingerprint",
            "details",
        ],
    ),
    ("notification_channels", &["channel_id", "tenant_id", "name", "channel_type", "config", "is_enabled"]),
    (
        "notification_routing_rules",
        &[
            "rule_id",
            "tenant_id",
            "channel_id",
            "min_severity",
            "alert_type",
            "device_tag_key",
            "device_tag_val",
            "site_ids",
            "device_prefixes",
            "deliver_on",
            "throttle_minutes",
            "priority",
            "is_enabled",
        ],
    ),
    (
        "notification_jobs",
        &[
            "job_id",
            "tenant_id",
            "alert_id",
            "channel_id",
            "rule_id",
            "deliver_on_event",
            "status",
            "attempts",
            "next_run_at",
            "last_error",
            "payload_json",
            "updated_at",
        ],
    ),
    ("notification_log", &["channel_id", "alert_id", "sent_at", "job_id", "success", "error_msg"]),
]);
/// Attempts of one row, and the waits between them: 30 s, doubling, at most 2 h.
const ATTEMPTS_MAX: i64 = 5;
const BACKOFF: u64 = 30;
const BACKOFF_MAX: u64 = 7_200;
/// Rows that are taken, and posted, at the same time; and how many one run takes at most.
const BATCH: i64 = 10;
const ROWS_MAX: usize = 500;
/// Longest time to an answer.
const POST_MAX: Duration = Duration::from_secs(10);

/// One round: rows are made, then those that are due are delivered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotificationDispatch {}

impl Job for NotificationDispatch {
    const KIND: &'static str = "notifications.dispatch";
    const QUEUE: &'static str = super::DUTY_QUEUE;
    const HISTORY: HistoryMode = HistoryMode::Failures;
    const PRIORITY: u8 = 8;
    type Context = EscalationContext;

    async fn run(&self, context: &EscalationContext, _attempt: &Attempt) -> Result<Outcome, JobError> {
        finish(&context.pool, Self::KIND, NEEDS, round(context)).await
    }
}

#[derive(Debug)]
struct Row {
    id: i64,
    attempts: i64,
    event: String,
    alert_id: i64,
    channel_id: i64,
    channel_type: String,
    config: Value,
    alert: Value,
}

async fn round(context: &EscalationContext) -> Result<Value, PlatformError> {
    let pool = &context.pool;
    let routed = route(pool).await?;
    let requeued = requeue(pool).await?;
    let (mut delivered, mut failed, mut later, mut taken) = (0, 0, 0, 0);
    let mut resting = Vec::new();
    while taken < ROWS_MAX {
        let rows = claim(pool, &resting).await?;
        if rows.is_empty() {
            break;
        }
        taken += rows.len();
        let ends = stream::iter(rows).map(|row| async move {
            let end = deliver(pool, &context.outgoing, &row).await;
            (row.channel_id, end)
        });
        let ends: Vec<_> = ends.buffer_unordered(usize::try_from(BATCH).unwrap_or(1)).collect().await;
        for (channel, end) in ends {
            match end? {
                End::Delivered => delivered += 1,
                End::Failed => failed += 1,
                // The rest of what this channel is owed waits for the next run, so that nobody else's waits for its time-outs.
                End::Later => {
                    later += 1;
                    resting.push(channel);
                }
            }
        }
    }
    Ok(
        json!({ "routed": routed, "requeued": requeued, "delivered": delivered, "failed": failed, "later": later }),
    )
}

/// Makes a row for each alert of the last day, event and channel that a rule wants: the rule with the lowest priority number speaks for
/// its channel. While a throttle holds, the row is made later. Rules speak only for what happens after they were made.
async fn route(pool: &PgPool) -> Result<u64, PlatformError> {
    let sql = format!(
        "INSERT INTO notification_jobs (tenant_id, alert_id, channel_id, rule_id, deliver_on_event, payload_json) \
         SELECT DISTINCT ON (a.id, r.channel_id, e.event) a.tenant_id, a.id, r.channel_id, r.rule_id, {}, \
             jsonb_build_object('alert_type', a.alert_type, 'severity', a.severity, 'at', e.at) \
         FROM notification_routing_rules r \
         JOIN notification_channels c ON c.channel_id = r.channel_id AND c.tenant_id = r.tenant_id AND c.is_enabled \
         JOIN fleet_alert a ON a.tenant_id = r.tenant_id \
         CROSS JOIN LATERAL (VALUES \
             ('OPEN', CASE WHEN a.status <> 'CLOSED' THEN a.created_at::timestamptz END), \
             ('ACKNOWLEDGED', (to_jsonb(a) ->> 'acknowledged_at')::timestamptz), \
             ('CLOSED', CASE WHEN a.status = 'CLOSED' THEN a.closed_at::timestamptz END)) AS e (event, at) \
         WHERE r.is_enabled AND e.event = ANY (COALESCE(r.deliver_on::text[], ARRAY['OPEN'])) \
           AND e.at > now() - interval '1 day' \
           AND e.at >= COALESCE((to_jsonb(r) ->> 'created_at')::timestamptz, '-infinity') \
           AND COALESCE((to_jsonb(a) ->> 'silenced_until')::timestamptz, '-infinity') <= now() \
           AND (r.min_severity IS NULL OR a.severity >= r.min_severity) \
           AND (COALESCE(r.alert_type::text, '') IN ('', a.alert_type::text)) \
           AND (COALESCE(cardinality(r.site_ids), 0) = 0 OR a.site_id::text = ANY (r.site_ids::text[])) \
           AND (COALESCE(cardinality(r.device_prefixes), 0) = 0 \
                OR EXISTS (SELECT FROM unnest(r.device_prefixes) AS p (prefix) WHERE starts_with(a.device_id::text, p.prefix))) \
           AND (COALESCE(r.device_tag_key, '') = '' \
                OR a.details -> 'tags' ->> r.device_tag_key = COALESCE(r.device_tag_val, a.details -> 'tags' ->> r.device_tag_key)) \
           AND NOT EXISTS (SELECT FROM notification_jobs j WHERE j.tenant_id = a.tenant_id AND j.alert_id = a.id \
                           AND j.channel_id = r.channel_id AND j.deliver_on_event::text = e.event) \
           AND (COALESCE(r.throttle_minutes, 0) <= 0 OR NOT EXISTS ( \
                SELECT FROM notification_log l WHERE l.channel_id = r.channel_id AND l.alert_id = a.id AND l.success \
                AND l.sent_at > now() - r.throttle_minutes * interval '1 minute')) \
         ORDER BY a.id, r.channel_id, e.event, COALESCE(r.priority, 100), r.rule_id \
         LIMIT 5000 ON CONFLICT DO NOTHING",
        typed("notification_jobs", "deliver_on_event", "e.event")
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(PlatformError::database("route alerts to channels"))
}

/// Rows whose process ended while it had them.
async fn requeue(pool: &PgPool) -> Result<u64, PlatformError> {
    sqlx::query(
        "UPDATE notification_jobs SET status = 'PENDING', last_error = 'stuck_requeued', updated_at = now() \
         WHERE status = 'PROCESSING' AND updated_at < now() - interval '5 minutes'",
    )
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
    .map_err(PlatformError::database("requeue notifications that were left"))
}

/// The next rows, of every channel the first before any channel's second, and none of the channels that are `resting`.
async fn claim(pool: &PgPool, resting: &[i64]) -> Result<Vec<Row>, PlatformError> {
    let tried = || PlatformError::database("claim notifications");
    let rows = sqlx::query(
        "WITH ranked AS ( \
             SELECT job_id, next_run_at, row_number() OVER (PARTITION BY channel_id ORDER BY next_run_at, job_id) AS place \
             FROM notification_jobs \
             WHERE status = 'PENDING' AND next_run_at <= now() AND NOT COALESCE(channel_id, 0)::bigint = ANY ($2) \
         ), due AS ( \
             SELECT j.job_id FROM notification_jobs j JOIN ranked r ON r.job_id = j.job_id \
             WHERE j.status = 'PENDING' AND j.next_run_at <= now() \
             ORDER BY r.place, r.next_run_at, r.job_id LIMIT $1 FOR UPDATE OF j SKIP LOCKED \
         ), taken AS ( \
             UPDATE notification_jobs j SET status = 'PROCESSING', attempts = COALESCE(j.attempts, 0) + 1, updated_at = now() \
             FROM due WHERE j.job_id = due.job_id \
             RETURNING j.job_id, j.attempts, j.deliver_on_event, j.alert_id, j.channel_id \
         ) \
         SELECT t.job_id::bigint, t.attempts::bigint, COALESCE(t.deliver_on_event::text, 'OPEN'), \
             COALESCE(t.alert_id, 0)::bigint, COALESCE(t.channel_id, 0)::bigint, \
             c.channel_type::text, c.config, to_jsonb(a) \
         FROM taken t LEFT JOIN notification_channels c ON c.channel_id = t.channel_id AND c.is_enabled \
         LEFT JOIN fleet_alert a ON a.id = t.alert_id",
    )
    .bind(BATCH)
    .bind(resting)
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    rows.iter()
        .map(|row| {
            Ok(Row {
                id: row.try_get(0).map_err(tried())?,
                attempts: row.try_get(1).map_err(tried())?,
                event: row.try_get(2).map_err(tried())?,
                alert_id: row.try_get(3).map_err(tried())?,
                channel_id: row.try_get(4).map_err(tried())?,
                channel_type: row.try_get::<Option<String>, _>(5).map_err(tried())?.unwrap_or_default(),
                config: row.try_get::<Option<Value>, _>(6).map_err(tried())?.unwrap_or_default(),
                alert: row.try_get::<Option<Value>, _>(7).map_err(tried())?.unwrap_or_default(),
            })
        })
        .collect()
}

enum End {
    Delivered,
    Failed,
    Later,
}

async fn deliver(pool: &PgPool, outgoing: &Outgoing, row: &Row) -> Result<End, PlatformError> {
    if row.channel_type.is_empty() || row.alert.is_null() {
        return fail(pool, row, "the channel is disabled or the alert is gone").await;
    }
    let message = message(row);
    match delivery(&row.channel_type, &row.config, &message) {
        Err(reason) => fail(pool, row, &reason).await,
        Ok(Delivery::Mail(to)) => mail(pool, row, &message, &to).await,
        Ok(Delivery::Post { url, body, keys }) => {
            let request = Request {
                url,
                id: format!("alert:{}:{}", row.alert_id, row.event.to_ascii_lowercase()),
                body: body.to_string().into(),
                keys,
                timeout: POST_MAX,
            };
            match judge(&outgoing.guarded.post(&request).await) {
                Verdict::Taken => done(pool, row, None).await,
                Verdict::Never(error) => fail(pool, row, &error).await,
                Verdict::Again(error, _) if row.attempts >= ATTEMPTS_MAX => fail(pool, row, &error).await,
                Verdict::Again(error, wish) => later(pool, row, &error, wish).await,
            }
        }
    }
}

fn message(row: &Row) -> Message {
    let alert = &row.alert;
    let field = |name: &str| alert[name].as_str().unwrap_or_default().to_owned();
    let (kind, device, summary) = (field("alert_type"), field("device_id"), field("summary"));
    let word = match row.event.as_str() {
        "CLOSED" => "closed",
        "ACKNOWLEDGED" => "acknowledged",
        _ => "opened",
    };
    let what = if summary.is_empty() { &kind } else { &summary };
    let about = if device.is_empty() { String::new() } else { format!(" ({device})") };
    let mut data = json!({ "alert_id": row.alert_id, "event": row.event });
    for name in [
        "tenant_id",
        "site_id",
        "device_id",
        "alert_type",
        "status",
        "severity",
        "summary",
        "details",
        "created_at",
        "closed_at",
    ] {
        data[name] = alert[name].clone();
    }
    Message {
        event: format!("alert.{word}"),
        title: format!("Alert {word}: {what}{about}"),
        text: String::new(),
        severity: alert["severity"].as_i64(),
        source: device,
        thing: format!("alert:{}", row.alert_id),
        is_over: row.event == "CLOSED",
        at: Timestamp::now(),
        data,
    }
}

/// The mail's job, in the transaction that marks the row: committed together, or not at all.
async fn mail(pool: &PgPool, row: &Row, message: &Message, to: &[String]) -> Result<End, PlatformError> {
    let mut notice = json!({
        "event": message.event.replace('.', "_"),
        "group": row.alert["tenant_id"],
        "reason": message.title,
        "at": message.at,
        "to": to,
        "throttle_ms": 0,
    });
    if !message.source.is_empty() {
        notice["server"] = json!(message.source);
    }
    done(pool, row, Some(&notice)).await
}

async fn done(pool: &PgPool, row: &Row, notice: Option<&Value>) -> Result<End, PlatformError> {
    let tried = || PlatformError::database("write down a delivered notification");
    let mut tx = pool.begin().await.map_err(tried())?;
    sqlx::query("UPDATE notification_jobs SET status = 'COMPLETED', last_error = NULL, updated_at = now() WHERE job_id = $1")
        .bind(row.id)
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    log(&mut tx, row, None).await?;
    if let Some(notice) = notice {
        sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload, critical) \
             VALUES ($1, 'email-queue', 'notification.send', $2::json, true) ON CONFLICT DO NOTHING",
        )
        .bind(format!("alert:{}:{}:{}", row.alert_id, row.event.to_ascii_lowercase(), row.channel_id))
        .bind(notice.to_string())
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    }
    tx.commit().await.map_err(tried())?;
    Ok(End::Delivered)
}

async fn fail(pool: &PgPool, row: &Row, error: &str) -> Result<End, PlatformError> {
    let tried = || PlatformError::database("write down a failed notification");
    tracing::error!(job = row.id, channel = row.channel_id, error, "a notification is given up");
    let mut tx = pool.begin().await.map_err(tried())?;
    sqlx::query("UPDATE notification_jobs SET status = 'FAILED', last_error = $2, updated_at = now() WHERE job_id = $1")
        .bind(row.id)
        .bind(error)
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    log(&mut tx, row, Some(error)).await?;
    tx.commit().await.map_err(tried())?;
    Ok(End::Failed)
}

async fn later(pool: &PgPool, row: &Row, error: &str, wish: Option<Duration>) -> Result<End, PlatformError> {
    let doublings = u32::try_from(row.attempts.max(1) - 1).unwrap_or(0).min(16);
    let own = (BACKOFF << doublings).min(BACKOFF_MAX);
    let wait = wish.map_or(own, |wish| own.max(wish.as_secs()).min(BACKOFF_MAX));
    sqlx::query(
        "UPDATE notification_jobs SET status = 'PENDING', last_error = $2, updated_at = now(), \
             next_run_at = now() + make_interval(secs => $3) WHERE job_id = $1",
    )
    .bind(row.id)
    .bind(error)
    .bind(f64::from(u32::try_from(wait).unwrap_or(u32::MAX)))
    .execute(pool)
    .await
    .map_err(PlatformError::database("put a notification off"))?;
    Ok(End::Later)
}

async fn log(
    connection: &mut sqlx::PgConnection,
    row: &Row,
    error: Option<&str>,
) -> Result<(), PlatformError> {
    sqlx::query(
        "INSERT INTO notification_log (channel_id, alert_id, sent_at, job_id, success, error_msg) VALUES ($1, $2, now(), $3, $4, $5)",
    )
    .bind(i32::try_from(row.channel_id).unwrap_or(i32::MAX))
    .bind(row.alert_id)
    .bind(row.id)
    .bind(error.is_none())
    .bind(error)
    .execute(connection)
    .await
    .map(drop)
    .map_err(PlatformError::database("log a notification"))
}
