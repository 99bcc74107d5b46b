//! What a job's attempt leaves behind on its way: its phases, and what each of its agents was asked, granted and did.

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::answer::{Again, Failed, Report};
use crate::error::OrchestrationError;

/// A job on its way, as its phases are told.
#[derive(Debug, Clone)]
pub(crate) struct Trail {
    pub(crate) pool: PgPool,
    pub(crate) job: String,
    pub(crate) root: String,
    pub(crate) project: String,
    pub(crate) attempt: i32,
    pub(crate) replays: i32,
    /// How often an attempt began, this one included.
    pub(crate) epoch: i32,
}

impl Trail {
    /// Writes a phase that is over.
    pub(crate) async fn phase(
        &self,
        agent: Option<&str>,
        phase: &'static str,
        status: &'static str,
        message: &str,
        detail: Value,
    ) -> Result<(), OrchestrationError> {
        sqlx::query(
            "INSERT INTO ops.orchestration_execution_logs \
                 (job_id, project_id, agent, attempt, phase, status, message, detail, completed_at, duration_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, NULLIF($7, ''), $8, now(), 0)",
        )
        .bind(&self.job)
        .bind(&self.project)
        .bind(agent)
        .bind(self.attempt)
        .bind(phase)
        .bind(status)
        .bind(message)
        .bind(detail)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("write a phase of an orchestration job"))
    }

    /// Ends the phases that an earlier attempt left open: its process ended before it could.
    pub(crate) async fn close_open(&self) -> Result<(), OrchestrationError> {
        sqlx::query(
            "UPDATE ops.orchestration_execution_logs SET status = 'failed', completed_at = now(), \
                 message = 'the process ended before it could say what came of it', \
                 duration_ms = (extract(epoch FROM now() - started_at) * 1000)::bigint \
             WHERE job_id = $1 AND status = 'running'",
        )
        .bind(&self.job)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("close the phases of an earlier attempt"))
    }

    /// Notes that an agent is called. Answers how often it now is within the line, and the phase's number; `None`: it succeeded meanwhile.
    pub(crate) async fn begin_call(&self, agent: &str) -> Result<Option<(i32, i64)>, OrchestrationError> {
        let tried = "note that an agent is called";
        let row = sqlx::query(
            "WITH called AS ( \
                 INSERT INTO ops.orchestration_agent_runs AS r (root_id, agent, state, job_id, replays) \
                 VALUES ($1, $2, 'running', $3, $4) \
                 ON CONFLICT (root_id, agent) DO UPDATE SET state = 'running', job_id = $3, replays = $4, \
                     calls = r.calls + 1, final = false, error = NULL, http_status = NULL, started_at = now(), ended_at = NULL \
                 WHERE r.state <> 'succeeded' RETURNING r.calls), \
             log AS ( \
                 INSERT INTO ops.orchestration_execution_logs (job_id, project_id, agent, attempt, phase, status) \
                 SELECT $3, $5, $2, $6, 'execute', 'running' FROM called RETURNING id) \
             SELECT called.calls, log.id FROM called, log",
        )
        .bind(&self.root)
        .bind(agent)
        .bind(&self.job)
        .bind(self.replays)
        .bind(&self.project)
        .bind(self.attempt)
        .fetch_optional(&self.pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
        let Some(row) = row else { return Ok(None) };
        let read = || Ok((row.try_get(0)?, row.try_get(1)?));
        read().map(Some).map_err(OrchestrationError::database(tried))
    }

    /// Notes what an agent did, with the actions it took.
    pub(crate) async fn done(
        &self,
        agent: &str,
        phase: i64,
        report: &Report,
        took: Duration,
    ) -> Result<(), OrchestrationError> {
        let (actions, counts): (Vec<String>, Vec<i64>) =
            report.actions.iter().map(|(key, count)| (key.clone(), signed(*count))).unzip();
        sqlx::query(
            "WITH run AS ( \
                 UPDATE ops.orchestration_agent_runs SET state = 'succeeded', ended_at = now(), tasks_created = $5, \
                     suggestions_created = $6, did_nothing = $7, error = NULL, http_status = NULL \
                 WHERE root_id = $1 AND agent = $2 AND state <> 'succeeded' RETURNING 1), \
             log AS ( \
                 UPDATE ops.orchestration_execution_logs SET status = CASE WHEN $7 THEN 'do_nothing' ELSE 'completed' END, \
                     message = $8, completed_at = now(), duration_ms = $9, detail = $10 \
                 WHERE id = $4 RETURNING 1), \
             released AS (DELETE FROM ops.orchestration_grants WHERE root_id = $1 AND agent = $2 RETURNING 1) \
             INSERT INTO ops.orchestration_actions (project_id, agent, action_key, count, job_id) \
             SELECT $11, $2, a.key, a.count, $3 FROM run, unnest($12::text[], $13::bigint[]) AS a (key, count)",
        )
        .bind(&self.root)
        .bind(agent)
        .bind(&self.job)
        .bind(phase)
        .bind(signed(report.tasks))
        .bind(signed(report.suggestions))
        .bind(report.did_nothing)
        .bind(report.words.as_deref())
        .bind(millis(took))
        .bind(json!({ "actions": report.actions }))
        .bind(&self.project)
        .bind(actions)
        .bind(counts)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("note what an agent did"))
    }

    /// Notes that a call failed: nothing where another call was begun since. What the agent was granted is free again once it has
    /// answered; without an answer it may still be at work.
    pub(crate) async fn failed(
        &self,
        agent: &str,
        (calls, phase): (i32, i64),
        failed: &Failed,
        took: Duration,
    ) -> Result<(), OrchestrationError> {
        sqlx::query(
            "WITH run AS ( \
                 UPDATE ops.orchestration_agent_runs SET state = 'failed', ended_at = now(), final = $4, error = $5, \
                     http_status = $6 \
                 WHERE root_id = $1 AND agent = $2 AND state <> 'succeeded' AND calls = $9 RETURNING 1), \
             released AS ( \
                 DELETE FROM ops.orchestration_grants WHERE root_id = $1 AND agent = $2 AND $6::int IS NOT NULL \
                     AND EXISTS (SELECT FROM run) RETURNING 1) \
             UPDATE ops.orchestration_execution_logs SET status = 'failed', message = $5, completed_at = now(), \
                 duration_ms = $7, detail = $8 \
             WHERE id = $3",
        )
        .bind(&self.root)
        .bind(agent)
        .bind(phase)
        .bind(failed.again == Again::Never)
        .bind(&failed.error)
        .bind(failed.status.map(i32::from))
        .bind(millis(took))
        .bind(json!({ "http_status": failed.status }))
        .bind(calls)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("note that a call of an agent failed"))
    }

    /// Notes that an agent is passed over.
    pub(crate) async fn skip(&self, agent: &str, reason: &str) -> Result<(), OrchestrationError> {
        sqlx::query(
            "WITH run AS ( \
                 INSERT INTO ops.orchestration_agent_runs AS r (root_id, agent, state, job_id, replays, calls, error, ended_at) \
                 VALUES ($1, $2, 'skipped', $3, $4, 0, $7, now()) \
                 ON CONFLICT (root_id, agent) DO UPDATE SET state = 'skipped', job_id = $3, replays = $4, error = $7, \
                     ended_at = now() \
                 WHERE r.state <> 'succeeded' RETURNING 1) \
             INSERT INTO ops.orchestration_execution_logs (job_id, project_id, agent, attempt, phase, status, message, \
                 completed_at, duration_ms) \
             SELECT $3, $5, $2, $6, 'decide', 'skipped', $7, now(), 0 FROM run",
        )
        .bind(&self.root)
        .bind(agent)
        .bind(&self.job)
        .bind(self.replays)
        .bind(&self.project)
        .bind(self.attempt)
        .bind(reason)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("note that an agent is passed over"))
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
