//! Calls that ended while nobody was there.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row};

use super::job::short;
use super::shape::{Shape, Shapes};
use crate::error::RecordingError;

/// How long it is remembered that a call was closed. Older ones cannot be told from those that never were.
pub const CALL_RECORDS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A call that ended and was never closed.
#[derive(Debug, Clone)]
pub struct MissingCall {
    /// Its id.
    pub call_id: String,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Whose.
    pub tenant: Option<String>,
}

impl MissingCall {
    /// The id of the job that closes it: one, however often the gap is filled.
    #[must_use]
    pub fn job_id(&self) -> String {
        format!("post-call:{}", short(&self.call_id))
    }
}

/// Calls that ended since `since` and were never closed, oldest first.
///
/// # Errors
/// [`RecordingError::Order`] where the platform has no table that could tell; [`RecordingError::Database`].
pub async fn missing_calls(
    pool: &PgPool,
    table: Option<&str>,
    since: Timestamp,
    tenant: Option<&str>,
    limit: i64,
) -> Result<Vec<MissingCall>, RecordingError> {
    let tried = "look for calls that were never closed";
    let mut connection = pool.acquire().await.map_err(RecordingError::database(tried))?;
    let shapes = Shapes::look_up(&mut connection, table).await?;
    let Some(main) = shapes.main else {
        return Err(RecordingError::Order(shapes.why_not.unwrap_or_default()));
    };
    let statement = statement(&main, shapes.calls.as_ref());
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(since.to_sqlx())
        .bind(tenant)
        .bind(limit)
        .fetch_all(&mut *connection)
        .await
        .map_err(RecordingError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<MissingCall, sqlx::Error> {
        Ok(MissingCall {
            call_id: row.try_get(0)?,
            ended_at: row.try_get::<SqlTimestamp, _>(1)?.to_jiff(),
            tenant: row.try_get(2)?,
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(RecordingError::database(tried))
}

/// Conversations by their own end or their call's, and calls without a conversation.
fn statement(main: &Shape, calls: Option<&Shape>) -> String {
    let tenant = |shape: &Shape, of: &str| {
        shape.tenant.as_ref().map_or_else(|| "NULL::text".to_owned(), |c| format!("{of}.{}::text", c.quoted))
    };
    let mut id = format!("m.{}::text", main.id.quoted);
    let mut ended = main.ended.instant("m");
    let mut whose = tenant(main, "m");
    let mut from = format!("{} m", main.table);
    let mut more = String::new();
    if let Some(call) = &main.call {
        id = format!("COALESCE(m.{}::text, {id})", call.quoted);
        if let Some(calls) = calls {
            let join = calls.id.equals("c", call, "m");
            from = format!("{from} LEFT JOIN {} c ON {join}", calls.table);
            ended = format!("COALESCE({ended}, {})", calls.ended.instant("c"));
            whose = format!("COALESCE({whose}, {})", tenant(calls, "c"));
            more = format!(
                " UNION ALL SELECT c.{}::text, {}, {} FROM {} c WHERE NOT EXISTS (SELECT FROM {} m WHERE {join})",
                calls.id.quoted,
                calls.ended.instant("c"),
                tenant(calls, "c"),
                calls.table,
                main.table,
            );
        }
    }
    format!(
        "SELECT DISTINCT ON (ended_at, id) id, ended_at, tenant \
         FROM (SELECT {id} AS id, {ended} AS ended_at, {whose} AS tenant FROM {from}{more}) AS ended \
         WHERE ended_at >= $1 AND ended_at <= now() AND ($2::text IS NULL OR tenant = $2) \
           AND NOT EXISTS (SELECT FROM ops.post_calls p WHERE p.call_id = ended.id) \
         ORDER BY ended_at, id LIMIT $3"
    )
}

/// Forgets calls that were closed long ago; how many those were. In small batches, so that nobody waits for it.
pub(crate) async fn forget_old(pool: &PgPool) -> Result<u64, RecordingError> {
    let mut forgotten = 0;
    loop {
        let gone = sqlx::query(
            "DELETE FROM ops.post_calls WHERE call_id IN (
                SELECT call_id FROM ops.post_calls WHERE closed_at < now() - $1 * interval '1 second' LIMIT 1000)",
        )
        .bind(CALL_RECORDS_KEPT.as_secs_f64())
        .execute(pool)
        .await
        .map_err(RecordingError::database("forget calls that were closed long ago"))?
        .rows_affected();
        forgotten += gone;
        if gone < 1000 {
            return Ok(forgotten);
        }
    }
}
