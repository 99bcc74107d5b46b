//! One attempt: from the envelope to the verdict that settles the job.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tracing::Instrument;
use voiceai_runtime::random_unit;

use super::pool::Shared;
use super::take::{Lot, Taken};
use crate::attempt::{Attempt, Inner, Reporter, Stop};
use crate::client::timestamp;
use crate::envelope::{Envelope, FailRecord, capped};
use crate::finished::{DeadReason, Ending, FinishedJob, HistoryMode};
use crate::id::JobId;
use crate::job::{Outcome, RESULT_MAX_BYTES};
use crate::registry::{Handler, HandlerError};
use crate::retry::RetryPolicy;

/// How the job is to be settled.
#[derive(Debug)]
pub(super) enum Settle {
    /// A plain completion: rides on the next take.
    Ack,
    /// By verb, with its two arguments.
    Verb { verb: &'static str, a: String, b: String },
    /// Not at all: the job is another's by now.
    Nothing,
}

/// An attempt that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) id: JobId,
    pub(super) lot: Arc<Lot>,
    pub(super) kind: Arc<str>,
    pub(super) settle: Settle,
    pub(super) outcome: &'static str,
    /// Written once the settlement is confirmed.
    pub(super) record: Option<Box<FinishedJob>>,
    /// Run time; absent when no handler ran.
    pub(super) took: Option<Duration>,
    /// From enqueue to the start; only of a first attempt.
    pub(super) waited: Option<Duration>,
}

/// What a handler came to.
enum Verdict {
    Done(Option<serde_json::Value>),
    Snooze(Duration),
    Retry(String),
    Discard(String),
    BadPayload(String),
    Stopped(Stop),
}

/// A moment by both clocks: the wall's for records, the steady one for spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: Timestamp,
    steady: Instant,
}

impl Moment {
    /// This one.
    pub(super) fn now(shared: &Shared) -> Self {
        Self { at: shared.client.time().now(), steady: Instant::now() }
    }

    /// How long ago it was.
    pub(super) fn elapsed(self) -> Duration {
        self.steady.elapsed()
    }

    /// The moment that lies `span` later.
    pub(super) fn after(self, span: Duration) -> Self {
        Self { at: self.at + span, steady: self.steady + span }
    }
}

/// How long a handler that was told to stop may go on before its future is dropped.
const fn grace(stop: Stop) -> Duration {
    match stop {
        Stop::Cancelled | Stop::TimedOut => Duration::from_secs(5),
        // Another worker may begin the job any moment, or the process is about to end.
        Stop::LeaseLost | Stop::ShuttingDown => Duration::from_secs(1),
    }
}

/// Runs a taken job. Never panics, whatever the handler does. Whoever polls it at once says what time it is by `begins`: three
/// readings of a clock cost as much as a handler that does nothing.
pub(super) async fn run(shared: &Arc<Shared>, taken: Taken, begins: Option<Moment>) -> Ended {
    let Some(envelope) = Envelope::parse(&taken.envelope) else {
        let text = "the job's envelope is not readable; docs/protocol.md has its form";
        return park_unread(shared, &taken, "", DeadReason::BadPayload, text, None).await;
    };
    if !envelope.is_text() {
        let text = "the payload is not UTF-8";
        return park_unread(shared, &taken, envelope.kind, DeadReason::BadPayload, text, Some(&envelope))
            .await;
    }
    let Some(handler) = shared.registry.get(envelope.kind) else {
        let text = format!("no handler is registered for kind `{}`", envelope.kind);
        return park_unread(shared, &taken, envelope.kind, DeadReason::NoHandler, &text, Some(&envelope))
            .await;
    };
    let policy = handler.retry().overridden(shared.settings.attempts, shared.settings.backoff);
    let attempt = attempt(shared, &taken, &envelope, handler.as_ref(), &policy);
    if taken.lot.incarnation.is_lost() {
        attempt.stop(Stop::LeaseLost);
    }
    let began = begins.unwrap_or_else(|| Moment::now(shared));
    let verdict = execute(shared, handler.as_ref(), &envelope, &attempt, &taken.lot).await;
    let (started_at, took) = (began.at, began.elapsed());
    let end =
        End { shared, taken: &taken, envelope: &envelope, handler: handler.as_ref(), attempt: &attempt };
    let mut ended = end.settle(verdict, &policy, started_at, took).await;
    if attempt.number() == 1 && attempt.replays() == 0 {
        let waited = started_at.duration_since(attempt.enqueued_at());
        ended.waited = Some(Duration::try_from(waited).unwrap_or_default());
    }
    ended
}

