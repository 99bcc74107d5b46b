//! `commands.expire` and `executions.expire`: what devices were asked and did not take in time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

/// Ends commands whose time is over: `missed` when they had been published and were not acknowledged, `expired` when they never were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandsExpire {}

impl Job for CommandsExpire {
    const KIND: &'static str = "commands.expire";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[(
            "device_commands",
            &["tenant_id", "command_id", "status", "published_at", "expires_at"],
        )]);
        upkeep.finish(Self::KIND, NEEDS, expire_commands(upkeep, attempt)).await
    }
}

async fn expire_commands(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let (mut missed, mut expired) = (0_i64, 0_i64);
    loop {
        check_stop(attempt)?;
        let (late, never): (i64, i64) = sqlx::query_as(
            // Two plain words rather than a choice between them: those fit a column of any type.
            "WITH due AS (SELECT tenant_id, command_id, published_at IS NULL AS never FROM device_commands \
                 WHERE status = 'queued' AND expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED), \
             late AS (UPDATE device_commands c SET status = 'missed' FROM due \
                 WHERE NOT due.never AND c.tenant_id = due.tenant_id AND c.command_id = due.command_id RETURNING 1), \
             never AS (UPDATE device_commands c SET status = 'expired' FROM due \
                 WHERE due.never AND c.tenant_id = due.tenant_id AND c.command_id = due.command_id RETURNING 1) \
             SELECT (SELECT count(*) FROM late), (SELECT count(*) FROM never)",
        )
        .bind(upkeep.batch())
        .fetch_one(&upkeep.pool)
        .await
        .map_err(PlatformError::database("end commands whose time is over"))?;
        missed += late;
        expired += never;
        if late + never == 0 {
            return Ok(json!({ "missed": missed, "expired": expired }));
        }
    }
}

/// Ends executions of jobs for devices whose time is over, and the jobs of which nothing is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionsExpire {}

impl Job for ExecutionsExpire {
    const KIND: &'static str = "executions.expire";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("jobs", &["tenant_id", "job_id", "status", "expires_at", "updated_at"]),
            (
                "job_executions",
                &["tenant_id", "job_id", "device_id", "status", "status_details", "last_updated_at"],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, expire_executions(upkeep, attempt)).await
    }
}

async fn expire_executions(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut timed_out = 0_u64;
    loop {
        check_stop(attempt)?;
        // Only what no device has begun: an execution in progress ends by its device.
        let done = sqlx::query(
            "WITH due AS (SELECT e.tenant_id, e.job_id, e.device_id FROM job_executions e \
                 JOIN jobs j ON j.tenant_id = e.tenant_id AND j.job_id = e.job_id \
                 WHERE j.status = 'IN_PROGRESS' AND j.expires_at <= now() AND e.status = 'QUEUED' \
                 LIMIT $1 FOR UPDATE OF e SKIP LOCKED) \
             UPDATE job_executions e SET status = 'TIMED_OUT', last_updated_at = now(), \
                 status_details = (CASE jsonb_typeof(e.status_details::jsonb) WHEN 'object' THEN e.status_details::jsonb ELSE '{}' END) \
                     || '{\"reason\": \"job_expired\"}' \
             FROM due WHERE e.tenant_id = due.tenant_id AND e.job_id = due.job_id AND e.device_id = due.device_id \
                 AND e.status = 'QUEUED'",
        )
        .bind(upkeep.batch())
        .execute(&upkeep.pool)
        .await
        .map_err(PlatformError::database("end executions whose time is over"))?;
        timed_out += done.rows_affected();
        if done.rows_affected() == 0 {
            break;
        }
    }
    let mut completed = 0_u64;
    loop {
        check_stop(attempt)?;
        // A job without executions may still be getting them, unless its time is over.
        let done = sqlx::query(
            "WITH ended AS (SELECT j.tenant_id, j.job_id FROM jobs j WHERE j.status = 'IN_PROGRESS' \
                 AND (j.expires_at <= now() OR EXISTS (SELECT FROM job_executions e \
                     WHERE e.tenant_id = j.tenant_id AND e.job_id = j.job_id)) \
                 AND NOT EXISTS (SELECT FROM job_executions e WHERE e.tenant_id = j.tenant_id AND e.job_id = j.job_id \
                     AND e.status NOT IN ('SUCCEEDED', 'FAILED', 'TIMED_OUT', 'REJECTED')) \
                 LIMIT $1 FOR UPDATE SKIP LOCKED) \
             UPDATE jobs j SET status = 'COMPLETED', updated_at = now() \
             FROM ended WHERE j.tenant_id = ended.tenant_id AND j.job_id = ended.job_id",
        )
        .bind(upkeep.batch())
        .execute(&upkeep.pool)
        .await
        .map_err(PlatformError::database("complete jobs of which nothing is left to do"))?;
        completed += done.rows_affected();
        if done.rows_affected() == 0 {
            return Ok(json!({ "timed_out": timed_out, "completed": completed }));
        }
    }
}
