//! Producers and operators: enqueue, look, and act on queues.

mod batch;
mod ends;
mod list;
mod operate;
mod show;
mod stats;
mod views;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use voiceai_postgres::Term;
use voiceai_redis::{CallOptions, Redis, Value};

pub use self::list::{ListFilter, Page};
pub(crate) use self::operate::rate_text;
pub use self::operate::{CancelOutcome, QueueLimits, Quiet, ReplayOutcome, Selection};
pub use self::views::{JobView, QueueStats, State, WhyNot, WorkerView};
use crate::envelope;
use crate::error::QueueError;
use crate::finished::{HistorySink, NoHistory};
use crate::id::JobId;
use crate::library::{Fields, Library, QueueName, Unexpected, text_of};
use crate::new_job::{AddOutcome, Added, Due, NewJob};
use batch::{Batcher, Encoded};

/// The set of names of all queues that were ever used.
const QUEUES_KEY: &str = "voiceai:queues";

/// A bulk's call carries no more than this and one job: it holds the server for a few milliseconds.
const BULK_BYTES: usize = 2 << 20;

/// Redis's clock as this process knows it: its own, corrected by the offset seen in replies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Time(Arc<AtomicI64>);

impl Time {
    pub(crate) fn learn(&self, redis_ms: i64) {
        self.0.store(redis_ms - Timestamp::now().as_millisecond(), Ordering::Relaxed);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let now = Timestamp::now().as_millisecond() + self.0.load(Ordering::Relaxed);
        u64::try_from(now).unwrap_or(0)
    }

    pub(crate) fn now(&self) -> Timestamp {
        timestamp(self.now_ms())
    }
}

