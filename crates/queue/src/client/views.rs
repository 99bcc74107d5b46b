//! What people and programs see of a queue and its jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use voiceai_redis::{RedisError, Value};

use super::{Client, timestamp};
use crate::envelope::{Envelope, FailRecord};
use crate::error::QueueError;
use crate::finished::DeadReason;
use crate::id::JobId;
use crate::library::{Fields, QueueName, Unexpected, text_of};
use crate::new_job::check_queue;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ready, in its lane.
    Waiting,
    /// Not yet due, or waiting for children or for the holder of its unique key.
    Delayed,
    /// Handed to a worker.
    Active,
    /// Done, and still remembered.
    Completed,
    /// Parked for a person.
    Dead,
}

impl State {
    /// The word on the command line and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Dead => "dead",
        }
    }
}

/// One reason why a job does not run now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum WhyNot {
    /// The queue is paused.
    Paused,
    /// It is not due before this time.
    DelayedUntil {
        /// The time.
        until: Timestamp,
    },
    /// Children it waits for have not ended.
    WaitingForChildren {
        /// How many.
        left: u32,
    },
    /// Another job holds its unique key and runs.
    WaitingForHolder {
        /// The holder.
        id: String,
    },
    /// The queue's rate is used up.
    QueueRate {
        /// So many starts per period.
        limit: u64,
        /// The period.
        period_ms: u64,
    },
    /// The queue's concurrency is used up.
    QueueConcurrency {
        /// So many run at once.
        limit: u64,
    },
    /// The rate of its limit key is used up.
    KeyRate {
        /// The key.
        key: String,
        /// So many starts per period.
        limit: u64,
        /// The period.
        period_ms: u64,
    },
    /// The concurrency of its limit key is used up.
    KeyConcurrency {
        /// The key.
        key: String,
        /// So many run at once.
        limit: u64,
    },
    /// No worker serves the queue.
    NoWorker,
    /// No worker of the queue has a handler for its kind.
    NoHandler,
    /// Its worker died: it runs alone among suspects, one at a time per worker.
    Suspect,
    /// Others are served first.
    Behind {
        /// How many in its own lane and in lanes of higher priority.
        jobs: u64,
        /// True when there are more than were counted.
        or_more: bool,
    },
    /// It is next.
    Next,
}

/// All that is known about one job.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: String,
    /// Its kind; empty for a remembered id whose job has ended.
    pub kind: String,
    /// Where it is.
    pub state: State,
    /// 0 to 10.
    pub priority: u8,
    /// Whom it is for.
    pub tenant: Option<String>,
    /// Its limit key.
    pub key: Option<String>,
    /// Its unique key.
    pub unique: Option<String>,
    /// Its payload as sent.
    pub payload: Option<Box<RawValue>>,
    /// When it was enqueued, by Redis's clock.
    pub enqueued_at: Option<Timestamp>,
    /// When it is due, while it is delayed for a time.
    pub due_at: Option<Timestamp>,
    /// Failed attempts since it was enqueued or replayed.
    pub attempts: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// How often a worker died while it was the one to blame.
    pub crashes: u32,
    /// The last error.
    pub error: Option<String>,
    /// Why it is dead.
    pub dead_reason: Option<DeadReason>,
    /// Since when it is dead.
    pub dead_at: Option<Timestamp>,
    /// Who runs it.
    pub worker: Option<String>,
    /// Why its cancellation was asked for, while it still runs.
    pub cancel_asked: Option<String>,
    /// What its handler reported.
    pub progress: Option<String>,
    /// Its result.
    pub result: Option<serde_json::Value>,
    /// Its log lines, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// W3C `traceparent` of its enqueuer.
    pub trace: Option<String>,
    /// Why it does not run; empty while it runs or when it has ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why_not: Vec<WhyNot>,
}

/// A live worker of a queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its incarnation.
    #[serde(default)]
    pub incarnation: String,
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Jobs it runs at once.
    pub concurrency: u32,
    /// Kinds it has handlers for.
    pub kinds: Vec<String>,
    /// When it joined.
    pub started_at: Timestamp,
    /// When its lease ends unless renewed.
    #[serde(default)]
    pub lease_until: Option<Timestamp>,
}

