//! Schedules and where they stand, in PostgreSQL.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde::Serialize;
use serde_json::{Map, Value, json};
use voiceai_postgres::Term;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::row::{self, Malformed, Schedule};
use crate::error::OrchestrationError;
use crate::jobs::QUEUE;
use crate::order::{JobType, Order, Trigger};
use crate::store::{instant, to_sql};
use crate::tables::{self, Table};

/// Every schedule with its state, the database's clock, and the table they come from.
pub(crate) struct Loaded {
    pub(crate) rows: Vec<(Result<Schedule, Malformed>, Option<State>)>,
    pub(crate) now: Timestamp,
    pub(crate) table: Table,
}

/// Where a schedule stands, as its row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) definition: String,
    pub(crate) since: Timestamp,
    pub(crate) last_slot: Option<Timestamp>,
    pub(crate) last_fired_at: Option<Timestamp>,
    pub(crate) last_success_at: Option<Timestamp>,
    pub(crate) last_failure_at: Option<Timestamp>,
    pub(crate) decision: String,
    pub(crate) reason: String,
    pub(crate) evaluated_at: Timestamp,
}

/// Reads every schedule; `None` where there is no table of them, which our migrations rule out.
pub(crate) async fn load(pool: &PgPool) -> Result<Option<Loaded>, OrchestrationError> {
    let tried = "read the orchestration schedules";
    let Some(table) = tables::schedules(pool).await? else { return Ok(None) };
    let agents = agent_names(pool, &table).await?;
    // One row more than there are schedules, so that the clock comes along even without any.
    let statement = format!(
        "SELECT t.clock, to_jsonb(s) AS schedule, st.* FROM (SELECT clock_timestamp() AS clock) t \
         LEFT JOIN {} s ON true LEFT JOIN ops.orchestration_schedule_state st ON st.schedule_id = s.id::text \
         ORDER BY s.id",
        table.name
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .fetch_all(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let mut now = Timestamp::UNIX_EPOCH;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let read = || -> Result<_, sqlx::Error> {
            let clock = row.try_get::<SqlTimestamp, _>("clock")?.to_jiff();
            Ok((clock, row.try_get::<Option<Value>, _>("schedule")?, state(row)?))
        };
        let (clock, schedule, state) = read().map_err(OrchestrationError::database(tried))?;
        now = clock;
        if let Some(Value::Object(schedule)) = schedule {
            let agent = row::text(&schedule, "agent_id").and_then(|id| agents.get(&id));
            found.push((row::read(&schedule, agent.map(String::as_str)), state));
        }
    }
    Ok(Some(Loaded { rows: found, now, table }))
}

fn state(row: &PgRow) -> Result<Option<State>, sqlx::Error> {
    let Some(definition) = row.try_get::<Option<String>, _>("definition")? else { return Ok(None) };
    let known = |column| instant(row, column).map(|at| at.unwrap_or(Timestamp::UNIX_EPOCH));
    Ok(Some(State {
        definition,
        since: known("since")?,
        last_slot: instant(row, "last_slot")?,
        last_fired_at: instant(row, "last_fired_at")?,
        last_success_at: instant(row, "last_success_at")?,
        last_failure_at: instant(row, "last_failure_at")?,
        decision: row.try_get("decision")?,
        reason: row.try_get("reason")?,
        evaluated_at: known("evaluated_at")?,
    }))
}

/// The platform's schedules point at their agents by id.
async fn agent_names(pool: &PgPool, table: &Table) -> Result<HashMap<String, String>, OrchestrationError> {
    let tried = "read the names of agents";
    if !table.has("agent_id") {
        return Ok(HashMap::new());
    }
    let Some(agents) = tables::find(pool, "ai_agents", &["id", "slug"]).await? else {
        return Ok(HashMap::new());
    };
    let statement = format!("SELECT id::text, slug::text FROM {} WHERE slug IS NOT NULL", agents.name);
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .fetch_all(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let read =
        |row: &PgRow| -> Result<(String, String), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// Of every project with an unfinished job, one of them.
pub(crate) async fn unfinished(pool: &PgPool) -> Result<HashMap<String, String>, OrchestrationError> {
    let tried = "read the unfinished orchestration jobs";
    let rows = sqlx::query(
        "SELECT project_id, min(id) FROM ops.orchestration_jobs WHERE ended_at IS NULL GROUP BY project_id",
    )
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read =
        |row: &PgRow| -> Result<(String, String), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// How often each of these schedules fired since the begin of its local day.
pub(crate) async fn runs_since(
    pool: &PgPool,
    days: &[(String, Timestamp)],
) -> Result<HashMap<String, u32>, OrchestrationError> {
    let tried = "count the runs of orchestration schedules";
    let (ids, begins): (Vec<String>, Vec<SqlTimestamp>) =
        days.iter().map(|(id, begin)| (id.clone(), begin.to_sqlx())).unzip();
    let rows = sqlx::query(
        "SELECT d.id, count(j.id) FROM unnest($1::text[], $2::timestamptz[]) AS d (id, begins) \
         JOIN ops.orchestration_jobs j ON j.schedule_id = d.id AND j.created_at >= d.begins GROUP BY d.id",
    )
    .bind(ids)
    .bind(begins)
    .fetch_all(pool)
    .await
    .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<(String, u32), sqlx::Error> {
        Ok((row.try_get(0)?, u32::try_from(row.try_get::<i64, _>(1)?).unwrap_or(u32::MAX)))
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// What is noted of a schedule that does not fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) id: String,
    pub(crate) definition: String,
    pub(crate) since: Timestamp,
    pub(crate) decision: &'static str,
    pub(crate) reason: String,
    pub(crate) next: Option<Timestamp>,
}

/// Writes notes as of `now`, under the leader's term.
pub(crate) async fn note(
    pool: &PgPool,
    term: &Term,
    notes: &[Note],
    now: Timestamp,
) -> Result<(), OrchestrationError> {
    let column = |value: fn(&Note) -> String| notes.iter().map(value).collect::<Vec<_>>();
    sqlx::query(
        "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE) \
         INSERT INTO ops.orchestration_schedule_state AS s (schedule_id, definition, since, decision, reason, next_at, evaluated_at) \
         SELECT n.id, n.definition, n.since, n.decision, n.reason, n.next, $9 FROM leader, \
             unnest($3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::timestamptz[]) \
             AS n (id, definition, since, decision, reason, next) \
         ON CONFLICT (schedule_id) DO UPDATE SET definition = EXCLUDED.definition, since = EXCLUDED.since, \
             decision = EXCLUDED.decision, reason = EXCLUDED.reason, next_at = EXCLUDED.next_at, evaluated_at = EXCLUDED.evaluated_at",
    )
    .bind(&*term.name)
    .bind(term.number)
    .bind(column(|note| note.id.clone()))
    .bind(column(|note| note.definition.clone()))
    .bind(notes.iter().map(|note| note.since.to_sqlx()).collect::<Vec<_>>())
    .bind(column(|note| note.decision.to_owned()))
    .bind(column(|note| note.reason.clone()))
    .bind(notes.iter().map(|note| to_sql(note.next)).collect::<Vec<_>>())
    .bind(now.to_sqlx())
    .execute(pool)
    .await
    .map(drop)
    .map_err(OrchestrationError::database("note why orchestration schedules wait"))
}

/// What became of a firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fired {
    /// The slot is a job now.
    Yes,
    /// It was one before, or another moved the schedule meanwhile.
    Overtaken,
    /// The term is not the newest. Nothing was done.
    StaleTerm,
}

/// Fires a slot as of `now`: the leader's term is read, the schedule is moved from exactly where the decision was made, and the job's row and its
/// outbox row are written; all of it or nothing.
pub(crate) async fn fire(
    pool: &PgPool,
    term: &Term,
    table: &Table,
    schedule: &Schedule,
    last_slot: Option<Timestamp>,
    slot: Timestamp,
    now: Timestamp,
) -> Result<Fired, OrchestrationError> {
    let tried = "fire an orchestration schedule";
    let id = row::slot_job_id(schedule, slot);
    let kind = if schedule.agent.is_some() { JobType::SingleAgent } else { JobType::Batch };
    let order = Order {
        priority: Some(schedule.priority),
        job_type: Some(kind),
        agent_slug: schedule.agent.clone(),
        ..Order::new(&schedule.project, Trigger::Cron)
    };
    let theirs = table.assignments(&[("last_run_at", "$14::timestamptz")]).map(|set| {
        format!(
            ", theirs AS (UPDATE {} SET {set} WHERE id::text = $3 AND EXISTS (SELECT FROM job) RETURNING 1)",
            table.name
        )
    });
    let statement = format!(
        "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
         moved AS ( \
             UPDATE ops.orchestration_schedule_state SET last_slot = $5, last_fired_at = $14::timestamptz, last_job_id = $6, \
                 fired_total = fired_total + 1, decision = 'fired', reason = 'fired job ' || $6 || ' for ' || $13, next_at = NULL, \
                 evaluated_at = $14::timestamptz \
             WHERE schedule_id = $3 AND last_slot IS NOT DISTINCT FROM $4 AND EXISTS (SELECT FROM leader) RETURNING 1), \
         job AS ( \
             INSERT INTO ops.orchestration_jobs (id, root_id, project_id, job_type, triggered_by, schedule_id, slot, status, input, created_at) \
             SELECT $6, $6, $7, $8, 'cron', $3, $5, 'queued', $9::jsonb, $14::timestamptz FROM moved ON CONFLICT DO NOTHING RETURNING 1), \
         out AS ( \
             INSERT INTO ops.outbox (id, queue, kind, payload, priority, critical) \
             SELECT $6, $10, $11, $9::json, $12, true FROM job ON CONFLICT (id) DO NOTHING RETURNING 1) \
             {} \
         SELECT EXISTS (SELECT FROM leader), EXISTS (SELECT FROM job)",
        theirs.as_deref().unwrap_or("")
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(&*term.name)
        .bind(term.number)
        .bind(&schedule.id)
        .bind(to_sql(last_slot))
        .bind(slot.to_sqlx())
        .bind(&id)
        .bind(&schedule.project)
        .bind(kind.word())
        .bind(json!(order).to_string())
        .bind(QUEUE)
        .bind(kind.kind())
        .bind(i16::from(schedule.priority))
        .bind(slot.to_string())
        .bind(now.to_sqlx())
        .fetch_one(pool)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let read = || -> Result<(bool, bool), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    Ok(match read().map_err(OrchestrationError::database(tried))? {
        (false, _) => Fired::StaleTerm,
        (true, false) => Fired::Overtaken,
        (true, true) => Fired::Yes,
    })
}

/// A schedule as people look at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its id.
    pub id: String,
    /// Its project.
    pub project: Option<String>,
    /// The agent it calls; absent: all.
    pub agent: Option<String>,
    /// When it is due, in short.
    pub times: String,
    /// `fired`, `waiting`, `off`, `misconfigured`, or `new`: not looked at yet.
    pub decision: String,
    /// Why it does not fire, or what it fired.
    pub reason: String,
    /// When it was last looked at.
    pub evaluated_at: Option<Timestamp>,
    /// When it last fired.
    pub last_fired_at: Option<Timestamp>,
    /// When its last good job ended.
    pub last_success_at: Option<Timestamp>,
    /// When its last failed one did.
    pub last_failure_at: Option<Timestamp>,
}

/// Every schedule and why it does not fire at present.
///
/// # Errors
/// As the database says.
pub async fn list(pool: &PgPool) -> Result<Vec<Line>, OrchestrationError> {
    let Some(loaded) = load(pool).await? else { return Ok(Vec::new()) };
    let lines = loaded.rows.into_iter().map(|(schedule, state)| {
        let (id, project, agent, times, problem) = match schedule {
            Ok(schedule) => {
                let times = schedule
                    .definition
                    .rsplit_once('|')
                    .map_or_else(String::new, |(times, _)| times.replace('|', " in "));
                (schedule.id, Some(schedule.project), schedule.agent, times, None)
            }
            Err(malformed) => (malformed.id, None, None, String::new(), Some(malformed.problem)),
        };
        let decision = state.as_ref().map_or("new", |state| state.decision.as_str());
        Line {
            id,
            project,
            agent,
            times,
            decision: problem.as_ref().map_or(decision, |_| "misconfigured").to_owned(),
            reason: problem.unwrap_or_else(|| {
                state.as_ref().map_or_else(|| "not looked at yet".to_owned(), |state| state.reason.clone())
            }),
            evaluated_at: state.as_ref().map(|state| state.evaluated_at),
            last_fired_at: state.as_ref().and_then(|state| state.last_fired_at),
            last_success_at: state.as_ref().and_then(|state| state.last_success_at),
            last_failure_at: state.as_ref().and_then(|state| state.last_failure_at),
        }
    });
    Ok(lines.collect())
}

/// A job's row as JSON, for people.
pub(crate) fn as_json(row: &PgRow) -> Result<Map<String, Value>, sqlx::Error> {
    let value: Value = row.try_get(0)?;
    Ok(value.as_object().cloned().unwrap_or_default())
}
