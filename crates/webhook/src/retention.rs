use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_runtime::Pulse;

use crate::backlog::backlog;
use crate::error::{WebhookError, chain};
use crate::metrics;

const BATCH: i64 = 500;
/// How often the backlog is reported and old rows are looked for.
const EVERY: Duration = Duration::from_secs(5);

/// What is deleted. `$1`: older than so many seconds, `$2`: at most. Attempts go with their deliveries.
const OLD: [&str; 3] = [
    "DELETE FROM ops.webhook_deliveries WHERE id IN (SELECT id FROM ops.webhook_deliveries \
     WHERE ended_at < now() - make_interval(secs => $1) LIMIT $2)",
    "DELETE FROM ops.webhook_events WHERE (tenant, id) IN (SELECT v.tenant, v.id FROM ops.webhook_events v \
     WHERE v.created_at < now() - make_interval(secs => $1) AND NOT EXISTS (SELECT FROM ops.webhook_deliveries d \
         WHERE d.tenant = v.tenant AND d.event_id = v.id) ORDER BY v.created_at LIMIT $2)",
    "DELETE FROM ops.webhook_secrets WHERE (endpoint_id, number) IN (SELECT endpoint_id, number FROM ops.webhook_secrets \
     WHERE expires_at < now() AND $1 >= 0 LIMIT $2)",
];

/// Deletes what has been kept long enough and reports the backlog: both are the leader's.
#[derive(Debug)]
pub struct Retention {
    pool: PgPool,
    keep: Duration,
}

impl Retention {
    /// A worker that has not begun.
    #[must_use]
    pub const fn new(pool: PgPool, keep: Duration) -> Self {
        Self { pool, keep }
    }

    /// Runs until `stopping`, whenever `tenure` says that this process leads. Leading only saves work here: two processes that delete
    /// the same old rows do no harm.
    pub async fn run(
        self,
        tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!("webhook retention worker started");
        while !stopping.is_cancelled() {
            pulse.beat();
            let leads = tenure.borrow().as_ref().is_some_and(Tenure::is_trusted);
            if !leads {
                metrics::get().forget_backlog();
            } else if let Err(error) = self.round().await {
                tracing::warn!(error = %chain(&error), "old webhook deliveries cannot be looked for now");
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        tracing::info!("webhook retention worker stopped");
    }

    async fn round(&self) -> Result<(), WebhookError> {
        let deleted = self.sweep().await?;
        if deleted > 0 {
            tracing::info!(deleted, "old rows of webhooks deleted");
        }
        self.report().await
    }

    /// One batch of each kind. Answers how many rows were deleted.
    pub(crate) async fn sweep(&self) -> Result<u64, WebhookError> {
        let mut deleted = 0;
        for statement in OLD {
            let done = sqlx::query(statement)
                .bind(self.keep.as_secs_f64())
                .bind(BATCH)
                .execute(&self.pool)
                .await
                .map_err(WebhookError::database("delete old rows of webhooks"))?;
            deleted += done.rows_affected();
        }
        Ok(deleted)
    }

    async fn report(&self) -> Result<(), WebhookError> {
        let backlog = backlog(&self.pool).await?;
        metrics::get().backlog(&backlog);
        Ok(())
    }
}
