//! Sending: a scheduler claims what is due, tasks make the attempts, a writer commits what became of them.
//!
//! No database transaction is open while the network is waited for; what a task may do is decided by the token of its claim alone.

mod attempt;
mod keeper;
mod marker;
mod scheduler;
mod writer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_config::Rate;
use voiceai_postgres::PgPool;
use voiceai_runtime::Vitals;

use crate::Wake;
use crate::delivery::Policy;
use crate::store::claim::Terms;
use crate::transport::Transport;

/// Asked before the first attempt, and again after the database was away: `Err` says why nothing may be sent yet.
pub type Gate = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// How mail is sent.
#[derive(Clone)]
pub struct SendingSettings {
    /// `MAIL_ATTEMPT_WORKER_CONCURRENCY`. Attempts at a time.
    pub concurrency: usize,
    /// `MAIL_SEND_RATE`. Attempts that start in a period, over all processes.
    pub rate: Rate,
    /// When a mail is tried again.
    pub policy: Policy,
    /// How often it is looked for due mail when nothing wakes the scheduler. `WORKER_POLL_INTERVAL_MS`.
    pub poll_interval: Duration,
    /// Longest time that one attempt can take by the transport's own limits. A claim outlives it.
    pub attempt_max: Duration,
    /// From the stop on: how long an attempt whose content has not begun may still take. What has begun is never cut off here.
    pub drain: Duration,
    /// `INSTANCE_ID`.
    pub instance_id: String,
    /// Name of this host.
    pub host: String,
    /// The key of the tasker's election: while it is held, older mail is not sent.
    pub election: String,
}

/// Added to what an attempt can take, for everything around it.
const LEASE_ROOM: Duration = Duration::from_secs(60);

/// The sending part of one process.
pub struct Sending {
    shared: Arc<Shared>,
    wake: Wake,
    gate: Gate,
}

/// What the parts of one process have in common.
struct Shared {
    pool: PgPool,
    transport: Arc<dyn Transport>,
    settings: SendingSettings,
    terms: Terms,
    slots: Arc<Semaphore>,
    claimed_total: AtomicU64,
    /// Tokens of the claims that this process knows of.
    held: Mutex<HashSet<Uuid>>,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens of all claims that are being worked on.
    fn held(&self) -> Vec<Uuid> {
        self.known().iter().copied().collect()
    }
}

/// A claim that this process knows of, for as long as it exists.
struct Held {
    shared: Arc<Shared>,
    token: Uuid,
}

impl Held {
    fn new(shared: &Arc<Shared>, token: Uuid) -> Self {
        shared.known().insert(token);
        Self { shared: Arc::clone(shared), token }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.known().remove(&self.token);
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").field("provider", &self.shared.transport.name()).finish_non_exhaustive()
    }
}

impl Sending {
    /// A sending part that has not begun.
    #[must_use]
    pub fn new(
        pool: PgPool,
        transport: Arc<dyn Transport>,
        settings: SendingSettings,
        wake: Wake,
        gate: Gate,
    ) -> Self {
        let terms = Terms {
            worker: Uuid::now_v7(),
            provider: transport.name(),
            rate: settings.rate,
            lease: settings.attempt_max + LEASE_ROOM,
            election: settings.election.clone(),
        };
        let slots = Arc::new(Semaphore::new(settings.concurrency));
        let shared = Shared {
            pool,
            transport,
            settings,
            terms,
            slots,
            claimed_total: AtomicU64::new(0),
            held: Mutex::default(),
        };
        Self { shared: Arc::new(shared), wake, gate }
    }

    /// Sends until `stopping`; then what is under way may end, within [`SendingSettings::drain`] where its content has not begun.
    /// `forced` cuts everything off: what had begun is then written down as unknown.
    pub async fn run(self, stopping: CancellationToken, forced: CancellationToken, vitals: &Vitals) {
        let Self { shared, wake, gate } = self;
        let settings = &shared.settings;
        tracing::info!(
            provider = shared.transport.name(),
            concurrency = settings.concurrency,
            rate = %format_args!("{}/{:?}", settings.rate.count, settings.rate.per),
            "mail worker pool started"
        );
        let finished = CancellationToken::new();
        // Also when a part panics: a keeper that went on would keep claims alive that nobody works on.
        let _finished = finished.clone().drop_guard();
        let (desk, writer) = writer::new(shared.pool.clone());
        let pulse = vitals.register("mail result writer", shared.terms.lease);
        let broken = CancellationToken::new();
        let writer = tokio::spawn(or_break(writer.run(forced.clone(), pulse), broken.clone()));
        let (marks, marker) = marker::new(shared.pool.clone());
        let pulse = vitals.register("mail content marker", STORE_BOUND);
        let marker = tokio::spawn(or_break(marker.run(pulse), broken.clone()));
        let pulse = vitals.register("mail keeper", STORE_BOUND);
        let keeper = keeper::Keeper::new(Arc::clone(&shared), desk.clone(), wake.clone());
        let keeper = tokio::spawn(or_break(keeper.run(finished.clone(), pulse), broken.clone()));
        let pulse = vitals.register("mail scheduler", settings.poll_interval + STORE_BOUND);
        let hurry = hurry(stopping.clone(), settings.drain, finished.clone());
        let scheduler = scheduler::Scheduler {
            shared: Arc::clone(&shared),
            desk,
            marks,
            wake,
            gate,
            hurry,
            forced: forced.clone(),
        };
        tokio::select! {
            () = scheduler.run(stopping, pulse) => {}
            // It cannot go on without that part, and is started again as a whole.
            () = broken.cancelled() => std::panic::resume_unwind(Box::new("a part of the mail worker pool panicked")),
        }
        // Every attempt holds a slot until its end is written.
        let all = u32::try_from(settings.concurrency).unwrap_or(u32::MAX);
        tokio::select! {
            _ = shared.slots.acquire_many(all) => {}
            () = tokio::time::sleep(shared.terms.lease) => {}
        }
        finished.cancel();
        let _ = keeper.await;
        // All senders are gone with the scheduler, its attempts and the keeper, which ends them.
        let _ = tokio::join!(marker, writer);
        tracing::info!(claimed = shared.claimed_total.load(Ordering::Relaxed), "mail worker pool stopped");
    }
}

/// Longest silence of a loop that talks to the database: several calls at their limit.
const STORE_BOUND: Duration = Duration::from_secs(120);

/// Runs a part of the pool; when it panics, `broken` says so.
async fn or_break<T>(part: impl Future<Output = T>, broken: CancellationToken) -> T {
    let guard = broken.drop_guard();
    let ended = part.await;
    // The token outlives the part.
    let _ = guard.disarm();
    ended
}

/// Cancelled `drain` after `stopping`.
fn hurry(stopping: CancellationToken, drain: Duration, finished: CancellationToken) -> CancellationToken {
    let hurry = CancellationToken::new();
    let told = hurry.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = finished.cancelled() => {}
            () = async { stopping.cancelled().await; tokio::time::sleep(drain).await } => told.cancel(),
        }
    });
    hurry
}
