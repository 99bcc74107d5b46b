//! Handlers without a queue: for the tests of their authors, and for work that must go on without Redis.

use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use voiceai_runtime::Clock;

use crate::attempt::{Attempt, Inner, Reported, Reporter};
use crate::finished::DeadReason;
use crate::id::{JobId, random_text};
use crate::job::{JobError, Outcome};
use crate::new_job::NewJob;
use crate::registry::{HandlerError, Registry};

/// How an inline run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Inline {
    /// Done, with the result it left.
    Done(Option<serde_json::Value>),
    /// Wants to run again after this long.
    Snoozed(Duration),
    /// Failed; a worker would try again after this long.
    Retry {
        /// The wait by the kind's policy, without jitter.
        after: Duration,
        /// The error's text.
        error: String,
    },
    /// A worker would park it.
    Dead {
        /// Why.
        reason: DeadReason,
        /// The error's text.
        error: String,
    },
}

/// Runs jobs in this process: middleware, payload parsing, time limit and retry policy are those of a worker; there is
/// no lease and nothing is stored.
///
/// ```
/// use std::sync::Arc;
/// use voiceai_queue::{Attempt, Inline, InlineRunner, Job, JobError, NewJob, Outcome, Registry};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// impl Job for Greet {
///     const KIND: &'static str = "greet";
///     type Context = Arc<str>;
///
///     async fn run(&self, greeting: &Arc<str>, attempt: &Attempt) -> Result<Outcome, JobError> {
///         attempt.progress("composing").await?;
///         Ok(Outcome::DoneWith(format!("{greeting}, {}", self.name).into()))
///     }
/// }
///
/// # async fn example() -> Result<(), voiceai_queue::QueueError> {
/// let registry = Registry::new().register::<Greet>("Hello".into());
/// let ran = InlineRunner::new(registry).run(&NewJob::of(&Greet { name: "Ada".into() })?).await;
/// assert_eq!(ran.end, Inline::Done(Some("Hello, Ada".into())));
/// assert_eq!(ran.reported.progress.as_deref(), Some("composing"));
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct InlineRunner {
    registry: Registry,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for InlineRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InlineRunner").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// What an inline run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// How it ended.
    pub end: Inline,
    /// What the handler reported.
    pub reported: Reported,
}

impl InlineRunner {
    /// A runner of `registry`'s kinds, on the machine's clock.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, clock: Arc::new(voiceai_runtime::RealClock) }
    }

    /// With another clock: [`Attempt::enqueued_at`] is read from it.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Runs the first attempt of `job`.
    pub async fn run(&self, job: &NewJob) -> Ran {
        self.attempt(job, 1).await
    }

    /// Runs attempt `number` of `job`.
    pub async fn attempt(&self, job: &NewJob, number: u32) -> Ran {
        let Some(handler) = self.registry.get(&job.kind) else {
            let error = format!("no handler is registered for kind `{}`", job.kind);
            let end = Inline::Dead { reason: DeadReason::NoHandler, error };
            return Ran { end, reported: Reported::default() };
        };
        let policy = handler.retry();
        let attempt = Attempt(Arc::new(Inner {
            id: job.id.clone().unwrap_or_else(|| JobId::trusted(&random_text::<14>())),
            queue: job.queue.as_ref().into(),
            kind: Arc::clone(handler.kind()),
            number,
            max: policy.attempts(),
            replays: 0,
            priority: job.priority,
            tenant: job.tenant.clone(),
            key: job.key.clone(),
            enqueued_at: self.clock.now(),
            trace: job.trace.clone(),
            stop: std::sync::OnceLock::new(),
            why: AtomicU8::new(0),
            reporter: Reporter::Memory(Mutex::default()),
        }));
        let limit = handler.attempt_timeout();
        let running = self.registry.run(handler.as_ref(), job.payload.get(), &attempt);
        let caught = std::panic::AssertUnwindSafe(running).catch_unwind();
        let ended = tokio::time::timeout(limit, caught).await;
        let retry = |error: String| match policy.delay(number, 0.0) {
            Some(after) => Inline::Retry { after, error },
            None => Inline::Dead { reason: DeadReason::Exhausted, error },
        };
        let end = match ended {
            Ok(Ok(Ok(Outcome::Done))) => Inline::Done(None),
            Ok(Ok(Ok(Outcome::DoneWith(value)))) => Inline::Done(Some(value)),
            Ok(Ok(Ok(Outcome::Snooze(span)))) => Inline::Snoozed(span),
            Ok(Ok(Err(HandlerError::BadPayload(reason)))) => Inline::Dead {
                reason: DeadReason::BadPayload,
                error: format!("the payload does not parse: {reason}"),
            },
            Ok(Ok(Err(HandlerError::Job(error)))) => match error {
                JobError::Retry(_) => retry(error.text()),
                JobError::Discard(_) => {
                    Inline::Dead { reason: DeadReason::DiscardedByHandler, error: error.text() }
                }
            },
            Ok(Err(_)) => retry("the handler panicked".into()),
            Err(_) => retry(format!("the attempt took longer than {limit:?}")),
        };
        Ran { end, reported: attempt.reported().unwrap_or_default() }
    }
}
