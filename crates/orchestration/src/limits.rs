//! The rows of `autonomous_action_config`, the platform's or ours, and what was done under them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgConnection, PgPool, Row};

use crate::budget::{Limit, Scope, Usage, scope};
use crate::error::OrchestrationError;
use crate::schedule::row::{instant, text, whole};
use crate::store;
use crate::tables::{self, Table};

/// Who is to be granted something, in which call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) project: &'a str,
    pub(crate) agent: &'a str,
    pub(crate) root: &'a str,
    pub(crate) job: &'a str,
    /// How long its call may take at most.
    pub(crate) limit: Duration,
}

/// What an agent may do by itself in the call that follows, set aside for it: of two that ask at the same time each is granted only what
/// the other leaves. A row that cannot be read forbids its action.
///
/// # Errors
/// As the database says; then nothing is set aside.
pub(crate) async fn grant(
    pool: &PgPool,
    caller: Caller<'_>,
    now: Timestamp,
) -> Result<Scope, OrchestrationError> {
    let tried = "read what an agent may do by itself";
    let Some(table) = tables::limits(pool).await? else { return Ok(Scope::Unlimited) };
    let mut transaction = pool.begin().await.map_err(OrchestrationError::database(tried))?;
    // Whoever asks for a project's next grant sees this one.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('ops.orchestration_grants:' || $1, 0))")
        .bind(caller.project)
        .execute(&mut *transaction)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let scope = scope(&usage(&mut transaction, &table, caller, now).await?, now);
    set_aside(&mut transaction, caller, &scope).await?;
    transaction
        .commit()
        .await
        .map_err(OrchestrationError::database("set aside what an agent may do by itself"))?;
    Ok(scope)
}

/// Writes the grant in the place of what the same agent had in an earlier call of the line.
async fn set_aside(
    connection: &mut PgConnection,
    caller: Caller<'_>,
    scope: &Scope,
) -> Result<(), OrchestrationError> {
    let empty = BTreeMap::new();
    let granted = if let Scope::Limited(granted) = scope { granted } else { &empty };
    let (keys, counts): (Vec<String>, Vec<i64>) =
        granted.iter().map(|(key, count)| (key.clone(), i64::try_from(*count).unwrap_or(i64::MAX))).unzip();
    sqlx::query(
        "WITH gone AS (DELETE FROM ops.orchestration_grants WHERE root_id = $1 AND agent = $2 AND action_key <> ALL ($5) RETURNING 1) \
         INSERT INTO ops.orchestration_grants AS g (root_id, agent, project_id, job_id, action_key, count, expires_at) \
         SELECT $1, $2, $3, $4, key, count, clock_timestamp() + make_interval(secs => $7) \
         FROM unnest($5::text[], $6::bigint[]) AS a (key, count) \
         ON CONFLICT (root_id, agent, action_key) DO UPDATE SET job_id = EXCLUDED.job_id, count = EXCLUDED.count, \
             granted_at = EXCLUDED.granted_at, expires_at = EXCLUDED.expires_at",
    )
    .bind(caller.root)
    .bind(caller.agent)
    .bind(caller.project)
    .bind(caller.job)
    .bind(keys)
    .bind(counts)
    .bind(caller.limit.as_secs_f64())
    .execute(connection)
    .await
    .map(drop)
    .map_err(OrchestrationError::database("set aside what an agent may do by itself"))
}