fn attempt(
    shared: &Arc<Shared>,
    taken: &Taken,
    envelope: &Envelope<'_>,
    handler: &dyn Handler,
    policy: &RetryPolicy,
) -> Attempt {
    let past = taken.fail.as_ref();
    Attempt(Arc::new(Inner {
        id: taken.id.clone(),
        queue: Arc::clone(&shared.link.queue.name),
        kind: Arc::clone(handler.kind()),
        number: past.map_or(0, |f| f.attempts) + 1,
        max: policy.attempts(),
        replays: past.map_or(0, |f| f.replays),
        priority: envelope.priority(),
        tenant: envelope.tenant(),
        key: envelope.key(),
        enqueued_at: timestamp(envelope.enqueued_ms),
        trace: envelope.meta.trace.clone(),
        stop: OnceLock::new(),
        why: AtomicU8::new(0),
        reporter: Reporter::Redis { link: Arc::clone(&shared.link), token: Arc::clone(&taken.lot.token) },
    }))
}

async fn execute(
    shared: &Arc<Shared>,
    handler: &dyn Handler,
    envelope: &Envelope<'_>,
    attempt: &Attempt,
    lot: &Arc<Lot>,
) -> Verdict {
    let span = tracing::info_span!(
        "process",
        otel.name = %format_args!("process {}", attempt.queue()),
        otel.kind = "consumer",
        messaging.system = "redis",
        messaging.operation.name = "process",
        messaging.destination.name = attempt.queue(),
        messaging.message.id = %attempt.id(),
        voiceai.job.kind = attempt.kind(),
        voiceai.job.attempt = attempt.number(),
    );
    if let Some(trace) = attempt.trace()
        && !span.is_disabled()
    {
        crate::trace::adopt(&span, trace);
    }
    let voice = shared.voice;
    let limit = shared.settings.attempt_timeout.unwrap_or_else(|| handler.attempt_timeout());
    let work = async {
        voice.begins(attempt);
        let handler =
            AssertUnwindSafe(shared.registry.run(handler, envelope.payload, attempt)).catch_unwind();
        bounded(handler, attempt, limit, shared, lot).await
    };
    work.instrument(span).await
}

type Caught = Result<Result<Outcome, HandlerError>, Box<dyn std::any::Any + Send>>;

/// Lets the handler run until it ends, is told to stop and does not within the grace, or its time is over.
async fn bounded(
    handler: impl Future<Output = Caught>,
    attempt: &Attempt,
    limit: Duration,
    shared: &Shared,
    lot: &Arc<Lot>,
) -> Verdict {
    tokio::pin!(handler);
    // A handler that never waits ends here: nobody could have stopped it, and it costs neither a timer nor an entry
    // among those that can be.
    if let Poll::Ready(ended) = futures_util::poll!(&mut handler) {
        return judge(ended, attempt, limit);
    }
    let _entry = shared.register(attempt, lot);
    let ended = tokio::select! {
        biased;
        ended = &mut handler => Some(ended),
        () = attempt.cancelled().cancelled() => None,
        () = tokio::time::sleep(limit) => {
            attempt.stop(Stop::TimedOut);
            None
        }
    };
    if let Some(ended) = ended {
        return judge(ended, attempt, limit);
    }
    let why = attempt.stopped().unwrap_or(Stop::Cancelled);
    match tokio::time::timeout(grace(why), &mut handler).await {
        Ok(ended) => judge(ended, attempt, limit),
        // The future is dropped with this function: at its next `await` it no longer exists.
        Err(_) => stopped(why, limit, None),
    }
}

fn judge(ended: Caught, attempt: &Attempt, limit: Duration) -> Verdict {
    let error = match ended {
        Ok(Ok(Outcome::Done)) => return Verdict::Done(None),
        Ok(Ok(Outcome::DoneWith(value))) => return Verdict::Done(Some(value)),
        Ok(Ok(Outcome::Snooze(span))) => return Verdict::Snooze(span),
        Ok(Err(error)) => error,
        Err(panic) => return Verdict::Retry(format!("the handler panicked: {}", panic_text(panic.as_ref()))),
    };
    let error = match error {
        HandlerError::BadPayload(reason) => return Verdict::BadPayload(reason),
        HandlerError::Job(error) => error,
    };
    match (attempt.stopped(), &error) {
        (Some(why), _) => stopped(why, limit, Some(error.text())),
        (None, crate::job::JobError::Retry(_)) => Verdict::Retry(error.text()),
        (None, crate::job::JobError::Discard(_)) => Verdict::Discard(error.text()),
    }
}

