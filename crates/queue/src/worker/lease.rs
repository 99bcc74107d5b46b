//! The heartbeat of a pool: renews its leases, and does the queue's housekeeping when its turn comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use voiceai_redis::Value;
use voiceai_runtime::boot_now;

use super::log::Voice;
use super::take::Incarnation;
use crate::client::Client;
use crate::library::{Fields, Library, QueueName, Unexpected};
use crate::metrics;

/// Crashes of a job, as the one to blame, that make it poison.
const POISON_CRASHES: i64 = 3;
/// Records of `active` looked at per sweep call.
const SWEEP_STEP: i64 = 500;
/// How often one worker of all walks `active`.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long one beat may spend on retention.
const TEND_LIMIT: Duration = Duration::from_millis(500);
/// Default retention: results a day and at most 1,000; dead jobs 7 days.
const RETENTION: [i64; 4] = [86_400_000, 1_000, 604_800_000, 0];

/// What the helpers of a pool tell its loop.
#[derive(Debug)]
pub(super) enum Signal {
    /// The wake marker came, or the poll interval is over.
    Wake,
    /// A beat saw work.
    Ready,
    /// Redis does not know the incarnation any more, or its lease ended by our own clock.
    Lost(Arc<Incarnation>),
    /// These running jobs shall be cancelled (of all workers).
    Cancel(Vec<String>),
    /// The stored concurrency of this queue's workers, if any.
    Concurrency(Option<u32>),
}

/// Leases that are being renewed: the current one and retired ones that still hold jobs.
pub(super) type Leases = Arc<Mutex<Vec<Arc<Incarnation>>>>;

pub(super) struct Heart {
    pub(super) client: Client,
    pub(super) library: Library,
    pub(super) queue: QueueName,
    pub(super) kinds: Vec<&'static str>,
    pub(super) lease: Duration,
    pub(super) leases: Leases,
    pub(super) tell: mpsc::UnboundedSender<Signal>,
    /// Retention was cut short by its time limit.
    pub(super) behind: AtomicBool,
    /// Ends to write to the history; an empty list asks for those that others left.
    pub(super) ends: mpsc::UnboundedSender<Vec<i64>>,
}

/// Writes ends to the history as they come, beside the beats: a database that hangs must not cost the leases.
pub(super) async fn write_ends(
    client: Client,
    queue: QueueName,
    mut ends: mpsc::UnboundedReceiver<Vec<i64>>,
) {
    while let Some(numbers) = ends.recv().await {
        if numbers.is_empty() {
            client.write_left_over_ends(&queue.name).await;
        } else {
            client.write_ends(&queue.name, &numbers).await;
        }
    }
}

struct Beat {
    now_ms: i64,
    chore: i64,
    cancelled: Vec<String>,
    ready: bool,
    parked_without_handler: bool,
    concurrency: Option<u32>,
    paused: bool,
    lost: Vec<String>,
}

impl Beat {
    fn read(reply: Value) -> Result<Self, Unexpected> {
        let mut f = Fields::of(reply)?;
        Ok(Self {
            now_ms: f.integer()?,
            chore: f.integer()?,
            cancelled: f.texts()?,
            ready: f.integer()? == 1,
            parked_without_handler: f.integer()? == 1,
            concurrency: u32::try_from(f.integer()?).ok(),
            paused: f.integer()? == 1,
            lost: f.texts()?,
        })
    }
}

