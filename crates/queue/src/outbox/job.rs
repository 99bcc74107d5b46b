//! A job as the outbox holds it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::EnqueueError;
use crate::error::QueueError;
use crate::id::JobId;
use crate::new_job::{Due, NewJob, UniqueMode};

/// A job on its way to its queue, under an id that is fixed already.
#[derive(Debug, Clone)]
pub struct OutboxJob {
    /// The job's id. The same id is one job, however often it is added.
    pub id: String,
    /// The queue's name.
    pub queue: String,
    /// What kind of job.
    pub kind: String,
    /// The payload as JSON text; it reaches the handler as it is written here.
    pub payload: Box<RawValue>,
    /// 0 to 10, higher first.
    pub priority: u8,
    /// When it may run first.
    pub due: Due,
    /// Whose turn it is when tenants share a queue.
    pub tenant: Option<String>,
    /// The rest of the job's options.
    pub options: Options,
    /// W3C traceparent of the code that enqueued it.
    pub traceparent: Option<String>,
    /// Whether the row is looked after until the job has finished, so that it survives a loss of Redis.
    pub critical: bool,
}

/// Options of a job, under the names of docs/protocol.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Jobs with one key share limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// At most one live job has this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<String>,
    /// What happens when the key is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_mode: Option<UniqueWord>,
    /// For `throttle`: how long the key is held, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_ttl_ms: Option<u64>,
    /// How long the queue knows the id after the job has ended, in milliseconds; a day when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remember_ms: Option<u64>,
}

/// How long a generated id is remembered after its job has ended. Nobody but the relay repeats it, within seconds.
const REMEMBER_GENERATED: Duration = Duration::from_secs(3600);

/// [`UniqueMode`] as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniqueWord {
    /// [`UniqueMode::Reject`].
    Reject,
    /// [`UniqueMode::Throttle`].
    Throttle,
    /// [`UniqueMode::Replace`].
    Replace,
    /// [`UniqueMode::Latest`].
    Latest,
}

impl OutboxJob {
    /// A job with the id that was chosen for it, else a generated one. `critical`: looked after until it has finished.
    ///
    /// # Errors
    /// [`EnqueueError::Refused`] when a value is out of bounds, or the job is part of a flow: parents and children are tied to each
    /// other inside Redis and cannot wait in the outbox.
    pub fn from_job(job: NewJob, critical: bool) -> Result<Self, EnqueueError> {
        let refused = |kind: &str, reason: String| EnqueueError::Refused { kind: kind.to_owned(), reason };
        job.check().map_err(|error| refused(&job.kind, error.to_string()))?;
        if job.parent.is_some() || job.children.is_some() {
            return Err(refused(
                &job.kind,
                "a job of a flow cannot go through the outbox; enqueue the flow".to_owned(),
            ));
        }
        let remember = job.remember.or_else(|| job.id.is_none().then_some(REMEMBER_GENERATED));
        let mut options =
            Options { key: some(job.key), remember_ms: remember.map(millis), ..Options::default() };
        if let Some((mode, key)) = job.unique {
            options.unique = Some(key);
            let (word, ttl) = match mode {
                UniqueMode::Reject => (UniqueWord::Reject, None),
                UniqueMode::Throttle(ttl) => (UniqueWord::Throttle, Some(ttl)),
                UniqueMode::Replace => (UniqueWord::Replace, None),
                UniqueMode::Latest => (UniqueWord::Latest, None),
            };
            options.unique_mode = Some(word);
            options.unique_ttl_ms = ttl.map(millis);
        }
        Ok(Self {
            id: job.id.map_or_else(|| uuid::Uuid::now_v7().to_string(), |id| id.to_string()),
            queue: job.queue.into_owned(),
            kind: job.kind.into_owned(),
            payload: job.payload,
            priority: job.priority,
            due: job.due,
            tenant: some(job.tenant),
            options,
            traceparent: job.trace.or_else(crate::trace::current),
            critical,
        })
    }

    /// The job for the queue, under this row's id.
    ///
    /// # Errors
    /// When a value is out of bounds; a row that [`OutboxJob::from_job`] or the table accepted is not.
    pub fn to_job(&self) -> Result<NewJob, QueueError> {
        let mut job = NewJob::raw(self.kind.clone(), self.payload.clone())
            .queue(self.queue.clone())
            .priority(self.priority)
            .id(JobId::chosen(&self.id)?)
            .tenant(self.tenant.clone().unwrap_or_default())
            .key(self.options.key.clone().unwrap_or_default());
        job.due = self.due;
        job.remember = self.options.remember_ms.map(Duration::from_millis);
        job.trace.clone_from(&self.traceparent);
        if let Some(key) = &self.options.unique {
            let mode = match self.options.unique_mode.unwrap_or(UniqueWord::Reject) {
                UniqueWord::Reject => UniqueMode::Reject,
                UniqueWord::Throttle => {
                    UniqueMode::Throttle(Duration::from_millis(self.options.unique_ttl_ms.unwrap_or(0)))
                }
                UniqueWord::Replace => UniqueMode::Replace,
                UniqueWord::Latest => UniqueMode::Latest,
            };
            job = job.unique(key.clone(), mode);
        }
        job.check()?;
        Ok(job)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
