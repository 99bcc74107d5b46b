//! Deletes what has been kept long enough, in small lots.

use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, PgPool};

use crate::OrchestrationSettings;
use crate::error::OrchestrationError;

/// Rows of one statement.
const LOT: i64 = 1_000;
/// Between two lots, so that others come to work too.
const PAUSE: Duration = Duration::from_millis(50);
/// The firings of a local day are counted in these rows: a day has up to 25 hours.
const JOBS_AT_LEAST: Duration = Duration::from_secs(26 * 60 * 60);
/// A day's actions are counted as well.
const ACTIONS: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// A schedule that nobody has looked at for so long is gone.
const SCHEDULES: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How many rows were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Deleted {
    jobs: u64,
    agent_runs: u64,
    logs: u64,
    others: u64,
}

pub(crate) async fn sweep(
    pool: &PgPool,
    settings: &OrchestrationSettings,
    stopping: &CancellationToken,
) -> Result<Deleted, OrchestrationError> {
    let sweeper = Sweeper { pool, stopping };
    let jobs = sweeper
        .delete(
            "DELETE FROM ops.orchestration_jobs WHERE id IN (SELECT id FROM ops.orchestration_jobs \
             WHERE ended_at < now() - make_interval(secs => $1) ORDER BY ended_at LIMIT $2)",
            settings.keep_jobs.max(JOBS_AT_LEAST),
        )
        .await?;
    let agent_runs = sweeper
        .delete(
            "DELETE FROM ops.orchestration_agent_runs WHERE (root_id, agent) IN (SELECT r.root_id, r.agent \
             FROM ops.orchestration_agent_runs r WHERE r.started_at < now() - make_interval(secs => $1) \
                 AND NOT EXISTS (SELECT FROM ops.orchestration_jobs j WHERE j.root_id = r.root_id) \
             ORDER BY r.started_at LIMIT $2)",
            settings.keep_jobs.max(JOBS_AT_LEAST),
        )
        .await?;
    let logs = sweeper
        .delete(
            "DELETE FROM ops.orchestration_execution_logs WHERE id IN (SELECT id FROM ops.orchestration_execution_logs \
             WHERE started_at < now() - make_interval(secs => $1) ORDER BY started_at LIMIT $2)",
            settings.keep_logs,
        )
        .await?;
    let mut others = 0;
    for (statement, keep) in [
        (
            "DELETE FROM ops.orchestration_actions WHERE id IN (SELECT id FROM ops.orchestration_actions \
             WHERE done_at < now() - make_interval(secs => $1) ORDER BY done_at LIMIT $2)",
            ACTIONS,
        ),
        (
            "DELETE FROM ops.orchestration_agent_rests WHERE agent IN (SELECT agent FROM ops.orchestration_agent_rests \
             WHERE resting_until < now() - make_interval(secs => $1) LIMIT $2)",
            ACTIONS,
        ),
        (
            "DELETE FROM ops.orchestration_grants WHERE ctid = ANY (ARRAY(SELECT ctid FROM ops.orchestration_grants \
             WHERE expires_at < now() - make_interval(secs => $1) LIMIT $2))",
            ACTIONS,
        ),
        (
            "DELETE FROM ops.orchestration_schedule_state WHERE schedule_id IN (SELECT schedule_id \
             FROM ops.orchestration_schedule_state WHERE evaluated_at < now() - make_interval(secs => $1) LIMIT $2)",
            SCHEDULES,
        ),
    ] {
        others += sweeper.delete(statement, keep).await?;
    }
    Ok(Deleted { jobs, agent_runs, logs, others })
}

struct Sweeper<'a> {
    pool: &'a PgPool,
    stopping: &'a CancellationToken,
}

impl Sweeper<'_> {
    async fn delete(&self, statement: &'static str, keep: Duration) -> Result<u64, OrchestrationError> {
        let mut deleted = 0;
        while !self.stopping.is_cancelled() {
            let done = sqlx::query(statement)
                .bind(keep.as_secs_f64())
                .bind(LOT)
                .execute(self.pool)
                .await
                .map_err(OrchestrationError::database("delete old rows of orchestration"))?;
            deleted += done.rows_affected();
            if i64::try_from(done.rows_affected()).unwrap_or(0) < LOT {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(deleted)
    }
}