pub(crate) fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Access to the queues of one Redis. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    library: Library,
    time: Time,
    producers: RwLock<HashMap<String, Arc<Batcher>>>,
    history: Arc<dyn HistorySink>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("redis", self.inner.library.redis()).finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares the queues on `redis`: refuses a server that may evict jobs, and loads the function library now and
    /// after each reconnect.
    ///
    /// # Errors
    /// [`QueueError::Redis`] when the server is unsafe or cannot be reached.
    pub async fn connect(redis: Redis) -> Result<Self, QueueError> {
        Self::with_history(redis, Arc::new(NoHistory)).await
    }

    /// The same, with a history that operators' acts are written to.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn with_history(redis: Redis, history: Arc<dyn HistorySink>) -> Result<Self, QueueError> {
        let failed = |tried| move |e| QueueError::from_redis("*", tried, e);
        redis.refuse_unsafe_server().await.map_err(failed("check the server"))?;
        let library = Library::open(&redis).await.map_err(failed("connect"))?;
        library.load().await.map_err(failed("load the function library"))?;
        let time = Time::default();
        let reply: Vec<i64> = library
            .redis()
            .command("TIME", Vec::<Value>::new())
            .await
            .map_err(failed("read the server's clock"))?;
        if let [seconds, micros] = reply[..] {
            time.learn(seconds * 1_000 + micros / 1_000);
        }
        tokio::spawn(reload_after_reconnects(library.clone()));
        Ok(Self { inner: Arc::new(Inner { library, time, producers: RwLock::default(), history }) })
    }

    /// The connection it works on.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        self.inner.library.redis()
    }

    pub(crate) fn library(&self) -> &Library {
        &self.inner.library
    }

    pub(crate) fn time(&self) -> &Time {
        &self.inner.time
    }

    pub(crate) fn history(&self) -> &Arc<dyn HistorySink> {
        &self.inner.history
    }

    /// Redis's clock, as far as this process knows it.
    #[must_use]
    pub fn redis_now(&self) -> Timestamp {
        self.inner.time.now()
    }

    /// Enqueues a job. A plain one shares its call with others that are enqueued at the same time; one with an id, a
    /// delay or a unique key goes by itself.
    ///
    /// # Errors
    /// [`QueueError`]; where [`QueueError::outcome_unknown`], a job without a chosen id may exist nevertheless.
    pub async fn enqueue(&self, job: NewJob) -> Result<Added, QueueError> {
        if !job.is_plain() {
            return self.add(job, None).await;
        }
        job.check()?;
        let batcher = self.batcher(&job.queue).await;
        let encoded = self.here_and_now().encode(&job);
        let ids = batcher.send(vec![encoded]).await?;
        let id = ids.into_iter().next().ok_or_else(|| QueueError::BadReply {
            queue: job.queue.to_string(),
            tried: "enqueue",
            detail: "no id".into(),
        })?;
        Ok(Added { id, outcome: AddOutcome::Accepted })
    }

    /// Enqueues many jobs, in calls of at most 1,000. The answers are in order; after an error, earlier parts of the
    /// list are enqueued.
    ///
    /// # Errors
    /// As [`Client::enqueue`]. All jobs are checked before the first is sent.
    pub async fn enqueue_bulk(&self, jobs: Vec<NewJob>) -> Result<Vec<Added>, QueueError> {
        for job in &jobs {
            job.check()?;
        }
        let mut added = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter().peekable();
        while let Some(first) = jobs.peek() {
            let (queue, plain) = (first.queue.clone(), first.is_plain());
            let (mut part, mut bytes) = (Vec::new(), 0);
            while part.len() < 1_000
                && bytes < BULK_BYTES
                && let Some(job) = jobs.next_if(|j| j.queue == queue && j.is_plain() == plain)
            {
                bytes += job.payload.get().len();
                part.push(job);
            }
            if plain {
                let batcher = self.batcher(&queue).await;
                let origin = self.here_and_now();
                let encoded = part.iter().map(|job| origin.encode(job)).collect();
                let ids = batcher.send(encoded).await?;
                added.extend(ids.into_iter().map(|id| Added { id, outcome: AddOutcome::Accepted }));
            } else {
                added.extend(self.add_many(&queue, part, None).await?);
            }
        }
        Ok(added)
    }

    /// Adds one job by the exact path: with a chosen id the same call may be repeated without harm, and with `term` it
    /// is refused once a newer leader has acted on the queue.
    ///
    /// # Errors
    /// As [`Client::enqueue`], and [`QueueError::StaleTerm`].
    pub async fn add(&self, job: NewJob, term: Option<&Term>) -> Result<Added, QueueError> {
        let queue = job.queue.clone();
        let mut added = self.add_many(&queue, vec![job], term).await?;
        added.pop().ok_or_else(|| QueueError::BadReply {
            queue: queue.into_owned(),
            tried: "add",
            detail: "no row".into(),
        })
    }

    /// Adds jobs of one queue in one atomic call (at most 1,000): all are accepted, known or duplicates, or none is
    /// looked at. Each job's own queue is ignored.
    ///
    /// # Errors
    /// As [`Client::add`].
    pub async fn add_many(
        &self,
        queue: &str,
        jobs: Vec<NewJob>,
        term: Option<&Term>,
    ) -> Result<Vec<Added>, QueueError> {
        crate::new_job::check_queue(queue)?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.remember_queue(queue).await;
        let name = QueueName::new(queue);
        let mut args: Vec<Value> = Vec::with_capacity(jobs.len() * 4 + 2);
        if let Some(term) = term {
            args.push(term.number.into());
        }
        args.push(i64::try_from(jobs.len()).unwrap_or(i64::MAX).into());
        let origin = self.here_and_now();
        for job in &jobs {
            job.check()?;
            let lane = envelope::lane(job.priority, &job.tenant, &job.key);
            let id = job.id.clone().unwrap_or_else(|| JobId::trusted(&crate::id::random_text::<14>()));
            args.push(id.as_str().into());
            args.push(Value::from(&*lane));
            args.push(match job.due {
                Due::Now => 0.into(),
                Due::After(span) => format!("+{}", span.as_millis()).into(),
                Due::At(at) => at.as_millisecond().max(0).into(),
            });
            args.push(origin.envelope(job, &lane).into());
        }
        let function = if term.is_some() { "voiceai_v1_add_fenced" } else { "voiceai_v1_add" };
        let reply: Result<Value, _> = self.inner.library.call_apart(&name, function, args).await;
        let reply = reply.map_err(|e| match term {
            Some(term) if e.detail().contains("QTERM") => {
                let detail = e.detail().trim_start_matches("QTERM ").to_owned();
                QueueError::StaleTerm { queue: queue.to_owned(), term: term.number, detail }
            }
            _ => QueueError::from_redis(queue, "add", e),
        })?;
        let rows = read_added(reply).map_err(|e| QueueError::BadReply {
            queue: queue.to_owned(),
            tried: "add",
            detail: e.to_string(),
        })?;
        let (mut added, mut replaced) = (Vec::with_capacity(rows.len()), Vec::new());
        for (one, ends) in rows {
            added.push(one);
            replaced.extend(ends);
        }
        self.write_ends(queue, &replaced).await;
        Ok(added)
    }

    /// Adds a parent and the children it waits for, in one atomic call and one queue. The parent runs once every child
    /// has ended; `policy` says what a child that ends without success means.
    ///
    /// # Errors
    /// As [`Client::add`].
    pub async fn add_flow(
        &self,
        parent: NewJob,
        children: Vec<NewJob>,
        policy: ChildPolicy,
    ) -> Result<Vec<Added>, QueueError> {
        let queue = parent.queue.clone();
        let id = parent.id.clone().unwrap_or_else(|| JobId::trusted(&crate::id::random_text::<14>()));
        let mut all = Vec::with_capacity(children.len() + 1);
        let mut parent = parent.id(id.clone());
        parent.children = Some(u32::try_from(children.len()).unwrap_or(u32::MAX));
        all.push(parent);
        for mut child in children {
            child.parent = Some((id.to_string(), policy.letter()));
            all.push(child);
        }
        self.add_many(&queue, all, None).await
    }

    /// The names of all queues that were ever used, sorted.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn queues(&self) -> Result<Vec<String>, QueueError> {
        let mut names: Vec<String> = self
            .redis()
            .command("SMEMBERS", vec![QUEUES_KEY])
            .await
            .map_err(|e| QueueError::from_redis("*", "list the queues", e))?;
        names.sort();
        Ok(names)
    }

    fn here_and_now(&self) -> Origin {
        Origin { at_ms: self.inner.time.now_ms(), trace: crate::trace::current() }
    }

    async fn batcher(&self, queue: &str) -> Arc<Batcher> {
        if let Some(found) = self.inner.producers.read().unwrap_or_else(PoisonError::into_inner).get(queue) {
            return Arc::clone(found);
        }
        self.remember_queue(queue).await;
        self.batcher_of(queue)
    }

    fn batcher_of(&self, queue: &str) -> Arc<Batcher> {
        let mut producers = self.inner.producers.write().unwrap_or_else(PoisonError::into_inner);
        let made = producers.entry(queue.to_owned()).or_insert_with(|| {
            let name = QueueName::new(queue);
            Arc::new(Batcher::new(name, self.inner.library.clone(), self.inner.time.clone()))
        });
        Arc::clone(made)
    }

    /// Puts the queue's name where `queue list` finds it. A failure costs only the listing: a worker tries again.
    pub(crate) async fn remember_queue(&self, queue: &str) {
        if self.inner.producers.read().unwrap_or_else(PoisonError::into_inner).contains_key(queue) {
            return;
        }
        // Not worth waiting for while Redis is away: the enqueue that follows tells that.
        let quick = CallOptions { attempts: Some(1), timeout: Some(Duration::from_secs(1)), fail_fast: true };
        let done: Result<Value, _> = self.redis().with(quick).command("SADD", vec![QUEUES_KEY, queue]).await;
        match done {
            Ok(_) => drop(self.batcher_of(queue)),
            Err(error) => tracing::debug!(%error, queue, "the queue's name is not registered yet"),
        }
    }
}

