//! The rows of jobs, of what agents were asked, and of phases. Each step is one statement, and may be run again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::answer::{Again, Failed, Report};
use crate::error::OrchestrationError;
use crate::order::{JobType, Order};
use crate::tables;

/// What a job did, in the platform's shape.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Every agent that was called succeeded.
    pub success: bool,
    /// The job.
    pub job_id: String,
    /// Agents that were called.
    pub agents_executed: i64,
    /// Those of them that did their work.
    pub agents_succeeded: i64,
    /// The others.
    pub agents_failed: i64,
    /// What they made.
    pub tasks_created: i64,
    /// What they proposed.
    pub suggestions_created: i64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// From its first attempt's begin.
    pub duration_ms: i64,
}

/// A job as its row has it at the begin of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum Begun {
    /// To be run. `epoch`: how often an attempt of it began.
    Now { root: String, epoch: i32 },
    /// It was done before: delivered twice.
    Done(Summary),
}

/// What is asked of the rows at the begin of an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begin<'a> {
    pub(crate) id: &'a str,
    pub(crate) order: &'a Order,
    pub(crate) kind: JobType,
    pub(crate) agents: &'a [String],
    pub(crate) limit: Duration,
}

/// The agents that a failed job was to call, and the first of its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) root: String,
    pub(crate) number: i32,
    pub(crate) agents: Vec<String>,
}

