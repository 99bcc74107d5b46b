//! A job is a type: its kind on the wire, its policy, and what it does.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::attempt::Attempt;
use crate::finished::HistoryMode;
use crate::retry::RetryPolicy;

/// A background job. The value is the payload, stored as JSON; the constants are its policy.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name on the wire. Stable for ever: renaming the type must not orphan queued jobs.
    const KIND: &'static str;
    /// The queue it goes to unless the enqueuer says otherwise.
    const QUEUE: &'static str = "default";
    /// When a failed attempt is tried again. `QUEUE_<NAME>_ATTEMPTS` and `_BACKOFF` change an exponential one.
    const RETRY: RetryPolicy = RetryPolicy::DEFAULT;
    /// Longest time of one attempt; then its token is cancelled and, after a grace of 5 s, its future dropped. The
    /// attempt counts as failed. Default 10 minutes.
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);
    /// 0 to 10, higher first, FIFO among equals.
    const PRIORITY: u8 = 0;
    /// How long a result of [`Outcome::DoneWith`] is kept. Default a day.
    const KEEP_RESULT: Duration = Duration::from_secs(86_400);
    /// Which ends of this kind's jobs go to the history.
    const HISTORY: HistoryMode = HistoryMode::All;
    /// What its handler works with: pools, clients, settings. Cloned once, at registration.
    type Context: Clone + Send + Sync + 'static;

    /// Runs one attempt. Must be idempotent: a job is delivered at least once. A long one watches
    /// [`Attempt::cancelled`].
    fn run(
        &self,
        ctx: &Self::Context,
        attempt: &Attempt,
    ) -> impl Future<Output = Result<Outcome, JobError>> + Send;
}

/// How an attempt ended well.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The job is done.
    Done,
    /// The job is done and left a result, readable for [`Job::KEEP_RESULT`]; at most [`RESULT_MAX_BYTES`] of JSON.
    DoneWith(serde_json::Value),
    /// Not yet: run it again after this long. Spends no attempt.
    Snooze(Duration),
}

/// Largest stored result. A larger one is dropped with a warning: the job has done its work, so it is not failed.
pub const RESULT_MAX_BYTES: usize = 1 << 20;

/// How an attempt failed. The job says which; the worker obeys.
#[derive(Debug)]
pub enum JobError {
    /// Try again by the kind's policy.
    Retry(Cause),
    /// Never try again: the job is parked as dead with reason `discarded_by_handler`.
    Discard(Cause),
}

/// Why an attempt failed: any error, or words.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

impl JobError {
    /// An error after which another attempt may succeed.
    pub fn retry(cause: impl Into<Cause>) -> Self {
        Self::Retry(cause.into())
    }

    /// An error that no further attempt can heal.
    pub fn discard(cause: impl Into<Cause>) -> Self {
        Self::Discard(cause.into())
    }

    /// The cause with its whole chain, `outer: inner`.
    #[must_use]
    pub fn text(&self) -> String {
        let (Self::Retry(cause) | Self::Discard(cause)) = self;
        chain(cause.as_ref())
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Many libraries repeat their source's text in their own.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// `?` on any error means: try again.
impl<E: Into<Cause>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Retry(error.into())
    }
}

pub(crate) fn payload_of<J: Serialize>(
    job: &J,
    kind: &str,
) -> Result<Box<RawValue>, crate::error::QueueError> {
    serde_json::value::to_raw_value(job)
        .map_err(|e| crate::error::QueueError::Payload { kind: kind.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_text_is_the_whole_chain() {
        let error = JobError::retry(Outer(std::io::Error::other("disk full")));
        assert_eq!(error.text(), "outer: disk full");
        assert_eq!(JobError::discard("no such user").text(), "no such user");
        let by_question_mark = || -> Result<(), JobError> {
            Err(std::io::Error::other("x"))?;
            Ok(())
        };
        assert!(matches!(by_question_mark(), Err(JobError::Retry(_))));
    }
}
