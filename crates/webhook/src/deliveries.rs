//! Deliveries as operators look at them.

use std::str::FromStr;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use uuid::Uuid;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, Row};

use crate::error::WebhookError;

/// One event on its way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// Its id.
    pub id: Uuid,
    /// Where to.
    pub endpoint_id: Uuid,
    /// Whose.
    pub tenant: String,
    /// The event: what the receiver sees as `webhook-id`.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// `waiting`, `active`, `delivered` or `dead`.
    pub state: String,
    /// Attempts in all.
    pub attempts: i32,
    /// When the next attempt is due; absent once it has ended.
    pub due_at: Option<Timestamp>,
    /// `exhausted`, `gone` or `endpoint_disabled`.
    pub dead_reason: Option<String>,
    /// What was answered last.
    pub last_status: Option<i32>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// How often it was replayed.
    pub replays: i32,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttemptRow {
    /// From 1.
    pub attempt_no: i32,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How: a fixed word; absent while it is under way.
    pub outcome: Option<String>,
    /// What was answered.
    pub status: Option<i32>,
    /// What went wrong.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub response: Option<String>,
    /// Who answered.
    pub address: Option<String>,
    /// The endpoint's wish for time.
    pub retry_after_ms: Option<i64>,
    /// How long it took.
    pub duration_ms: Option<i64>,
}

/// Which deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only to this endpoint.
    pub endpoint: Option<Uuid>,
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// Only where they stand here.
    pub state: Option<String>,
    /// Only of this type.
    pub event_type: Option<String>,
    /// Only written since then.
    pub since: Option<Timestamp>,
    /// Only where what went wrong last holds this text, without regard to case.
    pub error_contains: Option<String>,
}

/// Where a list goes on. Ids begin with the time at which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Uuid);

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "it is no cursor of this list")
    }
}

impl Delivery {
    /// Where a list that ended with this one goes on.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        Cursor(self.id)
    }
}

const DELIVERY: &str =
    "SELECT d.*, CASE WHEN d.state = 'waiting' THEN d.due_at END AS next_at FROM ops.webhook_deliveries d";

fn delivery(row: &PgRow) -> Result<Delivery, sqlx::Error> {
    let time =
        |name: &str| row.try_get::<Option<SqlTimestamp>, _>(name).map(|at| at.map(SqlTimestamp::to_jiff));
    Ok(Delivery {
        id: row.try_get("id")?,
        endpoint_id: row.try_get("endpoint_id")?,
        tenant: row.try_get("tenant")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        state: row.try_get("state")?,
        attempts: row.try_get("attempts")?,
        due_at: time("next_at")?,
        dead_reason: row.try_get("dead_reason")?,
        last_status: row.try_get("last_status")?,
        last_error: row.try_get("last_error")?,
        replays: row.try_get("replays")?,
        created_at: row.try_get::<SqlTimestamp, _>("created_at")?.to_jiff(),
        ended_at: time("ended_at")?,
    })
}

/// Deliveries, newest first, older than `before`.
///
/// # Errors
/// As the database says.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    before: Option<&Cursor>,
    limit: u32,
) -> Result<Vec<Delivery>, WebhookError> {
    let tried = "list webhook deliveries";
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{DELIVERY} WHERE ($1::uuid IS NULL OR d.endpoint_id = $1) AND ($2::text IS NULL OR d.tenant = $2) \
             AND ($3::text IS NULL OR d.state = $3) AND ($4::text IS NULL OR d.event_type = $4) \
             AND ($5::timestamptz IS NULL OR d.created_at >= $5) \
             AND ($6::text IS NULL OR strpos(lower(d.last_error), lower($6)) > 0) \
             AND ($7::uuid IS NULL OR d.id < $7) AND ($8::uuid IS NULL OR d.id >= $8) \
         ORDER BY d.id DESC LIMIT $9"
    )))
    .bind(filter.endpoint)
    .bind(&filter.tenant)
    .bind(&filter.state)
    .bind(&filter.event_type)
    .bind(filter.since.map(Timestamp::to_sqlx))
    .bind(&filter.error_contains)
    .bind(before.map(|cursor| cursor.0))
    .bind(filter.since.map(first_id))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    rows.iter().map(|row| delivery(row).map_err(WebhookError::database(tried))).collect()
}

