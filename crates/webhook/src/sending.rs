//! Posting what is due, in every process: claims as slots come free, posts, writes down what came of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use url::Url;
use voiceai_postgres::PgPool;
use voiceai_runtime::{Backoff, Pulse, random_unit};

use crate::batch::Ledger;
use crate::error::{WebhookError, chain};
use crate::post::{Answer, Client, Failure, Request};
use crate::retry::Step;
use crate::signature::Keys;
use crate::store::{self, Claimed, End, Ended, Lane, Written};
use crate::{Wake, WebhookSettings, metrics};

/// What a failing endpoint may take of the slots, as a part of them that is added.
const FAILING_PART: usize = 4;
/// Between two looks that each found something to do: what comes in meanwhile is claimed together.
const BREATH: Duration = Duration::from_millis(5);
/// So many times the slots are claimed beside those that are posted: a slot that comes free has its next one at once, and ends
/// are committed while others are posted.
const AHEAD: usize = 3;
/// Longest wait of a claim for a slot. Beyond it, it is given back: an attempt has to end within its claim.
const AHEAD_MAX: Duration = Duration::from_secs(10);
/// How often failing endpoints are looked for while others keep the worker busy.
const FAILING_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked for what dead processes held.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(5);

struct Shared {
    pool: PgPool,
    client: Client,
    settings: WebhookSettings,
    election: String,
    wake: Wake,
    ledger: Ledger,
    healthy: Slots,
    failing: Slots,
    attempts: TaskTracker,
    stopping: CancellationToken,
    forced: CancellationToken,
}

/// The slots of one lane.
struct Slots {
    /// Of claims: those that wait for a slot and those whose end is being committed included.
    claims: Arc<Semaphore>,
    /// Of posts.
    posts: Arc<Semaphore>,
}

impl Slots {
    fn new(posts: usize, ahead: usize) -> Self {
        Self { claims: Arc::new(Semaphore::new(posts + ahead)), posts: Arc::new(Semaphore::new(posts)) }
    }
}

/// What the looks know of each other.
struct Looks {
    take_back_at: Instant,
    failing_at: Instant,
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
        let shared = Arc::new(Shared {
            healthy: Slots::new(settings.concurrency, AHEAD * settings.concurrency),
            failing: Slots::new(failing, 0),
            attempts: TaskTracker::new(),
            ledger: Ledger::new(pool.clone()),
            pool,
            client,
            settings,
            election,
            wake,
            stopping: stopping.clone(),
            forced,
        });
        tracing::info!(concurrency = shared.settings.concurrency, "webhook worker pool started");
        look_on(&shared, poll, &stopping, &pulse).await;
        shared.attempts.close();
        loop {
            pulse.beat();
            tokio::select! {
                () = shared.attempts.wait() => break,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        tracing::info!("webhook worker pool stopped");
    }
}

async fn look_on(shared: &Arc<Shared>, poll: Duration, stopping: &CancellationToken, pulse: &Pulse) {
    let mut failures = 0;
    let mut looks = Looks { take_back_at: Instant::now(), failing_at: Instant::now() };
    while !stopping.is_cancelled() {
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
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = shared.wake.woken(), if failures == 0 => tokio::time::sleep(BREATH).await,
        }
    }
}

/// Fills the free slots. Answers how long nothing need be looked for unless somebody calls.
async fn look(shared: &Arc<Shared>, looks: &mut Looks, poll: Duration) -> Result<Duration, WebhookError> {
    if Instant::now() >= looks.take_back_at {
        let lost = store::take_back(&shared.pool, shared.settings.timeout).await?;
        if lost > 0 {
            tracing::warn!(lost, "webhook deliveries of a process that is gone taken back");
        }
        looks.take_back_at = Instant::now() + TAKE_BACK_EVERY;
    }
    let mut claimed = fill(shared, Lane::Healthy).await?;
    if claimed == 0 || Instant::now() >= looks.failing_at {
        claimed += fill(shared, Lane::Failing).await?;
        looks.failing_at = Instant::now() + FAILING_EVERY;
    }
    if claimed > 0 {
        // What ends calls; until then there may be more of those that were left.
        return Ok(FAILING_EVERY);
    }
    let next = store::next_due(&shared.pool).await?;
    Ok(next.map_or(poll, |next| next.clamp(BREATH, poll)))
}

/// Claims what a lane has room for, and begins it. Answers how many.
async fn fill(shared: &Arc<Shared>, lane: Lane) -> Result<usize, WebhookError> {
    let slots = shared.slots(lane);
    let free = slots.claims.available_permits();
    if free == 0 {
        return Ok(0);
    }
    let all = store::claim(&shared.pool, &shared.settings, &shared.election, lane, free).await?;
    let count = all.len();
    for claimed in all {
        // Only this loop takes claims, so one is there.
        let Ok(claim) = Arc::clone(&slots.claims).try_acquire_owned() else {
            store::hand_back(&shared.pool, &claimed).await?;
            continue;
        };
        let span =
            tracing::info_span!("webhook.attempt", delivery.id = %claimed.id, attempt = claimed.attempt_no);
        let own = Arc::clone(shared);
        let attempt = async move {
            attempt(&own, lane, &claimed).await;
            drop(claim);
            own.wake.wake();
        };
        shared.attempts.spawn(attempt.instrument(span));
    }
    Ok(count)
}

impl Shared {
    const fn slots(&self, lane: Lane) -> &Slots {
        match lane {
            Lane::Healthy => &self.healthy,
            Lane::Failing => &self.failing,
        }
    }
}

