//! What the relay does besides: critical jobs are checked until they have finished, old rows are deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_runtime::Pulse;

use super::{Enqueue, JobStanding, bounded};

const BATCH: i64 = 500;

/// One round. Answers how many critical jobs the queue had lost and will get again.
pub(super) async fn run<Q: Enqueue>(
    pool: &PgPool,
    queue: &Q,
    retention: Duration,
    pulse: &Pulse,
) -> Result<usize, sqlx::Error> {
    let mut recovered = 0;
    loop {
        pulse.beat();
        let due = bounded(critical_due(pool)).await?;
        let last = due.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
        recovered += check(pool, queue, due).await?;
        if last {
            break;
        }
    }
    while bounded(delete_old(pool, retention)).await? == BATCH.unsigned_abs() {
        pulse.beat();
    }
    Ok(recovered)
}

/// Critical rows whose job has not been seen to finish, claimed for the next look.
async fn critical_due(pool: &PgPool) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query(
        "WITH next AS ( \
             SELECT id FROM ops.outbox \
             WHERE critical AND relayed_at IS NOT NULL AND settled_at IS NULL AND visible_at <= now() \
             ORDER BY visible_at LIMIT $1 FOR UPDATE SKIP LOCKED) \
         UPDATE ops.outbox o SET visible_at = now() + interval '30 seconds' FROM next WHERE o.id = next.id \
         RETURNING o.queue, o.id",
    )
    .bind(BATCH)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn check<Q: Enqueue>(
    pool: &PgPool,
    queue: &Q,
    due: Vec<(String, String)>,
) -> Result<usize, sqlx::Error> {
    let mut by_queue: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, id) in due {
        by_queue.entry(name).or_default().push(id);
    }
    let (mut finished, mut lost) = (vec![], vec![]);
    for (name, ids) in by_queue {
        let standings = match queue.standings(&name, &ids).await {
            Ok(standings) => standings,
            Err(error) => {
                tracing::warn!(%error, queue = name, "critical jobs cannot be checked now");
                continue;
            }
        };
        for (id, standing) in ids.into_iter().zip(standings) {
            match standing {
                JobStanding::Finished => finished.push(id),
                JobStanding::Unknown => lost.push(id),
                JobStanding::Unfinished => {}
            }
        }
    }
    if finished.is_empty() && lost.is_empty() {
        return Ok(0);
    }
    // A job that finished just now was settled by its worker: such a row is not sent again.
    let again = bounded(
        sqlx::query(
            "WITH finished AS (UPDATE ops.outbox SET settled_at = now() WHERE id = ANY($1) AND settled_at IS NULL), \
             lost AS (UPDATE ops.outbox SET relayed_at = NULL, visible_at = now(), last_error = $3 \
                      WHERE id = ANY($2) AND settled_at IS NULL AND relayed_at IS NOT NULL RETURNING id) \
             SELECT count(*) FROM lost",
        )
        .bind(finished)
        .bind(lost)
        .bind("the queue had lost the job; relayed again")
        .fetch_one(pool),
    )
    .await?;
    let count: i64 = again.try_get(0)?;
    if count > 0 {
        tracing::warn!(jobs = count, "the queue had lost critical jobs; they are relayed again");
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Deletes rows that are done, a small batch a statement.
async fn delete_old(pool: &PgPool, retention: Duration) -> Result<u64, sqlx::Error> {
    sqlx::query(
        "DELETE FROM ops.outbox WHERE id IN ( \
             SELECT id FROM ops.outbox \
             WHERE relayed_at < now() - $1 * interval '1 second' AND (NOT critical OR settled_at IS NOT NULL) \
             ORDER BY relayed_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(retention.as_secs_f64())
    .bind(BATCH)
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
}

/// What waits in the outbox for one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The queue.
    pub queue: String,
    /// Rows that are not relayed yet.
    pub waiting: i64,
    /// Rows that the queue refused; a person has to look at them.
    pub refused: i64,
    /// Age of the oldest row that waits.
    pub oldest_seconds: i64,
    /// Why the oldest waits, where something failed.
    pub last_error: Option<String>,
}

/// What waits in the outbox, by queue.
///
/// # Errors
/// As the database says.
pub async fn waiting(pool: &PgPool) -> Result<Vec<Waiting>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT queue, count(*) FILTER (WHERE refused_at IS NULL), count(*) FILTER (WHERE refused_at IS NOT NULL), \
                COALESCE(extract(epoch FROM now() - min(created_at) FILTER (WHERE refused_at IS NULL)), 0)::bigint, \
                (array_agg(last_error ORDER BY seq) FILTER (WHERE last_error IS NOT NULL))[1] \
         FROM ops.outbox WHERE relayed_at IS NULL GROUP BY queue ORDER BY queue",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                queue: row.try_get(0)?,
                waiting: row.try_get(1)?,
                refused: row.try_get(2)?,
                oldest_seconds: row.try_get(3)?,
                last_error: row.try_get(4)?,
            })
        })
        .collect()
}
