//! Which kinds this process has handlers for, and what stands around them.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::Attempt;
use crate::finished::HistoryMode;
use crate::job::{Job, JobError, Outcome};
use crate::retry::RetryPolicy;

/// A boxed future of a handler.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Outcome, JobError>> + Send + 'a>>;

/// Stands around every attempt, the first registered outermost: measures, sets context, refuses.
pub trait Middleware: Send + Sync + 'static {
    /// Runs `next` and may act before and after it, or not run it at all.
    fn around<'a>(&'a self, attempt: &'a Attempt, next: Next<'a>) -> Running<'a>;
}

/// The rest of the chain, the handler at its end.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    chain: &'a [Arc<dyn Middleware>],
    handler: &'a dyn Handler,
    payload: &'a str,
    attempt: &'a Attempt,
}

impl std::fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next").field("left", &self.chain.len()).finish_non_exhaustive()
    }
}

impl<'a> Next<'a> {
    /// Runs it.
    #[must_use]
    pub fn run(self) -> Running<'a> {
        match self.chain.split_first() {
            Some((first, rest)) => first.around(self.attempt, Next { chain: rest, ..self }),
            None => {
                let running = self.handler.run(self.payload, self.attempt);
                Box::pin(async move {
                    running.await.map_err(|e| match e {
                        HandlerError::Job(error) => error,
                        // Checked before the chain began, so this is a handler whose parsing depends on the moment.
                        HandlerError::BadPayload(reason) => JobError::discard(reason),
                    })
                })
            }
        }
    }
}

pub(crate) enum HandlerError {
    BadPayload(String),
    Job(JobError),
}

/// A handler without its type.
pub(crate) trait Handler: Send + Sync {
    fn kind(&self) -> &Arc<str>;
    fn queue(&self) -> &'static str;
    fn retry(&self) -> RetryPolicy;
    fn attempt_timeout(&self) -> Duration;
    fn keep_result(&self) -> Duration;
    fn history(&self) -> HistoryMode;
    fn check(&self, payload: &str) -> Result<(), String>;
    fn run<'a>(
        &'a self,
        payload: &'a str,
        attempt: &'a Attempt,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome, HandlerError>> + Send + 'a>>;
}

struct Typed<J: Job> {
    kind: Arc<str>,
    context: J::Context,
}

impl<J: Job> Handler for Typed<J>
where
    J::Context: Sync,
{
    fn kind(&self) -> &Arc<str> {
        &self.kind
    }

    fn queue(&self) -> &'static str {
        J::QUEUE
    }

    fn retry(&self) -> RetryPolicy {
        J::RETRY
    }

    fn attempt_timeout(&self) -> Duration {
        J::ATTEMPT_TIMEOUT
    }

    fn keep_result(&self) -> Duration {
        J::KEEP_RESULT
    }

    fn history(&self) -> HistoryMode {
        J::HISTORY
    }

    fn check(&self, payload: &str) -> Result<(), String> {
        serde_json::from_str::<J>(payload).map(drop).map_err(|e| e.to_string())
    }

    fn run<'a>(
        &'a self,
        payload: &'a str,
        attempt: &'a Attempt,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome, HandlerError>> + Send + 'a>> {
        Box::pin(async move {
            let job: J =
                serde_json::from_str(payload).map_err(|e| HandlerError::BadPayload(e.to_string()))?;
            job.run(&self.context, attempt).await.map_err(HandlerError::Job)
        })
    }
}

/// The kinds that a process runs.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: BTreeMap<&'static str, Arc<dyn Handler>>,
    middleware: Vec<Arc<dyn Middleware>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("kinds", &self.handlers.keys()).finish_non_exhaustive()
    }
}

impl Registry {
    /// No kinds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind. A kind registered twice is the later one's.
    #[must_use]
    pub fn register<J: Job>(mut self, context: J::Context) -> Self
    where
        J::Context: Sync,
    {
        self.handlers.insert(J::KIND, Arc::new(Typed::<J> { kind: J::KIND.into(), context }));
        self
    }

    /// Adds a middleware inside those added before.
    #[must_use]
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }

    /// All registered kinds, sorted.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        self.handlers.keys().copied().collect()
    }

    /// The queues that the registered kinds go to, sorted, each once.
    #[must_use]
    pub fn queues(&self) -> Vec<&'static str> {
        let mut queues: Vec<_> = self.handlers.values().map(|h| h.queue()).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    /// True when the kind is registered.
    #[must_use]
    pub fn knows(&self, kind: &str) -> bool {
        self.handlers.contains_key(kind)
    }

    /// Whether `payload` parses as a job of `kind`: `None` when the kind is not registered, else the parser's verdict.
    #[must_use]
    pub fn check_payload(&self, kind: &str, payload: &str) -> Option<Result<(), String>> {
        self.handlers.get(kind).map(|h| h.check(payload))
    }

    /// The queue of a registered kind.
    #[must_use]
    pub fn queue_of(&self, kind: &str) -> Option<&'static str> {
        self.handlers.get(kind).map(|h| h.queue())
    }

    /// The retry policy of a registered kind.
    #[must_use]
    pub fn retry_of(&self, kind: &str) -> Option<RetryPolicy> {
        self.handlers.get(kind).map(|h| h.retry())
    }

    pub(crate) fn get(&self, kind: &str) -> Option<&Arc<dyn Handler>> {
        self.handlers.get(kind)
    }

    /// Runs a handler with its middleware.
    pub(crate) fn run<'a>(
        &'a self,
        handler: &'a dyn Handler,
        payload: &'a str,
        attempt: &'a Attempt,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome, HandlerError>> + Send + 'a>> {
        if self.middleware.is_empty() {
            return handler.run(payload, attempt);
        }
        Box::pin(async move {
            handler.check(payload).map_err(HandlerError::BadPayload)?;
            let next = Next { chain: &self.middleware, handler, payload, attempt };
            next.run().await.map_err(HandlerError::Job)
        })
    }
}
