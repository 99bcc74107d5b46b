//! The rows behind the notices: which are told by which mail, and from when on the next mail may go.

use std::time::Duration;

use jiff_sqlx::ToSqlx as _;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};

use super::mail::Line;

/// A notice as it is kept.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) event: String,
    pub(super) subject: String,
    /// Whom it is for; empty for those who run the platform.
    pub(super) audience: String,
    pub(super) tenant: Option<String>,
    pub(super) recipients: Vec<String>,
    pub(super) severity: Option<i32>,
    pub(super) locale: Option<String>,
    pub(super) template: Option<String>,
    pub(super) variables: Value,
    pub(super) line: Line,
}

impl Entry {
    /// Under what the throttle of its event and audience is kept.
    fn throttle_key(&self) -> String {
        if self.audience.is_empty() {
            self.subject.clone()
        } else {
            format!("{}\n{}", self.subject, self.audience)
        }
    }
}

/// A notice of a mail.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) id: String,
    pub(super) event: String,
    pub(super) subject: String,
    pub(super) tenant: Option<String>,
    pub(super) severity: Option<i32>,
    pub(super) template: Option<String>,
    pub(super) variables: Value,
    pub(super) locale: Option<String>,
    pub(super) line: Line,
}

/// What is to be done about a notice.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Send this mail. It may have been accepted before.
    Mail(String),
    /// Nothing: it was told by this mail.
    Told(String),
    /// Nothing yet: mail about the event rests for so long.
    Wait(Duration),
}

/// Keeps the notice, once for its id, and says whose turn it is. Notices of one event and subject stand in line: exactly one of
/// them takes all that are held into a new mail.
pub(super) async fn take(pool: &PgPool, entry: &Entry, throttle: Duration) -> Result<Turn, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let throttle_key = entry.throttle_key();
    sqlx::query(
        "INSERT INTO ops.notices (id, event, subject, server, reason, at, audience, tenant, recipients, severity, locale, \
             template, variables) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, NULLIF($9::text[], '{}'), $10, $11, $12, NULLIF($13, '{}'::jsonb)) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&entry.id)
    .bind(&entry.event)
    .bind(&entry.subject)
    .bind(&entry.line.server)
    .bind(&entry.line.reason)
    .bind(entry.line.at.to_sqlx())
    .bind(&entry.audience)
    .bind(&entry.tenant)
    .bind(&entry.recipients)
    .bind(entry.severity)
    .bind(&entry.locale)
    .bind(&entry.template)
    .bind(&entry.variables)
    .execute(&mut *tx)
    .await?;
    // The lock is what puts them in line.
    let wait: i64 = sqlx::query_scalar(
        "INSERT INTO ops.notice_throttles AS t (event, subject, open_at) VALUES ($1, $2, 'epoch') \
         ON CONFLICT (event, subject) DO UPDATE SET open_at = t.open_at \
         RETURNING GREATEST(0, ceil(extract(epoch FROM t.open_at - clock_timestamp()) * 1000))::bigint",
    )
    .bind(&entry.event)
    .bind(&throttle_key)
    .fetch_one(&mut *tx)
    .await?;
    let row = sqlx::query("SELECT mail_id, told_at IS NOT NULL FROM ops.notices WHERE id = $1")
        .bind(&entry.id)
        .fetch_one(&mut *tx)
        .await?;
    let turn = match (row.try_get::<Option<String>, _>(0)?, row.try_get::<bool, _>(1)?) {
        (Some(mail), true) => Turn::Told(mail),
        (Some(mail), false) => Turn::Mail(mail),
        // What must not wait does not wait for others either.
        (None, _) if wait > 0 && !throttle.is_zero() => {
            Turn::Wait(Duration::from_millis(wait.unsigned_abs()))
        }
        (None, _) => {
            let mail = format!("notice-{}", Uuid::now_v7());
            sqlx::query(
                "UPDATE ops.notices SET mail_id = $1 \
                 WHERE mail_id IS NULL AND (id = $2 OR (event = $3 AND subject = $4 AND audience = $5))",
            )
            .bind(&mail)
            .bind(&entry.id)
            .bind(&entry.event)
            .bind(&entry.subject)
            .bind(&entry.audience)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE ops.notice_throttles SET open_at = clock_timestamp() + $3 * interval '1 millisecond' \
                 WHERE event = $1 AND subject = $2",
            )
            .bind(&entry.event)
            .bind(&throttle_key)
            .bind(f64::from(u32::try_from(throttle.as_millis()).unwrap_or(u32::MAX)))
            .execute(&mut *tx)
            .await?;
            Turn::Mail(mail)
        }
    };
    tx.commit().await?;
    Ok(turn)
}

