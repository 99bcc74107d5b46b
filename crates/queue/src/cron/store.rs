//! Schedules in PostgreSQL: what the commands and the releases change, and the one statement that fires.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde_json::Value;
use voiceai_postgres::Term;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgExecutor, PgPool, Row};

use super::clock;
use super::policy::{MissedRuns, Pause, Verdict};
use super::schedule::{Definition, DefinitionError, Record, Schedule, check_name, slot_job_id};

/// A schedule could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// No schedule has this name.
    #[error("schedule {name:?} does not exist{}", .nearest.as_ref().map_or_else(String::new, |near| format!("; did you mean {near:?}?")))]
    NotFound {
        /// The name.
        name: String,
        /// A name that is spelled much like it.
        nearest: Option<String>,
    },
    /// The definition does not stand.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The database failed.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Why.
        source: sqlx::Error,
    },
}

impl ScheduleError {
    fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_unavailable(source))
    }
}

const COLUMNS: &str = "name, kind, queue, payload, priority, expression, zone, missed, catch_up_max, overlap, \
    enabled, paused_since, paused_until, paused_reason, overridden, revision, last_slot, last_fired_at, last_job_id, \
    fired_total, missed_total, overlapped_total, last_success_at, last_failure_at, last_error, consecutive_failures";

/// A row that is not a schedule, because somebody wrote it past the checks.
#[derive(Debug, Clone)]
pub(crate) struct Malformed {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: i64,
    /// What is wrong.
    pub problem: String,
}

