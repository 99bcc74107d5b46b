//! The rows behind the notices: which are told by which mail, and from when on the next mail may go.

use std::time::Duration;

use jiff_sqlx::ToSqlx as _;
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
    sqlx::query(
        "INSERT INTO ops.notices (id, event, subject, server, reason, at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&entry.id)
    .bind(&entry.event)
    .bind(&entry.subject)
    .bind(&entry.line.server)
    .bind(&entry.line.reason)
    .bind(entry.line.at.to_sqlx())
    .execute(&mut *tx)
    .await?;
    // The lock is what puts them in line.
    let wait: i64 = sqlx::query_scalar(
        "INSERT INTO ops.notice_throttles AS t (event, subject, open_at) VALUES ($1, $2, 'epoch') \
         ON CONFLICT (event, subject) DO UPDATE SET open_at = t.open_at \
         RETURNING GREATEST(0, ceil(extract(epoch FROM t.open_at - clock_timestamp()) * 1000))::bigint",
    )
    .bind(&entry.event)
    .bind(&entry.subject)
    .fetch_one(&mut *tx)
    .await?;
    let row = sqlx::query("SELECT mail_id, told_at IS NOT NULL FROM ops.notices WHERE id = $1")
        .bind(&entry.id)
        .fetch_one(&mut *tx)
        .await?;
    let turn = match (row.try_get::<Option<String>, _>(0)?, row.try_get::<bool, _>(1)?) {
        (Some(mail), true) => Turn::Told(mail),
        (Some(mail), false) => Turn::Mail(mail),
        (None, _) if wait > 0 => Turn::Wait(Duration::from_millis(wait.unsigned_abs())),
        (None, _) => {
            let mail = format!("notice-{}", Uuid::now_v7());
            sqlx::query(
                "UPDATE ops.notices SET mail_id = $1 \
                 WHERE mail_id IS NULL AND (id = $2 OR (event = $3 AND subject = $4))",
            )
            .bind(&mail)
            .bind(&entry.id)
            .bind(&entry.event)
            .bind(&entry.subject)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE ops.notice_throttles SET open_at = clock_timestamp() + $3 * interval '1 millisecond' \
                 WHERE event = $1 AND subject = $2",
            )
            .bind(&entry.event)
            .bind(&entry.subject)
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
pub(super) async fn lines(pool: &PgPool, mail: &str) -> Result<Vec<Line>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT at, server, reason FROM ops.notices WHERE mail_id = $1 ORDER BY at, received_at, id",
    )
    .bind(mail)
    .fetch_all(pool)
    .await?;
    let line = |row: &sqlx::postgres::PgRow| {
        Ok(Line {
            at: row.try_get::<jiff_sqlx::Timestamp, _>(0)?.to_jiff(),
            server: row.try_get(1)?,
            reason: row.try_get(2)?,
        })
    };
    rows.iter().map(line).collect()
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
        "DELETE FROM ops.notices WHERE id IN (SELECT id FROM ops.notices \
         WHERE received_at < now() - interval '90 days' LIMIT 1000 FOR UPDATE SKIP LOCKED)",
        "DELETE FROM ops.notice_throttles WHERE (event, subject) IN (SELECT event, subject FROM ops.notice_throttles \
         WHERE open_at < now() - interval '90 days' AND open_at > 'epoch' LIMIT 1000 FOR UPDATE SKIP LOCKED)",
    ] {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}