/// What a mail tells, oldest first: the same each time.
pub(super) async fn of_mail(pool: &PgPool, mail: &str) -> Result<Vec<Told>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, event, subject, tenant, severity, template, COALESCE(variables, '{}'::jsonb), locale, at, server, reason \
         FROM ops.notices WHERE mail_id = $1 ORDER BY at, received_at, id",
    )
    .bind(mail)
    .fetch_all(pool)
    .await?;
    let told = |row: &sqlx::postgres::PgRow| {
        Ok(Told {
            id: row.try_get(0)?,
            event: row.try_get(1)?,
            subject: row.try_get(2)?,
            tenant: row.try_get(3)?,
            severity: row.try_get(4)?,
            template: row.try_get(5)?,
            variables: row.try_get(6)?,
            locale: row.try_get(7)?,
            line: Line {
                at: row.try_get::<jiff_sqlx::Timestamp, _>(8)?.to_jiff(),
                server: row.try_get(9)?,
                reason: row.try_get(10)?,
            },
        })
    };
    rows.iter().map(told).collect()
}

/// Enqueues the posts of a mail's worth of notices, each once: `None` is ALERT_WEBHOOK_URL, else a channel.
pub(super) async fn enqueue_posts(
    pool: &PgPool,
    mail: &str,
    channels: &[Option<i64>],
) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    for channel in channels {
        let name = channel_name(*channel);
        let new = sqlx::query(
            "INSERT INTO ops.notice_posts (mail_id, channel) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(mail)
        .bind(&name)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if new == 0 {
            continue;
        }
        let payload = super::post::NoticePost { mail: mail.to_owned(), channel: *channel };
        sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload, critical) \
             VALUES ($1, 'duties', 'notification.post', $2::json, true) ON CONFLICT DO NOTHING",
        )
        .bind(format!("{mail}:post:{name}"))
        .bind(serde_json::to_string(&payload).unwrap_or_default())
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await
}

/// What came of a post.
pub(super) async fn posted(
    pool: &PgPool,
    mail: &str,
    channel: Option<i64>,
    error: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE ops.notice_posts SET last_error = $3, posted_at = CASE WHEN $3::text IS NULL THEN clock_timestamp() ELSE posted_at END \
         WHERE mail_id = $1 AND channel = $2",
    )
    .bind(mail)
    .bind(channel_name(channel))
    .bind(error)
    .execute(pool)
    .await
    .map(drop)
}

fn channel_name(channel: Option<i64>) -> String {
    channel.map_or_else(String::new, |channel| channel.to_string())
}

/// Marks what a mail tells as told, now that the mail is committed.
pub(super) async fn told(pool: &PgPool, mail: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.notices SET told_at = clock_timestamp() WHERE mail_id = $1 AND told_at IS NULL")
        .bind(mail)
        .execute(pool)
        .await
        .map(drop)
}

/// Removes a few of the rows that are older than 90 days.
pub(super) async fn prune(pool: &PgPool) -> Result<(), sqlx::Error> {
    for statement in [
        "DELETE FROM ops.notice_posts WHERE (mail_id, channel) IN (SELECT mail_id, channel FROM ops.notice_posts \
         WHERE created_at < now() - interval '90 days' LIMIT 1000 FOR UPDATE SKIP LOCKED)",
        "DELETE FROM ops.notices WHERE id IN (SELECT id FROM ops.notices \
         WHERE received_at < now() - interval '90 days' LIMIT 1000 FOR UPDATE SKIP LOCKED)",
        "DELETE FROM ops.notice_throttles WHERE (event, subject) IN (SELECT event, subject FROM ops.notice_throttles \
         WHERE open_at < now() - interval '90 days' AND open_at > 'epoch' LIMIT 1000 FOR UPDATE SKIP LOCKED)",
    ] {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}
