//! One queue's pool in this process: a single loop that takes, starts, settles and hands back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use voiceai_runtime::{Backoff, Vitals, random_unit};

use super::desk::Desk;
use super::lease::{Heart, Leases, write_ends};
use super::log::Voice;
use super::run::Ended;
use super::take::Lot;
use super::{QueueSettings, WorkerSettings, wake};
use crate::attempt::{Attempt, Link, Stop};
use crate::client::Client;
use crate::id::JobId;
use crate::library::{Library, QueueName};
use crate::registry::Registry;

/// The loop must come round at least this often.
const PULSE_BOUND: Duration = Duration::from_secs(20);

/// What the loop, the running jobs and the helpers share.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) link: Arc<Link>,
    pub(super) registry: Arc<Registry>,
    pub(super) settings: QueueSettings,
    pub(super) voice: Voice,
    /// `<host>/<pid>`
    pub(super) worker: String,
    ended: Mutex<Vec<Ended>>,
    /// Rung when a job ended.
    pub(super) bell: Notify,
    running: Mutex<HashMap<JobId, (Attempt, Arc<Lot>)>>,
    /// The time to drain is over: whatever still runs is stopped, also what begins to be known only now.
    stopped: AtomicBool,
}

impl Shared {
    /// Makes an attempt known to those who may have to stop it, until the entry is dropped.
    pub(super) fn register(&self, attempt: &Attempt, lot: &Arc<Lot>) -> Entry<'_> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(attempt.id().clone(), (attempt.clone(), Arc::clone(lot)));
        drop(running);
        // Looked at after the entry is in: whoever marks it lost looks for entries after that.
        if lot.incarnation.is_lost() {
            attempt.stop(Stop::LeaseLost);
        } else if self.stopped.load(Ordering::SeqCst) {
            attempt.stop(Stop::ShuttingDown);
        }
        Entry { shared: self, id: attempt.id().clone(), lot: Arc::clone(lot) }
    }

    pub(super) fn push(&self, ended: impl IntoIterator<Item = Ended>) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(ended);
        self.bell.notify_one();
    }

    pub(super) fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops whatever runs, and whatever is yet to be known as running.
    pub(super) fn stop_all(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.stop_where(Stop::ShuttingDown, |_, _| true);
    }

    /// Stops every running attempt that `which` picks.
    pub(super) fn stop_where(&self, why: Stop, which: impl Fn(&JobId, &Lot) -> bool) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, (attempt, lot)) in running.iter() {
            if which(id, lot) {
                attempt.stop(why);
            }
        }
    }
}

/// A running attempt's place among those that can be stopped.
pub(super) struct Entry<'a> {
    shared: &'a Shared,
    id: JobId,
    lot: Arc<Lot>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
        // The same job may be here again, under another lot, while a handler that lost it still ends.
        if running.get(&self.id).is_some_and(|(_, lot)| Arc::ptr_eq(lot, &self.lot)) {
            running.remove(&self.id);
        }
    }
}

/// A pool before it runs.
pub(super) struct Pool {
    client: Client,
    registry: Arc<Registry>,
    worker: WorkerSettings,
    queue: QueueSettings,
}

impl Pool {
    pub(super) fn new(
        client: &Client,
        registry: &Arc<Registry>,
        worker: &WorkerSettings,
        queue: &QueueSettings,
    ) -> Self {
        Self {
            client: client.clone(),
            registry: Arc::clone(registry),
            worker: worker.clone(),
            queue: queue.clone(),
        }
    }

    /// Works the queue until `stopping`, then drains.
    pub(super) async fn run(self, stopping: CancellationToken, forced: CancellationToken, vitals: Vitals) {
        let pulse = vitals.register(format!("worker:{}", self.queue.name), PULSE_BOUND);
        let name = QueueName::new(&self.queue.name);
        let Some(library) = self.open(&stopping, &pulse).await else { return };
        self.client.remember_queue(&self.queue.name).await;
        let (tell, signals) = mpsc::unbounded_channel();
        let leases = Leases::default();
        let wanted = Arc::new(Notify::new());
        let ended = CancellationToken::new();
        let kinds: Vec<&'static str> = self.registry.kinds();
        let (ends, to_write) = mpsc::unbounded_channel();
        let scribe = tokio::spawn(write_ends(self.client.clone(), name.clone(), to_write));
        let _scribe = AbortOnDropHandle::new(scribe);
        let heart = Heart {
            client: self.client.clone(),
            library: library.clone(),
            queue: name.clone(),
            kinds: kinds.clone(),
            lease: self.worker.lease,
            leases: Arc::clone(&leases),
            tell: tell.clone(),
            behind: AtomicBool::new(false),
            ends,
        };
        // Ended with the loop, whatever ends it: a lease must not outlive those who work under it.
        let heart = AbortOnDropHandle::new(tokio::spawn(heart.run(ended.clone())));
        let redis = self.client.redis().clone();
        let (poll, ear_wanted) = (self.worker.poll_interval, Arc::clone(&wanted));
        let ear = wake::listen(redis, name.clone(), poll, ear_wanted, tell, ended.clone());
        let ear = AbortOnDropHandle::new(tokio::spawn(ear));

        let voice = Voice::of(&self.queue.name);
        voice.started(&self.queue.name, self.queue.concurrency);
        let shared = Arc::new(Shared {
            client: self.client,
            link: Arc::new(Link { library, queue: name }),
            registry: self.registry,
            voice,
            worker: format!("{}/{}", self.worker.host, std::process::id()),
            ended: Mutex::default(),
            bell: Notify::new(),
            running: Mutex::default(),
            stopped: AtomicBool::new(false),
            settings: self.queue,
        });
        let desk = Desk::new(Arc::clone(&shared), self.worker, leases, signals, wanted, kinds);
        desk.run(stopping, forced, &pulse).await;
        ended.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(3), async {
            let _ = heart.await;
            let _ = ear.await;
        })
        .await;
        tracing::info!(queue = %shared.settings.name, "worker pool stopped");
    }

    /// Opens the pool's own connection, trying until it is there or the process stops.
    async fn open(&self, stopping: &CancellationToken, pulse: &voiceai_runtime::Pulse) -> Option<Library> {
        let mut failures = 0;
        loop {
            pulse.beat();
            let wait = match Library::open(self.client.redis()).await {
                Ok(library) => return Some(library),
                Err(error) => {
                    Voice::of(&self.queue.name).trouble(&self.queue.name, &error);
                    Backoff::RECONNECT.delay(failures, random_unit())
                }
            };
            failures += 1;
            tokio::select! {
                () = stopping.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