/// Every schedule, by name, and the database's clock. Whoever decides about slots uses that clock, so that all deciders agree and a
/// machine whose clock is wrong fires nothing early.
pub(crate) async fn load(
    pool: &PgPool,
) -> Result<(Vec<Result<Schedule, Malformed>>, Timestamp), sqlx::Error> {
    // One row more than there are schedules, so that the clock comes along even without any.
    let sql = format!(
        "SELECT t.clock, {COLUMNS} FROM (SELECT clock_timestamp() AS clock) t LEFT JOIN ops.schedules s ON true \
         ORDER BY name"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await?;
    let mut now = Timestamp::UNIX_EPOCH;
    let mut schedules = Vec::with_capacity(rows.len());
    for row in &rows {
        now = clock::now(row.try_get::<SqlTimestamp, _>("clock")?.to_jiff());
        if let Some(name) = row.try_get::<Option<String>, _>("name")? {
            let revision = row.try_get("revision")?;
            schedules.push(read(row).map_err(|problem| Malformed { name, revision, problem }));
        }
    }
    Ok((schedules, now))
}

fn read(row: &PgRow) -> Result<Schedule, String> {
    let words = |error: sqlx::Error| error.to_string();
    let time = |column: &str| {
        row.try_get::<Option<SqlTimestamp>, _>(column).map(|at| at.map(SqlTimestamp::to_jiff)).map_err(words)
    };
    let text = |column: &str| row.try_get::<String, _>(column).map_err(words);
    let missed = match text("missed")?.as_str() {
        "catch_up" => {
            let count: i16 = row.try_get("catch_up_max").map_err(words)?;
            MissedRuns::CatchUp(u16::try_from(count).map_err(|_| "catch_up_max is negative".to_owned())?)
        }
        word => word.parse().map_err(|error: super::policy::MissedRunsError| error.to_string())?,
    };
    let priority: i16 = row.try_get("priority").map_err(words)?;
    let pause = match (time("paused_since")?, time("paused_until")?) {
        (Some(since), Some(until)) => {
            Some((Pause { since, until }, row.try_get("paused_reason").map_err(words)?))
        }
        _ => None,
    };
    Ok(Schedule {
        definition: Definition {
            name: text("name")?,
            kind: text("kind")?,
            queue: text("queue")?,
            payload: row.try_get::<Value, _>("payload").map_err(words)?,
            priority: u8::try_from(priority).map_err(|_| "priority is out of bounds".to_owned())?,
            expression: text("expression")?,
            zone: text("zone")?,
            missed,
            overlap: text("overlap")?
                .parse()
                .map_err(|error: super::policy::OverlapError| error.to_string())?,
            enabled: row.try_get("enabled").map_err(words)?,
        },
        pause,
        overridden: row.try_get("overridden").map_err(words)?,
        revision: row.try_get("revision").map_err(words)?,
        last_slot: time("last_slot")?.ok_or("last_slot is NULL")?,
        record: Record {
            last_fired_at: time("last_fired_at")?,
            last_job_id: row.try_get("last_job_id").map_err(words)?,
            fired_total: row.try_get("fired_total").map_err(words)?,
            missed_total: row.try_get("missed_total").map_err(words)?,
            overlapped_total: row.try_get("overlapped_total").map_err(words)?,
            last_success_at: time("last_success_at")?,
            last_failure_at: time("last_failure_at")?,
            last_error: row.try_get("last_error").map_err(words)?,
            consecutive_failures: row.try_get("consecutive_failures").map_err(words)?,
        },
    })
}

/// One schedule.
///
/// # Errors
/// [`ScheduleError::NotFound`] with the nearest name; as the database says.
pub async fn get(pool: &PgPool, name: &str) -> Result<Schedule, ScheduleError> {
    let (all, _) = load(pool).await.map_err(ScheduleError::database("read the schedules"))?;
    let mut names = vec![];
    for row in all {
        match row {
            Ok(schedule) if schedule.definition.name == name => return Ok(schedule),
            Ok(schedule) => names.push(schedule.definition.name),
            Err(row) => names.push(row.name),
        }
    }
    Err(not_found(name, &names))
}

/// Why a statement found no row.
async fn missing(pool: &PgPool, name: &str) -> ScheduleError {
    get(pool, name).await.err().unwrap_or_else(|| not_found(name, &[]))
}

fn not_found(name: &str, names: &[String]) -> ScheduleError {
    let bound = (name.len() / 3).max(2);
    let nearest = names
        .iter()
        .map(|have| (strsim::damerau_levenshtein(name, have), have))
        .min()
        .filter(|(distance, _)| *distance <= bound)
        .map(|(_, have)| have.clone());
    ScheduleError::NotFound { name: name.to_owned(), nearest }
}

/// Creates a schedule or changes it to `definition`, on an operator's word: from now on a release's [`declare`] leaves it alone. A
/// new schedule's first slot is the next one. Answers whether it was created.
///
/// # Errors
/// [`ScheduleError::Definition`] before anything is written; as the database says.
pub async fn set(executor: impl PgExecutor<'_>, definition: &Definition) -> Result<bool, ScheduleError> {
    Ok(!upsert(executor, std::slice::from_ref(definition), true).await?.is_empty())
}

/// Creates the schedules that a release brings along, or brings them up to date unless an operator has [`set`] them: all of them in
/// one statement, or none. No name may stand twice. Answers the names of those that were created, in order.
///
/// # Errors
/// [`ScheduleError::Definition`] for the first that does not stand, before anything is written; as the database says.
pub async fn declare(
    executor: impl PgExecutor<'_>,
    definitions: &[Definition],
) -> Result<Vec<String>, ScheduleError> {
    upsert(executor, definitions, false).await
}

/// A definition's missed-run policy as its columns have it.
fn missed_columns(definition: &Definition) -> Result<(&'static str, Option<i16>), DefinitionError> {
    Ok(match definition.missed {
        MissedRuns::Skip => ("skip", None),
        MissedRuns::Once => ("once", None),
        MissedRuns::CatchUp(count) => {
            // Through the reader's own rule, so that what is written can be read.
            let name = definition.name.clone();
            let checked = definition.missed.to_string().parse();
            checked.map_err(|source| DefinitionError::Missed { name, source }).map(|_: MissedRuns| ())?;
            ("catch_up", Some(i16::try_from(count).unwrap_or(i16::MAX)))
        }
    })
}

/// Answers the names of those that were created.
async fn upsert(
    executor: impl PgExecutor<'_>,
    definitions: &[Definition],
    operator: bool,
) -> Result<Vec<String>, ScheduleError> {
    let calendars = definitions.iter().map(Definition::check).collect::<Result<Vec<_>, _>>()?;
    let missed = definitions.iter().map(missed_columns).collect::<Result<Vec<_>, _>>()?;
    let column = |of: fn(&Definition) -> String| definitions.iter().map(of).collect::<Vec<_>>();
    let rows = sqlx::query(
        "INSERT INTO ops.schedules AS s (name, kind, queue, payload, priority, expression, zone, missed, \
             catch_up_max, overlap, enabled, overridden, last_slot) \
         SELECT d.*, $12, COALESCE(CASE WHEN abs(extract(epoch FROM $13 - now())) > 12 * 3600 THEN $13 END, now()) \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], $5::smallint[], $6::text[], $7::text[], $8::text[], \
             $9::smallint[], $10::text[], $11::boolean[]) AS d (name) ORDER BY d.name \
         ON CONFLICT (name) DO UPDATE SET kind = EXCLUDED.kind, queue = EXCLUDED.queue, payload = EXCLUDED.payload, \
             priority = EXCLUDED.priority, expression = EXCLUDED.expression, zone = EXCLUDED.zone, missed = EXCLUDED.missed, \
             catch_up_max = EXCLUDED.catch_up_max, overlap = EXCLUDED.overlap, enabled = EXCLUDED.enabled, overridden = $12 \
         WHERE $12 OR (NOT s.overridden AND (s.kind, s.queue, s.payload, s.priority, s.expression, s.zone, s.missed, \
                   s.catch_up_max, s.overlap, s.enabled) \
               IS DISTINCT FROM (EXCLUDED.kind, EXCLUDED.queue, EXCLUDED.payload, EXCLUDED.priority, EXCLUDED.expression, \
                   EXCLUDED.zone, EXCLUDED.missed, EXCLUDED.catch_up_max, EXCLUDED.overlap, EXCLUDED.enabled)) \
         RETURNING s.name, (xmax = 0)",
    )
    .bind(column(|definition| definition.name.clone()))
    .bind(column(|definition| definition.kind.clone()))
    .bind(column(|definition| definition.queue.clone()))
    .bind(definitions.iter().map(|definition| definition.payload.clone()).collect::<Vec<_>>())
    .bind(definitions.iter().map(|definition| i16::from(definition.priority)).collect::<Vec<_>>())
    .bind(calendars.iter().map(|calendar| calendar.expression().to_owned()).collect::<Vec<_>>())
    .bind(calendars.iter().map(|calendar| calendar.zone_name().to_owned()).collect::<Vec<_>>())
    .bind(missed.iter().map(|(word, _)| (*word).to_owned()).collect::<Vec<_>>())
    .bind(missed.iter().map(|(_, count)| *count).collect::<Vec<_>>())
    .bind(column(|definition| definition.overlap.to_string()))
    .bind(definitions.iter().map(|definition| definition.enabled).collect::<Vec<_>>())
    .bind(operator)
    .bind(clock::faked().map(Timestamp::to_sqlx))
    .fetch_all(executor)
    .await
    .map_err(ScheduleError::database("write the schedules"))?;
    let mut created = Vec::new();
    for row in rows {
        let read = || -> Result<(String, bool), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
        let (name, is_new) = read().map_err(ScheduleError::database("write the schedules"))?;
        if is_new {
            created.push(name);
        }
    }
    created.sort_by_key(|name| definitions.iter().position(|definition| definition.name == *name));
    Ok(created)
}

/// Fires nothing of `name` for a while; `None`: until it is resumed, which is kept as the year 9999. What falls into the pause is never made up for.
/// Answers its end.
///
/// # Errors
/// [`ScheduleError::NotFound`]; as the database says.
pub async fn pause(
    pool: &PgPool,
    name: &str,
    span: Option<Duration>,
    reason: Option<&str>,
) -> Result<Timestamp, ScheduleError> {
    check_name(name)?;
    let row = sqlx::query(
        "UPDATE ops.schedules SET \
             paused_since = CASE WHEN paused_until > now() THEN paused_since ELSE now() END, \
             paused_until = COALESCE(now() + $2 * interval '1 second', '9999-12-30T00:00:00Z'), paused_reason = $3 \
         WHERE name = $1 RETURNING paused_until",
    )
    .bind(name)
    .bind(span.map(|span| span.max(Duration::from_millis(1)).as_secs_f64()))
    .bind(reason)
    .fetch_optional(pool)
    .await
    .map_err(ScheduleError::database("pause the schedule"))?;
    match row {
        Some(row) => row
            .try_get::<SqlTimestamp, _>(0)
            .map(SqlTimestamp::to_jiff)
            .map_err(ScheduleError::database("pause the schedule")),
        None => Err(missing(pool, name).await),
    }
}

/// Ends a pause now. Answers whether one was running.
///
/// # Errors
/// [`ScheduleError::NotFound`]; as the database says.
pub async fn resume(pool: &PgPool, name: &str) -> Result<bool, ScheduleError> {
    let done = sqlx::query(
        "UPDATE ops.schedules SET paused_until = GREATEST(now(), paused_since + interval '1 millisecond'), \
             paused_reason = NULL \
         WHERE name = $1 AND paused_until > now()",
    )
    .bind(name)
    .execute(pool)
    .await
    .map_err(ScheduleError::database("resume the schedule"))?;
    if done.rows_affected() > 0 {
        return Ok(true);
    }
    get(pool, name).await.map(|_| false)
}

/// Deletes a schedule. Jobs that it fired are left alone.
///
/// # Errors
/// [`ScheduleError::NotFound`]; as the database says.
pub async fn delete(pool: &PgPool, name: &str) -> Result<(), ScheduleError> {
    let done = sqlx::query("DELETE FROM ops.schedules WHERE name = $1")
        .bind(name)
        .execute(pool)
        .await
        .map_err(ScheduleError::database("delete the schedule"))?;
    if done.rows_affected() == 0 { Err(missing(pool, name).await) } else { Ok(()) }
}

/// Fires a schedule now, out of turn, on an operator's word: paused, disabled or busy makes no difference, and its slots
/// stay as they are. Answers the job's id. The job goes through the outbox; wake the relay.
///
/// # Errors
/// [`ScheduleError::NotFound`]; as the database says.
pub async fn run_now(pool: &PgPool, name: &str) -> Result<String, ScheduleError> {
    check_name(name)?;
    let id = format!("cron:{name}:manual-{}", uuid::Uuid::now_v7().simple());
    let done = sqlx::query(
        "WITH fired AS ( \
             UPDATE ops.schedules SET last_fired_at = now(), last_job_id = $2, fired_total = fired_total + 1 \
             WHERE name = $1 RETURNING queue, kind, payload, priority) \
         INSERT INTO ops.outbox (id, queue, kind, payload, priority, critical, traceparent) \
         SELECT $2, queue, kind, payload::json, priority, true, $3 FROM fired",
    )
    .bind(name)
    .bind(&id)
    .bind(crate::trace::current())
    .execute(pool)
    .await
    .map_err(ScheduleError::database("fire the schedule"))?;
    if done.rows_affected() == 0 { Err(missing(pool, name).await) } else { Ok(id) }
}

/// What became of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Applied {
    /// The cursor was moved and the jobs are in the outbox; the ids of the jobs that are new.
    Done(Vec<String>),
    /// The row was changed or fired by another since it was read.
    Overtaken,
    /// The term is not the newest. Nothing was done.
    StaleTerm,
}

