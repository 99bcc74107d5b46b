//! The queue itself on a real Redis.

mod ends;
mod enqueue;
mod faults;
mod foreign;
mod invariant;
mod kill;
mod languages;
mod limits;
mod loss;
mod operate;
mod order;
mod records;
mod signals;
mod ties;
mod topology;
mod valkey;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use voiceai_queue::{
    Attempt, Client, FinishedJob, HistoryError, HistorySink, Job, JobError, NewJob, Outcome, QueueSettings,
    QueueStats, Registry, RetryPolicy, State, Worker, WorkerSettings,
};
use voiceai_redis::{Redis, RedisSettings, Value};
use voiceai_runtime::{Shutdown, Vitals};
use voiceai_testkit::{RedisDb, wait_for, wait_until};

pub(crate) use invariant::check;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A job that does as told and notes that it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) fail_times: u32,
    pub(crate) sleep_ms: u64,
    pub(crate) snooze_ms: u64,
    pub(crate) discard: bool,
    pub(crate) panic: bool,
    pub(crate) hang: bool,
    /// Does not heed its first stop.
    pub(crate) stubborn: bool,
    pub(crate) result: Option<serde_json::Value>,
}

impl Work {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn job(&self) -> NewJob {
        NewJob::of(self).expect("JSON")
    }
}

/// What ran, in order, and how many ran at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diary(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    runs: Vec<Run>,
    now: HashMap<String, usize>,
    most: HashMap<String, usize>,
}

/// One attempt as its handler saw it.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) at: tokio::time::Instant,
    pub(crate) stopped: bool,
}

impl Diary {
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.0.lock().unwrap().runs.clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.runs().into_iter().map(|r| r.name).collect()
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.runs().iter().filter(|r| r.name == name).count()
    }

    /// The most runs of one key at the same time.
    pub(crate) fn most(&self, key: &str) -> usize {
        self.0.lock().unwrap().most.get(key).copied().unwrap_or(0)
    }

    fn begin(&self, attempt: &Attempt, name: &str) -> usize {
        let mut pages = self.0.lock().unwrap();
        for key in ["*", attempt.key()] {
            let now = pages.now.entry(key.to_owned()).or_default();
            *now += 1;
            let now = *now;
            let most = pages.most.entry(key.to_owned()).or_default();
            *most = (*most).max(now);
        }
        let at = tokio::time::Instant::now();
        pages.runs.push(Run { name: name.to_owned(), attempt: attempt.number(), at, stopped: false });
        pages.runs.len() - 1
    }

    fn end(&self, attempt: &Attempt, run: usize) {
        let mut pages = self.0.lock().unwrap();
        for key in ["*", attempt.key()] {
            *pages.now.entry(key.to_owned()).or_default() -= 1;
        }
        pages.runs[run].stopped = attempt.stopped().is_some();
    }
}

/// Ends a run also when its future is dropped.
struct Ending<'a>(&'a Diary, &'a Attempt, usize);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end(self.1, self.2);
    }
}

impl Job for Work {
    const KIND: &'static str = "work";
    const RETRY: RetryPolicy = RetryPolicy::Exponential {
        base: Duration::from_millis(20),
        factor: 1.0,
        cap: Duration::from_millis(20),
        jitter: 0.0,
        attempts: 3,
    };
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
    type Context = Diary;

    async fn run(&self, diary: &Diary, attempt: &Attempt) -> Result<Outcome, JobError> {
        let run = diary.begin(attempt, &self.name);
        let _ending = Ending(diary, attempt, run);
        if self.snooze_ms > 0 && diary.count(&self.name) == 1 {
            return Ok(Outcome::Snooze(Duration::from_millis(self.snooze_ms)));
        }
        if self.sleep_ms > 0 && !(self.stubborn && diary.count(&self.name) == 1) {
            tokio::select! {
                () = attempt.cancelled().cancelled() => return Err("told to stop".into()),
                () = tokio::time::sleep(Duration::from_millis(self.sleep_ms)) => {}
            }
        }
        if self.hang || (self.stubborn && diary.count(&self.name) == 1) {
            std::future::pending::<()>().await;
        }
        assert!(!self.panic, "told to panic");
        if self.discard {
            return Err(JobError::discard("no such user"));
        }
        if attempt.number() <= self.fail_times {
            return Err(format!("told to fail attempt {}", attempt.number()).into());
        }
        let result = match &self.result {
            Some(word) if word == "huge" => Some("x".repeat(2 << 20).into()),
            other => other.clone(),
        };
        Ok(result.map_or(Outcome::Done, Outcome::DoneWith))
    }
}

