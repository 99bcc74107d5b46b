//! What is asked for figures.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_redis::{CallOptions, Redis};

use super::{Point, Source, SourceError};
use crate::decide::State;
use crate::probe::Prober;
use crate::settings::Service;

type Collecting<'s> = BoxFuture<'s, Result<Vec<Point>, SourceError>>;

/// The watched services: `healthy`, `latency_seconds` and the counters of each. Of one that is `unknown` nothing is known; of one
/// that is down or degraded, that it is not healthy.
#[derive(Debug)]
pub struct Services {
    services: Vec<Service>,
    prober: Prober,
    concurrency: usize,
}

impl Services {
    /// They are asked by `prober`, so many at a time.
    #[must_use]
    pub const fn new(services: Vec<Service>, prober: Prober, concurrency: usize) -> Self {
        Self { services, prober, concurrency }
    }
}

impl Source for Services {
    fn name(&self) -> &'static str {
        "services"
    }

    fn collect(&self) -> Collecting<'_> {
        Box::pin(async move {
            let ask = |service: Service| {
                let prober = self.prober.clone();
                async move {
                    let seen = prober.ask(&service).await;
                    let name = service.name();
                    let healthy = match seen.state {
                        State::Healthy => 1.0,
                        State::Degraded | State::Down => 0.0,
                        State::Unknown => return Vec::new(),
                    };
                    let mut points = vec![Point::new(name, "healthy", healthy)];
                    let latency = seen.latency.map(|latency| latency.as_secs_f64());
                    points.extend(latency.map(|latency| Point::new(name, "latency_seconds", latency)));
                    let counters = seen.counters.into_iter();
                    points.extend(counters.map(|(metric, value)| Point::new(name, metric, value)));
                    points
                }
            };
            let services = self.services.clone();
            let all: Vec<Vec<Point>> =
                stream::iter(services).map(ask).buffer_unordered(self.concurrency.max(1)).collect().await;
            Ok(all.concat())
        })
    }
}

/// PostgreSQL, by its own statistics.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    /// Its size is a walk over the files of the database: not each time.
    size: Mutex<Option<(Instant, f64)>>,
}

/// How often the size of the database is asked for.
const SIZE_EVERY: Duration = Duration::from_secs(60);

impl Postgres {
    /// The server of `pool`.
    #[must_use]
    pub const fn new(pool: PgPool) -> Self {
        Self { pool, size: Mutex::new(None) }
    }

    async fn size(&self) -> Result<f64, sqlx::Error> {
        let known = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, size)) = known
            && at.elapsed() < SIZE_EVERY
        {
            return Ok(size);
        }
        let size: f64 = sqlx::query_scalar("SELECT pg_database_size(current_database())::float8")
            .fetch_one(&self.pool)
            .await?;
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), size));
        Ok(size)
    }
}

impl Source for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn collect(&self) -> Collecting<'_> {
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT d.numbackends::float8, current_setting('max_connections')::float8, d.xact_commit::float8, \
                    d.xact_rollback::float8, d.deadlocks::float8, d.temp_bytes::float8, \
                    COALESCE((SELECT extract(epoch FROM clock_timestamp() - min(a.xact_start)) FROM pg_stat_activity a \
                              WHERE a.datname = d.datname AND a.backend_type = 'client backend'), 0)::float8 \
                 FROM pg_stat_database d WHERE d.datname = current_database()",
            )
            .fetch_one(&self.pool)
            .await?;
            let metrics = [
                "connections",
                "connections_max",
                "transactions_committed",
                "transactions_rolled_back",
                "deadlocks",
                "temporary_bytes",
                "oldest_transaction_seconds",
            ];
            let mut points = vec![Point::new("postgres", "healthy", 1.0)];
            for (at, metric) in metrics.into_iter().enumerate() {
                points.push(Point::new("postgres", metric, row.try_get(at)?));
            }
            points.push(Point::new("postgres", "db_size_bytes", self.size().await?));
            Ok(points)
        })
    }
}

/// Redis, by its own statistics; of a cluster the sums over its primaries.
#[derive(Debug)]
pub struct RedisServer(Redis);

/// Lines of `INFO`, and what they are called here.
const INFO: [(&str, &str); 8] = [
    ("connected_clients", "clients"),
    ("blocked_clients", "clients_blocked"),
    ("used_memory", "memory_bytes"),
    ("maxmemory", "memory_max_bytes"),
    ("total_commands_processed", "commands"),
    ("evicted_keys", "keys_evicted"),
    ("rejected_connections", "connections_rejected"),
    ("keyspace_misses", "key_misses"),
];