/// The smallest id of those made since then. What was written since was given its id since: by the id the index finds it.
fn first_id(since: Timestamp) -> Uuid {
    let ms = u128::try_from(since.as_millisecond()).unwrap_or(0);
    Uuid::from_u128(ms << 80)
}

/// One delivery with its attempts, the first one first; the one that is under way has no outcome yet.
///
/// # Errors
/// [`WebhookError::NoDelivery`]; else as the database says.
pub async fn show(pool: &PgPool, id: Uuid) -> Result<(Delivery, Vec<AttemptRow>), WebhookError> {
    let tried = "read a webhook delivery";
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{DELIVERY} WHERE d.id = $1")))
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(WebhookError::database(tried))?
        .ok_or(WebhookError::NoDelivery(id))?;
    let rows = sqlx::query(
        "SELECT attempt_no, started_at, ended_at, outcome, status, error, response, address, retry_after_ms, duration_ms \
         FROM ops.webhook_attempts WHERE delivery_id = $1 \
         UNION ALL \
         SELECT o.attempts + 1, c.claimed_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL \
         FROM ops.webhook_open o JOIN ops.webhook_claims c ON o.ticket = ANY (c.tickets) WHERE o.id = $1 ORDER BY 1",
    )
    .bind(id)
    .fetch_all(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let attempt = |row: &PgRow| -> Result<AttemptRow, sqlx::Error> {
        Ok(AttemptRow {
            attempt_no: row.try_get(0)?,
            started_at: row.try_get::<SqlTimestamp, _>(1)?.to_jiff(),
            ended_at: row.try_get::<Option<SqlTimestamp>, _>(2)?.map(SqlTimestamp::to_jiff),
            outcome: row.try_get(3)?,
            status: row.try_get(4)?,
            error: row.try_get(5)?,
            response: row.try_get(6)?,
            address: row.try_get(7)?,
            retry_after_ms: row.try_get(8)?,
            duration_ms: row.try_get(9)?,
        })
    };
    let attempts: Result<Vec<_>, _> = rows.iter().map(attempt).collect();
    Ok((
        delivery(&row).map_err(WebhookError::database(tried))?,
        attempts.map_err(WebhookError::database(tried))?,
    ))
}

/// Dead deliveries, oldest first, with how many there are in all; these ids alone where any are given.
///
/// # Errors
/// As the database says.
pub async fn dead(
    pool: &PgPool,
    filter: &Filter,
    ids: &[Uuid],
    limit: u32,
) -> Result<(Vec<Delivery>, u64), WebhookError> {
    let tried = "list dead webhook deliveries";
    let rows = sqlx::query(
        "SELECT d.*, NULL::timestamptz AS next_at, count(*) OVER () AS matched FROM ops.webhook_ended d \
         WHERE d.state = 'dead' AND (cardinality($1::uuid[]) = 0 OR d.id = ANY($1)) \
             AND ($2::uuid IS NULL OR d.endpoint_id = $2) AND ($3::text IS NULL OR d.tenant = $3) \
             AND ($4::text IS NULL OR d.event_type = $4) AND ($5::timestamptz IS NULL OR d.ended_at >= $5) \
             AND ($6::text IS NULL OR strpos(lower(d.last_error), lower($6)) > 0) \
         ORDER BY d.ended_at, d.id LIMIT $7",
    )
    .bind(ids)
    .bind(filter.endpoint)
    .bind(&filter.tenant)
    .bind(&filter.event_type)
    .bind(filter.since.map(Timestamp::to_sqlx))
    .bind(&filter.error_contains)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let matched: i64 =
        rows.first().map_or(Ok(0), |row| row.try_get("matched")).map_err(WebhookError::database(tried))?;
    let found: Result<Vec<_>, _> = rows.iter().map(delivery).collect();
    Ok((found.map_err(WebhookError::database(tried))?, u64::try_from(matched).unwrap_or(0)))
}
