//! Posting what is due, in every process: claims a lot as slots come free, posts, tells what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use voiceai_postgres::PgPool;
use voiceai_runtime::{Backoff, Pulse, random_unit};

use crate::attempt::attempt;
use crate::claim::{self, Busy, Claimer, Lane, Room, Spent};
use crate::error::{WebhookError, chain};
use crate::ledger::{Entry, Ledger, Writer};
use crate::pace::Paces;
use crate::post::Client;
use crate::queue::{Queue, Waiting};
use crate::targets::Targets;
use crate::{Wake, WebhookSettings};

/// What a failing endpoint may take of the slots, as a part of them that is added.
const FAILING_PART: usize = 4;
/// Between two looks that each found something to do: what comes in meanwhile is claimed together.
const BREATH: Duration = Duration::from_millis(5);
/// So many times the slots are claimed beside those that are posted: a slot that comes free has its next one at once, ends are
/// committed while others are posted, and what a look costs for itself is shared by many.
const AHEAD: usize = 40;
/// Room for less than this part of the claims is a few.
const FEW: usize = 8;
/// Most bytes of bodies that wait for a slot; one that is larger waits alone.
const AHEAD_BYTES: usize = 32 * 1024 * 1024;
/// Longest wait of a claim for a slot. Beyond it, it is given back: an attempt has to end within its claim.
pub(crate) const AHEAD_MAX: Duration = Duration::from_secs(10);
/// How often failing endpoints are looked for while others keep the worker busy.
const FAILING_EVERY: Duration = Duration::from_millis(20);
/// Longest time that they are not looked for because there was no need to look for the others.
const UNSEEN_MAX: Duration = Duration::from_millis(250);
/// How often it is looked for what has waited for too long.
const SLOW_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked for what dead processes held.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(5);

/// What looks and attempts have in common.
pub(crate) struct Shared {
    pub(crate) pool: PgPool,
    pub(crate) client: Client,
    pub(crate) settings: WebhookSettings,
    pub(crate) wake: Wake,
    pub(crate) ledger: Ledger,
    pub(crate) healthy: Slots,
    pub(crate) failing: Slots,
    pub(crate) queue: Queue,
    pub(crate) attempts: TaskTracker,
    pub(crate) stopping: CancellationToken,
    pub(crate) forced: CancellationToken,
}

/// The slots of one lane.
pub(crate) struct Slots {
    /// Of claims: those that wait for a slot and those whose end is being committed included.
    claims: Arc<Semaphore>,
    most: usize,
    /// Of posts.
    posts: Arc<Semaphore>,
    /// While more than these wait for a slot, nothing more is claimed: one large lot costs less than two small ones. Half of what
    /// waited after the last look, which lasts until the next lot is there.
    low: AtomicUsize,
}

impl Slots {
    fn new(posts: usize, ahead: usize) -> Self {
        Self {
            claims: Arc::new(Semaphore::new(posts + ahead)),
            most: posts + ahead,
            posts: Arc::new(Semaphore::new(posts)),
            low: AtomicUsize::new(0),
        }
    }
}

/// What the looks know of each other.
struct Looks {
    claimer: Claimer,
    paces: Paces,
    take_back_at: Instant,
    failing_at: Instant,
    slow_at: Instant,
    /// The last one found so much that the next need not wait for more to come together.
    flood: bool,
    /// The last one saw an endpoint that is failing and not at rest.
    failing: bool,
}

/// Posts what is due.
#[derive(Debug)]
pub struct Sending {
    pool: PgPool,
    client: Client,
    settings: WebhookSettings,
    election: String,
    wake: Wake,
    poll: Duration,
}

impl Sending {
    /// Nothing is posted yet. `election` is the key of the tasker's election: while its leader is held, older deliveries wait.
    /// `poll` is the longest time between two looks.
    #[must_use]
    pub const fn new(
        pool: PgPool,
        client: Client,
        settings: WebhookSettings,
        election: String,
        wake: Wake,
        poll: Duration,
    ) -> Self {
        Self { pool, client, settings, election, wake, poll }
    }