/// The limits of one agent of a project with what was done, and what others may be doing, under each.
async fn usage(
    connection: &mut PgConnection,
    table: &Table,
    caller: Caller<'_>,
    now: Timestamp,
) -> Result<Vec<(Limit, Usage)>, OrchestrationError> {
    let tried = "read what an agent may do by itself";
    let statement = format!(
        "SELECT c.config, done.today, done.hour, done.last, held.count AS held \
         FROM (SELECT to_jsonb(t) AS config FROM {} t WHERE t.project_id::text = $1 AND COALESCE(to_jsonb(t) ->> 'agent_slug', $2) = $2) c, \
             LATERAL (SELECT \
                 COALESCE(sum(a.count) FILTER (WHERE a.done_at >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'), 0)::bigint AS today, \
                 COALESCE(sum(a.count) FILTER (WHERE a.done_at > now() - interval '1 hour'), 0)::bigint AS hour, max(a.done_at) AS last \
                 FROM ops.orchestration_actions a WHERE a.project_id = $1 AND a.action_key = c.config ->> 'action_key' \
                     AND (c.config ->> 'agent_slug' IS NULL OR a.agent = $2) AND a.done_at > now() - interval '26 hours') done, \
             LATERAL (SELECT COALESCE(sum(g.count), 0)::bigint AS count \
                 FROM ops.orchestration_grants g WHERE g.project_id = $1 AND g.action_key = c.config ->> 'action_key' \
                     AND (c.config ->> 'agent_slug' IS NULL OR g.agent = $2) AND g.expires_at > clock_timestamp() \
                     AND NOT (g.root_id = $3 AND g.agent = $2)) held",
        table.name
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(caller.project)
        .bind(caller.agent)
        .bind(caller.root)
        .fetch_all(connection)
        .await
        .map_err(OrchestrationError::database(tried))?;
    let read = |row: &PgRow| -> Result<(Limit, Usage), sqlx::Error> {
        let config: Value = row.try_get(0)?;
        let count = |column| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
        let ours = Usage {
            today: count("today")?,
            last_hour: count("hour")?,
            last: store::instant(row, "last")?,
            held: count("held")?,
        };
        Ok(read_row(config.as_object().unwrap_or(&Map::new()), ours, now))
    };
    rows.iter().map(|row| read(row).map_err(OrchestrationError::database(tried))).collect()
}

/// One row, with the platform's own counters where they say more than ours.
fn read_row(config: &Map<String, Value>, ours: Usage, now: Timestamp) -> (Limit, Usage) {
    let number = |column, default| whole(config, column, default, 0, 1_000_000_000);
    let limits = (number("max_per_day", 10), number("max_per_hour", 3), number("cooldown_minutes", 15));
    let action = text(config, "action_key").unwrap_or_default();
    let is_enabled = config.get("is_enabled").and_then(Value::as_bool).unwrap_or(false);
    let unsigned = |count: i64| u64::try_from(count).unwrap_or(0);
    let limit = match limits {
        (Ok(day), Ok(hour), Ok(minutes)) => Limit {
            action,
            is_enabled,
            max_per_day: unsigned(day),
            max_per_hour: unsigned(hour),
            cooldown: SignedDuration::from_mins(minutes),
        },
        _ => {
            tracing::warn!(action, "limits of an action cannot be read; it is not taken");
            Limit {
                action,
                is_enabled: false,
                max_per_day: 0,
                max_per_hour: 0,
                cooldown: SignedDuration::ZERO,
            }
        }
    };
    // Their counter is of the day on which it was last set back.
    let midnight = now.to_zoned(TimeZone::UTC).start_of_day().map_or(now, |day| day.timestamp());
    let is_todays = instant(config, "last_reset_at").is_some_and(|reset| reset >= midnight);
    let theirs = number("times_used_today", 0).ok().filter(|_| is_todays).map_or(0, unsigned);
    let last = ours.last.into_iter().chain(instant(config, "last_used_at")).max();
    (limit, Usage { today: ours.today.max(theirs), last, ..ours })
}

/// Keeps the counters of the platform's rows; ours are the rows of actions themselves.
pub(crate) async fn count(
    pool: &PgPool,
    project: &str,
    agent: &str,
    actions: &BTreeMap<String, u64>,
) -> Result<(), OrchestrationError> {
    let Some(table) = tables::limits(pool).await? else { return Ok(()) };
    let today = "CASE WHEN c.last_reset_at >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' \
        THEN COALESCE(c.times_used_today, 0) ELSE 0 END + used.count";
    let mut wanted =
        vec![("times_used_total", "COALESCE(c.times_used_total, 0) + used.count"), ("last_used_at", "now()")];
    // Without the day it belongs to, a counter of today means nothing.
    if table.has("last_reset_at") {
        wanted.extend([
            ("times_used_today", today),
            (
                "last_reset_at",
                "GREATEST(c.last_reset_at, date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')",
            ),
        ]);
    }
    let Some(set) = table.assignments(&wanted) else { return Ok(()) };
    let (keys, counts): (Vec<String>, Vec<i64>) =
        actions.iter().map(|(key, count)| (key.clone(), i64::try_from(*count).unwrap_or(i64::MAX))).unzip();
    let statement = format!(
        "UPDATE {} c SET {set} FROM unnest($3::text[], $4::bigint[]) AS used (key, count) \
         WHERE c.project_id::text = $1 AND c.action_key::text = used.key AND COALESCE(to_jsonb(c) ->> 'agent_slug', $2) = $2",
        table.name
    );
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(project)
        .bind(agent)
        .bind(keys)
        .bind(counts)
        .execute(pool)
        .await
        .map(drop)
        .map_err(OrchestrationError::database("count the actions of an agent"))
}

/// Sets the day's counters back that are of an earlier day of UTC, so that the platform's screens show today's. Answers how many.
///
/// # Errors
/// As the database says.
pub async fn reset_day(pool: &PgPool) -> Result<u64, OrchestrationError> {
    const MIDNIGHT: &str = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'";
    let Some(table) = tables::limits(pool).await? else { return Ok(0) };
    if !table.has("times_used_today") || !table.has("last_reset_at") {
        return Ok(0);
    }
    let Some(set) = table.assignments(&[("times_used_today", "0"), ("last_reset_at", MIDNIGHT)]) else {
        return Ok(0);
    };
    let statement = format!(
        "UPDATE {} SET {set} WHERE times_used_today <> 0 AND COALESCE(last_reset_at, 'epoch') < {MIDNIGHT}",
        table.name
    );
    let done = sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(pool)
        .await
        .map_err(OrchestrationError::database("set back the counters of a day that is over"))?;
    Ok(done.rows_affected())
}