impl Heart {
    /// Beats until `ended`. A fifth of the lease, at most a second: a lost beat or two cost nothing.
    pub(super) async fn run(self, ended: CancellationToken) {
        let period = (self.lease / 5).min(Duration::from_secs(1));
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let watch = self.watch(period);
        let beats = async {
            loop {
                tick.tick().await;
                self.beat().await;
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = watch => {}
            () = beats => {}
        }
    }

    /// Watches the leases by this process's own clock, also while a beat waits for an answer.
    async fn watch(&self, period: Duration) {
        let mut tick = tokio::time::interval(period / 2);
        loop {
            tick.tick().await;
            let lapsed: Vec<_> =
                self.list().into_iter().filter(|i| i.has_lapsed(self.lease) && !i.is_lost()).collect();
            for incarnation in lapsed {
                let _ = self.tell.send(Signal::Lost(incarnation));
            }
        }
    }

    fn list(&self) -> Vec<Arc<Incarnation>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn beat(&self) {
        let incarnations = self.list();
        let sent = boot_now();
        let mut args: Vec<Value> = vec![ms(self.lease), ms(SWEEP_EVERY)];
        args.extend(incarnations.iter().filter(|i| !i.is_lost()).map(|i| Value::from(&*i.name)));
        let reply: Result<Value, _> = self.library.call_once(&self.queue, "voiceai_v1_beat", args).await;
        let beat = match reply.map(Beat::read) {
            Ok(Ok(beat)) => beat,
            Ok(Err(error)) => {
                return tracing::warn!(%error, queue = %self.queue.name, "a beat's answer is not understood");
            }
            Err(error) => return tracing::debug!(%error, queue = %self.queue.name, "a beat failed"),
        };
        self.client.time().learn(beat.now_ms);
        for incarnation in incarnations.iter().filter(|i| !i.is_lost()) {
            if beat.lost.iter().any(|name| **name == *incarnation.name) {
                let _ = self.tell.send(Signal::Lost(Arc::clone(incarnation)));
            } else {
                incarnation.renewed(sent);
            }
        }
        let _ = self.tell.send(Signal::Concurrency(beat.concurrency));
        if !beat.cancelled.is_empty() {
            let _ = self.tell.send(Signal::Cancel(beat.cancelled));
        }
        if beat.ready && !beat.paused {
            let _ = self.tell.send(Signal::Ready);
        }
        self.let_go().await;
        if beat.chore >= 1 {
            if beat.parked_without_handler {
                self.reclaim().await;
            }
            self.sweep().await;
            let _ = self.ends.send(Vec::new());
        }
        if beat.chore >= 2 || self.behind.load(Ordering::Relaxed) {
            self.tend().await;
        }
    }

    /// Lets retired leases go that hold nothing which this process knows of: what a lost answer left in them goes back
    /// to waiting at once, unblamed.
    async fn let_go(&self) {
        let retired: Vec<_> = self.list().into_iter().filter(|i| i.is_retired()).collect();
        let (done, busy): (Vec<_>, Vec<_>) = retired.into_iter().partition(|i| i.is_empty());
        let lost: Vec<_> = busy.iter().filter(|i| !i.is_lost()).flat_map(|i| i.lost_lots()).collect();
        if !lost.is_empty() {
            self.disown(&lost).await;
        }
        if done.is_empty() {
            return;
        }
        for incarnation in &done {
            let args = vec![Value::from(&*incarnation.name)];
            let left: Result<Value, _> = self.library.call_once(&self.queue, "voiceai_v1_leave", args).await;
            if left.is_ok() {
                let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
                leases.retain(|i| !Arc::ptr_eq(i, incarnation));
            }
        }
        self.sweep().await;
    }

    /// Gives back the lots whose answers are missing while a long handler keeps their lease: at each beat, as the call that
    /// had no answer may yet be carried out.
    async fn disown(&self, tokens: &[Arc<str>]) {
        let mut cursor = "0".to_owned();
        loop {
            let mut args = vec![Value::from(cursor.as_str()), SWEEP_STEP.into()];
            args.extend(tokens.iter().map(|token| Value::from(&**token)));
            let reply: Result<(String, i64), _> =
                self.library.call(&self.queue, "voiceai_v1_disown", args).await;
            match reply {
                Ok((next, _)) if next != "0" => cursor = next,
                Ok(_) => return,
                Err(error) => {
                    return tracing::debug!(%error, queue = %self.queue.name, "lost lots were not given back yet");
                }
            }
        }
    }

    /// Walks `active` and brings back what dead workers held.
    pub(super) async fn sweep(&self) {
        let mut cursor = "0".to_owned();
        loop {
            let args =
                vec![Value::from(cursor.as_str()), SWEEP_STEP.into(), POISON_CRASHES.into(), ms(self.lease)];
            let reply: Result<Value, _> = self.library.call(&self.queue, "voiceai_v1_sweep", args).await;
            let step = match reply {
                Ok(reply) => self.swept(reply),
                Err(error) => return tracing::debug!(%error, queue = %self.queue.name, "a sweep failed"),
            };
            match step {
                Some(next) if next != "0" => cursor = next,
                _ => return,
            }
        }
    }

    fn swept(&self, reply: Value) -> Option<String> {
        let mut f = Fields::of(reply).ok()?;
        let next = f.text().ok()??;
        let returned = u64::try_from(f.integer().ok()?).unwrap_or(0);
        let cancelled = f.texts().ok()?;
        let poisoned = f.texts().ok()?;
        let ends: Vec<i64> = f.values().ok()?.iter().filter_map(Value::as_i64).collect();
        let queue = &*self.queue.name;
        if returned > 0 {
            metrics::get().lost_jobs(queue, returned);
            Voice::of(queue).stalled(queue, returned);
        }
        for pair in cancelled.chunks_exact(2) {
            metrics::get().ended(queue, kind_of(&pair[1]), "cancelled", 1);
        }
        for pair in poisoned.chunks_exact(2) {
            tracing::error!(queue, job.id = %pair[0], "job parked as poison: its workers died while running it");
            metrics::get().ended(queue, kind_of(&pair[1]), "poison", 1);
        }
        self.write(ends);
        Some(next)
    }

    /// Takes back jobs that were parked for want of a handler which this process has.
    async fn reclaim(&self) {
        let mut cursor = "0".to_owned();
        loop {
            let mut args = vec![Value::from(cursor.as_str())];
            args.extend(self.kinds.iter().map(|k| Value::from(*k)));
            let reply: Result<(String, i64), _> =
                self.library.call(&self.queue, "voiceai_v1_reclaim", args).await;
            let Ok((next, jobs)) = reply else { return };
            if jobs > 0 {
                tracing::info!(queue = %self.queue.name, jobs, "jobs without handler have one now and wait again");
            }
            if next == "0" {
                return;
            }
            cursor = next;
        }
    }

    /// Retention, in bounded calls, until nothing is left to do or the beats would suffer: then the next beat goes on.
    async fn tend(&self) {
        let until = boot_now().saturating_add(TEND_LIMIT);
        loop {
            let on = self.behind.swap(false, Ordering::Relaxed);
            let mut args: Vec<Value> = RETENTION.iter().map(|n| Value::from(*n)).collect();
            args.push(i64::from(on).into());
            let reply: Result<Value, _> = self.library.call(&self.queue, "voiceai_v1_tend", args).await;
            let Ok(Ok(mut f)) = reply.map(Fields::of) else { return };
            let (Ok(more), Ok(ends)) = (f.integer(), f.values()) else { return };
            self.write(ends.iter().filter_map(Value::as_i64).collect());
            self.behind.store(more == 1, Ordering::Relaxed);
            if more == 0 || boot_now() >= until {
                return;
            }
        }
    }
}

impl Heart {
    fn write(&self, ends: Vec<i64>) {
        if !ends.is_empty() {
            let _ = self.ends.send(ends);
        }
    }
}

pub(super) fn kind_of(envelope: &str) -> &str {
    envelope.split('\n').nth(1).unwrap_or_default()
}

fn ms(span: Duration) -> Value {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX).into()
}
