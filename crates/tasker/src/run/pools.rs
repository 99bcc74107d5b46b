//! Worker pools of every queue: those that are known from the start, and those that come up while the process runs.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use voiceai_config::HostName;
use voiceai_queue::{Client, QueueSettings, Registry, Worker, WorkerSettings};
use voiceai_runtime::{Pulse, Vitals};
use voiceai_service::Context;

use crate::operate::queues::BUILT_IN;
use crate::settings::{Pool, TaskerSettings};

/// How often it is looked for queues that somebody has begun to use.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest silence of that look: one call at its limit, with room.
const LOOK_BOUND: Duration = Duration::from_secs(60);
/// Most queues that one process works. Each costs two connections; a name made of ids would otherwise exhaust Redis.
const QUEUES_MAX: usize = 64;

/// The pools of this process.
#[derive(Clone)]
pub(super) struct Pools {
    client: Client,
    handlers: Registry,
    settings: TaskerSettings,
    drain: Duration,
}

impl Pools {
    pub(super) fn new(client: Client, handlers: Registry, context: &Context<TaskerSettings>) -> Self {
        let drain = drain_time(context.shared.general.shutdown_timeout);
        Self { client, handlers, settings: context.settings.clone(), drain }
    }

    /// Works every queue until `stopping`, then until every pool is drained.
    pub(super) async fn run(self, stopping: CancellationToken, forced: CancellationToken, vitals: Vitals) {
        let pulse = vitals.register("queue discovery", LOOK_BOUND);
        let mut pools = JoinSet::new();
        let first: Vec<String> = BUILT_IN.map(str::to_owned).into();
        let mut known: BTreeSet<String> = first.iter().cloned().collect();
        known.extend(self.handlers.queues().into_iter().map(str::to_owned));
        let work = |queues: Vec<String>| {
            let worker = self.worker(&queues);
            let (stopping, forced, vitals) = (stopping.clone(), forced.clone(), vitals.clone());
            async move { worker.run_until(stopping, forced, &vitals).await }
        };
        pools.spawn(work(known.iter().cloned().collect()));
        while let Some(name) = self.next_queue(&known, &stopping, &pulse).await {
            pools.spawn(work(vec![name.clone()]));
            known.insert(name);
        }
        drop(pulse);
        while let Some(ended) = pools.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "worker pools ended abnormally");
            }
        }
    }

    fn worker(&self, queues: &[String]) -> Worker {
        let settings = WorkerSettings {
            queues: queues.iter().map(|name| queue_settings(name, &self.settings.pool(name))).collect(),
            concurrency: self.settings.worker_concurrency,
            poll_interval: self.settings.worker_poll,
            drain: self.drain,
            host: HostName::read().0,
            ..WorkerSettings::new(Vec::new())
        };
        Worker::on_listed(self.client.clone(), self.handlers.clone(), settings)
    }

    /// A queue that is used and not worked yet; `None` once the process stops.
    async fn next_queue(
        &self,
        known: &BTreeSet<String>,
        stopping: &CancellationToken,
        pulse: &Pulse,
    ) -> Option<String> {
        let mut warned = false;
        loop {
            pulse.beat();
            // Redis being away is the readiness check's to tell.
            let used = self.client.queues().await.unwrap_or_default();
            pulse.beat();
            if let Some(name) = used.into_iter().find(|name| !known.contains(name)) {
                if known.len() < QUEUES_MAX {
                    return (!stopping.is_cancelled()).then_some(name);
                }
                if !warned {
                    warned = true;
                    tracing::warn!(
                        queue = name,
                        most = QUEUES_MAX,
                        "this queue is not worked: there are too many"
                    );
                }
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

fn queue_settings(name: &str, pool: &Pool) -> QueueSettings {
    QueueSettings {
        rate: pool.rate,
        attempts: pool.attempts,
        backoff: pool.backoff,
        attempt_timeout: pool.timeout,
        ..QueueSettings::new(name, pool.concurrency)
    }
}

/// Of the time to stop, what running handlers may use: the rest is for handing back, resigning and flushing.
pub(super) fn drain_time(shutdown_timeout: Duration) -> Duration {
    shutdown_timeout.saturating_sub(Duration::from_secs(9)).max(shutdown_timeout / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_leave_time_for_the_rest_of_the_stop() {
        let drain = |seconds| drain_time(Duration::from_secs(seconds)).as_secs();
        assert_eq!(drain(30), 21);
        assert_eq!(drain(120), 111);
        assert_eq!(drain(8), 2);
    }
}
