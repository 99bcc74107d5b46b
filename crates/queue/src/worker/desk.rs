//! The pool's loop: what it knows, and what it decides to do next.

mod answers;
mod pace;
mod start;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use voiceai_redis::{RedisError, Value};
use voiceai_runtime::{Backoff, Pulse, random_unit};

use pace::{LOT, Pace};
use start::{chunk, start};

use super::WorkerSettings;
use super::calls::{self, Called, Read};
use super::lease::{Leases, Signal};
use super::pool::Shared;
use super::run::{Ended, Settle};
use super::take::{Incarnation, Lot, Suspects, Taken};
use crate::attempt::Stop;
use crate::client::rate_text;
use crate::id::JobId;
use crate::metrics::{self, Meter};

/// With work at hand, completions wait until there are this many: a call costs the server as much as several of them.
const ACKS_AT_ONCE: usize = 400;
/// A prefetched job that did not begin within this goes back.
const PREFETCH_PATIENCE: Duration = Duration::from_millis(25);
/// Most settlements in one call.
const SETTLE_STEP: usize = 200;
/// How long the last settlements may take once nothing runs any more.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The right to run a suspect in this process.
static SUSPECT: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));

pub(super) struct Desk {
    shared: Arc<Shared>,
    worker: WorkerSettings,
    leases: Leases,
    signals: mpsc::UnboundedReceiver<Signal>,
    wanted: Arc<Notify>,
    info: String,
    current: Option<Arc<Incarnation>>,
    buffer: VecDeque<Taken>,
    /// Lots whose envelopes are being read, in the order of their taking.
    reads: FuturesOrdered<Pin<Box<dyn Future<Output = Read> + Send>>>,
    /// Jobs in them.
    reading: usize,
    running: usize,
    /// Slots by the stored setting, if any.
    override_slots: Option<usize>,
    acks: Vec<Ended>,
    /// Completions whose take had no answer: they may have been applied.
    unsure: Vec<Ended>,
    verbs: Vec<Ended>,
    call: Option<Pin<Box<dyn Future<Output = Called> + Send>>>,
    call_began: Instant,
    /// Held from the take that may bring a suspect until that suspect is settled.
    permit: Option<OwnedSemaphorePermit>,
    suspect: Option<JobId>,
    /// The line is a new connection: what the server knew of us may be an older state.
    reconnected: bool,
    /// There may be work to take.
    hungry: bool,
    /// The ear waits for the wake marker.
    listening: bool,
    due: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    pace: Pace,
    meter: Meter,
    moved: Instant,
    stopping: bool,
}

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        worker: WorkerSettings,
        leases: Leases,
        signals: mpsc::UnboundedReceiver<Signal>,
        wanted: Arc<Notify>,
        kinds: Vec<&'static str>,
    ) -> Self {
        let info = serde_json::json!({
            "host": worker.host,
            "pid": std::process::id(),
            "concurrency": shared.settings.concurrency,
            "kinds": kinds,
            "started_at": shared.client.redis_now(),
        });
        Self {
            info: info.to_string(),
            worker,
            leases,
            signals,
            wanted,
            current: None,
            buffer: VecDeque::new(),
            reads: FuturesOrdered::new(),
            reading: 0,
            running: 0,
            override_slots: None,
            acks: Vec::new(),
            unsure: Vec::new(),
            verbs: Vec::new(),
            call: None,
            call_began: Instant::now(),
            permit: None,
            suspect: None,
            reconnected: false,
            hungry: true,
            listening: false,
            due: None,
            not_before: None,
            failures: 0,
            pace: Pace::unknown(),
            meter: Meter::new(&shared.settings.name),
            moved: Instant::now(),
            stopping: false,
            shared,
        }
    }

    pub(super) async fn run(mut self, stopping: CancellationToken, forced: CancellationToken, pulse: &Pulse) {
        let shared = Arc::clone(&self.shared);
        let mut reconnects = shared.link.library.reconnected().await;
        let mut drain_until: Option<Instant> = None;
        let mut flush_until: Option<Instant> = None;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            pulse.beat();
            self.collect();
            self.start_buffered();
            if self.stopping && self.running == 0 {
                let until = *flush_until.get_or_insert_with(|| Instant::now() + FLUSH_LIMIT);
                let nothing_left = self.acks.is_empty() && self.unsure.is_empty() && self.verbs.is_empty();
                if (nothing_left && self.call.is_none() && self.reads.is_empty()) || Instant::now() >= until {
                    break;
                }
            }
            self.next_call();
            let patience = (!self.buffer.is_empty()).then_some(self.moved + PREFETCH_PATIENCE);
            tokio::select! {
                biased;
                called = pending_or(&mut self.call) => {
                    self.call = None;
                    self.called(called);
                }
                Some(read) = self.reads.next() => self.read(read),
                signal = self.signals.recv() => if let Some(signal) = signal { self.signal(signal) },
                () = shared.bell.notified() => {}
                () = another(&mut reconnects) => self.reconnected = true,
                () = at(self.due) => {
                    self.due = None;
                    self.hungry = true;
                }
                () = at(patience) => self.give_back_buffered(),
                () = at(self.not_before) => self.not_before = None,
                () = stopping.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    drain_until = Some(Instant::now() + self.worker.drain);
                    self.give_back_buffered();
                }
                () = forced.cancelled(), if drain_until.is_some() => {
                    drain_until = None;
                    self.stop_running();
                }
                () = at(drain_until) => {
                    drain_until = None;
                    self.stop_running();
                }
                _ = tick.tick() => {}
            }
        }
        self.call = None;
        leave(&shared, &self.leases).await;
        self.pass_on();
    }

    fn slots(&self) -> usize {
        self.override_slots.unwrap_or(self.shared.settings.concurrency as usize).max(1)
    }

    /// Takes in what ended since the last round.
    fn collect(&mut self) {
        for ended in self.shared.take_ended() {
            self.running = self.running.saturating_sub(1);
            if let Some(took) = ended.took {
                self.pace.ran(took);
                self.meter.ran(&ended.kind, took);
            }
            if let Some(waited) = ended.waited {
                self.meter.waited(waited);
            }
            match ended.settle {
                Settle::Ack => self.acks.push(ended),
                Settle::Verb { .. } => self.verbs.push(ended),
                Settle::Nothing => self.over(&ended),
            }
        }
    }

    /// The job is out of this process's hands.
    fn over(&mut self, ended: &Ended) {
        ended.lot.incarnation.settled(1);
        self.release_suspect(&ended.id);
    }

    fn release_suspect(&mut self, id: &JobId) {
        if self.suspect.as_ref() == Some(id) {
            self.suspect = None;
            self.permit = None;
        }
    }

    fn release_unused_permit(&mut self) {
        if self.suspect.is_none() {
            self.permit = None;
        }
    }

    /// One suspect runs in this process at a time, over all its pools: the death of the process is then never blamed on
    /// another queue's.
    fn learn_suspects(&mut self, suspects: Suspects) {
        match suspects {
            Suspects::Taken(id) => self.suspect = Some(id),
            Suspects::None => self.release_unused_permit(),
            // Asks again at once with the permit; without one the next beat that sees work does.
            Suspects::Wait if self.permit.is_none() => {
                self.permit = Arc::clone(&SUSPECT).try_acquire_owned().ok();
                self.hungry |= self.permit.is_some();
            }
            Suspects::Wait => {}
        }
    }

    fn start_buffered(&mut self) {
        while !self.stopping && !self.buffer.is_empty() && self.running < self.slots() {
            let free = self.slots() - self.running;
            let size =
                if self.pace.is_instant() { chunk(self.buffer.len().min(free), self.slots()) } else { 1 };
            self.running += size;
            self.moved = Instant::now();
            let chunk: Vec<Taken> = self.buffer.drain(..size).collect();
            tokio::spawn(start(Arc::clone(&self.shared), chunk));
        }
    }

    /// Decides what the line does next. One call at a time: an answer that went missing is then unmistakable.
    fn next_call(&mut self) {
        if self.call.is_some() || self.not_before.is_some() {
            return;
        }
        if std::mem::take(&mut self.reconnected) {
            self.begin_anew();
        }
        let link = Arc::clone(&self.shared.link);
        let call: Pin<Box<dyn Future<Output = Called> + Send>> = if !self.verbs.is_empty() {
            let rest = self.verbs.split_off(self.verbs.len().min(SETTLE_STEP));
            let verbs = std::mem::replace(&mut self.verbs, rest);
            Box::pin(calls::settle(link, verbs))
        } else if !self.unsure.is_empty() {
            let rest = self.unsure.split_off(self.unsure.len().min(1_000));
            let acks = std::mem::replace(&mut self.unsure, rest);
            Box::pin(calls::ack(link, acks))
        } else if self.stopping {
            if self.acks.is_empty() {
                return;
            }
            Box::pin(calls::ack(link, std::mem::take(&mut self.acks)))
        } else {
            let Some(incarnation) = self.current.clone() else {
                let rate = self.shared.settings.rate.map(rate_text).unwrap_or_default();
                let call = calls::join(link, self.lease_ms(), self.info.clone(), rate);
                self.set_call(Box::pin(call));
                return;
            };
            let want = self.want();
            if want == 0 && !self.buffer.is_empty() && self.acks.len() < ACKS_AT_ONCE {
                return;
            }
            if want == 0 && self.acks.is_empty() {
                // Another pool's suspect shall not wait for a slot of this one.
                self.release_unused_permit();
                self.listen();
                return;
            }
            let acks = std::mem::take(&mut self.acks);
            let may_suspect = self.permit.is_some() && self.suspect.is_none();
            Box::pin(calls::take(link, incarnation, self.lease_ms(), want, may_suspect, acks))
        };
        self.set_call(call);
    }

    /// A server that lost its last writes (a power cut, a failover) may hold a job as running that we settled long ago,
    /// under a lease that we would renew for ever. So the lease takes no more; once what we know of is settled it is let
    /// go, and what is left under it goes back. Not while a take is under way, whose lot would be let go unseen.
    fn begin_anew(&mut self) {
        if let Some(incarnation) = self.current.take() {
            incarnation.retire();
        }
    }

    fn set_call(&mut self, call: Pin<Box<dyn Future<Output = Called> + Send>>) {
        self.call_began = Instant::now();
        self.call = Some(call);
    }

    fn lease_ms(&self) -> i64 {
        i64::try_from(self.worker.lease.as_millis()).unwrap_or(i64::MAX)
    }

    /// How many jobs the next take asks for; 0: none now.
    fn want(&self) -> usize {
        let free = self.slots().saturating_sub(self.running);
        let prefetch = self.pace.prefetch(self.slots());
        let stock = self.buffer.len() + self.reading;
        if stock > prefetch / 2 {
            return 0;
        }
        let want = (free + prefetch).saturating_sub(stock).min(free.max(LOT));
        // A completion goes out anyway, so asking for more costs nothing even when no work is known of.
        if self.hungry || !self.acks.is_empty() { want } else { 0 }
    }

    /// With a free slot and nothing known to take, the ear listens for a wake-up.
    fn listen(&mut self) {
        if !self.hungry && !self.listening && self.running < self.slots() {
            self.listening = true;
            self.wanted.notify_one();
        }
    }

    fn called(&mut self, called: Called) {
        self.settle_call(called);
        self.meter.flush();
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Wake => {
                self.listening = false;
                self.hungry = true;
                if self.running >= self.slots() || self.stopping {
                    self.pass_on();
                }
            }
            Signal::Ready => self.hungry = true,
            Signal::Lost(incarnation) => self.lost(&incarnation),
            Signal::Cancel(ids) => self.cancel(&ids),
            Signal::Concurrency(slots) => self.override_slots = slots.map(|n| n as usize),
        }
    }

    /// The marker came to a pool that is full: another worker shall have it.
    fn pass_on(&self) {
        let redis = self.shared.client.redis().clone();
        let key = self.shared.link.queue.key("wake");
        tokio::spawn(async move {
            let args: Vec<Value> = vec![key.into(), 0.into(), "w".into()];
            let _: Result<Value, _> = redis.command("ZADD", args).await;
        });
    }

    fn cancel(&self, ids: &[String]) {
        if !ids.is_empty() {
            self.shared.stop_where(Stop::Cancelled, |id, _| ids.iter().any(|c| c == id.as_str()));
        }
    }

    /// The lease is over: what runs under it is stopped, what has not begun is dropped. It is another's by now.
    fn lost(&mut self, incarnation: &Arc<Incarnation>) {
        if !incarnation.lose() {
            return;
        }
        if self.current.as_ref().is_some_and(|c| Arc::ptr_eq(c, incarnation)) {
            self.current = None;
        }
        let (dropped, kept) = std::mem::take(&mut self.buffer)
            .into_iter()
            .partition::<VecDeque<_>, _>(|taken| Arc::ptr_eq(&taken.lot.incarnation, incarnation));
        self.buffer = kept;
        incarnation.settled(dropped.len());
        for taken in &dropped {
            self.release_suspect(&taken.id);
        }
        self.shared.stop_where(Stop::LeaseLost, |_, lot| Arc::ptr_eq(&lot.incarnation, incarnation));
        metrics::get().lost_lease(&self.shared.settings.name);
        let message = "the lease ended: handlers that hold jobs under it are stopped";
        tracing::warn!(queue = %self.shared.settings.name, incarnation = %incarnation.name, message);
    }

    fn give_back_buffered(&mut self) {
        // Handlers became slower than the pace that was measured.
        self.pace.forget_runs();
        // Each goes back to the head of its lane, so the last one first.
        while let Some(taken) = self.buffer.pop_back() {
            self.verbs.push(returned(taken.id, taken.lot));
        }
    }

    fn stop_running(&self) {
        if self.running > 0 {
            tracing::warn!(queue = %self.shared.settings.name, jobs = self.running,
                "the time to drain is over: running jobs are cancelled and handed back");
            self.shared.stop_all();
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
    }

    fn trouble(&mut self, error: &RedisError) {
        // The first of a row is told, the rest is the same story.
        if self.failures == 0 {
            self.shared.voice.trouble(&self.shared.settings.name, error);
        }
        self.not_before = Some(Instant::now() + Backoff::RECONNECT.delay(self.failures, random_unit()));
        self.failures += 1;
    }
}