async fn attempt(shared: &Shared, lane: Lane, claimed: &Claimed) {
    let slot = tokio::select! {
        biased;
        slot = shared.slots(lane).posts.acquire() => slot.ok(),
        () = shared.stopping.cancelled() => None,
        () = tokio::time::sleep(AHEAD_MAX) => None,
    };
    let Some(slot) = slot else {
        if let Err(error) = store::hand_back(&shared.pool, claimed).await {
            tracing::warn!(error = %chain(&error), "a webhook that was claimed waits until its claim runs out");
        }
        return;
    };
    let started = Instant::now();
    let posted = tokio::select! {
        posted = post(shared, claimed) => posted,
        () = shared.forced.cancelled() => {
            // Nobody knows whether it arrived; the claim runs out and it is posted again under the same id.
            return;
        }
    };
    let took = started.elapsed();
    // Another may post while this one's end is committed.
    drop(slot);
    let ended = judge(shared, claimed, posted, took);
    write(shared, claimed, &ended).await;
}

async fn post(shared: &Shared, claimed: &Claimed) -> Result<Answer, Failure> {
    let url = Url::parse(&claimed.url).map_err(|error| Failure::Broken(format!("the URL: {error}")))?;
    let keys = Keys::new(claimed.secrets.clone())
        .map_err(|error| Failure::Broken(format!("nothing can be signed: {error}")))?;
    let timeout = claimed.timeout.unwrap_or(shared.settings.timeout).min(shared.settings.timeout);
    let body = Bytes::from(claimed.body.clone());
    let request = Request { url, id: claimed.event_id.clone(), body, keys: Some(keys), timeout };
    shared.client.post(&request).await
}

fn judge(shared: &Shared, claimed: &Claimed, posted: Result<Answer, Failure>, took: Duration) -> Ended {
    let policy = &shared.settings.policy;
    let ended = Ended {
        end: End::Delivered,
        outcome: "delivered",
        status: None,
        error: None,
        response: None,
        address: None,
        retry_after: None,
        took,
        rest: None,
        gone: false,
    };
    let after = |wish| match policy.after(claimed.rung, wish, random_unit()) {
        Step::Again(wait) => End::Again { wait },
        Step::Exhausted => End::Dead { reason: "exhausted" },
    };
    match posted {
        Ok(answer) => {
            let ended = Ended {
                status: Some(answer.status),
                address: Some(answer.address.to_string()),
                response: (!answer.text.is_empty()).then(|| answer.text.clone()),
                ..ended
            };
            if answer.is_taken() {
                return ended;
            }
            let gone = answer.status == 410;
            let error = match answer.status {
                410 => "answered 410: it wants no more events".to_owned(),
                300..=399 => format!("answered {}: redirects are not followed", answer.status),
                status => format!("answered {status}"),
            };
            Ended {
                end: if gone { End::Dead { reason: "gone" } } else { after(answer.retry_after) },
                outcome: "refused",
                error: Some(error),
                retry_after: answer.retry_after,
                rest: policy.rest(answer.retry_after),
                gone,
                ..ended
            }
        }
        Err(failure) => {
            Ended { end: after(None), outcome: failure.word(), error: Some(chain(&failure)), ..ended }
        }
    }
}

/// Until it is written, or the process is forced to end: an end that is lost is an event that arrives twice.
async fn write(shared: &Shared, claimed: &Claimed, ended: &Ended) {
    let together = if ended.end == End::Delivered { shared.ledger.taken(claimed, ended).await } else { None };
    let mut tries = 0;
    let written = loop {
        if let Some(ours) = together {
            break Written { ours, disabled: None };
        }
        match store::finish(&shared.pool, &shared.settings.policy, claimed, ended).await {
            Ok(written) => break written,
            Err(error) if error.is_about_the_data() => {
                tracing::error!(error = %chain(&error), "the end of a webhook attempt cannot be written");
                return;
            }
            Err(error) => {
                if tries == 0 {
                    tracing::warn!(error = %chain(&error), "the end of a webhook attempt waits for PostgreSQL");
                }
                let wait = Backoff::RECONNECT.delay(tries, random_unit());
                tries += 1;
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shared.forced.cancelled() => return,
                }
            }
        }
    };
    if !written.ours {
        tracing::warn!("the end of a webhook attempt was refused: its claim had passed to another");
        return;
    }
    let dead = matches!(ended.end, End::Dead { .. });
    metrics::get().ended(ended.outcome, ended.took, dead, written.disabled.is_some());
    tell(claimed, ended, written.disabled.as_deref());
}

fn tell(claimed: &Claimed, ended: &Ended, disabled: Option<&str>) {
    let endpoint = claimed.endpoint;
    let error = ended.error.as_deref().unwrap_or_default();
    match ended.end {
        End::Delivered => {
            tracing::debug!(endpoint.id = %endpoint, status = ended.status, "webhook delivered");
        }
        End::Again { wait } => {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(endpoint.id = %endpoint, status = ended.status, wait_ms, "webhook is tried again: {error}");
        }
        End::Dead { reason } => {
            tracing::warn!(endpoint.id = %endpoint, status = ended.status, reason, "webhook given up: {error}");
        }
    }
    if let Some(reason) = disabled {
        tracing::error!(
            endpoint.id = %endpoint,
            reason,
            "webhook endpoint disabled; `webhook endpoints enable {endpoint}` once it is mended"
        );
    }
}
