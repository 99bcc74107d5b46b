//! A database of one's own with a clock that can be set, leaders, and loops that end with the test.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_postgres::term::{Candidate, issue};
use voiceai_queue::cron::{Scheduler, SchedulerSettings};
use voiceai_queue::outbox::{Enqueue, Relay, RelaySettings, Wakeups, listen};
use voiceai_runtime::{Vitals, boot_now};

/// Long enough for a loaded machine, short enough for a broken one.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Becomes the next leader, by a term of the database's, trusted for an hour.
pub(crate) async fn lead(pool: &PgPool) -> Tenure {
    let candidate =
        Candidate { service: "voiceai-tasker", name: "tasker", holder: "test", host: "here", pid: 1 };
    let issued = issue(pool, &candidate, 0).await.unwrap();
    Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(3600)), false)
}

/// Makes the database's clock one that [`set_clock`] moves: schema `fake` comes before `pg_catalog` in every new session.
pub(crate) async fn with_movable_clock(database: &voiceai_testkit::Database) -> PgPool {
    database
        .execute(&format!(
            "CREATE SCHEMA fake; \
             CREATE TABLE fake.shift (by interval NOT NULL); INSERT INTO fake.shift VALUES ('0'); \
             CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE \
                 AS 'SELECT pg_catalog.clock_timestamp() + (SELECT by FROM fake.shift)'; \
             CREATE FUNCTION fake.now() RETURNS timestamptz LANGUAGE sql STABLE \
                 AS 'SELECT pg_catalog.now() + (SELECT by FROM fake.shift)'; \
             ALTER DATABASE \"{}\" SET search_path = fake, pg_catalog, public",
            database.name
        ))
        .await;
    database.pool().await
}

/// Sessions of the same database whose clock was left alone. Rows are stamped by it, so the relay has to read it.
pub(crate) async fn with_true_clock(database: &voiceai_testkit::Database) -> PgPool {
    let options: sqlx::postgres::PgConnectOptions = database.url.parse().unwrap();
    let options = options.options([("search_path", "public")]);
    sqlx::postgres::PgPoolOptions::new().max_connections(5).connect_with(options).await.unwrap()
}

/// From now on the database's clock shows `to`, and goes on from there.
pub(crate) async fn set_clock(pool: &PgPool, to: Timestamp) {
    sqlx::query("UPDATE fake.shift SET by = $1 - pg_catalog.clock_timestamp()")
        .bind(to.to_sqlx())
        .execute(pool)
        .await
        .unwrap();
}

/// Puts a schedule's cursor where a test needs it.
pub(crate) async fn set_cursor(pool: &PgPool, name: &str, last_slot: Timestamp) {
    sqlx::query("UPDATE ops.schedules SET last_slot = $2 WHERE name = $1")
        .bind(name)
        .bind(last_slot.to_sqlx())
        .execute(pool)
        .await
        .unwrap();
}

pub(crate) async fn cursor(pool: &PgPool, name: &str) -> Timestamp {
    sqlx::query("SELECT last_slot FROM ops.schedules WHERE name = $1")
        .bind(name)
        .fetch_one(pool)
        .await
        .unwrap()
        .get::<SqlTimestamp, _>(0)
        .to_jiff()
}

/// Ids in the outbox, by id.
pub(crate) async fn outbox_ids(pool: &PgPool) -> Vec<String> {
    let rows = sqlx::query("SELECT id FROM ops.outbox ORDER BY id").fetch_all(pool).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

pub(crate) async fn count(pool: &PgPool, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM ops.outbox WHERE {condition}");
    sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap().get(0)
}

/// Loops that end when this is dropped, as by kill -9, or when they are told to stop.
#[derive(Debug)]
pub(crate) struct Loops {
    pub(crate) tenure: watch::Sender<Option<Tenure>>,
    pub(crate) wakeups: Wakeups,
    stopping: CancellationToken,
    vitals: Vitals,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Loops {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Loops {
    pub(crate) fn new(tenure: Option<Tenure>) -> Self {
        Self {
            tenure: watch::Sender::new(tenure),
            wakeups: Wakeups::new(),
            stopping: CancellationToken::new(),
            vitals: Vitals::new(),
            tasks: vec![],
        }
    }

    pub(crate) fn scheduler(mut self, pool: &PgPool, queue: &impl Enqueue, poll: Duration) -> Self {
        let settings = SchedulerSettings { poll_interval: poll, ..SchedulerSettings::default() };
        let scheduler = Scheduler::new(pool.clone(), queue.clone(), settings, self.wakeups.clone());
        let pulse = self.vitals.register("scheduler", Duration::from_secs(60));
        self.tasks.push(tokio::spawn(scheduler.run(self.tenure.subscribe(), self.stopping.clone(), pulse)));
        self
    }

    pub(crate) fn relay(self, pool: &PgPool, queue: &impl Enqueue, poll: Duration) -> Self {
        self.relay_with(pool, queue, RelaySettings { poll_interval: poll, ..RelaySettings::default() })
    }

    pub(crate) fn relay_with(mut self, pool: &PgPool, queue: &impl Enqueue, settings: RelaySettings) -> Self {
        let relay = Relay::new(pool.clone(), queue.clone(), settings);
        let pulse = self.vitals.register("relay", Duration::from_secs(60));
        self.tasks.push(tokio::spawn(relay.run(self.wakeups.clone(), self.stopping.clone(), pulse)));
        self
    }

    pub(crate) fn listener(mut self, pool: &PgPool) -> Self {
        self.tasks.push(tokio::spawn(listen(pool.clone(), self.wakeups.clone(), self.stopping.clone())));
        self
    }

    /// Asks the loops to stop and waits until they have.
    pub(crate) async fn stop(mut self) {
        self.stopping.cancel();
        for task in self.tasks.drain(..) {
            tokio::time::timeout(SOON, task).await.expect("a loop stops in time").unwrap();
        }
    }

    /// Loops that have not beaten within a minute.
    pub(crate) fn stuck(&self) -> Vec<String> {
        self.vitals.report("test", "test").not_live(boot_now())
    }
}