    /// Runs until `stopping`, then waits for the attempts under way; `forced` cuts those off, and they are taken up again by whoever
    /// lives when their claims have run out.
    pub async fn run(self, stopping: CancellationToken, forced: CancellationToken, pulse: Pulse) {
        let Self { pool, client, settings, election, wake, poll } = self;
        let failing = (settings.concurrency / FAILING_PART).max(1);
        let (ledger, told) = Ledger::new();
        let writer =
            Writer { pool: pool.clone(), busy: Busy::default(), wake: wake.clone(), forced: forced.clone() };
        let writer = tokio::spawn(writer.run(told));
        let shared = Arc::new(Shared {
            healthy: Slots::new(settings.concurrency, AHEAD * settings.concurrency),
            failing: Slots::new(failing, 0),
            queue: Queue::new(usize::try_from(settings.tenant_concurrency).unwrap_or(usize::MAX)),
            attempts: TaskTracker::new(),
            ledger,
            pool,
            client,
            settings,
            wake,
            stopping: stopping.clone(),
            forced,
        });
        let claimer = Claimer {
            worker: Uuid::now_v7(),
            election,
            spent: Spent::default(),
            targets: Targets::default(),
            busy: Busy::default(),
        };
        tracing::info!(concurrency = shared.settings.concurrency, "webhook worker pool started");
        look_on(&shared, claimer, poll, &pulse).await;
        give_back(&shared, shared.queue.older_than(Duration::ZERO));
        shared.attempts.close();
        beating(&pulse, shared.attempts.wait()).await;
        // The writer ends with the last ledger.
        drop(shared);
        let written = beating(&pulse, writer).await;
        if let Err(error) = written
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
        tracing::info!("webhook worker pool stopped");
    }
}

