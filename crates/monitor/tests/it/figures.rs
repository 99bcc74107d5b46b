//! Figures: points, gaps, partitions, hours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use voiceai_monitor::collect::{self, Collected, Collector, Point, Source, SourceError};
use voiceai_monitor::{CollectorSettings, MonitorError, Prober, Service};
use voiceai_postgres::{PgPool, sqlx};
use voiceai_testkit::Port;

use crate::receiver::{Act, Receiver, WELL};
use crate::stage::{LIMIT, Stage, elected};

const DAY: Duration = Duration::from_secs(86_400);

fn settings() -> CollectorSettings {
    CollectorSettings {
        enabled: true,
        interval: Duration::from_secs(5),
        source_timeout: Duration::from_millis(1_500),
        retention: DAY * 7,
        hourly_retention: DAY * 365,
    }
}

/// A source that does what its name says.
struct Told(&'static str, fn() -> BoxFuture<'static, Result<Vec<Point>, SourceError>>);

impl Source for Told {
    fn name(&self) -> &'static str {
        self.0
    }

    fn collect(&self) -> BoxFuture<'_, Result<Vec<Point>, SourceError>> {
        (self.1)()
    }
}

fn good() -> Arc<dyn Source> {
    Arc::new(Told("good", || {
        let points =
            vec![Point::new("good", "depth", 7.0).tag("queue", "a"), Point::new("good", "none", f64::NAN)];
        Box::pin(std::future::ready(Ok(points)))
    }))
}

async fn points(pool: &PgPool) -> BTreeMap<(String, String), f64> {
    let rows: Vec<(String, String, f64)> =
        sqlx::query_as("SELECT service, metric_name, value FROM ops.system_metrics_latest")
            .fetch_all(pool)
            .await
            .unwrap();
    rows.into_iter().map(|(service, metric, value)| ((service, metric), value)).collect()
}

