//! The hourly look for failed jobs: ours, and those of the platform's own `orchestration_jobs`.

use serde_json::{Map, Value, json};
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::OrchestrationSettings;
use crate::error::OrchestrationError;
use crate::jobs::{PRIORITY, QUEUE};
use crate::order::{JobType, check_project, is_agent_name, new_job_id};
use crate::tables;

/// Most retries of one look.
const LIMIT: i64 = 50;

/// A failed job that is to be retried.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    id: String,
    root: String,
    number: i32,
    max: i32,
    project: String,
    user: Option<String>,
    agent: Option<String>,
    context: Map<String, Value>,
}

/// Enqueues a retry of each job that failed within the last 24 hours, may be tried again and was not yet retried by this look.
/// Answers the new jobs' ids.
pub(crate) async fn sweep(
    pool: &PgPool,
    settings: &OrchestrationSettings,
) -> Result<Vec<String>, OrchestrationError> {
    let mut candidates = ours(pool).await?;
    let room = LIMIT.saturating_sub(i64::try_from(candidates.len()).unwrap_or(LIMIT));
    candidates.extend(theirs(pool, settings, room).await?);
    let mut retried = Vec::new();
    for candidate in candidates {
        if let Some(id) = retry(pool, &candidate).await? {
            tracing::info!(
                job.id = id,
                parent = candidate.id,
                attempt = candidate.number + 1,
                "failed orchestration job is retried"
            );
            retried.push(id);
        }
    }
    Ok(retried)
}

