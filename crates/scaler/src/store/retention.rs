//! What nobody reads any more: removed in small parts, so that no statement holds a lock or the log up for long.

use jiff::SignedDuration;
use voiceai_postgres::sqlx;

use super::rows::get;
use super::{Store, StoreError};

/// Decisions removed by one statement.
const DECISIONS: i64 = 5_000;
/// Servers or operations removed by one statement; each brings its steps with it.
const SERVERS: i64 = 250;

/// Rows that were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Of `ops.decisions`.
    pub decisions: u64,
    /// Of `ops.operations`, their steps not counted.
    pub operations: u64,
    /// Of `ops.servers`.
    pub servers: u64,
}

impl Pruned {
    /// True when nothing was removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self {
            decisions: self.decisions + more.decisions,
            operations: self.operations + more.operations,
            servers: self.servers + more.servers,
        }
    }
}

impl Store {
    /// Removes one part of what is older than `keep`: servers that are gone with their operations, finished operations of
    /// servers that are there, decisions that changed something; of decisions that changed nothing what is older than 2 days.
    /// Nothing that is open goes, nor the operation that a server which is there was made by. Call it again until it is empty.
    ///
    /// # Errors
    /// As the database says.
    pub async fn prune(&self, keep: SignedDuration) -> Result<Pruned, StoreError> {
        let keep = keep.as_secs_f64();
        let decisions = sqlx::query(
            "DELETE FROM ops.decisions WHERE id IN ( \
                 SELECT id FROM ops.decisions \
                 WHERE (action IN ('hold', 'invalid') AND at < now() - interval '2 days') \
                    OR at < now() - make_interval(secs => $1) \
                 ORDER BY id LIMIT $2)",
        )
        .bind(keep)
        .bind(DECISIONS)
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("prune decisions"))?;
        // A server and its operations go together: half of that could not be read any more.
        let gone = sqlx::query(
            "WITH old AS ( \
                 SELECT s.id FROM ops.servers s \
                 WHERE s.status = 'gone' AND s.gone_at < now() - make_interval(secs => $1) \
                   AND NOT EXISTS (SELECT FROM ops.operations o WHERE o.server_id = s.id AND o.finished_at IS NULL) \
                 ORDER BY s.gone_at LIMIT $2), \
             operations AS (DELETE FROM ops.operations o USING old WHERE o.server_id = old.id RETURNING 1), \
             servers AS (DELETE FROM ops.servers s USING old WHERE s.id = old.id RETURNING 1) \
             SELECT (SELECT count(*) FROM servers), (SELECT count(*) FROM operations)",
        )
        .bind(keep)
        .bind(SERVERS)
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database("prune servers"))?;
        // `created_at` has an index, and nothing ends before it begins.
        let finished = sqlx::query(
            "DELETE FROM ops.operations WHERE id IN ( \
                 SELECT o.id FROM ops.operations o JOIN ops.servers s ON s.id = o.server_id \
                 WHERE o.created_at < now() - make_interval(secs => $1) \
                   AND o.finished_at < now() - make_interval(secs => $1) AND o.id <> s.made_by AND s.status <> 'gone' \
                 LIMIT $2)",
        )
        .bind(keep)
        .bind(SERVERS)
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("prune operations"))?;
        let count = |column| get::<i64>(&gone, column).map(|count| u64::try_from(count).unwrap_or(0));
        Ok(Pruned {
            decisions: decisions.rows_affected(),
            operations: count(1)? + finished.rows_affected(),
            servers: count(0)?,
        })
    }
}
