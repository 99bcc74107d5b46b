//! Jobs as people look at them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::OrchestrationError;
use crate::schedule::store::as_json;
use crate::store::instant;

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobLine {
    /// Its id.
    pub id: String,
    /// Its project.
    pub project: String,
    /// What it does.
    pub job_type: String,
    /// Who caused it.
    pub triggered_by: String,
    /// Where it stands.
    pub status: String,
    /// Agents that did their work.
    pub agents_succeeded: i32,
    /// Agents that failed.
    pub agents_failed: i32,
    /// When it was first known.
    pub created_at: Option<Timestamp>,
    /// How long it took.
    pub duration_ms: Option<i64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The newest jobs, of one project or status where given.
///
/// # Errors
/// As the database says.
pub async fn jobs(
    pool: &PgPool,
    project: Option<&str>,
    status: Option<&str>,
    limit: u32,
) -> Result<Vec<JobLine>, OrchestrationError> {
    let tried = "list orchestration jobs";
    let rows = sqlx::query(
        "SELECT id, project_id, job_type, triggered_by, status, agents_succeeded, agents_failed, created_at, duration_ms, \
             error_message \
         FROM ops.orchestration_jobs \
         WHERE ($1::text IS NULL OR project_id = $1) AND ($2::text IS NULL OR status = $2) \
         ORDER BY created_at DESC, id LIMIT $3",
    )
    .bind(project)
    .bind(status)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<JobLine, sqlx::Error> {
        Ok(JobLine {
            id: row.try_get(0)?,
            project: row.try_get(1)?,
            job_type: row.try_get(2)?,
            triggered_by: row.try_get(3)?,
            status: row.try_get(4)?,
            agents_succeeded: row.try_get(5)?,
            agents_failed: row.try_get(6)?,
            created_at: instant(row, "created_at")?,
            duration_ms: row.try_get(8)?,
            error: row.try_get(9)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// One job with what each of its agents was asked, and its phases; `None` where there is no such job.
///
/// # Errors
/// As the database says.
pub async fn show(pool: &PgPool, id: &str) -> Result<Option<Map<String, Value>>, OrchestrationError> {
    let row = sqlx::query(
        "SELECT to_jsonb(j) || jsonb_build_object( \
             'agent_runs', COALESCE((SELECT jsonb_agg(to_jsonb(r) ORDER BY r.agent) FROM ops.orchestration_agent_runs r \
                 WHERE r.root_id = j.root_id), '[]'), \
             'phases', COALESCE((SELECT jsonb_agg(to_jsonb(l) ORDER BY l.id) FROM ops.orchestration_execution_logs l \
                 WHERE l.job_id = j.id), '[]')) \
         FROM ops.orchestration_jobs j WHERE j.id = $1",
    )
    .bind(id)
    .fetch_optional(pool)
    .await
    .map_err(OrchestrationError::database("read an orchestration job"))?;
    row.map(|row| as_json(&row))
        .transpose()
        .map_err(OrchestrationError::database("read an orchestration job"))
}