/// A queue's sizes, counters and settings at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct QueueStats {
    /// The queue.
    pub queue: String,
    /// Ready to run.
    pub waiting: u64,
    /// Not yet due, those that wait for others included.
    pub delayed: u64,
    /// Of the delayed: waiting for children or for the holder of a unique key.
    pub blocked: u64,
    /// Handed to workers.
    pub active: u64,
    /// Parked.
    pub dead: u64,
    /// Ever completed.
    pub completed: u64,
    /// Ever accepted.
    pub accepted: u64,
    /// Ever cancelled.
    pub cancelled: u64,
    /// Ever discarded by an operator.
    pub discarded: u64,
    /// Ever removed by retention.
    pub removed: u64,
    /// Every counter, by name.
    pub counters: BTreeMap<String, u64>,
    /// Age of the oldest waiting job.
    pub oldest_waiting_ms: Option<u64>,
    /// Waiting jobs that lost a worker and run one at a time.
    pub suspects: u64,
    /// Lanes that a limit holds back.
    pub held_lanes: u64,
    /// No job is handed out.
    pub paused: bool,
    /// Our own producers are refused.
    pub producers_paused: bool,
    /// New work is refused until the queue is empty.
    pub draining: bool,
    /// Settings stored by `queue set`.
    pub settings: BTreeMap<String, String>,
    /// Live workers.
    pub workers: Vec<WorkerView>,
    /// Slots of all live workers.
    pub capacity: u64,
    /// (waiting + active) / capacity: the number for autoscalers. Absent without workers.
    pub saturation: Option<f64>,
    /// Completions per second over the last few seconds; absent while nobody works.
    pub rate_per_second: Option<f64>,
    /// How long the waiting jobs last at that rate.
    pub time_to_empty_seconds: Option<f64>,
    /// Redis's clock at this moment.
    pub at: Timestamp,
}

impl QueueStats {
    /// The books balance: every accepted job is in one place, or its end was counted.
    #[must_use]
    pub const fn balances(&self) -> bool {
        self.accepted
            == self.waiting
                + self.delayed
                + self.active
                + self.dead
                + self.completed
                + self.cancelled
                + self.discarded
                + self.removed
    }
}

/// Which jobs a list shows.
#[derive(Clone, Debug)]
pub struct ListFilter {
    /// The state; completed jobs are listed from the history instead.
    pub state: State,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// Only those whose last error contains this.
    pub error_contains: Option<String>,
    /// Only those parked for this reason.
    pub reason: Option<DeadReason>,
    /// Only those enqueued longer ago than this.
    pub older_than: Option<Duration>,
    /// Most rows.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

impl ListFilter {
    /// The first 50 jobs in `state`.
    #[must_use]
    pub const fn of(state: State) -> Self {
        Self {
            state,
            kind: None,
            tenant: None,
            error_contains: None,
            reason: None,
            older_than: None,
            limit: 50,
            cursor: None,
        }
    }

    fn matches(&self, job: &JobView, now: Timestamp) -> bool {
        self.kind.as_ref().is_none_or(|k| *k == job.kind)
            && self.tenant.as_ref().is_none_or(|t| Some(t) == job.tenant.as_ref())
            && self.reason.is_none_or(|r| Some(r) == job.dead_reason)
            && self
                .error_contains
                .as_ref()
                .is_none_or(|text| job.error.as_ref().is_some_and(|e| e.contains(text.as_str())))
            && self.older_than.is_none_or(|age| {
                job.enqueued_at.is_some_and(|at| now.duration_since(at).unsigned_abs() >= age && at <= now)
            })
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Give it as [`ListFilter::cursor`] to go on; absent at the end.
    pub next: Option<String>,
}

/// How far `show` searches a lane, and how many jobs one call of `list` looks at.
const SEARCH_MAX: i64 = 10_000;
const SCAN_PAGE: usize = 500;

impl Client {
    /// A queue's sizes, counters, settings and workers.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn stats(&self, queue: &str) -> Result<QueueStats, QueueError> {
        check_queue(queue)?;
        let reply: Result<Value, _> =
            self.library().call(&QueueName::new(queue), "voiceai_v1_stats", Vec::new()).await;
        let reply = reply.map_err(|e| QueueError::from_redis(queue, "read the statistics", e))?;
        read_stats(queue, reply).map_err(|e| bad_reply(queue, "stats", &e))
    }

