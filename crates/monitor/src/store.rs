//! The rows behind the watch. Every write carries the leader's term.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgConnection, PgPool, Row as _};
use voiceai_postgres::{Term, term};

use crate::announce::{Announcer, ServiceEvent};
use crate::decide::{Change, Standing, State};
use crate::error::MonitorError;
use crate::probe::Observation;

/// For a statement, beyond the server's own limit and the wait for a connection: a server that is paused would hold the loop.
const STATEMENT_MAX: Duration = Duration::from_secs(15);
/// Closed alerts are kept so long.
const ALERTS_KEPT: &str = "90 days";

/// A service as it was judged.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) service: String,
    pub(crate) url: String,
    pub(crate) seen: Observation,
    pub(crate) standing: Standing,
    pub(crate) change: Option<Change>,
    pub(crate) at: Timestamp,
}

impl Judged {
    fn details(&self) -> Value {
        let mut details = json!({ "url": self.url });
        if let Some(status) = self.seen.http_status {
            details["http_status"] = json!(status);
        }
        if let Some(note) = &self.seen.note {
            details["note"] = json!(note);
        }
        if !self.seen.counters.is_empty() {
            details["counters"] = json!(self.seen.counters);
        }
        details
    }
}

async fn bounded<T>(
    tried: &'static str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, MonitorError> {
    match tokio::time::timeout(STATEMENT_MAX, statement).await {
        Ok(result) => result.map_err(MonitorError::database(tried)),
        Err(_) => Err(MonitorError::TimedOut { tried, limit: STATEMENT_MAX }),
    }
}

fn fingerprint(service: &str) -> String {
    format!("system-health:{service}")
}

/// What is known of each service.
pub(crate) async fn standings(pool: &PgPool) -> Result<BTreeMap<String, Standing>, MonitorError> {
    let tried = "read how the services are";
    let rows = bounded(
        tried,
        sqlx::query(
            "SELECT h.service, h.status, h.since, h.bad_run, h.good_run, h.bad_since, a.id \
             FROM ops.service_health h LEFT JOIN ops.system_alerts a \
                 ON a.fingerprint = 'system-health:' || h.service AND a.closed_at IS NULL",
        )
        .fetch_all(pool),
    )
    .await?;
    let read = |row: &PgRow| -> Result<(String, Standing), sqlx::Error> {
        let run = |at: usize| row.try_get::<i32, _>(at).map(|run| u32::try_from(run).unwrap_or(0));
        let standing = Standing {
            state: State::parse(row.try_get(1)?).unwrap_or(State::Unknown),
            since: row.try_get::<SqlTimestamp, _>(2)?.to_jiff(),
            bad_run: run(3)?,
            good_run: run(4)?,
            bad_since: row.try_get::<Option<SqlTimestamp>, _>(5)?.map(SqlTimestamp::to_jiff),
            alert: row.try_get(6)?,
        };
        Ok((row.try_get(0)?, standing))
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(MonitorError::database(tried))
}

const WRITE: &str = "\
WITH leader AS (
    SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE
), written AS (
    INSERT INTO ops.service_health AS h
        (service, status, latency_ms, details, checked_at, since, bad_run, good_run, bad_since)
    SELECT s.service, s.status, s.latency_ms, s.details::jsonb, s.checked_at, s.since, s.bad_run, s.good_run, s.bad_since
    FROM leader, unnest($3::text[], $4::text[], $5::float8[], $6::text[], $7::timestamptz[], $8::timestamptz[], $9::integer[],
                        $10::integer[], $11::timestamptz[])
         AS s (service, status, latency_ms, details, checked_at, since, bad_run, good_run, bad_since)
    ON CONFLICT (service) DO UPDATE SET
        status = excluded.status, latency_ms = excluded.latency_ms, details = excluded.details,
        checked_at = excluded.checked_at, since = excluded.since, bad_run = excluded.bad_run,
        good_run = excluded.good_run, bad_since = excluded.bad_since
)
SELECT EXISTS (SELECT FROM leader)";

