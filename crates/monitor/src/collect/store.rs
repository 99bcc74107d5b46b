//! The table of figures: partitions, points, hours.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgPool, Row as _};
use voiceai_postgres::{Tenure, Term, term};

use super::Point;
use crate::error::MonitorError;
use crate::settings::CollectorSettings;

/// Days ahead for which partitions are made: so long nobody need look after them.
const AHEAD_DAYS: i64 = 3;
/// Hours that are summed up in one statement.
const HOURS_AT_ONCE: i64 = 6;
/// Old hours that are removed at a time.
const HOURLY_BATCH: i64 = 5_000;
const PREFIX: &str = "system_metrics_p";

/// How the figures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    /// By partitions of ours; else somebody else looks after the table.
    partitioned: bool,
    /// In a table of ours; else as a view, such as a continuous aggregate.
    hourly: bool,
}

async fn how(pool: &PgPool) -> Result<Kept, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT relkind FROM pg_class WHERE oid = to_regclass('ops.system_metrics'))::text, \
                (SELECT relkind FROM pg_class WHERE oid = to_regclass('ops.system_metrics_hourly'))::text",
    )
    .fetch_one(pool)
    .await?;
    let is = |at: usize, kind: &str| {
        row.try_get::<Option<String>, _>(at).map(|have| have.as_deref() == Some(kind))
    };
    Ok(Kept { partitioned: is(0, "p")?, hourly: is(1, "r")? })
}

pub(super) async fn upkeep(
    pool: &PgPool,
    tenure: &Tenure,
    settings: &CollectorSettings,
    now: Timestamp,
) -> Result<(), MonitorError> {
    let tried = "look at ops.system_metrics";
    let kept = how(pool).await.map_err(MonitorError::database(tried))?;
    let check = |tried| tenure.check().map_err(|_| MonitorError::Replaced { tried });
    let today = now.to_zoned(TimeZone::UTC).date();
    if kept.partitioned {
        check("make partitions")?;
        make_apart(pool, today).await?;
    }
    if kept.hourly {
        // Before anything is dropped.
        sum_up(pool, check("sum up hours")?, now).await?;
        let tried = "remove old rows of ops.system_metrics_hourly";
        prune_hours(pool, settings.hourly_retention, now).await.map_err(MonitorError::database(tried))?;
    }
    if kept.partitioned {
        check("drop partitions")?;
        let tried = "drop old partitions of ops.system_metrics";
        drop_old(pool, settings.retention, today).await.map_err(MonitorError::database(tried))?;
    }
    Ok(())
}

fn name(day: Date) -> String {
    format!("{PREFIX}{}", day.strftime("%Y%m%d"))
}

/// The days for which there must be a partition.
fn wanted(today: Date) -> Vec<Date> {
    (0..=AHEAD_DAYS).filter_map(|days| today.checked_add(days.days()).ok()).collect()
}