/// Keeps history records in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records(Arc<Mutex<Vec<FinishedJob>>>, Arc<AtomicBool>);

impl Records {
    pub(crate) fn all(&self) -> Vec<FinishedJob> {
        self.0.lock().unwrap().clone()
    }

    /// From now on nothing can be written, as with a database that is away; or it can again.
    pub(crate) fn leave(&self, away: bool) {
        self.1.store(away, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, id: &str) -> Vec<&'static str> {
        self.all().iter().filter(|r| r.id.as_str() == id).map(|r| r.ending.as_str()).collect()
    }
}

impl HistorySink for Records {
    fn record(&self, record: FinishedJob) {
        assert!(!self.1.load(Ordering::Relaxed), "{record:?}");
        self.0.lock().unwrap().push(record);
    }

    fn record_now(
        &self,
        records: Vec<FinishedJob>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>> {
        if self.1.load(Ordering::Relaxed) {
            let away = HistoryError { records: records.len(), reason: "away".into(), refused: false };
            return Box::pin(std::future::ready(Err(away)));
        }
        self.0.lock().unwrap().extend(records);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A client on a database of its own.
pub(crate) struct Setup {
    pub(crate) db: Option<RedisDb>,
    pub(crate) client: Client,
    pub(crate) diary: Diary,
    pub(crate) records: Records,
    pub(crate) queue: String,
}

impl Setup {
    pub(crate) async fn new() -> Self {
        let db = voiceai_testkit::redis().await;
        let mut this = Self::on(&db.url).await;
        this.db = Some(db);
        this
    }

    pub(crate) async fn on(url: &str) -> Self {
        let redis = Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap();
        let records = Records::default();
        let client = Client::with_history(redis, Arc::new(records.clone())).await.unwrap();
        Self { db: None, client, diary: Diary::default(), records, queue: "default".into() }
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry::new().register::<Work>(self.diary.clone())
    }

    pub(crate) fn worker(&self, concurrency: u32) -> Running {
        self.worker_with(settings(&self.queue, concurrency))
    }

    pub(crate) fn worker_with(&self, settings: WorkerSettings) -> Running {
        Running::start(Worker::new(self.client.clone(), self.registry(), settings))
    }

    pub(crate) async fn stats(&self) -> QueueStats {
        self.client.stats(&self.queue).await.unwrap()
    }

    pub(crate) async fn enqueue(&self, work: &Work) -> String {
        self.client.enqueue(work.job()).await.unwrap().id.to_string()
    }

    pub(crate) async fn state(&self, id: &str) -> Option<State> {
        self.client.show(&self.queue, id).await.unwrap().map(|v| v.state)
    }

    pub(crate) async fn wait_state(&self, id: &str, state: State) {
        wait_for(SOON, format!("job {id} is {}", state.as_str()), async || match self.state(id).await {
            Some(seen) if seen == state => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
        .await;
    }

    /// Waits until nothing waits, is delayed for a time, or runs.
    pub(crate) async fn wait_empty(&self, within: Duration) {
        wait_for(within, "the queue is worked off", async || {
            let s = self.stats().await;
            if s.waiting + s.active + s.delayed == 0 { Ok(()) } else { Err(format!("{s:?}")) }
        })
        .await;
    }

    pub(crate) async fn command(&self, name: &'static str, args: &[&str]) -> Value {
        self.client.redis().command(name, args.to_vec()).await.unwrap()
    }

    pub(crate) fn key(&self, suffix: &str) -> String {
        format!("voiceai:queue:{{{}}}:{suffix}", self.queue)
    }
}

/// Test-sized: short lease, long poll interval, so that a missing wake-up shows.
pub(crate) fn settings(queue: &str, concurrency: u32) -> WorkerSettings {
    WorkerSettings {
        lease: Duration::from_secs(3),
        poll_interval: Duration::from_secs(30),
        drain: Duration::from_secs(5),
        ..WorkerSettings::new(vec![QueueSettings::new(queue, concurrency)])
    }
}

/// A worker that runs until it is dropped or stopped.
pub(crate) struct Running {
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let shutdown = Shutdown::new();
        let handle = shutdown.clone();
        let task = tokio::spawn(async move { worker.run(&handle, &Vitals::new()).await });
        Self { shutdown, task }
    }

    /// Stops it as SIGTERM does and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.stop();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("stops in time").unwrap();
    }

    /// Ends it without any hand-back, as far as that is possible within a process.
    pub(crate) fn drop_dead(self) {
        self.task.abort();
    }
}

pub(crate) async fn until(what: &str, check: impl AsyncFnMut() -> bool) {
    wait_until(SOON, what, check).await;
}