async fn ours(pool: &PgPool) -> Result<Vec<Candidate>, OrchestrationError> {
    let tried = "look for failed orchestration jobs";
    let rows = sqlx::query(
        "SELECT j.id, j.root_id, j.attempt_number, j.max_attempts, j.project_id, j.user_id, j.input \
         FROM ops.orchestration_jobs j \
         WHERE j.status IN ('failed', 'timeout') AND j.retryable AND j.attempt_number < j.max_attempts \
             AND j.created_at > now() - interval '24 hours' \
             AND NOT EXISTS (SELECT FROM ops.orchestration_jobs r WHERE r.parent_id = j.id) \
         ORDER BY j.ended_at, j.id LIMIT $1",
    )
    .bind(LIMIT)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<Candidate, sqlx::Error> {
        let input: Value = row.try_get(6)?;
        let context = input.get("context").and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(Candidate {
            id: row.try_get(0)?,
            root: row.try_get(1)?,
            number: row.try_get(2)?,
            max: row.try_get(3)?,
            project: row.try_get(4)?,
            user: row.try_get(5)?,
            // The agents of the failed job are known by its row.
            agent: None,
            context,
        })
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// Failed rows of the platform's own table, where there is one.
async fn theirs(
    pool: &PgPool,
    settings: &OrchestrationSettings,
    room: i64,
) -> Result<Vec<Candidate>, OrchestrationError> {
    let tried = "look for the platform's failed orchestration jobs";
    let needed = ["id", "project_id", "job_type", "status", "attempt_number"];
    let Some(table) = tables::theirs(pool, "orchestration_jobs", &needed).await? else {
        return Ok(Vec::new());
    };
    let created = ["date_created", "created_at", "completed_at"].into_iter().find(|column| table.has(column));
    let Some(created) = created else { return Ok(Vec::new()) };
    let statement = format!(
        "SELECT to_jsonb(j) FROM {} j \
         WHERE j.status::text = 'failed' AND COALESCE(j.attempt_number, 1) < COALESCE((to_jsonb(j) ->> 'max_attempts')::int, 3) \
             AND j.{created} > now() - interval '24 hours' AND j.project_id IS NOT NULL \
             AND NOT EXISTS (SELECT FROM ops.orchestration_jobs r WHERE r.parent_id = j.id::text) \
             AND NOT EXISTS (SELECT FROM ops.orchestration_jobs r WHERE r.platform_id = j.id::text) \
         ORDER BY j.{created}, j.id LIMIT $1",
        table.name
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(room)
        .fetch_all(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let mut found = Vec::new();
    for row in rows {
        let row: Value = row.try_get(0).map_err(OrchestrationError::database(tried))?;
        match read_theirs(row.as_object().unwrap_or(&Map::new()), settings) {
            Ok(candidate) => found.push(candidate),
            Err(problem) => tracing::warn!(problem, "a failed job of the platform cannot be retried"),
        }
    }
    Ok(found)
}

fn read_theirs(row: &Map<String, Value>, settings: &OrchestrationSettings) -> Result<Candidate, String> {
    use crate::schedule::row::{text, whole};
    let id = text(row, "id").ok_or("id is NULL")?;
    let project = text(row, "project_id").ok_or_else(|| format!("job {id}: project_id is NULL"))?;
    check_project(&project).map_err(|problem| format!("job {id}: {problem}"))?;
    let number =
        |column, default| whole(row, column, default, 0, 1_000).map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    let input = row.get("input_params").and_then(Value::as_object).cloned().unwrap_or_default();
    let named = text(&input, "agentSlug").or_else(|| text(&input, "agent_slug"));
    let agent = match text(row, "job_type").as_deref() {
        Some("github_analysis") => Some(settings.github_agent.clone()),
        Some("single_agent") => {
            Some(named.ok_or_else(|| format!("job {id}: input_params names no agentSlug"))?)
        }
        Some("batch" | "retry" | "manual") => named,
        other => return Err(format!("job {id}: job_type {} has no handler", other.unwrap_or("NULL"))),
    };
    if let Some(agent) = agent.as_deref().filter(|agent| !is_agent_name(agent)) {
        return Err(format!("job {id}: agent {agent:?} is no agent's name"));
    }
    Ok(Candidate {
        root: id.clone(),
        number: number("attempt_number", 1)?,
        max: number("max_attempts", 3)?,
        project,
        user: text(row, "triggered_by_user_id"),
        agent,
        context: input.get("context").and_then(Value::as_object).cloned().unwrap_or_default(),
        id,
    })
}

/// The row of the retry and its job, in one statement; `None`: somebody retried it meanwhile.
async fn retry(pool: &PgPool, of: &Candidate) -> Result<Option<String>, OrchestrationError> {
    let id = new_job_id(&of.project);
    let mut context = of.context.clone();
    context.insert("parentJobId".to_owned(), json!(of.id));
    let mut payload = json!({ "projectId": of.project, "triggeredBy": "retry_scheduler", "jobType": "retry", "context": context });
    if let Some(user) = &of.user {
        payload["userId"] = json!(user);
    }
    if let Some(agent) = &of.agent {
        payload["agentSlug"] = json!(agent);
    }
    let done = sqlx::query(
        "WITH row AS ( \
             INSERT INTO ops.orchestration_jobs (id, root_id, parent_id, project_id, job_type, triggered_by, user_id, status, \
                 attempt_number, max_attempts, input) \
             VALUES ($1, $2, $3, $4, 'retry', 'retry_scheduler', $5, 'queued', $6, $7, $8::jsonb) \
             ON CONFLICT DO NOTHING RETURNING id) \
         INSERT INTO ops.outbox (id, queue, kind, payload, priority, critical) \
         SELECT id, $9, $10, $8::json, $11, true FROM row",
    )
    .bind(&id)
    .bind(&of.root)
    .bind(&of.id)
    .bind(&of.project)
    .bind(of.user.as_deref())
    .bind(of.number.saturating_add(1))
    .bind(of.max)
    .bind(payload.to_string())
    .bind(QUEUE)
    .bind(JobType::Retry.kind())
    .bind(i16::from(PRIORITY))
    .execute(pool)
    .await
    .map_err(OrchestrationError::database("enqueue the retry of an orchestration job"))?;
    Ok((done.rows_affected() > 0).then_some(id))
}
