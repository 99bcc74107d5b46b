//! What became of a job, for the history. The queue produces these records; somebody else keeps them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::JobId;

/// Which ends of a kind's jobs are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryMode {
    /// Every end and every failed attempt.
    All,
    /// Failed attempts and every end but a completion.
    Failures,
    /// Nothing but what an operator did, and deaths.
    None,
}

/// Why a job was parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// Its last attempt failed.
    Exhausted,
    /// Its handler said that no further attempt can help.
    DiscardedByHandler,
    /// Its worker died three times while running it.
    Poison,
    /// No handler is registered for its kind.
    NoHandler,
    /// Its payload does not parse.
    BadPayload,
    /// A child it waited for ended without success, and its policy says that it fails with it.
    ChildFailed,
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Exhausted,
        Self::DiscardedByHandler,
        Self::Poison,
        Self::NoHandler,
        Self::BadPayload,
        Self::ChildFailed,
    ];

    /// The word on the wire and in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::DiscardedByHandler => "discarded_by_handler",
            Self::Poison => "poison",
            Self::NoHandler => "no_handler",
            Self::BadPayload => "bad_payload",
            Self::ChildFailed => "child_failed",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How it ended, for now or for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Done.
    Completed,
    /// An attempt failed and will be tried again.
    Failed,
    /// Parked for a person.
    Dead(DeadReason),
    /// Cancelled, while it waited or while it ran.
    Cancelled,
    /// Removed by an operator (`discard`, `purge`).
    Discarded,
    /// Removed by retention (`clean` included).
    Removed,
    /// Put back to waiting by an operator.
    Replayed,
}

impl Ending {
    /// The word in tables: `completed`, `failed`, `dead`, `cancelled`, `discarded`, `removed`, `replayed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Dead(_) => "dead",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
            Self::Removed => "removed",
            Self::Replayed => "replayed",
        }
    }

    /// The reason of a death.
    #[must_use]
    pub const fn dead_reason(self) -> Option<DeadReason> {
        match self {
            Self::Dead(reason) => Some(reason),
            _ => None,
        }
    }
}

/// One line of a job's history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinishedJob {
    /// The job.
    pub id: JobId,
    /// Its queue.
    pub queue: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its tenant; empty when it has none.
    pub tenant: String,
    /// Its priority, 0 to 10.
    pub priority: u8,
    /// Its payload as sent. Kept for everything but a plain completion, which could only be read, never replayed.
    pub payload: Option<Box<RawValue>>,
    /// How it ended.
    pub ending: Ending,
    /// The attempt's number, 1 for the first; 0 when none had begun.
    pub attempt: u32,
    /// How often it was replayed before.
    pub replays: u32,
    /// When it was enqueued, by Redis's clock.
    pub enqueued_at: Timestamp,
    /// When this attempt began; absent when none had.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The error's text, capped, or the operator's reason.
    pub error: Option<String>,
    /// What the handler left, where it left something.
    pub result: Option<serde_json::Value>,
    /// The worker: `<host>/<pid>`; empty for an operator's act.
    pub worker: String,
    /// W3C `traceparent` of the enqueuer.
    pub trace: Option<String>,
    /// The unique key, where it has one.
    pub unique: Option<String>,
}

/// Keeps history records. `record` must not block and must not fail; what it cannot keep it drops and counts.
pub trait HistorySink: Send + Sync + 'static {
    /// Takes a record into a bounded buffer.
    fn record(&self, record: FinishedJob);

    /// Keeps records before the caller goes on; used for what a person must be able to find: dead, poison, cancelled,
    /// discarded and replayed jobs. Bounded in time by the sink.
    fn record_now(
        &self,
        records: Vec<FinishedJob>,
    ) -> Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>>;

    /// Writes records whose caller has them durably elsewhere and gives them again after an error: nothing is buffered. A
    /// record that is there already, from a call whose caller died before it knew, should not be doubled.
    fn write(
        &self,
        records: Vec<FinishedJob>,
    ) -> Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>> {
        self.record_now(records)
    }
}

/// The history could not be written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("write {records} history record(s): {reason}")]
pub struct HistoryError {
    /// How many.
    pub records: usize,
    /// Why.
    pub reason: String,
    /// True when the store refused them as they are: giving them again is of no use.
    pub refused: bool,
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHistory;

impl HistorySink for NoHistory {
    fn record(&self, _record: FinishedJob) {}

    fn record_now(
        &self,
        _records: Vec<FinishedJob>,
    ) -> Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
