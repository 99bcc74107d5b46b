//! Brings the platform's own `orchestration_jobs` and `orchestration_execution_logs` up to date, where there are any: what its screens
//! show of a job is what our rows say. Each job is one statement, which also notes that it was told; one that cannot be told keeps no
//! other from it, and none is kept from running.

use std::collections::{BTreeMap, BTreeSet};

use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::{Map, Value};
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::{OrchestrationError, chain};
use crate::tables::{self, Table};
use crate::told::{self, Agent, Rows, Source};

/// Most jobs of one round.
const LOT: i64 = 100;

/// The platform's tables of jobs and phases.
struct Theirs {
    jobs: Table,
    phases: Option<Table>,
}

/// What is due, and of which moment.
struct Due {
    source: Source,
    /// The row's mark as it was read: a job that went on meanwhile is told again.
    tell_from: Option<SqlTimestamp>,
    told_before: bool,
}

/// What became of telling one job.
enum Told {
    Yes,
    /// It went on meanwhile, or another process tells it.
    Overtaken,
}

/// Tells of every job that has changed since it was last told of. Answers how many; nothing where the platform has no such table.
///
/// # Errors
/// As the database says; what is wrong with one job is noted in its row and tried again after minutes.
pub async fn due(pool: &PgPool) -> Result<u64, OrchestrationError> {
    let Some(theirs) = find(pool).await? else { return Ok(0) };
    tell(pool, &theirs, None).await
}

/// Tells of one job at once. Whatever goes wrong is logged: [`due`] makes up for it.
pub(crate) async fn one(pool: &PgPool, job: &str) {
    let told = async {
        let Some(theirs) = find(pool).await? else { return Ok(0) };
        tell(pool, &theirs, Some(job)).await
    };
    if let Err(error) = told.await {
        tracing::debug!(
            error = chain(&error),
            job.id = job,
            "the platform's tables cannot be told of a job now"
        );
    }
}

async fn find(pool: &PgPool) -> Result<Option<Theirs>, OrchestrationError> {
    let needed = ["id", "project_id", "job_type", "status"];
    let jobs = tables::theirs(pool, "orchestration_jobs", &needed).await?;
    // A counter's value cannot be chosen, so a row would be another one each time.
    let Some(jobs) = jobs.filter(may_be_told) else { return Ok(None) };
    let needed = ["id", "job_id", "phase", "status"];
    let phases = tables::theirs(pool, "orchestration_execution_logs", &needed).await?.filter(may_be_told);
    Ok(Some(Theirs { jobs, phases }))
}

fn may_be_told(table: &Table) -> bool {
    let names = ["uuid", "text", "character varying"];
    table.may_write() && table.type_of("id").is_some_and(|kind| names.contains(&kind))
}

async fn tell(pool: &PgPool, theirs: &Theirs, only: Option<&str>) -> Result<u64, OrchestrationError> {
    let is_uuid = theirs.jobs.type_of("id") == Some("uuid");
    let due = read(pool, is_uuid, only).await?;
    let agents = agents(pool, &due).await?;
    let mut count = 0;
    for due in due {
        let job = told::job(&due.source, &theirs.jobs);
        let phases = theirs.phases.as_ref().map(|table| told::phases(&due.source, &agents, table));
        let mut outcome = write(pool, theirs, &due, &job, phases.as_ref()).await;
        if outcome.as_ref().is_err_and(points_nowhere) {
            let bare = phases.map(Rows::without_references);
            let job = job.without_references();
            outcome = write(pool, theirs, &due, &job, bare.as_ref()).await;
        }
        match outcome {
            Ok(Told::Yes) => count += 1,
            Ok(Told::Overtaken) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => note_failure(pool, &due, &error).await?,
        }
    }
    Ok(count)
}

/// 23503: a project, user or parent that their tables do not have.
fn points_nowhere(error: &OrchestrationError) -> bool {
    let OrchestrationError::Database { source, .. } = error else { return false };
    source.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "23503")
}