async fn write_on(
    connection: impl sqlx::PgExecutor<'_>,
    term: &Term,
    all: &[Judged],
) -> Result<bool, sqlx::Error> {
    let run = |run: u32| i32::try_from(run).unwrap_or(i32::MAX);
    fn column<T>(all: &[Judged], of: impl Fn(&Judged) -> T) -> Vec<T> {
        all.iter().map(of).collect()
    }
    sqlx::query_scalar(WRITE)
        .bind(&*term.name)
        .bind(term.number)
        .bind(column(all, |j| j.service.clone()))
        .bind(column(all, |j| j.seen.state.word()))
        .bind(column(all, |j| j.seen.latency.map(|latency| latency.as_secs_f64() * 1_000.0)))
        .bind(column(all, |j| j.details().to_string()))
        .bind(column(all, |j| j.at.to_sqlx()))
        .bind(column(all, |j| j.standing.since.to_sqlx()))
        .bind(column(all, |j| run(j.standing.bad_run)))
        .bind(column(all, |j| run(j.standing.good_run)))
        .bind(column(all, |j| j.standing.bad_since.map(jiff_sqlx::ToSqlx::to_sqlx)))
        .fetch_one(connection)
        .await
}

/// Writes what changes nothing: one statement.
///
/// # Errors
/// [`MonitorError::Replaced`] when another leads by now.
pub(crate) async fn write(pool: &PgPool, term: &Term, all: &[Judged]) -> Result<(), MonitorError> {
    let tried = "write down how the services are";
    if bounded(tried, write_on(pool, term, all)).await? {
        return Ok(());
    }
    term::refused(term, "service_health.write");
    Err(MonitorError::Replaced { tried })
}

/// Opens and closes alerts, with the states that do it and with what tells of them: all of it, or nothing.
///
/// The transaction goes on by itself when it takes too long: cut off in its beginning it would leave a connection of the pool within
/// it.
///
/// # Errors
/// [`MonitorError::Replaced`] when another leads by now.
pub(crate) async fn change(
    pool: &PgPool,
    term: &Term,
    announcer: &Announcer,
    all: Vec<Judged>,
) -> Result<Vec<ServiceEvent>, MonitorError> {
    let tried = "open or close alerts";
    let (pool, held, announcer) = (pool.clone(), term.clone(), Announcer::clone(announcer));
    let changing = tokio::spawn(async move { change_on(&pool, &held, &announcer, &all).await });
    let changed = match tokio::time::timeout(STATEMENT_MAX, changing).await {
        Ok(Ok(changed)) => changed.map_err(MonitorError::database(tried))?,
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => return Err(MonitorError::TimedOut { tried, limit: STATEMENT_MAX }),
    };
    changed.ok_or_else(|| {
        term::refused(term, "system_alerts.change");
        MonitorError::Replaced { tried }
    })
}

async fn change_on(
    pool: &PgPool,
    term: &Term,
    announcer: &Announcer,
    all: &[Judged],
) -> Result<Option<Vec<ServiceEvent>>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    if !write_on(&mut *tx, term, all).await? {
        tx.rollback().await?;
        return Ok(None);
    }
    let mut events = Vec::new();
    for judged in all {
        let event = match judged.change {
            Some(Change::Open { since }) => open(&mut tx, judged, since).await?,
            Some(Change::Close { alert, since, told }) => {
                close(&mut tx, judged, alert, since).await?.filter(|_| told)
            }
            None => None,
        };
        events.extend(event);
    }
    if !events.is_empty() {
        announcer(&mut tx, &events).await?;
    }
    tx.commit().await?;
    Ok(Some(events))
}

async fn open(
    connection: &mut PgConnection,
    judged: &Judged,
    since: Timestamp,
) -> Result<Option<ServiceEvent>, sqlx::Error> {
    let alert = Uuid::now_v7();
    let details = json!({
        "service": judged.service, "kind": "system_health", "status": judged.seen.state, "note": judged.seen.note,
    });
    let opened = sqlx::query(
        "INSERT INTO ops.system_alerts (id, fingerprint, service, since, details) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (fingerprint) WHERE closed_at IS NULL DO NOTHING",
    )
    .bind(alert)
    .bind(fingerprint(&judged.service))
    .bind(&judged.service)
    .bind(since.to_sqlx())
    .bind(details)
    .execute(connection)
    .await?;
    Ok((opened.rows_affected() == 1).then(|| ServiceEvent::of(judged, alert, since, false)))
}