/// [`make`] in a task of its own: a transaction that is cut off in its beginning would leave a connection of the pool within it.
async fn make_apart(pool: &PgPool, today: Date) -> Result<(), MonitorError> {
    let pool = pool.clone();
    match tokio::spawn(async move { make(&pool, today).await }).await {
        Ok(made) => made.map_err(MonitorError::database("make partitions of ops.system_metrics")),
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

/// Two processes may do it at the same time: one of them finds it done. A table is made by itself and then attached, which, other
/// than making it as a partition, does not wait for those who read the figures.
async fn make(pool: &PgPool, today: Date) -> Result<(), sqlx::Error> {
    let have = partitions(pool).await?;
    for day in wanted(today).into_iter().filter(|day| !have.contains(day)) {
        let Ok(next) = day.checked_add(1.day()) else { continue };
        let name = name(day);
        let mut tx = pool.begin().await?;
        // Named after the table, and let go with the transaction.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtext('ops.system_metrics'))").execute(&mut *tx).await?;
        let made = format!(
            "CREATE TABLE IF NOT EXISTS ops.{name} (LIKE ops.system_metrics INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"
        );
        sqlx::query(AssertSqlSafe(made)).execute(&mut *tx).await?;
        let attached: bool =
            sqlx::query_scalar("SELECT relispartition FROM pg_class WHERE oid = to_regclass('ops.' || $1)")
                .bind(&name)
                .fetch_one(&mut *tx)
                .await?;
        if !attached {
            let attach = format!(
                "ALTER TABLE ops.system_metrics ATTACH PARTITION ops.{name} \
                 FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00')"
            );
            sqlx::query(AssertSqlSafe(attach)).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        tracing::debug!(partition = name, "partition made");
    }
    Ok(())
}

/// The days of the partitions that are there.
async fn partitions(pool: &PgPool) -> Result<Vec<Date>, sqlx::Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = to_regclass('ops.system_metrics') ORDER BY 1",
    )
    .fetch_all(pool)
    .await?;
    Ok(names.iter().filter_map(|name| day(name)).collect())
}

fn day(partition: &str) -> Option<Date> {
    let day = Date::strptime("%Y%m%d", partition.strip_prefix(PREFIX)?).ok()?;
    // Shorter numbers are read as days too.
    (name(day) == partition).then_some(day)
}

/// Whether nothing in a day's partition is wanted any more.
fn is_old(day: Date, retention: Duration, today: Date) -> bool {
    let days = i64::try_from(retention.as_secs().div_ceil(86_400)).unwrap_or(i64::MAX);
    // The day itself is kept while a part of it is within the retention.
    today.checked_sub(days.days()).is_ok_and(|first| day < first)
}

async fn drop_old(pool: &PgPool, retention: Duration, today: Date) -> Result<(), sqlx::Error> {
    for day in partitions(pool).await?.into_iter().filter(|day| is_old(*day, retention, today)) {
        let name = name(day);
        // By its own name, made of digits.
        sqlx::query(AssertSqlSafe(format!("DROP TABLE IF EXISTS ops.{name}"))).execute(pool).await?;
        tracing::info!(partition = name, "figures whose time is over dropped");
    }
    Ok(())
}

const WRITE: &str = "\
WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), written AS (
    INSERT INTO ops.system_metrics (time, metric_name, service, tags, value)
    SELECT $3, p.metric_name, p.service, p.tags::jsonb, p.value
    FROM leader, unnest($4::text[], $5::text[], $6::text[], $7::float8[]) AS p (metric_name, service, tags, value)
    RETURNING 1
)
SELECT EXISTS (SELECT FROM leader), (SELECT count(*) FROM written)";

/// Writes the points of one source, as of `at`. A day that nobody has made a partition for is made now.
pub(super) async fn write(
    pool: &PgPool,
    term: &Term,
    at: Timestamp,
    points: &[Point],
) -> Result<u64, MonitorError> {
    let tried = "write figures";
    let written = match write_on(pool, term, at, points).await {
        // 23514: no partition takes it. The collector has just begun, or was away for days.
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "23514") => {
            let day = at.to_zoned(TimeZone::UTC).date();
            make_apart(pool, day).await?;
            write_on(pool, term, at, points).await
        }
        written => written,
    };
    let (leads, written) = written.map_err(MonitorError::database(tried))?;
    if leads {
        return Ok(u64::try_from(written).unwrap_or(0));
    }
    term::refused(term, "system_metrics.write");
    Err(MonitorError::Replaced { tried })
}

async fn write_on(
    pool: &PgPool,
    term: &Term,
    at: Timestamp,
    points: &[Point],
) -> Result<(bool, i64), sqlx::Error> {
    let points: Vec<_> = points.iter().filter(|point| point.value.is_finite()).collect();
    let tags = |point: &&Point| serde_json::to_string(&point.tags).unwrap_or_else(|_| "{}".to_owned());
    sqlx::query_as(WRITE)
        .bind(&*term.name)
        .bind(term.number)
        .bind(at.to_sqlx())
        .bind(points.iter().map(|point| point.metric.as_str()).collect::<Vec<_>>())
        .bind(points.iter().map(|point| point.service.as_str()).collect::<Vec<_>>())
        .bind(points.iter().map(tags).collect::<Vec<_>>())
        .bind(points.iter().map(|point| point.value).collect::<Vec<_>>())
        .fetch_one(pool)
        .await
}

