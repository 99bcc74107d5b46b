//! The rows of jobs: how they begin and end, and what their agents were asked before. Each step is one statement, and may be run again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use voiceai_postgres::sqlx::{self, PgPool, Row};

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
             ended_at = NULL, duration_ms = NULL, error_code = NULL, error_message = NULL, tell_from = clock_timestamp() \
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

/// The agents that have done their work for a job, or for another of its line.
pub(crate) async fn succeeded(pool: &PgPool, job: &str) -> Result<Vec<String>, OrchestrationError> {
    let tried = "read which agents have done their work";
    let rows = sqlx::query(
        "SELECT r.agent FROM ops.orchestration_agent_runs r JOIN ops.orchestration_jobs j ON j.root_id = r.root_id \
         WHERE j.id = $1 AND r.state = 'succeeded'",
    )
    .bind(job)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    rows.iter().map(|row| row.try_get(0).map_err(OrchestrationError::database(tried))).collect()
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
                 tasks_created = sums.tasks, suggestions_created = sums.suggestions, timeout_at = NULL, tell_from = clock_timestamp(), \
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

pub(crate) fn instant(row: &sqlx::postgres::PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<SqlTimestamp>, _>(column)?.map(SqlTimestamp::to_jiff))
}

pub(crate) fn to_sql(at: Option<Timestamp>) -> Option<SqlTimestamp> {
    at.map(Timestamp::to_sqlx)
}
