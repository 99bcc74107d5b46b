//! The audit trail: a row before each act, so that nothing is done that does not stand in it.

use jiff::Timestamp;
use serde_json::Value;
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_postgres::audit::{self, Entry, Recorded};

use super::{Act, database_failure};

/// The name under which this binary writes.
pub const SERVICE: &str = "voiceai-tasker";

/// Writes what is about to be done.
///
/// # Errors
/// As the database says; then the act must not be done.
pub async fn record(
    pool: &PgPool,
    act: &Act,
    action: &str,
    subject: &str,
    details: Value,
) -> Result<(), Failure> {
    let entry = Entry {
        service: SERVICE,
        actor: &act.actor,
        action,
        subject,
        reason: act.reason.as_deref(),
        details,
    };
    audit::record(pool, entry).await.map_err(|error| database_failure(&error))
}

/// A page of the trail, newest first, and where it goes on.
///
/// # Errors
/// Usage (2) for a cursor that is none; else as the database says.
pub async fn list(
    pool: &PgPool,
    since: Option<Timestamp>,
    limit: u32,
    cursor: Option<&str>,
) -> Result<(Vec<Recorded>, Option<String>), Failure> {
    let before = cursor.map(str::parse).transpose().map_err(|_| {
        Failure::usage(
            "invalid_cursor",
            "--cursor is no cursor of this list",
            "Pass the `next` of the page before.",
        )
    })?;
    let mut rows = audit::list(pool, before, since, i64::from(limit) + 1)
        .await
        .map_err(|error| database_failure(&error))?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|row| row.id.to_string());
    Ok((rows, next))
}