/// Sums up every hour that has ended since the newest that was, that one too: points may have come after it. After a long pause in
/// several steps.
async fn sum_up(pool: &PgPool, term: &Term, now: Timestamp) -> Result<(), MonitorError> {
    let tried = "sum up hours of ops.system_metrics";
    let first: Option<SqlTimestamp> = sqlx::query_scalar(
        "SELECT date_trunc('hour', COALESCE((SELECT max(bucket) FROM ops.system_metrics_hourly), \
                                            (SELECT min(time) FROM ops.system_metrics)), 'UTC')",
    )
    .fetch_one(pool)
    .await
    .map_err(MonitorError::database(tried))?;
    let Some(first) = first.map(SqlTimestamp::to_jiff) else { return Ok(()) };
    for (from, to) in steps(first, now) {
        let leads: bool = sqlx::query_scalar(
            "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
             written AS (INSERT INTO ops.system_metrics_hourly AS h (bucket, metric_name, service, tags, avg, min, max, points) \
                 SELECT date_trunc('hour', m.time, 'UTC') AS hour, m.metric_name, m.service, m.tags, avg(m.value), min(m.value), \
                        max(m.value), count(*) \
                 FROM leader, ops.system_metrics m WHERE m.time >= $3 AND m.time < $4 \
                 GROUP BY hour, m.metric_name, m.service, m.tags \
                 ON CONFLICT (bucket, metric_name, service, tags) DO UPDATE SET \
                     avg = excluded.avg, min = excluded.min, max = excluded.max, points = excluded.points \
                 RETURNING 1) \
             SELECT EXISTS (SELECT FROM leader)",
        )
        .bind(&*term.name)
        .bind(term.number)
        .bind(from.to_sqlx())
        .bind(to.to_sqlx())
        .fetch_one(pool)
        .await
        .map_err(MonitorError::database(tried))?;
        if !leads {
            term::refused(term, "system_metrics.sum_up");
            return Err(MonitorError::Replaced { tried });
        }
    }
    Ok(())
}

/// From the hour `first` to the last one that has ended, in parts.
fn steps(first: Timestamp, now: Timestamp) -> Vec<(Timestamp, Timestamp)> {
    let end = now.as_second().div_euclid(3_600) * 3_600;
    let mut steps = Vec::new();
    let mut from = first.as_second();
    while from < end {
        let to = (from + HOURS_AT_ONCE * 3_600).min(end);
        if let (Ok(from), Ok(to)) = (Timestamp::from_second(from), Timestamp::from_second(to)) {
            steps.push((from, to));
        }
        from = to;
    }
    steps
}

async fn prune_hours(pool: &PgPool, retention: Duration, now: Timestamp) -> Result<(), sqlx::Error> {
    let Ok(before) = now.checked_sub(SignedDuration::try_from(retention).unwrap_or(SignedDuration::MAX))
    else {
        return Ok(());
    };
    sqlx::query(
        "DELETE FROM ops.system_metrics_hourly WHERE ctid IN \
         (SELECT ctid FROM ops.system_metrics_hourly WHERE bucket < $1 ORDER BY bucket LIMIT $2)",
    )
    .bind(before.to_sqlx())
    .bind(HOURLY_BATCH)
    .execute(pool)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().expect("a date")
    }

    #[test]
    fn days_and_names_are_the_same_and_strangers_are_left_alone() {
        assert_eq!(name(date("2026-11-22")), "system_metrics_p20261122");
        assert_eq!(day("system_metrics_p20261122"), Some(date("2026-11-22")));
        for stranger in
            ["system_metrics_default", "system_metrics_p2026112", "system_metrics_p20261322", "other"]
        {
            assert_eq!(day(stranger), None, "{stranger}");
        }
        let days: Vec<_> = wanted(date("2026-12-30")).into_iter().map(name).collect();
        assert_eq!(days.first().map(String::as_str), Some("system_metrics_p20261230"));
        assert_eq!(days.last().map(String::as_str), Some("system_metrics_p20270102"));
    }

    #[test]
    fn a_day_is_dropped_once_none_of_it_is_within_the_retention() {
        let week = Duration::from_secs(7 * 86_400);
        let today = date("2026-11-22");
        assert!(!is_old(date("2026-11-15"), week, today), "its evening is six days and some hours old");
        assert!(is_old(date("2026-11-14"), week, today));
        assert!(!is_old(date("2026-11-25"), week, today));
        assert!(
            !is_old(date("2026-11-20"), Duration::from_secs(86_401), today),
            "part of a day counts as a day"
        );
    }

    #[test]
    fn hours_are_summed_up_when_they_have_ended_and_a_long_pause_in_parts() {
        let at = |hour: i64, second: i64| Timestamp::from_second(hour * 3_600 + second).expect("a time");
        assert!(steps(at(5, 0), at(5, 3_599)).is_empty(), "it has not ended");
        assert_eq!(steps(at(5, 0), at(6, 0)), [(at(5, 0), at(6, 0))]);
        assert_eq!(
            steps(at(0, 0), at(13, 7)),
            [(at(0, 0), at(6, 0)), (at(6, 0), at(12, 0)), (at(12, 0), at(13, 0)),]
        );
    }
}