async fn partitions(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'ops.system_metrics'::regclass ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_source_that_fails_hangs_or_panics_is_a_gap_and_the_others_go_on() {
    let stage = Stage::new(&[]).await;
    let sources: Vec<Arc<dyn Source>> = vec![
        Arc::new(Told("fails", || Box::pin(std::future::ready(Err("no such luck".into()))))),
        Arc::new(Told("hangs", || Box::pin(std::future::pending()))),
        Arc::new(Told("panics", || panic!("on command"))),
        good(),
    ];
    let collector = Collector::new(stage.pool.clone(), settings(), sources);
    let Collected { points: written, gaps } = collector.round(&stage.tenure, Timestamp::now()).await;
    assert_eq!(written, 1, "what is no number is not written");
    assert_eq!(gaps.keys().copied().collect::<Vec<_>>(), ["fails", "hangs", "panics"]);
    assert!(gaps["fails"].contains("no such luck") && gaps["hangs"].contains("1.5s"), "{gaps:?}");
    let kept: (String, String, f64) =
        sqlx::query_as("SELECT service, tags::text, value FROM ops.system_metrics")
            .fetch_one(&stage.pool)
            .await
            .unwrap();
    assert_eq!(kept, ("good".to_owned(), r#"{"queue": "a"}"#.to_owned(), 7.0));
}

#[tokio::test]
async fn every_source_of_ours_has_figures_and_what_is_away_has_none() {
    let (well, ill, hangs) = (
        Receiver::start(WELL).await,
        Receiver::start(Act::Answer(503, "", "")).await,
        Receiver::start(Act::Hang).await,
    );
    let mut stage = Stage::new(&[]).await;
    let closed = Port::reserve();
    let services = [
        ("well", well.url()),
        ("ill", ill.url()),
        ("hangs", hangs.url()),
        ("gone", format!("http://127.0.0.1:{}", closed.number())),
    ];
    let services: Vec<_> = services.iter().map(|(name, url)| Service::new(*name, url).unwrap()).collect();
    let mut server = voiceai_testkit::RedisServer::start(voiceai_testkit::RedisOptions::default()).await;
    let redis = voiceai_redis::RedisSettings::from_url(server.url()).unwrap();
    let redis = voiceai_redis::Redis::connect(&redis).await.unwrap();
    let pool = stage.pool.clone();
    let sources: Vec<Arc<dyn Source>> = vec![
        Arc::new(collect::Services::new(services, Prober::new(&stage.rule, LIMIT).unwrap(), 8)),
        Arc::new(collect::Postgres::new(pool.clone())),
        Arc::new(collect::RedisServer::new(redis)),
        Arc::new(collect::Platform::new(pool.clone())),
        Arc::new(collect::Scaler::new(pool.clone())),
    ];
    let collector = Collector::new(pool.clone(), settings(), sources);
    let collected = collector.round(&stage.tenure, Timestamp::now()).await;
    assert!(collected.gaps.is_empty(), "{collected:?}");
    let found = points(&pool).await;
    let value = |service: &str, metric: &str| found.get(&(service.to_owned(), metric.to_owned())).copied();
    assert_eq!((value("well", "healthy"), value("well", "messages_received")), (Some(1.0), Some(3.0)));
    assert!(value("well", "latency_seconds").is_some_and(|latency| latency > 0.0));
    assert_eq!((value("ill", "healthy"), value("ill", "messages_received")), (Some(0.0), None));
    assert_eq!((value("gone", "healthy"), value("hangs", "healthy")), (Some(0.0), None));
    assert_eq!((value("postgres", "healthy"), value("redis", "healthy")), (Some(1.0), Some(1.0)));
    assert!(value("postgres", "db_size_bytes").is_some_and(|size| size > 1e6));
    assert!(value("postgres", "connections").is_some_and(|connections| connections >= 1.0));
    assert!(value("redis", "memory_bytes").is_some_and(|memory| memory > 1e5));
    assert_eq!(
        (value("platform", "alerts_open"), value("platform", "deliveries_pending")),
        (Some(0.0), Some(0.0))
    );
    assert_eq!(value("scaler", "operations_open"), Some(0.0));

    server.kill9().await;
    let collected = collector.round(&stage.tenure, Timestamp::now()).await;
    assert_eq!(collected.gaps.keys().copied().collect::<Vec<_>>(), ["redis"], "{collected:?}");
    let zeros: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM ops.system_metrics WHERE service = 'redis' AND metric_name = 'healthy'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(zeros, 1, "a gap, no zero");

    let successor = elected(&pool).await;
    let before = points(&pool).await.len();
    let collected = collector.round(&stage.tenure, Timestamp::now()).await;
    assert_eq!(
        (collected.points, points(&pool).await.len()),
        (0, before),
        "a leader that was replaced writes nothing"
    );
    stage.tenure = successor;
    assert!(collector.round(&stage.tenure, Timestamp::now()).await.points > 0);
}

#[tokio::test]
async fn partitions_are_made_ahead_and_dropped_and_the_hours_stay() {
    let mut stage = Stage::new(&[]).await;
    let collector = Collector::new(stage.pool.clone(), settings(), vec![good()]);
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let first = at("2026-11-10T09:10:00Z");
    // Nobody has made the day's partition: the first point does.
    assert_eq!(collector.round(&stage.tenure, first).await.points, 1);
    assert_eq!(partitions(&stage.pool).await.len(), 4, "the day and three ahead");
    collector.round(&stage.tenure, at("2026-11-10T09:50:00Z")).await;
    collector.round(&stage.tenure, at("2026-11-10T10:05:00Z")).await;
    collector.upkeep(&stage.tenure, at("2026-11-10T10:30:00Z")).await.unwrap();
    let hours = async || -> Vec<(String, f64, i64)> {
        sqlx::query_as("SELECT to_char(bucket AT TIME ZONE 'UTC', 'DD HH24'), avg, points FROM ops.system_metrics_hourly ORDER BY bucket")
            .fetch_all(&stage.pool)
            .await
            .unwrap()
    };
    assert_eq!(hours().await, [("10 09".to_owned(), 7.0, 2)], "the hour that has ended");
    // Two leaders' upkeep at once, and once more: the same.
    let later = at("2026-11-17T12:00:00Z");
    let (one, two) =
        tokio::join!(collector.upkeep(&stage.tenure, later), collector.upkeep(&stage.tenure, later));
    one.unwrap();
    two.unwrap();
    assert_eq!(hours().await, [("10 09".to_owned(), 7.0, 2), ("10 10".to_owned(), 7.0, 1)]);
    let kept = partitions(&stage.pool).await;
    assert_eq!(
        kept.first().map(String::as_str),
        Some("ops.system_metrics_p20261110"),
        "seven days back, a part of it"
    );
    collector.upkeep(&stage.tenure, later + SignedDuration::from_hours(24)).await.unwrap();
    let kept = partitions(&stage.pool).await;
    assert_eq!(kept.first().map(String::as_str), Some("ops.system_metrics_p20261111"));
    assert_eq!(kept.last().map(String::as_str), Some("ops.system_metrics_p20261121"));
    assert_eq!(hours().await.len(), 2, "the hours outlive their points");
    let replaced = elected(&stage.pool).await;
    drop(replaced);
    stage.tenure.end();
    let refused = collector.upkeep(&stage.tenure, later).await;
    assert!(matches!(refused, Err(MonitorError::Replaced { .. })), "{refused:?}");
    // 400 days later nothing of them is left.
    stage.tenure = elected(&stage.pool).await;
    collector.upkeep(&stage.tenure, later + SignedDuration::from_hours(400 * 24)).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.system_metrics_hourly")
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert_eq!((left, partitions(&stage.pool).await.len()), (0, 4));
}

#[tokio::test]
async fn the_views_show_the_newest_and_the_last_minutes() {
    let stage = Stage::new(&[]).await;
    let collector = Collector::new(stage.pool.clone(), settings(), vec![good()]);
    let now = Timestamp::now();
    for seconds in [600, 120, 0] {
        collector.round(&stage.tenure, now - SignedDuration::from_secs(seconds)).await;
    }
    let newest: (i64, bool) = sqlx::query_as(
        "SELECT count(*), bool_and(time > now() - interval '1 minute') FROM ops.system_metrics_latest",
    )
    .fetch_one(&stage.pool)
    .await
    .unwrap();
    assert_eq!(newest, (1, true));
    let recent: (f64, i64) = sqlx::query_as("SELECT max, points FROM ops.system_metrics_recent")
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    assert_eq!(recent, (7.0, 2));
}

#[tokio::test]
async fn a_table_that_somebody_else_partitions_is_only_written_to() {
    let stage = Stage::new(&[]).await;
    // As TimescaleDB has it: a plain table of the same columns, and a view of the hours.
    for statement in [
        "DROP VIEW ops.system_metrics_latest, ops.system_metrics_recent",
        "DROP TABLE ops.system_metrics, ops.system_metrics_hourly",
        "CREATE TABLE ops.system_metrics (time timestamptz NOT NULL, metric_name text NOT NULL, service text NOT NULL, \
         tags jsonb NOT NULL, value float8 NOT NULL)",
        "CREATE VIEW ops.system_metrics_hourly AS SELECT time AS bucket FROM ops.system_metrics",
    ] {
        sqlx::query(statement).execute(&stage.pool).await.unwrap();
    }
    let collector = Collector::new(stage.pool.clone(), settings(), vec![good()]);
    let now = Timestamp::now();
    assert_eq!(collector.round(&stage.tenure, now - SignedDuration::from_hours(2_000)).await.points, 1);
    collector.upkeep(&stage.tenure, now).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ops.system_metrics").fetch_one(&stage.pool).await.unwrap();
    assert_eq!((left, partitions(&stage.pool).await.len()), (1, 0));
}
