use std::time::Duration;

use serde::Serialize;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::MailError;

/// How much mail is to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Attempts that are due and not claimed.
    pub due: u64,
    /// How long the oldest of them has been due.
    #[serde(rename = "oldest_age_ms", serialize_with = "millis")]
    pub oldest: Duration,
    /// Attempts that are not due yet, put aside ones included.
    pub waiting: u64,
    /// Attempts under way.
    pub in_progress: u64,
    /// Dead letters that nobody has replayed.
    pub dead_letters: u64,
    /// Deliveries held because nobody knows whether they arrived.
    pub unknown: u64,
    /// Providers, domains and tenants that are paused.
    pub paused: u64,
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// How mail stands, over all processes.
///
/// # Errors
/// As the database says.
pub async fn backlog(pool: &PgPool) -> Result<Backlog, MailError> {
    let tried = "count mail";
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE status = 'scheduled' AND due_at <= now), \
            COALESCE(extract(epoch FROM max(now) - min(due_at) FILTER (WHERE status = 'scheduled' AND due_at <= now)), 0)::float8, \
            count(*) FILTER (WHERE status = 'scheduled' AND due_at > now), count(*) FILTER (WHERE status = 'in_progress'), \
            (SELECT count(*) FROM mail.dead_letters WHERE replayed_at IS NULL), \
            (SELECT count(*) FROM mail.deliveries WHERE status = 'unknown'), \
            (SELECT count(DISTINCT (scope, subject)) FROM mail.pauses WHERE until > clock_timestamp()) \
         FROM mail.attempts, (SELECT clock_timestamp() AS now) clock WHERE status IN ('scheduled', 'in_progress')",
    )
    .fetch_one(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = || -> Result<Backlog, sqlx::Error> {
        let count = |at: usize| row.try_get::<i64, _>(at).map(|n| u64::try_from(n).unwrap_or(0));
        Ok(Backlog {
            due: count(0)?,
            oldest: Duration::try_from_secs_f64(row.try_get::<f64, _>(1)?.max(0.0)).unwrap_or_default(),
            waiting: count(2)?,
            in_progress: count(3)?,
            dead_letters: count(4)?,
            unknown: count(5)?,
            paused: count(6)?,
        })
    };
    read().map_err(MailError::database(tried))
}

/// True when mail was put aside for a held leader that has been released meanwhile.
pub(crate) async fn is_released(pool: &PgPool, election: &str) -> Result<bool, MailError> {
    let tried = "look whether mail is held";
    let row = sqlx::query(
        "SELECT EXISTS (SELECT FROM mail.attempts WHERE parked = 'held') \
         AND NOT EXISTS (SELECT FROM ops.leader_terms WHERE name = $1 AND held_since IS NOT NULL)",
    )
    .bind(election)
    .fetch_one(pool)
    .await
    .map_err(MailError::database(tried))?;
    row.try_get(0).map_err(MailError::database(tried))
}