    /// All that is known about job `id` of `queue`; `None` when nothing is.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn show(&self, queue: &str, id: &str) -> Result<Option<JobView>, QueueError> {
        check_queue(queue)?;
        let args: Vec<Value> = vec![id.into(), SEARCH_MAX.into()];
        let reply: Result<Value, _> =
            self.library().call(&QueueName::new(queue), "voiceai_v1_show", args).await;
        let reply = reply.map_err(|e| QueueError::from_redis(queue, "show a job", e))?;
        let stats = self.stats(queue).await?;
        read_show(queue, id, reply, &stats).map_err(|e| bad_reply(queue, "show", &e))
    }

    /// Looks for job `id` in every queue.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn find(&self, id: &str) -> Result<Option<JobView>, QueueError> {
        for queue in self.queues().await? {
            if let Some(found) = self.show(&queue, id).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Lists jobs of one state, oldest first. Filters are applied to at most a few thousand jobs a call, so a page may
    /// be short or empty although `next` is given.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn list(&self, queue: &str, filter: &ListFilter) -> Result<Page, QueueError> {
        check_queue(queue)?;
        let failed = |e: RedisError| QueueError::from_redis(queue, "list jobs", e);
        let name = QueueName::new(queue);
        let mut offset: usize = filter.cursor.as_deref().and_then(|c| c.parse().ok()).unwrap_or(0);
        let now = self.redis_now();
        let mut jobs = Vec::new();
        for _ in 0..10 {
            let ids = self.ids(&name, filter.state, offset).await.map_err(failed)?;
            let seen = ids.len();
            for (position, view) in
                self.rows(&name, filter.state, ids).await.map_err(failed)?.into_iter().enumerate()
            {
                let Some(view) = view else { continue };
                if !filter.matches(&view, now) {
                    continue;
                }
                jobs.push(view);
                if jobs.len() >= filter.limit {
                    return Ok(Page { jobs, next: Some((offset + position + 1).to_string()) });
                }
            }
            offset += seen;
            if seen < SCAN_PAGE {
                return Ok(Page { jobs, next: None });
            }
        }
        Ok(Page { jobs, next: Some(offset.to_string()) })
    }

    /// One page of ids of a state, from `offset` on.
    async fn ids(&self, name: &QueueName, state: State, offset: usize) -> Result<Vec<String>, RedisError> {
        let redis = self.redis();
        let last = offset + SCAN_PAGE - 1;
        let range = |key: &str| -> Vec<Value> {
            vec![name.key(key).into(), offset.to_string().into(), last.to_string().into()]
        };
        match state {
            State::Dead => redis.command("ZRANGE", range("dead")).await,
            State::Delayed => redis.command("ZRANGE", range("delayed")).await,
            State::Completed => redis.command("ZREVRANGE", range("results")).await,
            State::Active => {
                let mut ids: Vec<String> = redis.command("HKEYS", vec![name.key("active")]).await?;
                ids.retain(|id| !id.is_empty());
                ids.sort();
                Ok(ids.into_iter().skip(offset).take(SCAN_PAGE).collect())
            }
            State::Waiting => self.waiting_ids(name, offset).await,
        }
    }

    /// Ids in the order of lanes and, within a lane, of service.
    async fn waiting_ids(&self, name: &QueueName, offset: usize) -> Result<Vec<String>, RedisError> {
        let redis = self.redis();
        let mut skip = offset;
        let mut ids = Vec::new();
        for ring in ["suspect", "ready", "held"] {
            let lanes: Vec<String> =
                redis.command("ZRANGE", vec![name.key(ring), "0".into(), "-1".into()]).await?;
            for lane in lanes {
                let key = name.key(&format!("lane:{lane}"));
                let length: usize = redis.command("LLEN", vec![key.clone()]).await?;
                if skip >= length {
                    skip -= length;
                    continue;
                }
                // The tail is served first.
                let want = (SCAN_PAGE - ids.len()).min(length - skip);
                let args = vec![key, format!("-{}", skip + want), format!("-{}", skip + 1)];
                let mut page: Vec<String> = redis.command("LRANGE", args).await?;
                page.reverse();
                ids.append(&mut page);
                skip = 0;
                if ids.len() >= SCAN_PAGE {
                    return Ok(ids);
                }
            }
        }
        Ok(ids)
    }