/// Applies a verdict, in one statement and no transaction around it:
///
/// - the leader's row is read `FOR SHARE` under the term, so that a statement of a leader that was replaced does nothing, and an
///   election that is being committed is waited for;
/// - the cursor moves only from where the verdict was decided, and only if the definition is still the same;
/// - each slot becomes an outbox row under an id made of name and slot.
///
/// Either all of it happens or nothing. Killed before: the slot is still due for the next leader. Killed after: the
/// cursor has passed it, and the row is relayed by any tasker. Run twice, by one or by two schedulers: the second
/// finds another cursor. Should a cursor ever be set back, the id is still the same job.
pub(crate) async fn apply(
    pool: &PgPool,
    term: &Term,
    schedule: &Schedule,
    verdict: &Verdict,
) -> Result<Applied, sqlx::Error> {
    let ids: Vec<_> = verdict.fire.iter().map(|slot| slot_job_id(&schedule.definition.name, *slot)).collect();
    let row = sqlx::query(
        "WITH leader AS ( \
             SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
         moved AS ( \
             UPDATE ops.schedules SET last_slot = $6, \
                 last_fired_at = CASE WHEN cardinality($7::text[]) > 0 THEN now() ELSE last_fired_at END, \
                 last_job_id = COALESCE(($7::text[])[cardinality($7::text[])], last_job_id), \
                 fired_total = fired_total + cardinality($7::text[]), \
                 missed_total = missed_total + $8, overlapped_total = overlapped_total + $9 \
             WHERE name = $3 AND revision = $4 AND last_slot = $5 AND EXISTS (SELECT FROM leader) \
             RETURNING queue, kind, payload, priority), \
         added AS ( \
             INSERT INTO ops.outbox (id, queue, kind, payload, priority, critical, traceparent) \
             SELECT slot.id, moved.queue, moved.kind, moved.payload::json, moved.priority, true, $10 \
             FROM moved CROSS JOIN unnest($7::text[]) WITH ORDINALITY AS slot (id, n) ORDER BY slot.n \
             ON CONFLICT (id) DO NOTHING RETURNING id) \
         SELECT EXISTS (SELECT FROM leader), EXISTS (SELECT FROM moved), (SELECT array_agg(id) FROM added)",
    )
    .bind(&*term.name)
    .bind(term.number)
    .bind(&schedule.definition.name)
    .bind(schedule.revision)
    .bind(schedule.last_slot.to_sqlx())
    .bind(verdict.last_slot.to_sqlx())
    .bind(&ids)
    .bind(i64::from(verdict.dropped.missed))
    .bind(i64::from(verdict.dropped.overlapping))
    .bind(crate::trace::current())
    .fetch_one(pool)
    .await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (false, _) => Applied::StaleTerm,
        (true, false) => Applied::Overtaken,
        (true, true) => Applied::Done(row.try_get::<Option<Vec<String>>, _>(2)?.unwrap_or_default()),
    })
}