async fn beating<F: Future>(pulse: &Pulse, waited: F) -> F::Output {
    let mut waited = std::pin::pin!(waited);
    loop {
        pulse.beat();
        tokio::select! {
            output = &mut waited => return output,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn look_on(shared: &Arc<Shared>, claimer: Claimer, poll: Duration, pulse: &Pulse) {
    let mut failures = 0;
    let now = Instant::now();
    let mut looks = Looks {
        claimer,
        paces: Paces::default(),
        take_back_at: now,
        failing_at: now,
        slow_at: now,
        flood: false,
        failing: true,
    };
    // Without a writer nothing could end: the pool begins anew.
    while !shared.stopping.is_cancelled() && !shared.ledger.is_closed() {
        pulse.beat();
        let wait = match look(shared, &mut looks, poll).await {
            Ok(wait) => {
                failures = 0;
                wait
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "webhooks cannot be claimed now");
                failures += 1;
                Backoff::RECONNECT.delay(failures, random_unit())
            }
        };
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = shared.wake.woken(), if failures == 0 => if !looks.flood {
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// Fills the free slots. Answers how long nothing need be looked for unless somebody calls.
async fn look(shared: &Arc<Shared>, looks: &mut Looks, poll: Duration) -> Result<Duration, WebhookError> {
    let now = Instant::now();
    if now >= looks.slow_at {
        // First those that wait for too long: they tell how slow their endpoint is.
        for endpoint in looks.paces.slow(&shared.queue.under_way(), now) {
            give_back(shared, shared.queue.of(endpoint));
        }
        give_back(shared, shared.queue.older_than(AHEAD_MAX));
        looks.slow_at = now + SLOW_EVERY;
    }
    if now >= looks.take_back_at {
        looks.take_back_at = now + TAKE_BACK_EVERY;
        match claim::take_back(&shared.pool).await {
            Ok(0) => {}
            Ok(lost) => tracing::warn!(lost, "webhook deliveries of a process that is gone taken back"),
            // What others held must not hold up what is free.
            Err(error) => {
                tracing::warn!(error = %chain(&error), "webhook deliveries of processes that are gone stay theirs for now");
            }
        }
    }
    let mut found = fill(shared, looks, Lane::Healthy).await?;
    looks.flood = 2 * found.claimed >= shared.settings.concurrency;
    let now = Instant::now();
    // Only a claim learns whether there is anything for those that fail.
    let unseen = !found.looked && now >= looks.failing_at + UNSEEN_MAX;
    if unseen || looks.failing && (found.claimed == 0 || now >= looks.failing_at) {
        let more = fill(shared, looks, Lane::Failing).await?;
        looks.failing_at = Instant::now() + FAILING_EVERY;
        found.claimed += more.claimed;
        found.whole &= more.whole;
    }
    if !found.whole {
        return Ok(BREATH.mul_f64(0.5 + random_unit()));
    }
    if found.claimed > 0 {
        // What ends calls; until then there may be more of those that were left.
        return Ok(FAILING_EVERY);
    }
    let next = claim::next_due(&shared.pool).await?;
    Ok(next.map_or(poll, |next| next.clamp(BREATH, poll)))
}

/// What came of a look for one lane.
struct Found {
    claimed: usize,
    /// False: there was no need to, or no room.
    looked: bool,
    /// False: another process looked at the same moment.
    whole: bool,
}

/// Claims what a lane has room for, and begins it.
async fn fill(shared: &Arc<Shared>, looks: &mut Looks, lane: Lane) -> Result<Found, WebhookError> {
    let slots = shared.slots(lane);
    let (limit, ready) = (slots.claims.available_permits(), shared.queue.ready(lane));
    let (waiting, bytes) = shared.queue.waiting(lane);
    let bytes = AHEAD_BYTES.saturating_sub(bytes);
    // Ends that are being written give room for more soon: a look for a few would cost as much.
    let few = ready > 0 && limit < slots.most / FEW;
    if limit == 0 || bytes == 0 || few || ready > slots.low.load(Ordering::Relaxed) {
        pump(shared, lane);
        return Ok(Found { claimed: waiting, looked: false, whole: true });
    }
    let under_way = shared.queue.under_way();
    if lane == Lane::Healthy {
        looks.paces.judge(&under_way);
    }
    let room = Room { lane, limit, bytes, shares: looks.paces.shares(&under_way) };
    let look = claim::claim(&shared.pool, &shared.settings, &mut looks.claimer, &room).await?;
    if !look.shut {
        looks.failing = look.failing;
        if lane == Lane::Healthy {
            looks.paces.looked(&look.claimed);
        }
    }
    let found = Found { claimed: look.claimed.len(), looked: true, whole: !look.shut };
    // Only this loop takes claims, so each has its permit.
    let since = Instant::now();
    let waiting = look.claimed.into_iter().filter_map(|claimed| {
        let claim = Arc::clone(&slots.claims).try_acquire_owned().ok()?;
        Some(Waiting { claimed, claim, since })
    });
    shared.queue.push(lane, waiting);
    slots.low.store(shared.queue.ready(lane) / 2, Ordering::Relaxed);
    pump(shared, lane);
    Ok(found)
}

/// Begins as much of what waits as there are slots.
pub(crate) fn pump(shared: &Arc<Shared>, lane: Lane) {
    let slots = shared.slots(lane);
    for _ in 0..shared.queue.ready(lane) {
        let Ok(slot) = Arc::clone(&slots.posts).try_acquire_owned() else { return };
        shared.attempts.spawn(work_off(Arc::clone(shared), lane, slot));
    }
}

/// Posts one after the other until it is nobody's turn.
async fn work_off(shared: Arc<Shared>, lane: Lane, mut slot: OwnedSemaphorePermit) {
    let slots = shared.slots(lane);
    loop {
        while !shared.stopping.is_cancelled()
            && let Some((waiting, posting)) = shared.queue.pop(lane)
        {
            attempt(&shared, waiting, posting).await;
            // What ended may have held back something of the other lane.
            for other in Lane::BOTH.into_iter().filter(|other| *other != lane) {
                if shared.queue.is_ready(other) {
                    pump(&shared, other);
                }
            }
            if shared.queue.waiting(lane).0 <= slots.low.load(Ordering::Relaxed)
                || !shared.queue.is_ready(lane)
            {
                shared.wake.wake();
            }
        }
        drop(slot);
        // One may have come while this one found none and still held its slot.
        if shared.stopping.is_cancelled() || !shared.queue.is_ready(lane) {
            return;
        }
        let Ok(free) = Arc::clone(&slots.posts).try_acquire_owned() else { return };
        slot = free;
    }
}

/// Hands back what was claimed and not begun. Not waited for: the ledger may be full while PostgreSQL is away.
pub(crate) fn give_back(shared: &Arc<Shared>, all: Vec<Waiting>) {
    if all.is_empty() {
        return;
    }
    let ledger = shared.ledger.clone();
    shared.attempts.spawn(async move {
        for Waiting { claimed, claim, .. } in all {
            ledger.tell(Entry { claimed, ended: None, claim }).await;
        }
    });
}

impl Shared {
    const fn slots(&self, lane: Lane) -> &Slots {
        match lane {
            Lane::Healthy => &self.healthy,
            Lane::Failing => &self.failing,
        }
    }
}
