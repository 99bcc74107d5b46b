use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::Tenure;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_runtime::Pulse;

use crate::backlog::backlog;
use crate::claim;
use crate::error::{WebhookError, chain};
use crate::metrics;

const BATCH: u64 = 1_000;
/// Most batches of one round: what comes faster than that is of a rate that no worker posts.
const BATCHES: u32 = 100;
/// How often the backlog is reported and old rows are looked for.
const EVERY: Duration = Duration::from_secs(5);

/// What is deleted. `$1`: older than so many seconds, `$2`: at most. The event of a dead delivery stays with it, to be replayed.
const OLD: [&str; 3] = [
    "WITH old AS (DELETE FROM ops.webhook_ended WHERE id IN (SELECT id FROM ops.webhook_ended \
         WHERE ended_at < now() - make_interval(secs => $1) ORDER BY ended_at LIMIT $2) RETURNING id), \
     attempts AS (DELETE FROM ops.webhook_failures a USING old WHERE a.delivery_id = old.id) \
     SELECT count(*) FROM old",
    "WITH old AS (DELETE FROM ops.webhook_events WHERE seq IN (SELECT v.seq FROM ops.webhook_events v \
         WHERE v.created_at < now() - make_interval(secs => $1) \
             AND NOT EXISTS (SELECT FROM ops.webhook_open o WHERE o.event_seq = v.seq) \
             AND NOT EXISTS (SELECT FROM ops.webhook_ended d WHERE d.event_seq = v.seq AND d.state = 'dead') \
         ORDER BY v.created_at LIMIT $2) RETURNING 1) \
     SELECT count(*) FROM old",
    "WITH old AS (DELETE FROM ops.webhook_secrets WHERE (endpoint_id, number) IN (SELECT endpoint_id, number \
         FROM ops.webhook_secrets WHERE expires_at < now() AND $1 >= 0 LIMIT $2) RETURNING 1) \
     SELECT count(*) FROM old",
];

/// Endpoints that are disabled and still have deliveries: they were claimed when it was disabled and came back, or their event was being
/// written, or whoever disabled it ended before it had given them up.
const LEFT: &str = "\
SELECT e.id FROM ops.webhook_endpoints e
WHERE e.state = 'disabled' AND EXISTS (SELECT FROM ops.webhook_open o WHERE o.endpoint_id = e.id
    AND o.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims))";

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
            } else if let Err(error) = self.round(&pulse).await {
                tracing::warn!(error = %chain(&error), "old webhook deliveries cannot be looked for now");
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        tracing::info!("webhook retention worker stopped");
    }

    async fn round(&self, pulse: &Pulse) -> Result<(), WebhookError> {
        let mut deleted = 0;
        for statement in OLD {
            for _ in 0..BATCHES {
                pulse.beat();
                let batch = self.sweep(statement).await?;
                deleted += batch;
                if batch < BATCH {
                    break;
                }
            }
        }
        if deleted > 0 {
            tracing::info!(deleted, "old rows of webhooks deleted");
        }
        self.give_up().await?;
        self.report().await
    }

    /// One batch. Answers how many rows were deleted.
    async fn sweep(&self, statement: &'static str) -> Result<u64, WebhookError> {
        let tried = "delete old rows of webhooks";
        let deleted: i64 = sqlx::query_scalar(statement)
            .bind(self.keep.as_secs_f64())
            .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
            .fetch_one(&self.pool)
            .await
            .map_err(WebhookError::database(tried))?;
        Ok(u64::try_from(deleted).unwrap_or(0))
    }

    /// What came back to an endpoint after it was disabled dies with the rest.
    async fn give_up(&self) -> Result<(), WebhookError> {
        let tried = "give up webhooks of disabled endpoints";
        let endpoints: Vec<Uuid> =
            sqlx::query_scalar(LEFT).fetch_all(&self.pool).await.map_err(WebhookError::database(tried))?;
        for endpoint in endpoints {
            claim::give_up(&self.pool, endpoint).await?;
        }
        Ok(())
    }

    async fn report(&self) -> Result<(), WebhookError> {
        let backlog = backlog(&self.pool).await?;
        metrics::get().backlog(&backlog);
        Ok(())
    }
}
