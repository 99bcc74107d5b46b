//! Reading the history, a page at a time.

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use serde_json::value::RawValue;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::types::Json;
use voiceai_postgres::sqlx::{self, PgPool, Postgres, QueryBuilder, Row};

/// Which rows. Every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Ending: `completed`, `failed`, `dead`, `cancelled`, `discarded`, `removed`, `replayed`.
    pub outcome: Option<String>,
    /// Reason of a death.
    pub reason: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// Kind.
    pub kind: Option<String>,
    /// Tenant.
    pub tenant: Option<String>,
    /// The schedule that fired the job.
    pub schedule: Option<String>,
    /// The job.
    pub job_id: Option<String>,
    /// A part of the error's text, letter case aside.
    pub error_contains: Option<String>,
    /// Ended at this instant or later.
    pub since: Option<Timestamp>,
    /// Ended before this instant.
    pub before: Option<Timestamp>,
}

/// A row of the history.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryRow {
    /// The row's own number.
    #[serde(skip)]
    pub row: i64,
    /// The job.
    pub id: String,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Its tenant.
    pub tenant: Option<String>,
    /// Its priority.
    pub priority: i16,
    /// How it ended.
    #[serde(rename = "state")]
    pub outcome: String,
    /// Reason of a death.
    pub reason: Option<String>,
    /// The attempt's number.
    pub attempt: i32,
    /// How often it was replayed before.
    pub replays: i32,
    /// When it was enqueued.
    pub enqueued_at: Option<Timestamp>,
    /// When the attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How long the attempt took.
    pub duration_ms: Option<i64>,
    /// Who ran it.
    pub worker: Option<String>,
    /// The error, or an operator's reason.
    pub error: Option<String>,
    /// The schedule that fired it.
    pub schedule: Option<String>,
    /// The trace it belongs to.
    pub trace_id: Option<String>,
    /// Its payload, where it was kept.
    pub payload: Option<Box<RawValue>>,
    /// What the handler left.
    pub result: Option<Box<RawValue>>,
}

/// A page of rows, newest first.
#[derive(Debug, Clone, Serialize)]
pub struct Page {
    /// The rows.
    pub rows: Vec<HistoryRow>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
}

/// The history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The cursor is not one of ours.
    #[error("cursor {0:?} is not usable: give the `next` of the page before")]
    Cursor(String),
    /// The database failed.
    #[error("read the job history")]
    Database(#[from] sqlx::Error),
}

/// One page of at most `limit` rows, newest first, after `cursor`. Rows that are added meanwhile shift nothing.
///
/// # Errors
/// [`CursorError::Cursor`] when the cursor is malformed; as the database says.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    cursor: Option<&str>,
    limit: u16,
) -> Result<Page, CursorError> {
    let after = cursor
        .map(|text| read_cursor(text).ok_or_else(|| CursorError::Cursor(text.to_owned())))
        .transpose()?;
    let mut query = select();
    conditions(&mut query, filter);
    if let Some((finished_at, row)) = after {
        query.push(" AND (finished_at, id) < (").push_bind(finished_at.to_sqlx());
        query.push(", ").push_bind(row).push(")");
    }
    query.push(" ORDER BY finished_at DESC, id DESC LIMIT ").push_bind(i64::from(limit) + 1);
    let fetched = query.build().persistent(false).fetch_all(pool).await?;
    let mut rows = fetched.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let more = rows.len() > usize::from(limit);
    rows.truncate(usize::from(limit));
    let next = rows.last().filter(|_| more).map(write_cursor);
    Ok(Page { rows, next })
}

/// Everything known about one job, oldest first: its lineage through attempts and replays.
///
/// # Errors
/// As the database says.
pub async fn of_job(pool: &PgPool, queue: Option<&str>, id: &str) -> Result<Vec<HistoryRow>, sqlx::Error> {
    let mut query = select();
    let filter =
        Filter { job_id: Some(id.to_owned()), queue: queue.map(ToOwned::to_owned), ..Filter::default() };
    conditions(&mut query, &filter);
    query.push(" ORDER BY finished_at, id LIMIT 1000");
    query.build().persistent(false).fetch_all(pool).await?.iter().map(read).collect()
}

fn select() -> QueryBuilder<Postgres> {
    QueryBuilder::new(
        "SELECT id, job_id, queue, kind, tenant, priority, outcome, reason, attempt, replays, enqueued_at, started_at, \
         finished_at, duration_ms, worker, error, schedule, trace_id, payload, result FROM ops.job_history WHERE true",
    )
}

/// Only what is asked for stands in the query, so that its own index serves each.
fn conditions(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    for (column, value) in [
        (" AND outcome = ", &filter.outcome),
        (" AND reason = ", &filter.reason),
        (" AND queue = ", &filter.queue),
        (" AND kind = ", &filter.kind),
        (" AND tenant = ", &filter.tenant),
        (" AND schedule = ", &filter.schedule),
        (" AND job_id = ", &filter.job_id),
    ] {
        if let Some(value) = value {
            query.push(column).push_bind(value.clone());
        }
    }
    if let Some(part) = &filter.error_contains {
        query.push(" AND strpos(lower(error), lower(").push_bind(part.clone()).push(")) > 0");
    }
    for (column, value) in [(" AND finished_at >= ", filter.since), (" AND finished_at < ", filter.before)] {
        if let Some(value) = value {
            query.push(column).push_bind(value.to_sqlx());
        }
    }
}

fn read(row: &PgRow) -> Result<HistoryRow, sqlx::Error> {
    let time =
        |column: &str| row.try_get::<Option<SqlTimestamp>, _>(column).map(|at| at.map(SqlTimestamp::to_jiff));
    let json = |column: &str| {
        row.try_get::<Option<Json<Box<RawValue>>>, _>(column).map(|value| value.map(|json| json.0))
    };
    Ok(HistoryRow {
        row: row.try_get("id")?,
        id: row.try_get("job_id")?,
        queue: row.try_get("queue")?,
        kind: row.try_get("kind")?,
        tenant: row.try_get("tenant")?,
        priority: row.try_get("priority")?,
        outcome: row.try_get("outcome")?,
        reason: row.try_get("reason")?,
        attempt: row.try_get("attempt")?,
        replays: row.try_get("replays")?,
        enqueued_at: time("enqueued_at")?,
        started_at: time("started_at")?,
        finished_at: row.try_get::<SqlTimestamp, _>("finished_at")?.to_jiff(),
        duration_ms: row.try_get("duration_ms")?,
        worker: row.try_get("worker")?,
        error: row.try_get("error")?,
        schedule: row.try_get("schedule")?,
        trace_id: row.try_get("trace_id")?,
        payload: json("payload")?,
        result: json("result")?,
    })
}

fn write_cursor(row: &HistoryRow) -> String {
    format!("{}.{}", row.finished_at.as_microsecond(), row.row)
}

fn read_cursor(text: &str) -> Option<(Timestamp, i64)> {
    let (micros, row) = text.split_once('.')?;
    Some((Timestamp::from_microsecond(micros.parse().ok()?).ok()?, row.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_that_is_not_ours_is_refused() {
        for text in ["", "1", "1.", ".1", "a.b", "1.2.3", "9223372036854775807.1"] {
            assert_eq!(read_cursor(text), None, "{text}");
        }
        assert_eq!(read_cursor("-5.7"), Some((Timestamp::from_microsecond(-5).unwrap(), 7)));
    }
}