pub(crate) async fn parent(pool: &PgPool, id: &str) -> Result<Option<Parent>, OrchestrationError> {
    let tried = "read the job that is retried";
    let row = sqlx::query("SELECT root_id, attempt_number, agents FROM ops.orchestration_jobs WHERE id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let Some(row) = row else { return Ok(None) };
    let read = || Ok(Parent { root: row.try_get(0)?, number: row.try_get(1)?, agents: row.try_get(2)? });
    read().map(Some).map_err(OrchestrationError::database(tried))
}

/// Notes that an attempt begins.
pub(crate) async fn begin(
    pool: &PgPool,
    begin: &Begin<'_>,
    parent: Option<&Parent>,
) -> Result<Begun, OrchestrationError> {
    let tried = "note that an orchestration job begins";
    let Begin { id, order, kind, agents, limit } = *begin;
    // A retry whose parent has no row here belongs to a job of the platform's own table: its id is the line's name.
    let root = parent.map(|parent| parent.root.as_str()).or(order.parent()).unwrap_or(id);
    let row = sqlx::query(
        "INSERT INTO ops.orchestration_jobs AS j (id, root_id, parent_id, project_id, job_type, triggered_by, user_id, \
             status, attempt_number, agents, input, begun, started_at, timeout_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', $8, $9, $10, 1, now(), now() + make_interval(secs => $11)) \
         ON CONFLICT (id) DO UPDATE SET status = 'running', agents = $9, begun = j.begun + 1, timeout_at = now() + make_interval(secs => $11), \
             started_at = CASE WHEN j.ended_at IS NULL THEN COALESCE(j.started_at, now()) ELSE now() END, \
             ended_at = NULL, duration_ms = NULL, error_code = NULL, error_message = NULL \
         WHERE j.status <> 'completed' RETURNING j.root_id, j.begun",
    )
    .bind(id)
    .bind(root)
    .bind(order.parent())
    .bind(&order.project_id)
    .bind(kind.word())
    .bind(order.triggered_by.word())
    .bind(order.user_id.as_deref())
    .bind(parent.map_or(if order.parent().is_some() { 2 } else { 1 }, |parent| parent.number.saturating_add(1)))
    .bind(agents)
    .bind(serde_json::to_value(order).unwrap_or_default())
    .bind(limit.as_secs_f64())
    .fetch_optional(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    match row {
        Some(row) => {
            let read = || Ok(Begun::Now { root: row.try_get(0)?, epoch: row.try_get(1)? });
            read().map_err(OrchestrationError::database(tried))
        }
        None => Ok(Begun::Done(summary(pool, id).await?)),
    }
}

/// What one agent was asked before, within the job's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earlier {
    pub(crate) succeeded: bool,
    pub(crate) skipped: bool,
    /// It said no, to this very job since its last replay.
    pub(crate) refused: Option<String>,
}

/// What was asked before, by agent; and which agents want to be left alone until when.
pub(crate) async fn earlier(
    pool: &PgPool,
    root: &str,
    job: &str,
    replays: u32,
) -> Result<BTreeMap<String, Earlier>, OrchestrationError> {
    let tried = "read what agents were asked before";
    let rows = sqlx::query(
        "SELECT agent, state = 'succeeded', state = 'skipped' AND job_id = $2 AND replays = $3, \
             CASE WHEN state = 'failed' AND final AND job_id = $2 AND replays = $3 THEN COALESCE(error, '') END \
         FROM ops.orchestration_agent_runs WHERE root_id = $1",
    )
    .bind(root)
    .bind(job)
    .bind(i32::try_from(replays).unwrap_or(i32::MAX))
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<(String, Earlier), sqlx::Error> {
        let earlier =
            Earlier { succeeded: row.try_get(1)?, skipped: row.try_get(2)?, refused: row.try_get(3)? };
        Ok((row.try_get(0)?, earlier))
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// How much longer an agent wants to be left alone; `None`: it may be called.
pub(crate) async fn resting(pool: &PgPool, agent: &str) -> Result<Option<Duration>, OrchestrationError> {
    let tried = "read whether an agent rests";
    let row = sqlx::query(
        "SELECT extract(epoch FROM resting_until - clock_timestamp())::float8 \
         FROM ops.orchestration_agent_rests WHERE agent = $1 AND resting_until > clock_timestamp()",
    )
    .bind(agent)
    .fetch_optional(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let Some(row) = row else { return Ok(None) };
    let seconds: f64 = row.try_get(0).map_err(OrchestrationError::database(tried))?;
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

/// Leaves an agent alone for a while, for every job. A longer rest stays.
pub(crate) async fn rest(
    pool: &PgPool,
    agent: &str,
    span: Duration,
    reason: &str,
) -> Result<(), OrchestrationError> {
    sqlx::query(
        "INSERT INTO ops.orchestration_agent_rests AS r (agent, resting_until, reason) \
         VALUES ($1, clock_timestamp() + make_interval(secs => $2), $3) \
         ON CONFLICT (agent) DO UPDATE SET resting_until = GREATEST(r.resting_until, EXCLUDED.resting_until), reason = $3",
    )
    .bind(agent)
    .bind(span.as_secs_f64())
    .bind(reason)
    .execute(pool)
    .await
    .map(drop)
    .map_err(OrchestrationError::database("note that an agent rests"))
}

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
                 WHERE id = $4 RETURNING 1) \
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

    /// Notes that a call failed: nothing where another call was begun since.
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
                 WHERE root_id = $1 AND agent = $2 AND state <> 'succeeded' AND calls = $9 RETURNING 1) \
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

/// How a job, or an attempt of it, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Completed,
    /// To be tried again by the queue.
    Again,
    Failed {
        retryable: bool,
    },
    TimedOut,
    Cancelled,
}

impl End {
    const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Again => "queued",
            Self::Failed { .. } => "failed",
            Self::TimedOut => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Writes how a job ended, with the sums of its agents, into its row, its schedule's state and the platform's own row of the
/// schedule: all of it or nothing, and once. Answers the sums.
///
/// `epoch`: of the attempt that says so; where another began since, nothing is written. `None` for what is known from elsewhere.
pub(crate) async fn end(
    pool: &PgPool,
    id: &str,
    epoch: Option<i32>,
    end: End,
    code: Option<&str>,
    error: Option<&str>,
) -> Result<Summary, OrchestrationError> {
    let theirs = match tables::schedules(pool).await? {
        Some(table) if end != End::Again => table
            .assignments(&[
                ("last_success_at", "CASE WHEN ended.good THEN now() ELSE s.last_success_at END"),
                ("last_failure_at", "CASE WHEN ended.bad THEN now() ELSE s.last_failure_at END"),
                ("consecutive_failures", "CASE WHEN ended.good THEN 0 ELSE COALESCE(s.consecutive_failures, 0) + ended.bad::int END"),
                ("total_runs", "COALESCE(s.total_runs, 0) + 1"),
                ("total_successes", "COALESCE(s.total_successes, 0) + ended.good::int"),
            ])
            .map(|set| {
                format!(
                    ", theirs AS (UPDATE {} s SET {set} FROM ended WHERE s.id::text = ended.schedule_id RETURNING 1)",
                    table.name
                )
            }),
        _ => None,
    };
    let statement = format!(
        "WITH sums AS ( \
             SELECT count(*) FILTER (WHERE state IN ('succeeded', 'failed')) AS executed, \
                 count(*) FILTER (WHERE state = 'succeeded') AS succeeded, count(*) FILTER (WHERE state = 'failed') AS failed, \
                 COALESCE(sum(tasks_created), 0)::bigint AS tasks, COALESCE(sum(suggestions_created), 0)::bigint AS suggestions \
             FROM ops.orchestration_agent_runs r \
             WHERE r.root_id = (SELECT root_id FROM ops.orchestration_jobs WHERE id = $1) \
                 AND r.agent = ANY (SELECT unnest(agents) FROM ops.orchestration_jobs WHERE id = $1)), \
         ended AS ( \
             UPDATE ops.orchestration_jobs j SET status = $2, retryable = $3, error_code = $4, error_message = $5, \
                 agents_executed = sums.executed, agents_succeeded = sums.succeeded, agents_failed = sums.failed, \
                 tasks_created = sums.tasks, suggestions_created = sums.suggestions, timeout_at = NULL, \
                 ended_at = CASE WHEN $6 THEN clock_timestamp() END, \
                 duration_ms = CASE WHEN $6 THEN (extract(epoch FROM clock_timestamp() - COALESCE(j.started_at, j.created_at)) * 1000)::bigint END \
             FROM sums WHERE j.id = $1 AND j.ended_at IS NULL AND j.begun = COALESCE($7, j.begun) \
             RETURNING j.schedule_id, $2 = 'completed' AS good, $2 IN ('failed', 'timeout') AS bad), \
         state AS ( \
             UPDATE ops.orchestration_schedule_state s SET \
                 last_success_at = CASE WHEN ended.good THEN clock_timestamp() ELSE s.last_success_at END, \
                 last_failure_at = CASE WHEN ended.bad THEN clock_timestamp() ELSE s.last_failure_at END \
             FROM ended WHERE $6 AND s.schedule_id = ended.schedule_id RETURNING 1) \
             {} \
         SELECT count(*) FROM ended",
        theirs.as_deref().unwrap_or("")
    );
    let retryable = !matches!(end, End::Failed { retryable: false });
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(id)
        .bind(end.word())
        .bind(retryable)
        .bind(code)
        .bind(error)
        .bind(end != End::Again)
        .bind(epoch)
        .execute(pool)
        .await
        .map_err(OrchestrationError::database("write how an orchestration job ended"))?;
    summary(pool, id).await
}

/// The sums of a job's row.
pub(crate) async fn summary(pool: &PgPool, id: &str) -> Result<Summary, OrchestrationError> {
    let tried = "read how an orchestration job ended";
    let row = sqlx::query(
        "SELECT status = 'completed', agents_executed::bigint, agents_succeeded::bigint, agents_failed::bigint, tasks_created, \
             suggestions_created, error_message, COALESCE(duration_ms, 0) \
         FROM ops.orchestration_jobs WHERE id = $1",
    )
    .bind(id)
    .fetch_one(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = || -> Result<Summary, sqlx::Error> {
        Ok(Summary {
            success: row.try_get(0)?,
            job_id: id.to_owned(),
            agents_executed: row.try_get(1)?,
            agents_succeeded: row.try_get(2)?,
            agents_failed: row.try_get(3)?,
            tasks_created: row.try_get(4)?,
            suggestions_created: row.try_get(5)?,
            error: row.try_get(6)?,
            duration_ms: row.try_get(7)?,
        })
    };
    read().map_err(OrchestrationError::database(tried))
}

/// Ends the rows of jobs that are over although nobody could say so here: cancelled while they waited, poison, or parked while
/// the database was away; the history of the queue knows. So are those ended that nobody has told of for long past their time, as
/// when Redis lost them: they would hold their project's schedules for ever. One of them that goes on after all opens its row
/// again. Answers how many.
///
/// # Errors
/// As the database says.
pub async fn reconcile(pool: &PgPool) -> Result<u64, OrchestrationError> {
    let tried = "compare orchestration jobs with the queue's history";
    let rows = sqlx::query(
        "SELECT j.id, CASE WHEN h.is_over THEN h.outcome ELSE 'lost' END, h.error \
         FROM ops.orchestration_jobs j LEFT JOIN LATERAL ( \
             SELECT outcome, error, outcome IN ('completed', 'dead', 'cancelled', 'discarded', 'removed') \
                 AND finished_at < now() - interval '5 seconds' AS is_over \
             FROM ops.job_history WHERE job_id = j.id ORDER BY id DESC LIMIT 1) h ON true \
         WHERE j.ended_at IS NULL AND (h.is_over OR j.timeout_at < now() - interval '1 hour' \
             OR (j.status = 'queued' AND j.started_at < now() - interval '2 days')) \
         LIMIT 200",
    )
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let mut ended = 0;
    for row in rows {
        let read = || -> Result<(String, String, Option<String>), sqlx::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (id, outcome, error) = read().map_err(OrchestrationError::database(tried))?;
        let (how, code, words) = match outcome.as_str() {
            "completed" => (End::Completed, None, error.as_deref()),
            "dead" => (End::Failed { retryable: true }, Some("dead"), error.as_deref()),
            "lost" => (End::TimedOut, Some("lost"), Some("nobody has told of it for long past its time")),
            _ => (End::Cancelled, Some("cancelled"), error.as_deref()),
        };
        end(pool, &id, None, how, code, words).await?;
        ended += 1;
    }
    Ok(ended)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(crate) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn instant(row: &sqlx::postgres::PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<SqlTimestamp>, _>(column)?.map(SqlTimestamp::to_jiff))
}

pub(crate) fn to_sql(at: Option<Timestamp>) -> Option<SqlTimestamp> {
    at.map(Timestamp::to_sqlx)
}
