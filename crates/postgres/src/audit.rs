//! The audit trail: one row for each thing a person, or a rare automatic step, changed.

use jiff_sqlx::ToSqlx as _;
use serde_json::Value;
use sqlx::{PgExecutor, PgPool, Row};

/// One entry to be written.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// `voiceai-scaler` or `voiceai-tasker`.
    pub service: &'a str,
    /// Who: the operator, or the instance that acted by itself.
    pub actor: &'a str,
    /// What was done, as `<noun>.<verb>`.
    pub action: &'a str,
    /// To what.
    pub subject: &'a str,
    /// Why, in the operator's words.
    pub reason: Option<&'a str>,
    /// Anything else worth keeping. No secrets.
    pub details: Value,
}

/// One entry as it was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Recorded {
    /// Rises with time.
    pub id: i64,
    /// When.
    pub at: jiff::Timestamp,
    /// See [`Entry::service`].
    pub service: String,
    /// See [`Entry::actor`].
    pub actor: String,
    /// See [`Entry::action`].
    pub action: String,
    /// See [`Entry::subject`].
    pub subject: String,
    /// See [`Entry::reason`].
    pub reason: Option<String>,
    /// See [`Entry::details`].
    pub details: Value,
}

/// Writes `entry`. Takes any executor, so that it can stand in the same transaction as what it tells of.
///
/// # Errors
/// As the database says.
pub async fn record(executor: impl PgExecutor<'_>, entry: Entry<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ops.audit (service, actor, action, subject, reason, details) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(entry.service)
    .bind(entry.actor)
    .bind(entry.action)
    .bind(entry.subject)
    .bind(entry.reason)
    .bind(entry.details)
    .execute(executor)
    .await
    .map(|_| ())
}

/// Entries older than `before` (an id; `None`: the newest), newest first, at most `limit`.
///
/// # Errors
/// As the database says.
pub async fn list(
    pool: &PgPool,
    before: Option<i64>,
    since: Option<jiff::Timestamp>,
    limit: i64,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, at, service, actor, action, subject, reason, details FROM ops.audit \
         WHERE ($1::bigint IS NULL OR id < $1) AND ($2::timestamptz IS NULL OR at >= $2) ORDER BY id DESC LIMIT $3",
    )
    .bind(before)
    .bind(since.map(jiff::Timestamp::to_sqlx))
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Recorded {
                id: row.try_get(0)?,
                at: row.try_get::<jiff_sqlx::Timestamp, _>(1)?.to_jiff(),
                service: row.try_get(2)?,
                actor: row.try_get(3)?,
                action: row.try_get(4)?,
                subject: row.try_get(5)?,
                reason: row.try_get(6)?,
                details: row.try_get(7)?,
            })
        })
        .collect()
}
