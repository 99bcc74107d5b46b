//! Workers: one pool per queue, each with its lease, its slots and its own two connections.

mod calls;
mod desk;
mod lease;
mod log;
mod pool;
mod run;
mod take;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use voiceai_config::catalogue::queue as settings;
use voiceai_config::{Rate, Reader};
use voiceai_runtime::{Shutdown, Vitals};

use crate::client::Client;
use crate::registry::Registry;

/// How one queue is worked.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// The queue.
    pub name: String,
    /// Jobs that this process runs at once.
    pub concurrency: u32,
    /// Starts per period over all workers.
    pub rate: Option<Rate>,
    /// Attempts of its jobs in all, where their kind has an exponential policy.
    pub attempts: Option<u32>,
    /// First wait after a failure, where their kind has an exponential policy.
    pub backoff: Option<Duration>,
    /// Longest time of an attempt of any of its jobs; without it their kind's own.
    pub attempt_timeout: Option<Duration>,
}

impl QueueSettings {
    /// A queue with `concurrency` slots and no limits.
    #[must_use]
    pub fn new(name: impl Into<String>, concurrency: u32) -> Self {
        Self {
            name: name.into(),
            concurrency: concurrency.max(1),
            rate: None,
            attempts: None,
            backoff: None,
            attempt_timeout: None,
        }
    }

    /// Reads `QUEUE_<NAME>_CONCURRENCY`, `_RATE`, `_ATTEMPTS`, `_BACKOFF`, `_TIMEOUT`; without them `fallback` stands.
    #[must_use]
    pub fn read(reader: &Reader<'_>, fallback: &Self) -> Self {
        let name = fallback.name.as_str();
        Self {
            name: name.to_owned(),
            concurrency: reader
                .named(&settings::QUEUE_CONCURRENCY, name)
                .unwrap_or(fallback.concurrency)
                .max(1),
            rate: reader.named(&settings::QUEUE_RATE, name).or(fallback.rate),
            attempts: reader.named(&settings::QUEUE_ATTEMPTS, name).or(fallback.attempts),
            backoff: reader.named(&settings::QUEUE_BACKOFF, name).or(fallback.backoff),
            attempt_timeout: reader.named(&settings::QUEUE_TIMEOUT, name).or(fallback.attempt_timeout),
        }
    }
}

/// How a process works its queues.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The queues; a registered kind's queue that is not listed is worked with `concurrency`.
    pub queues: Vec<QueueSettings>,
    /// `WORKER_CONCURRENCY`: slots of a queue that is not listed.
    pub concurrency: u32,
    /// `WORKER_POLL_INTERVAL_MS`: the safety net beside wake-ups.
    pub poll_interval: Duration,
    /// How long a silent worker keeps its jobs. Default 10 s.
    pub lease: Duration,
    /// How long running handlers may go on once the process stops; then they are cancelled and their jobs go back.
    pub drain: Duration,
    /// Name of this machine, shown to operators.
    pub host: String,
}

impl WorkerSettings {
    /// Defaults: 5 slots, poll every 5 s, lease 10 s, 20 s to drain.
    #[must_use]
    pub fn new(queues: Vec<QueueSettings>) -> Self {
        Self {
            queues,
            concurrency: 5,
            poll_interval: Duration::from_secs(5),
            lease: Duration::from_secs(10),
            drain: Duration::from_secs(20),
            host: "localhost".into(),
        }
    }

    /// Reads WORKER_* and, for each of `queues`, its QUEUE_* settings.
    #[must_use]
    pub fn read(reader: &Reader<'_>, queues: &[QueueSettings]) -> Self {
        let concurrency = reader.get(&settings::WORKER_CONCURRENCY);
        Self {
            queues: queues.iter().map(|fallback| QueueSettings::read(reader, fallback)).collect(),
            concurrency,
            poll_interval: reader.get(&settings::WORKER_POLL_INTERVAL_MS),
            ..Self::new(Vec::new())
        }
    }
}

/// Runs the jobs of the registered kinds.
#[derive(Debug)]
pub struct Worker {
    client: Client,
    registry: Arc<Registry>,
    settings: WorkerSettings,
}

impl Worker {
    /// A worker of `registry`'s kinds on the listed queues and on those the kinds name.
    #[must_use]
    pub fn new(client: Client, registry: Registry, mut settings: WorkerSettings) -> Self {
        for queue in registry.queues() {
            if !settings.queues.iter().any(|q| q.name == queue) {
                settings.queues.push(QueueSettings::new(queue, settings.concurrency));
            }
        }
        Self { client, registry: Arc::new(registry), settings }
    }

    /// A worker of `registry`'s kinds on the listed queues alone: for queues that come up while a process runs.
    #[must_use]
    pub fn on_listed(client: Client, registry: Registry, settings: WorkerSettings) -> Self {
        Self { client, registry: Arc::new(registry), settings }
    }

    /// The queues it works.
    #[must_use]
    pub fn queues(&self) -> &[QueueSettings] {
        &self.settings.queues
    }

    /// Works until `shutdown` says stop; then hands back what has not begun, waits for what runs, cancels what still
    /// runs after [`WorkerSettings::drain`] or a second signal, and hands that back. Each pool is a loop of `vitals`.
    ///
    /// Losing Redis never ends it.
    pub async fn run(self, shutdown: &Shutdown, vitals: &Vitals) {
        self.run_until(shutdown.stopping(), shutdown.forced(), vitals).await;
    }

    /// The same with bare tokens.
    pub async fn run_until(self, stopping: CancellationToken, forced: CancellationToken, vitals: &Vitals) {
        let mut pools = JoinSet::new();
        for queue in &self.settings.queues {
            let (client, registry) = (self.client.clone(), Arc::clone(&self.registry));
            let (settings, queue) = (self.settings.clone(), queue.clone());
            let (stopping, forced, vitals) = (stopping.clone(), forced.clone(), vitals.clone());
            pools.spawn(async move {
                let name = format!("worker pool {}", queue.name);
                // What a pool held when it panicked comes back to the queue with its lease.
                let pool = || {
                    let pool = pool::Pool::new(&client, &registry, &settings, &queue);
                    pool.run(stopping.clone(), forced.clone(), vitals.clone())
                };
                voiceai_runtime::restarting(&name, &stopping, pool).await;
            });
        }
        while pools.join_next().await.is_some() {}
    }
}
