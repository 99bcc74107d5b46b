//! What people and programs see of a queue and its jobs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::timestamp;
use crate::envelope::{Envelope, FailRecord};
use crate::error::QueueError;
use crate::finished::DeadReason;
use crate::id::JobId;
use crate::library::Unexpected;

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
    /// Of a dead job: the newer job that holds its unique key, for which it cannot be replayed. Found by `show`, not by lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_holder: Option<JobId>,
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

impl JobView {
    pub(super) fn new(queue: &str, id: &str, state: State, envelope: &str, fail: Option<&str>) -> Self {
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
            key_holder: None,
            why_not: Vec::new(),
        }
    }
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

/// A ZSET score that holds ms.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: finite and not negative"
)]
pub(super) fn to_ms(score: f64) -> u64 {
    if score.is_finite() && score > 0.0 { score as u64 } else { 0 }
}

pub(super) fn incarnation_of(token: &str) -> &str {
    token.split(['.', '\n']).next().unwrap_or_default()
}

pub(super) fn bad_reply(queue: &str, tried: &'static str, error: &Unexpected) -> QueueError {
    QueueError::BadReply { queue: queue.to_owned(), tried, detail: error.to_string() }
}

pub(super) fn none_if_empty(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}
