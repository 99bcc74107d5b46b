//! Deleting old history, in the leader, a small batch a statement.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_runtime::Pulse;

use crate::outbox::bounded;

const BATCH: i64 = 1000;

/// How long rows are kept.
#[derive(Debug, Clone, Copy)]
pub struct RetentionSettings {
    /// Completions and failed attempts.
    pub ordinary: Duration,
    /// What a person may ask for: dead, cancelled, discarded, removed, replayed.
    pub notable: Duration,
    /// How often it is looked for old rows.
    pub every: Duration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            ordinary: Duration::from_secs(7 * DAY),
            notable: Duration::from_secs(30 * DAY),
            every: Duration::from_secs(600),
        }
    }
}

/// The retention worker of the history.
#[derive(Debug)]
pub struct Retention {
    pool: PgPool,
    settings: RetentionSettings,
}

impl Retention {
    /// A worker that has not begun.
    #[must_use]
    pub const fn new(pool: PgPool, settings: RetentionSettings) -> Self {
        Self { pool, settings }
    }

    /// Deletes old rows until `stopping`, whenever `tenure` says that this process leads. Leading only saves work here: the statements
    /// carry no term, because two processes that delete the same old rows do no harm.
    pub async fn run(
        self,
        tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!("history retention started");
        let mut idle_for = Duration::ZERO;
        let tick = self.settings.every.min(Duration::from_secs(5));
        while !stopping.is_cancelled() {
            pulse.beat();
            let leading = || tenure.borrow().as_ref().is_some_and(Tenure::is_trusted);
            idle_for = idle_for.saturating_sub(tick);
            if idle_for.is_zero() && leading() {
                idle_for = self.settings.every;
                if let Err(error) = self.sweep(&leading, &pulse).await {
                    tracing::warn!(%error, "history retention is put off");
                }
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(tick) => {}
            }
        }
        tracing::info!("history retention stopped");
    }

    /// Deletes what is old, batch by batch; answers how many rows.
    async fn sweep(&self, leading: &impl Fn() -> bool, pulse: &Pulse) -> Result<u64, sqlx::Error> {
        let mut deleted = 0;
        for (kept, outcomes) in [
            (self.settings.ordinary, &["completed", "failed"][..]),
            (self.settings.notable, &["dead", "cancelled", "discarded", "removed", "replayed"][..]),
        ] {
            while leading() {
                pulse.beat();
                let batch = bounded(self.delete(kept, outcomes)).await?;
                deleted += batch;
                if batch < BATCH.unsigned_abs() {
                    break;
                }
            }
        }
        if deleted > 0 {
            tracing::info!(rows = deleted, "old job history deleted");
        }
        Ok(deleted)
    }

    async fn delete(&self, kept: Duration, outcomes: &[&str]) -> Result<u64, sqlx::Error> {
        sqlx::query(
            "DELETE FROM ops.job_history WHERE id IN ( \
                 SELECT id FROM ops.job_history \
                 WHERE outcome = ANY($1) AND finished_at < now() - $2 * interval '1 second' \
                 LIMIT $3 FOR UPDATE SKIP LOCKED)",
        )
        .bind(outcomes)
        .bind(kept.as_secs_f64())
        .bind(BATCH)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }
}