/// Hands back a job that did not begin.
fn returned(id: JobId, lot: Arc<Lot>) -> Ended {
    Ended {
        settle: Settle::Verb { verb: "back", a: String::new(), b: String::new() },
        id,
        lot,
        kind: "".into(),
        outcome: "returned",
        record: None,
        took: None,
        waited: None,
    }
}

/// Lets all leases go, so that nothing has to wait for their end.
async fn leave(shared: &Shared, leases: &Leases) {
    let leases = leases.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let link = &shared.link;
    for incarnation in leases {
        let args = vec![Value::from(&*incarnation.name)];
        let left: Result<Value, _> = link.library.call_once(&link.queue, "voiceai_v1_leave", args).await;
        if let Err(error) = left {
            tracing::warn!(%error, queue = %shared.settings.name, "a lease could not be handed back and will expire");
        }
    }
    let args = vec![Value::from("0"), 500.into(), 3.into()];
    let _: Result<Value, _> = link.library.call_once(&link.queue, "voiceai_v1_sweep", args).await;
}

async fn pending_or(call: &mut Option<Pin<Box<dyn Future<Output = Called> + Send>>>) -> Called {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

/// The next reconnection; never, once nobody is left to tell.
async fn another(reconnects: &mut broadcast::Receiver<()>) {
    if let Err(broadcast::error::RecvError::Closed) = reconnects.recv().await {
        std::future::pending::<()>().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