async fn close(
    connection: &mut PgConnection,
    judged: &Judged,
    alert: Uuid,
    since: Timestamp,
) -> Result<Option<ServiceEvent>, sqlx::Error> {
    let closed = sqlx::query(
        "UPDATE ops.system_alerts SET closed_at = GREATEST(opened_at, clock_timestamp()), \
             details = details || jsonb_build_object('resolved_at', $2::timestamptz, 'resolution', 'recovered') \
         WHERE id = $1 AND closed_at IS NULL",
    )
    .bind(alert)
    .bind(judged.at.to_sqlx())
    .execute(connection)
    .await?;
    Ok((closed.rows_affected() == 1).then(|| ServiceEvent::of(judged, alert, since, true)))
}

/// Forgets every service but `watched`, closes the alerts of those, and removes old alerts. Gives the names that were forgotten.
///
/// # Errors
/// [`MonitorError::Replaced`] when another leads by now.
pub(crate) async fn forget(
    pool: &PgPool,
    term: &Term,
    watched: &[String],
) -> Result<Vec<String>, MonitorError> {
    let tried = "forget services that are not watched any more";
    let statement = format!(
        "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
         gone AS (DELETE FROM ops.service_health h USING leader WHERE h.service <> ALL ($3) RETURNING h.service), \
         closed AS (UPDATE ops.system_alerts a SET closed_at = GREATEST(a.opened_at, clock_timestamp()), \
                 details = a.details || jsonb_build_object('resolved_at', clock_timestamp(), 'resolution', 'unwatched') \
             FROM leader WHERE a.closed_at IS NULL AND a.kind = 'SYSTEM_HEALTH' AND a.service <> ALL ($3) RETURNING a.id), \
         pruned AS (DELETE FROM ops.system_alerts WHERE id IN (SELECT o.id FROM ops.system_alerts o, leader \
             WHERE o.closed_at < now() - interval '{ALERTS_KEPT}' LIMIT 500) RETURNING id) \
         SELECT EXISTS (SELECT FROM leader), COALESCE((SELECT array_agg(service ORDER BY service) FROM gone), '{{}}')"
    );
    let row = bounded(
        tried,
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(&*term.name)
            .bind(term.number)
            .bind(watched)
            .fetch_one(pool),
    )
    .await?;
    let leads: bool = row.try_get(0).map_err(MonitorError::database(tried))?;
    if !leads {
        term::refused(term, "service_health.forget");
        return Err(MonitorError::Replaced { tried });
    }
    row.try_get(1).map_err(MonitorError::database(tried))
}

/// A service as it stands in the table.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) service: String,
    pub(crate) state: State,
    pub(crate) latency_ms: Option<f64>,
    pub(crate) details: Value,
    pub(crate) checked_at: Timestamp,
    pub(crate) since: Timestamp,
    pub(crate) alert_since: Option<Timestamp>,
}

/// All of them, by name.
pub(crate) async fn kept(pool: &PgPool) -> Result<Vec<Kept>, MonitorError> {
    let tried = "read how the services are";
    let rows = bounded(
        tried,
        sqlx::query(
            "SELECT h.service, h.status, h.latency_ms, h.details, h.checked_at, h.since, a.since \
             FROM ops.service_health h LEFT JOIN ops.system_alerts a \
                 ON a.fingerprint = 'system-health:' || h.service AND a.closed_at IS NULL \
             ORDER BY h.service",
        )
        .fetch_all(pool),
    )
    .await?;
    let read = |row: &PgRow| -> Result<Kept, sqlx::Error> {
        let time = |at: usize| row.try_get::<SqlTimestamp, _>(at).map(SqlTimestamp::to_jiff);
        Ok(Kept {
            service: row.try_get(0)?,
            state: State::parse(row.try_get(1)?).unwrap_or(State::Unknown),
            latency_ms: row.try_get(2)?,
            details: row.try_get(3)?,
            checked_at: time(4)?,
            since: time(5)?,
            alert_since: row.try_get::<Option<SqlTimestamp>, _>(6)?.map(SqlTimestamp::to_jiff),
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(MonitorError::database(tried))
}