    /// The rows of a page of ids; `None` for a cancelled job that still has its place in a lane.
    async fn rows(
        &self,
        name: &QueueName,
        state: State,
        ids: Vec<String>,
    ) -> Result<Vec<Option<JobView>>, RedisError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let many = |hash: &str| {
            let mut args = vec![name.key(hash)];
            args.extend(ids.iter().cloned());
            args
        };
        let redis = self.redis();
        let jobs: Vec<Option<String>> = redis.command("HMGET", many("jobs")).await?;
        let fails: Vec<Option<String>> = redis.command("HMGET", many("fail")).await?;
        let tokens: Vec<Option<String>> = match state {
            State::Active => redis.command("HMGET", many("active")).await?,
            _ => vec![None; ids.len()],
        };
        let scores: Vec<Option<f64>> = match state {
            State::Dead => redis.command("ZMSCORE", many("dead")).await?,
            State::Delayed => redis.command("ZMSCORE", many("delayed")).await?,
            _ => vec![None; ids.len()],
        };
        let rows = ids.iter().zip(jobs).zip(fails).zip(tokens).zip(scores);
        Ok(rows
            .map(|((((id, envelope), fail), token), score)| {
                let envelope = envelope.unwrap_or_default();
                if envelope.is_empty() && state != State::Completed {
                    return None;
                }
                let mut view = JobView::new(&name.name, id, state, &envelope, fail.as_deref());
                view.worker = token.map(|t| incarnation_of(&t).to_owned());
                let at = score.filter(|s| s.is_finite()).map(|s| timestamp(to_ms(s)));
                match state {
                    State::Dead => view.dead_at = at,
                    State::Delayed => view.due_at = at,
                    _ => {}
                }
                Some(view)
            })
            .collect())
    }
}

/// A ZSET score that holds ms.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: finite and not negative"
)]
fn to_ms(score: f64) -> u64 {
    if score.is_finite() && score > 0.0 { score as u64 } else { 0 }
}

fn incarnation_of(token: &str) -> &str {
    token.split(['.', '\n']).next().unwrap_or_default()
}

fn bad_reply(queue: &str, tried: &'static str, error: &Unexpected) -> QueueError {
    QueueError::BadReply { queue: queue.to_owned(), tried, detail: error.to_string() }
}