fn stopped(why: Stop, limit: Duration, error: Option<String>) -> Verdict {
    match why {
        Stop::TimedOut => {
            let own = error.map(|e| format!(" ({e})")).unwrap_or_default();
            Verdict::Retry(format!("the attempt took longer than {limit:?}{own}"))
        }
        other => Verdict::Stopped(other),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

/// Everything that the settlement of an attempt needs.
struct End<'a> {
    shared: &'a Arc<Shared>,
    taken: &'a Taken,
    envelope: &'a Envelope<'a>,
    handler: &'a dyn Handler,
    attempt: &'a Attempt,
}

impl End<'_> {
    async fn settle(
        &self,
        verdict: Verdict,
        policy: &RetryPolicy,
        started: Timestamp,
        took: Duration,
    ) -> Ended {
        let history = self.handler.history();
        match verdict {
            Verdict::Done(value) => {
                self.shared.voice.completed(self.attempt, took);
                // A schedule's record of its last success is kept whatever its kind keeps of others.
                let scheduled = crate::cron::schedule_of_job(self.attempt.id().as_str()).is_some();
                let record = (history == HistoryMode::All || scheduled)
                    .then(|| self.record(Ending::Completed, started, None, value.clone()));
                let settle = self.done(value);
                self.ended(settle, "completed", record, took)
            }
            Verdict::Snooze(span) => {
                let settle = Settle::Verb { verb: "snooze", a: millis(span), b: String::new() };
                self.ended(settle, "snoozed", None, took)
            }
            Verdict::Retry(error) => match policy.delay(self.attempt.number(), random_unit()) {
                Some(wait) => {
                    self.shared.voice.failed(self.attempt, &error, Some(wait), "");
                    let b = self.fail_record("-", &error);
                    let record = (history != HistoryMode::None)
                        .then(|| self.record(Ending::Failed, started, Some(&error), None));
                    self.ended(Settle::Verb { verb: "retry", a: millis(wait), b }, "failed", record, took)
                }
                None => self.park(DeadReason::Exhausted, &error, started, took).await,
            },
            Verdict::Discard(error) => self.park(DeadReason::DiscardedByHandler, &error, started, took).await,
            Verdict::BadPayload(error) => {
                let text = format!("the payload does not parse: {error}");
                self.park(DeadReason::BadPayload, &text, started, took).await
            }
            Verdict::Stopped(Stop::Cancelled) => {
                // The record goes along and is noted with the end, whatever becomes of this process or of the history.
                let record = self.record(Ending::Cancelled, started, Some("cancelled while it ran"), None);
                let a = serde_json::to_string(&record).unwrap_or_default();
                let settle = Settle::Verb { verb: "cancelled", a, b: String::new() };
                self.ended(settle, "cancelled", None, took)
            }
            Verdict::Stopped(Stop::LeaseLost) => self.ended(Settle::Nothing, "lost", None, took),
            Verdict::Stopped(Stop::ShuttingDown | Stop::TimedOut) => {
                let settle = Settle::Verb { verb: "back", a: String::new(), b: String::new() };
                self.ended(settle, "returned", None, took)
            }
        }
    }

    /// A completion with a result or with ties is settled by itself, any other rides on the next take.
    fn done(&self, value: Option<serde_json::Value>) -> Settle {
        let result = value.map(|v| v.to_string()).unwrap_or_default();
        if result.is_empty() && !self.envelope.meta.has_ties() {
            return Settle::Ack;
        }
        if result.len() > RESULT_MAX_BYTES {
            tracing::warn!(jobId = %self.attempt.id(), kind = self.attempt.kind(), bytes = result.len(),
                limit = RESULT_MAX_BYTES, "the job's result is too large and was dropped");
            return Settle::Verb { verb: "done", a: String::new(), b: "0".into() };
        }
        Settle::Verb { verb: "done", a: result, b: millis(self.handler.keep_result()) }
    }

    async fn park(&self, reason: DeadReason, error: &str, started: Timestamp, took: Duration) -> Ended {
        self.shared.voice.failed(self.attempt, error, None, reason.as_str());
        let record = self.record(Ending::Dead(reason), started, Some(error), None);
        let a = written(self.shared, reason, Some(*record)).await;
        let b = self.fail_record(reason.as_str(), error);
        self.ended(Settle::Verb { verb: "park", a, b }, reason.as_str(), None, took)
    }

    fn fail_record(&self, reason: &str, error: &str) -> String {
        FailRecord {
            attempts: self.attempt.number(),
            reason: reason.to_owned(),
            at_ms: self.shared.client.time().now_ms(),
            replays: self.attempt.replays(),
            error: error.to_owned(),
        }
        .write()
    }

    fn record(
        &self,
        ending: Ending,
        started: Timestamp,
        error: Option<&str>,
        result: Option<serde_json::Value>,
    ) -> Box<FinishedJob> {
        let payload = (ending != Ending::Completed)
            .then(|| RawValue::from_string(self.envelope.payload.to_owned()).ok())
            .flatten();
        Box::new(FinishedJob {
            id: self.taken.id.clone(),
            queue: Arc::clone(&self.shared.link.queue.name),
            kind: Arc::clone(self.handler.kind()),
            tenant: self.attempt.tenant().to_owned(),
            priority: self.attempt.priority(),
            payload,
            ending,
            attempt: self.attempt.number(),
            replays: self.attempt.replays(),
            enqueued_at: self.attempt.enqueued_at(),
            started_at: Some(started),
            finished_at: self.shared.client.time().now(),
            error: error.map(|e| capped(e, 2_048).to_owned()),
            result,
            worker: self.shared.worker.clone(),
            trace: self.envelope.meta.trace.clone(),
            unique: self.envelope.unique_key(),
        })
    }

    fn ended(
        &self,
        settle: Settle,
        outcome: &'static str,
        record: Option<Box<FinishedJob>>,
        took: Duration,
    ) -> Ended {
        Ended {
            id: self.taken.id.clone(),
            lot: Arc::clone(&self.taken.lot),
            kind: Arc::clone(self.handler.kind()),
            settle,
            outcome,
            record,
            took: Some(took),
            waited: None,
        }
    }
}

fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

/// Writes the record of a death before the job is settled: what a person must find is never only in Redis. While the database
/// is away the record goes along with the settlement, and Redis keeps it until the history has it: it outlives this process.
/// Gives what the verb `park` takes.
async fn written(shared: &Shared, reason: DeadReason, record: Option<FinishedJob>) -> String {
    let Some(record) = record else { return reason.as_str().to_owned() };
    let text = serde_json::to_string(&record).unwrap_or_default();
    match shared.client.history().write(vec![record]).await {
        Ok(()) => reason.as_str().to_owned(),
        Err(error) => {
            tracing::warn!(%error, "a death is not in the job history yet: its record waits in Redis");
            format!("{}\n{text}", reason.as_str())
        }
    }
}

/// Parks a job that no handler saw.
async fn park_unread(
    shared: &Arc<Shared>,
    taken: &Taken,
    kind: &str,
    reason: DeadReason,
    text: &str,
    envelope: Option<&Envelope<'_>>,
) -> Ended {
    let queue = &*shared.link.queue.name;
    tracing::error!(jobId = %taken.id, queueId = queue, kind, reason = reason.as_str(), error = text, "job parked");
    let record = envelope.and_then(|_| {
        shared.client.record(
            queue,
            taken.id.as_str(),
            &taken.envelope,
            taken.fail.as_ref().map(FailRecord::write).as_deref(),
            Ending::Dead(reason),
            text,
        )
    });
    let a = written(shared, reason, record).await;
    let past = taken.fail.clone().unwrap_or_default();
    let b = FailRecord {
        reason: reason.as_str().to_owned(),
        at_ms: shared.client.time().now_ms(),
        error: text.to_owned(),
        ..past
    }
    .write();
    Ended {
        id: taken.id.clone(),
        lot: Arc::clone(&taken.lot),
        kind: kind.into(),
        settle: Settle::Verb { verb: "park", a, b },
        outcome: reason.as_str(),
        record: None,
        took: None,
        waited: None,
    }
}