impl RedisServer {
    /// The server that `redis` talks to. It is asked once, without waiting for one that is away.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        let limit = Some(Duration::from_secs(2));
        Self(redis.with(CallOptions { attempts: Some(1), timeout: limit, fail_fast: true }))
    }
}

impl Source for RedisServer {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn collect(&self) -> Collecting<'_> {
        Box::pin(async move {
            let primaries = self.0.primaries();
            if primaries.is_empty() {
                return Err("no primary of the cluster is known".into());
            }
            let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
            for primary in &primaries {
                for (metric, value) in figures(&self.0.info_of(primary).await?) {
                    *sums.entry(metric).or_default() += value;
                }
            }
            let mut points = vec![Point::new("redis", "healthy", 1.0)];
            points.extend(sums.into_iter().map(|(metric, value)| Point::new("redis", metric, value)));
            Ok(points)
        })
    }
}

fn figures(info: &str) -> Vec<(&'static str, f64)> {
    let lines: BTreeMap<&str, &str> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let figure = |(line, metric): &(&str, &'static str)| Some((*metric, lines.get(line)?.parse().ok()?));
    INFO.iter().filter_map(figure).collect()
}

/// The platform's own backlog in PostgreSQL: open alerts, webhooks that wait, rows of the outbox.
#[derive(Debug)]
pub struct Platform(PgPool);

impl Platform {
    /// What stands in the database of `pool`.
    #[must_use]
    pub const fn new(pool: PgPool) -> Self {
        Self(pool)
    }
}

impl Source for Platform {
    fn name(&self) -> &'static str {
        "platform"
    }

    fn collect(&self) -> Collecting<'_> {
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT (SELECT count(*) FROM ops.system_alerts WHERE closed_at IS NULL)::float8, \
                    (SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'waiting')::float8, \
                    (SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'active')::float8, \
                    (SELECT count(*) FROM ops.outbox WHERE relayed_at IS NULL AND refused_at IS NULL)::float8",
            )
            .fetch_one(&self.0)
            .await?;
            let metrics = ["alerts_open", "deliveries_pending", "deliveries_active", "outbox_waiting"];
            let points = metrics.into_iter().enumerate();
            let points = points.map(|(at, metric)| Ok(Point::new("platform", metric, row.try_get(at)?)));
            Ok(points.collect::<Result<_, sqlx::Error>>()?)
        })
    }
}

/// The scaler's rows: servers by group and status, open operations. Nothing where the scaler never ran on this database.
#[derive(Debug)]
pub struct Scaler(PgPool);

impl Scaler {
    /// What stands in the database of `pool`.
    #[must_use]
    pub const fn new(pool: PgPool) -> Self {
        Self(pool)
    }
}

impl Source for Scaler {
    fn name(&self) -> &'static str {
        "scaler"
    }

    fn collect(&self) -> Collecting<'_> {
        Box::pin(async move {
            let there: bool = sqlx::query_scalar("SELECT to_regclass('ops.operations') IS NOT NULL")
                .fetch_one(&self.0)
                .await?;
            if !there {
                return Ok(Vec::new());
            }
            let rows = sqlx::query(
                "SELECT group_name, status, count(*)::float8 FROM ops.servers WHERE status <> 'gone' \
                 GROUP BY group_name, status",
            )
            .fetch_all(&self.0)
            .await?;
            let mut points = Vec::new();
            for row in rows {
                let (group, status): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                let point = Point::new("scaler", "servers", row.try_get(2)?);
                points.push(point.tag("group", group).tag("status", status));
            }
            let open: f64 =
                sqlx::query_scalar("SELECT count(*)::float8 FROM ops.operations WHERE finished_at IS NULL")
                    .fetch_one(&self.0)
                    .await?;
            points.push(Point::new("scaler", "operations_open", open));
            Ok(points)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_does_not_say_is_no_figure() {
        let info = "# Clients\r\nconnected_clients:7\r\nused_memory:1048576\r\nmaxmemory:oops\r\n";
        assert_eq!(figures(info), [("clients", 7.0), ("memory_bytes", 1_048_576.0)]);
        assert!(figures("").is_empty());
    }
}