fn none_if_empty(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

impl JobView {
    fn new(queue: &str, id: &str, state: State, envelope: &str, fail: Option<&str>) -> Self {
        let parsed = Envelope::parse(envelope);
        let record = fail.map(FailRecord::parse).unwrap_or_default();
        Self {
            id: JobId::trusted(id),
            queue: queue.to_owned(),
            kind: parsed.as_ref().map(|e| e.kind.to_owned()).unwrap_or_default(),
            state,
            priority: parsed.as_ref().map_or(0, Envelope::priority),
            tenant: parsed.as_ref().and_then(|e| none_if_empty(e.tenant())),
            key: parsed.as_ref().and_then(|e| none_if_empty(e.key())),
            unique: parsed.as_ref().and_then(Envelope::unique_key),
            payload: parsed.as_ref().and_then(|e| RawValue::from_string(e.payload.to_owned()).ok()),
            enqueued_at: parsed.as_ref().map(|e| timestamp(e.enqueued_ms)),
            due_at: None,
            attempts: record.attempts,
            replays: record.replays,
            crashes: 0,
            dead_reason: DeadReason::parse(&record.reason),
            error: none_if_empty(record.error),
            dead_at: None,
            worker: None,
            cancel_asked: None,
            progress: None,
            result: None,
            log: Vec::new(),
            trace: parsed.and_then(|e| e.meta.trace),
            why_not: Vec::new(),
        }
    }
}

fn read_stats(queue: &str, reply: Value) -> Result<QueueStats, Unexpected> {
    let mut f = Fields::of(reply)?;
    let size = |f: &mut Fields| f.integer().map(|n| u64::try_from(n).unwrap_or(0));
    let now = size(&mut f)?;
    let jobs = size(&mut f)?;
    let active = size(&mut f)?;
    let delayed = size(&mut f)?;
    let blocked = size(&mut f)?;
    let dead = size(&mut f)?;
    let remembered = size(&mut f)?;
    let ghosts = size(&mut f)?;
    let _results = size(&mut f)?;
    let oldest = u64::try_from(f.integer()?).ok();
    let suspects = size(&mut f)?;
    let held_lanes = size(&mut f)?;
    let counters: BTreeMap<String, u64> =
        f.pairs()?.into_iter().map(|(name, n)| (name, n.parse().unwrap_or(0))).collect();
    let settings: BTreeMap<String, String> = f.pairs()?.into_iter().collect();
    let leases = f.pairs()?;
    let mut workers: Vec<WorkerView> = f
        .pairs()?
        .into_iter()
        .filter_map(|(incarnation, info)| {
            let lease = leases.get(&incarnation)?;
            let mut view: WorkerView = serde_json::from_str(&info).ok()?;
            view.incarnation = incarnation;
            view.lease_until = lease.parse().ok().map(|s: f64| timestamp(to_ms(s)));
            Some(view)
        })
        .collect();
    workers.sort_by(|a, b| a.started_at.cmp(&b.started_at).then_with(|| a.incarnation.cmp(&b.incarnation)));
    let waiting = jobs.saturating_sub(active + delayed + dead + remembered + ghosts);
    let counter = |name: &str| counters.get(name).copied().unwrap_or(0);
    let stored: Option<u64> = settings.get("worker_concurrency").and_then(|n| n.parse().ok());
    let capacity: u64 = workers.iter().map(|w| stored.unwrap_or_else(|| u64::from(w.concurrency))).sum();
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people and autoscalers")]
    let saturation = (capacity > 0).then(|| (waiting + active) as f64 / capacity as f64);
    let (last, before) = (f.text()?, f.text()?);
    let rate = rate_between(before.as_deref(), last.as_deref(), now, counter("completed"));
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    let time_to_empty = rate.filter(|r| *r > 0.0).map(|r| waiting as f64 / r);
    Ok(QueueStats {
        queue: queue.to_owned(),
        waiting,
        delayed,
        blocked,
        active,
        dead,
        completed: counter("completed"),
        accepted: counter("accepted"),
        cancelled: counter("cancelled"),
        discarded: counter("discarded"),
        removed: counter("removed"),
        oldest_waiting_ms: oldest.map(|born| now.saturating_sub(born)),
        suspects,
        held_lanes,
        paused: settings.contains_key("paused"),
        producers_paused: settings.contains_key("producers_paused"),
        draining: settings.contains_key("draining"),
        counters,
        settings,
        workers,
        capacity,
        saturation,
        rate_per_second: rate,
        time_to_empty_seconds: time_to_empty,
        at: timestamp(now),
    })
}

/// Completions per second since the older of two marks `<ms> <completed>`. Marks of long ago say nothing of now.
fn rate_between(before: Option<&str>, last: Option<&str>, now: u64, completed: u64) -> Option<f64> {
    let read = |mark: Option<&str>| -> Option<(u64, u64)> {
        let (at, n) = mark?.split_once(' ')?;
        Some((at.parse().ok()?, n.parse().ok()?))
    };
    let (last_at, _) = read(last)?;
    if now.saturating_sub(last_at) > 30_000 {
        return None;
    }
    let (at, n) = read(before).filter(|(at, _)| now.saturating_sub(*at) < 60_000).or_else(|| read(last))?;
    let span = now.saturating_sub(at);
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    (span >= 500).then(|| completed.saturating_sub(n) as f64 * 1_000.0 / span as f64)
}

fn read_show(queue: &str, id: &str, reply: Value, stats: &QueueStats) -> Result<Option<JobView>, Unexpected> {
    let mut f = Fields::of(reply)?;
    let now = u64::try_from(f.integer()?).unwrap_or(0);
    let envelope = f.text()?;
    let active = f.text()?;
    let fail = f.text()?;
    let crashes: u32 = f.text()?.and_then(|n| n.parse().ok()).unwrap_or(0);
    let due: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let dead: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let remembered = f.text()?;
    let cancel = f.text()?;
    let progress = f.text()?;
    let result = f.text()?;
    let position = f.integer()?;
    let held: Option<f64> = f.text()?.and_then(|s| s.parse().ok());
    let before = u64::try_from(f.integer()?).unwrap_or(0);
    let slots = u64::try_from(f.integer()?).unwrap_or(0);
    let ghost = f.integer()? == 1;
    let queue_starts = f.text()?;
    let key_starts = f.text()?;
    let children: Option<u32> = f.text()?.and_then(|n| n.parse().ok());
    let holder = f.text()?;
    let log = f.texts()?;
    let suspect = f.integer()? == 1;

    let done = remembered.is_some() || (envelope.is_none() && result.is_some());
    if ghost || (envelope.as_deref().unwrap_or_default().is_empty() && !done) {
        return Ok(None);
    }
    let state = if active.is_some() {
        State::Active
    } else if dead.is_some() {
        State::Dead
    } else if done {
        State::Completed
    } else if due.is_some() {
        State::Delayed
    } else {
        State::Waiting
    };
    let mut view = JobView::new(queue, id, state, envelope.as_deref().unwrap_or_default(), fail.as_deref());
    view.crashes = crashes;
    view.cancel_asked = cancel;
    view.progress = progress;
    view.result = result.and_then(|r| serde_json::from_str(&r).ok());
    view.log = log;
    view.dead_at = dead.map(|s| timestamp(to_ms(s)));
    view.worker = active.as_deref().map(|token| {
        let inc = incarnation_of(token);
        stats
            .workers
            .iter()
            .find(|w| w.incarnation == inc)
            .map_or_else(|| inc.to_owned(), |w| format!("{}/{}", w.host, w.pid))
    });
    if state == State::Delayed {
        match due {
            Some(at) if at.is_finite() => {
                let until = timestamp(to_ms(at));
                view.due_at = Some(until);
                if to_ms(at) > now {
                    view.why_not.push(WhyNot::DelayedUntil { until });
                }
            }
            _ => match (children, holder) {
                (Some(left), _) => view.why_not.push(WhyNot::WaitingForChildren { left }),
                (None, Some(id)) => view.why_not.push(WhyNot::WaitingForHolder { id }),
                (None, None) => {}
            },
        }
    }
    if matches!(state, State::Waiting | State::Delayed) {
        let place =
            Place { position, before, slots, held: held.is_some(), suspect, queue_starts, key_starts, now };
        explain(&mut view, stats, &place);
    }
    Ok(Some(view))
}

struct Place {
    position: i64,
    before: u64,
    slots: u64,
    held: bool,
    suspect: bool,
    queue_starts: Option<String>,
    key_starts: Option<String>,
    now: u64,
}

/// `<n> <period ms>`
fn parse_rate(text: &str) -> Option<(u64, u64)> {
    let (limit, period) = text.split_once(' ')?;
    Some((limit.parse().ok()?, period.parse().ok()?))
}

/// Starts of the last period, from the stored `t n t n …`.
fn starts_within(entries: Option<&str>, period: u64, now: u64) -> u64 {
    let numbers: Vec<u64> = entries.unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    numbers.chunks_exact(2).filter(|pair| pair[0] + period > now).map(|pair| pair[1]).sum()
}

fn explain(view: &mut JobView, stats: &QueueStats, place: &Place) {
    let setting = |name: &str| stats.settings.get(name).map(String::as_str);
    let mut why = Vec::new();
    if stats.paused {
        why.push(WhyNot::Paused);
    }
    if stats.workers.is_empty() {
        why.push(WhyNot::NoWorker);
    } else if !stats.workers.iter().any(|w| w.kinds.contains(&view.kind)) {
        why.push(WhyNot::NoHandler);
    }
    if let Some((limit, period_ms)) = setting("rate").or_else(|| setting("base_rate")).and_then(parse_rate)
        && starts_within(place.queue_starts.as_deref(), period_ms, place.now) >= limit
    {
        why.push(WhyNot::QueueRate { limit, period_ms });
    }
    if let Some(limit) = setting("concurrency").and_then(|n| n.parse().ok())
        && stats.active >= limit
    {
        why.push(WhyNot::QueueConcurrency { limit });
    }
    if let Some(key) = view.key.clone() {
        if let Some(limit) = setting("key_concurrency").and_then(|n| n.parse().ok())
            && (place.slots >= limit || place.held)
        {
            why.push(WhyNot::KeyConcurrency { key: key.clone(), limit });
        }
        if let Some((limit, period_ms)) = setting("key_rate").and_then(parse_rate)
            && starts_within(place.key_starts.as_deref(), period_ms, place.now) >= limit
        {
            why.push(WhyNot::KeyRate { key, limit, period_ms });
        }
    }
    if view.state == State::Waiting {
        if place.suspect {
            why.push(WhyNot::Suspect);
        }
        match u64::try_from(place.position) {
            Ok(ahead) if ahead + place.before > 0 => {
                why.push(WhyNot::Behind { jobs: ahead + place.before, or_more: false });
            }
            Ok(_) if why.is_empty() => why.push(WhyNot::Next),
            Ok(_) => {}
            Err(_) => {
                let jobs = u64::try_from(SEARCH_MAX).unwrap_or(0) + place.before;
                why.push(WhyNot::Behind { jobs, or_more: true });
            }
        }
    }
    view.why_not.append(&mut why);
}

impl std::fmt::Display for WhyNot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Paused => f.write_str("the queue is paused"),
            Self::DelayedUntil { until } => write!(f, "delayed until {until}"),
            Self::WaitingForChildren { left } => write!(f, "waits for {left} child job(s)"),
            Self::WaitingForHolder { id } => {
                write!(f, "waits for job {id}, which holds its unique key and runs")
            }
            Self::QueueRate { limit, period_ms } => {
                write!(f, "the queue's rate of {limit} per {period_ms} ms is used up")
            }
            Self::QueueConcurrency { limit } => write!(f, "the queue's concurrency of {limit} is used up"),
            Self::KeyRate { key, limit, period_ms } => {
                write!(f, "the rate of {limit} per {period_ms} ms of key `{key}` is used up")
            }
            Self::KeyConcurrency { key, limit } => {
                write!(f, "the concurrency of {limit} of key `{key}` is used up")
            }
            Self::NoWorker => f.write_str("no worker serves the queue"),
            Self::NoHandler => f.write_str("no worker of the queue has a handler for its kind"),
            Self::Suspect => f.write_str("its worker died: it waits for its turn among suspects"),
            Self::Behind { jobs, or_more: false } => write!(f, "{jobs} job(s) are served before it"),
            Self::Behind { jobs, or_more: true } => write!(f, "more than {jobs} jobs are served before it"),
            Self::Next => f.write_str("it is next"),
        }
    }
}