async fn read(pool: &PgPool, is_uuid: bool, only: Option<&str>) -> Result<Vec<Due>, OrchestrationError> {
    let tried = "look for jobs that the platform is to be told of";
    let rows = sqlx::query(
        "SELECT to_jsonb(j) || jsonb_build_object( \
             'told_now', clock_timestamp(), \
             'agent_runs', COALESCE((SELECT jsonb_agg(to_jsonb(r) ORDER BY r.agent) FROM ops.orchestration_agent_runs r \
                 WHERE r.root_id = j.root_id AND r.agent = ANY (j.agents)), '[]'), \
             'phases', COALESCE((SELECT jsonb_agg(to_jsonb(l) ORDER BY l.id) FROM ops.orchestration_execution_logs l \
                 WHERE l.job_id = j.id), '[]')) AS row, \
             j.id, j.platform_id, j.parent_id, p.platform_id AS parent_platform_id, p.id AS our_parent, j.tell_from, \
             j.told_at IS NOT NULL AS told_before \
         FROM ops.orchestration_jobs j LEFT JOIN ops.orchestration_jobs p ON p.id = j.parent_id \
         WHERE j.tell_from IS NOT NULL AND CASE WHEN $1::text IS NULL THEN j.tell_from <= clock_timestamp() ELSE j.id = $1 END \
         ORDER BY j.tell_from, j.id LIMIT $2",
    )
    .bind(only)
    .bind(LOT)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<Due, sqlx::Error> {
        let content: Value = row.try_get("row")?;
        let ours: String = row.try_get("id")?;
        let known: Option<String> = row.try_get("platform_id")?;
        let parent: Option<String> = row.try_get("parent_id")?;
        let of_parent: Option<String> = row.try_get("parent_platform_id")?;
        let our_parent: Option<String> = row.try_get("our_parent")?;
        // A parent without a row of ours is a row of theirs.
        let parent = of_parent.or_else(|| our_parent.map(|id| told::row_id(&id, is_uuid))).or(parent);
        let id = known.unwrap_or_else(|| told::row_id(&ours, is_uuid));
        let source = Source { row: content.as_object().cloned().unwrap_or_default(), id, parent };
        Ok(Due { source, tell_from: row.try_get("tell_from")?, told_before: row.try_get("told_before")? })
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// The platform's names and ids of the agents that these jobs asked.
async fn agents(pool: &PgPool, due: &[Due]) -> Result<BTreeMap<String, Agent>, OrchestrationError> {
    let tried = "read the names of agents";
    let asked: BTreeSet<&str> = due
        .iter()
        .flat_map(|due| due.source.row.get("phases").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|phase| phase.get("agent").and_then(Value::as_str))
        .collect();
    let Some(table) = tables::find(pool, "ai_agents", &["id", "slug"]).await? else {
        return Ok(BTreeMap::new());
    };
    let name = if table.has("name") { "name::text" } else { "NULL::text" };
    let statement =
        format!("SELECT slug::text, id::text, {name} FROM {} WHERE slug::text = ANY ($1)", table.name);
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(asked.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .fetch_all(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<(String, Agent), sqlx::Error> {
        Ok((row.try_get(0)?, Agent { id: row.try_get(1)?, name: row.try_get(2)? }))
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// `WITH` part that writes the rows in column `name` of `mine` into `table`: a new row whole, one that is there only where it moves.
fn part(name: &str, table: &Table, rows: &Rows) -> String {
    let columns = rows.columns.join(", ");
    let values = rows.columns.iter().map(|column| format!("n.{column}")).collect::<Vec<_>>().join(", ");
    let moved = rows.moves.iter().map(|column| format!("{column} = EXCLUDED.{column}")).collect::<Vec<_>>();
    let table = &table.name;
    format!(
        "told_{name} AS (INSERT INTO {table} ({columns}) \
             SELECT {values} FROM mine, LATERAL jsonb_populate_recordset(NULL::{table}, mine.{name}) n \
             ON CONFLICT (id) DO UPDATE SET {} RETURNING 1)",
        moved.join(", ")
    )
}

async fn write(
    pool: &PgPool,
    theirs: &Theirs,
    due: &Due,
    job: &Rows,
    phases: Option<&Rows>,
) -> Result<Told, OrchestrationError> {
    let phases = theirs.phases.as_ref().zip(phases).filter(|(_, rows)| !rows.rows.is_empty());
    let logs = phases.map(|(table, rows)| format!(", {}", part("phases", table, rows))).unwrap_or_default();
    // A running job is looked at again: its phases go on without a word of the job's row.
    let statement = format!(
        "WITH mine AS MATERIALIZED (SELECT $4::jsonb AS jobs, $5::jsonb AS phases FROM ops.orchestration_jobs \
             WHERE id = $1 AND tell_from IS NOT DISTINCT FROM $2 FOR UPDATE), \
         {} {logs} \
         UPDATE ops.orchestration_jobs SET told_at = clock_timestamp(), tell_error = NULL, platform_id = $3, \
             tell_from = CASE WHEN status = 'running' THEN clock_timestamp() + interval '10 seconds' END \
         FROM mine WHERE id = $1",
        part("jobs", &theirs.jobs, job)
    );
    let list = |rows: &Rows| Value::Array(rows.rows.iter().cloned().map(Value::Object).collect());
    let done = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(our_id(&due.source.row))
        .bind(due.tell_from)
        .bind(&due.source.id)
        .bind(list(job))
        .bind(phases.map(|(_, rows)| list(rows)))
        .execute(pool)
        .await
        .map_err(OrchestrationError::database("tell the platform's tables of an orchestration job"))?;
    Ok(if done.rows_affected() > 0 { Told::Yes } else { Told::Overtaken })
}

fn our_id(row: &Map<String, Value>) -> &str {
    row.get("id").and_then(Value::as_str).unwrap_or_default()
}

/// Notes why a job cannot be told of; it is tried again after five minutes.
async fn note_failure(
    pool: &PgPool,
    due: &Due,
    error: &OrchestrationError,
) -> Result<(), OrchestrationError> {
    let (id, problem) = (our_id(&due.source.row), chain(error));
    if due.source.row.get("tell_error").and_then(Value::as_str) != Some(&problem) {
        tracing::warn!(
            job.id = id,
            problem,
            told_before = due.told_before,
            "the platform's orchestration_jobs cannot be told of a job; it runs all the same"
        );
    }
    sqlx::query(
        "UPDATE ops.orchestration_jobs SET tell_error = $3, tell_from = clock_timestamp() + interval '5 minutes' \
         WHERE id = $1 AND tell_from IS NOT DISTINCT FROM $2",
    )
    .bind(id)
    .bind(due.tell_from)
    .bind(problem)
    .execute(pool)
    .await
    .map(drop)
    .map_err(OrchestrationError::database("note why the platform cannot be told of a job"))
}