/// What a parent does when a child ends without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildPolicy {
    /// A dead child is waited for: it may be replayed. A cancelled or discarded one counts as ended.
    Wait,
    /// It counts as ended.
    Ignore,
    /// The parent is parked with reason `child_failed`.
    Fail,
}

impl ChildPolicy {
    const fn letter(self) -> char {
        match self {
            Self::Wait => 'w',
            Self::Ignore => 'i',
            Self::Fail => 'f',
        }
    }
}

async fn reload_after_reconnects(library: Library) {
    let mut reconnected = library.redis().reconnected();
    while let Ok(()) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) = reconnected.recv().await {
        // A failure is not the end: the first call that misses the library loads it.
        if let Err(error) = library.load().await {
            tracing::debug!(%error, "the function library is not loaded yet");
        }
    }
}

/// Each job's answer, with the numbers of the ends of the jobs that it replaced.
fn read_added(reply: Value) -> Result<Vec<(Added, Vec<i64>)>, Unexpected> {
    let Value::Array(rows) = reply else { return Err(Unexpected("an array of rows")) };
    rows.into_iter()
        .map(|row| {
            let mut row = Fields::of(row)?;
            let outcome = match row.integer()? {
                1 => AddOutcome::Accepted,
                0 => AddOutcome::Known,
                2 => AddOutcome::Duplicate,
                _ => return Err(Unexpected("0, 1 or 2")),
            };
            let id = text_of(&row.next()?).ok_or(Unexpected("an id"))?;
            let mut replaced = Vec::new();
            while let Ok(value) = row.next() {
                replaced.push(value.as_i64().ok_or(Unexpected("a replaced job's number"))?);
            }
            Ok((Added { id: JobId::trusted(&id), outcome }, replaced))
        })
        .collect()
}

/// Where and when jobs are enqueued: the same for all of one call.
struct Origin {
    at_ms: u64,
    trace: Option<String>,
}

impl Origin {
    fn envelope(&self, job: &NewJob, lane: &str) -> String {
        let trace = job.trace.as_ref().or(self.trace.as_ref()).cloned();
        envelope::write(lane, &job.kind, self.at_ms, &job.meta(trace), job.payload.get())
    }

    fn encode(&self, job: &NewJob) -> Encoded {
        let lane = envelope::lane(job.priority, &job.tenant, &job.key);
        let envelope = self.envelope(job, &lane);
        Encoded { lane, envelope }
    }
}