impl Client {
    /// The results that finished children left for their waiting parent, by child id.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn children_results(
        &self,
        queue: &str,
        parent: &str,
    ) -> Result<BTreeMap<String, serde_json::Value>, QueueError> {
        let key = QueueName::new(queue).key(&format!("kids:{parent}"));
        let flat: Value = self
            .redis()
            .command("HGETALL", vec![key])
            .await
            .map_err(|e| QueueError::from_redis(queue, "read the children's results", e))?;
        let pairs: Vec<(String, String)> = match flat {
            Value::Array(items) => {
                items.chunks_exact(2).filter_map(|p| Some((text_of(&p[0])?, text_of(&p[1])?))).collect()
            }
            Value::Map(map) => {
                map.inner().into_iter().filter_map(|(k, v)| Some((k.into_string()?, text_of(&v)?))).collect()
            }
            _ => Vec::new(),
        };
        Ok(pairs
            .into_iter()
            .map(|(id, text)| {
                let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
                (id, value)
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_seconds_or_unknown() {
        assert_eq!(rate_between(Some("1000 100"), Some("6000 600"), 11_000, 1_100), Some(100.0));
        assert_eq!(rate_between(None, Some("6000 600"), 8_000, 600), Some(0.0));
        assert_eq!(rate_between(Some("1000 100"), Some("6000 600"), 60_000, 600), None);
        assert_eq!(rate_between(None, None, 8_000, 600), None);
    }

    #[test]
    fn starts_are_counted_within_the_period_only() {
        assert_eq!(starts_within(Some("100 2 900 3"), 1_000, 1_000), 5);
        assert_eq!(starts_within(Some("100 2 900 3"), 1_000, 1_100), 3);
        assert_eq!(starts_within(None, 1_000, 1_100), 0);
    }
}
