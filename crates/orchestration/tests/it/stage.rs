//! A database, a queue, agents, and a worker that is in a hurry.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_orchestration::jobs::{Batch, Cleanup, GithubAnalysis, Retry, RetryFailed, SingleAgent};
use voiceai_orchestration::{Client as Agency, OrchestrationContext, OrchestrationSettings};
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_queue::history::{History, HistorySettings};
use voiceai_queue::outbox::{Relay, RelaySettings, Wakeups};
use voiceai_queue::{Client, JobId, JobView, NewJob, QueueSettings, Registry, State, Worker, WorkerSettings};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_runtime::{Secret, Shutdown, Vitals};
use voiceai_testkit::{Database, RedisDb, database, redis, wait_for};

use crate::agents::Agents;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const QUEUE: &str = "orchestration-queue";

pub(crate) struct Stage {
    pub(crate) pool: PgPool,
    pub(crate) client: Client,
    pub(crate) context: OrchestrationContext,
    pub(crate) wakeups: Wakeups,
    pub(crate) shutdown: Shutdown,
    _database: Database,
    _redis: RedisDb,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown.stop();
    }
}

pub(crate) fn settings(own: &[(&str, &str)]) -> OrchestrationSettings {
    let resolved = Resolved::from_pairs(Binary::Tasker, own.iter().copied());
    resolved.read(OrchestrationSettings::read).unwrap_or_else(|report| panic!("{report}")).settings
}

impl Stage {
    /// `own`: settings beside the agents' address.
    pub(crate) async fn new(agents: &Agents, own: &[(&str, &str)]) -> Self {
        Self::with_limit(agents, own, Duration::from_secs(600)).await
    }

    pub(crate) async fn with_limit(agents: &Agents, own: &[(&str, &str)], limit: Duration) -> Self {
        let (database, db) = tokio::join!(database(), redis());
        let pool = database.pool().await;
        let url = agents.url();
        let mut pairs =
            vec![("ORCHESTRATION_AGENTS_URL", url.as_str()), ("ORCHESTRATION_AGENTS", "seo,qa,ops")];
        pairs.retain(|(name, _)| !own.iter().any(|(own, _)| own == name));
        pairs.extend(own);
        let settings = settings(&pairs);
        let token = Arc::new(|| Some(Secret::new("t0ken-canary")));
        let context = OrchestrationContext {
            pool: pool.clone(),
            client: Agency::new(&settings, &Rule::default(), token).unwrap().unwrap(),
            settings: Arc::new(settings),
            limit,
        };
        let redis = Redis::connect(&RedisSettings::from_url(&db.url).unwrap()).await.unwrap();
        let (history, writer) = History::new(pool.clone(), HistorySettings::default());
        let client = Client::with_history(redis, Arc::new(history)).await.unwrap();
        let shutdown = Shutdown::new();
        let vitals = Vitals::new();
        let pulse = |name| vitals.register(name, Duration::from_secs(60));
        tokio::spawn(writer.run(shutdown.stopping(), pulse("writer")));
        let wakeups = Wakeups::new();
        let relay = Relay::new(
            pool.clone(),
            client.clone(),
            RelaySettings { poll_interval: Duration::from_millis(200), ..RelaySettings::default() },
        );
        tokio::spawn(relay.run(wakeups.clone(), shutdown.stopping(), pulse("relay")));
        Self { pool, client, context, wakeups, shutdown, _database: database, _redis: db }
    }

    /// A worker with three slots, three attempts, and `limit` for each.
    pub(crate) fn work(&self) {
        let registry = Registry::new()
            .register::<Batch>(self.context.clone())
            .register::<SingleAgent>(self.context.clone())
            .register::<GithubAnalysis>(self.context.clone())
            .register::<Retry>(self.context.clone())
            .register::<RetryFailed>(self.context.clone())
            .register::<Cleanup>(self.context.clone());
        self.run(registry);
    }

    /// A worker of nothing but the hourly look.
    pub(crate) fn keep_order(&self) {
        self.run(Registry::new().register::<RetryFailed>(self.context.clone()));
    }

    fn run(&self, registry: Registry) {
        let queue = QueueSettings {
            attempts: Some(3),
            backoff: Some(Duration::from_millis(20)),
            attempt_timeout: Some(self.context.limit),
            ..QueueSettings::new(QUEUE, 3)
        };
        let settings = WorkerSettings {
            lease: Duration::from_secs(15),
            poll_interval: Duration::from_millis(200),
            drain: Duration::from_secs(1),
            ..WorkerSettings::new(vec![queue])
        };
        let worker = Worker::new(self.client.clone(), registry, settings);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { worker.run(&shutdown, &Vitals::new()).await });
    }

    pub(crate) async fn enqueue(&self, kind: &'static str, id: &str, payload: Value) {
        let job = NewJob::json(kind, &payload).unwrap().queue(QUEUE).id(JobId::chosen(id).unwrap());
        self.client.enqueue(job).await.unwrap();
    }

    pub(crate) async fn wait(&self, id: &str, state: State) -> JobView {
        wait_for(SOON, format!("job {id} is {}", state.as_str()), async || {
            match self.client.show(QUEUE, id).await.unwrap() {
                Some(view) if view.state == state => Ok(view),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Columns of a query's only row, as JSON.
    pub(crate) async fn row(&self, query: &'static str) -> Value {
        let rows = self.rows(query).await;
        assert_eq!(rows.len(), 1, "{query}: {rows:?}");
        rows[0].clone()
    }

    pub(crate) async fn rows(&self, query: &'static str) -> Vec<Value> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT to_jsonb(q) FROM ({query}) q")));
        let rows = rows.fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|row| row.try_get(0).unwrap()).collect()
    }

    pub(crate) async fn execute(&self, statement: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&self.pool).await.unwrap();
    }

    pub(crate) async fn until(&self, what: &str, query: &'static str, wanted: Value) {
        wait_for(SOON, what.to_owned(), async || {
            let rows = Value::Array(self.rows(query).await);
            if rows == wanted { Ok(()) } else { Err(rows.to_string()) }
        })
        .await;
    }
}
