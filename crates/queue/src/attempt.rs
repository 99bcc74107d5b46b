//! What a running handler knows of itself and may say.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use voiceai_redis::Value;

use crate::envelope::capped;
use crate::error::QueueError;
use crate::id::JobId;
use crate::library::{Library, QueueName};

/// Why an attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// Somebody cancelled the job.
    Cancelled = 1,
    /// The attempt's time is over.
    TimedOut = 2,
    /// The worker's lease ended or was taken: another worker may already run the job.
    LeaseLost = 3,
    /// The process stops; the job goes back without spending an attempt.
    ShuttingDown = 4,
}

/// Log lines kept per job.
const LOG_LINES_MAX: i64 = 200;
/// Longest kept log line, bytes.
const LOG_LINE_MAX: usize = 2_048;

/// Where progress and log lines go.
#[derive(Debug)]
pub(crate) enum Reporter {
    /// To Redis, under the lease's token.
    Redis { link: Arc<Link>, token: Arc<str> },
    /// Into memory, for the inline runner.
    Memory(Mutex<Reported>),
}

/// A pool's way to its queue.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) library: Library,
    pub(crate) queue: QueueName,
}

/// What an inline run reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// The last progress.
    pub progress: Option<String>,
    /// All log lines.
    pub log: Vec<String>,
}

/// One attempt of a job. Cheap to clone.
#[derive(Clone)]
pub struct Attempt(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: JobId,
    pub(crate) queue: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) number: u32,
    pub(crate) max: u32,
    pub(crate) replays: u32,
    pub(crate) priority: u8,
    pub(crate) tenant: String,
    pub(crate) key: String,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) trace: Option<String>,
    /// Made when somebody waits for it or fires it: most handlers do neither.
    pub(crate) stop: OnceLock<CancellationToken>,
    pub(crate) why: AtomicU8,
    pub(crate) reporter: Reporter,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("id", &self.0.id)
            .field("kind", &self.0.kind)
            .field("number", &self.0.number)
            .finish_non_exhaustive()
    }
}

impl Attempt {
    /// The job's id: the natural idempotency key of its effects.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.0.id
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.0.queue
    }

    /// The job's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// 1 for the first attempt since the job was enqueued or replayed.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Attempts in all.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.0.max
    }

    /// True when a failure parks the job.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.0.number >= self.0.max
    }

    /// How often an operator replayed the job.
    #[must_use]
    pub fn replays(&self) -> u32 {
        self.0.replays
    }

    /// The job's priority, 0 to 10.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.0.priority
    }

    /// Whom it is for; empty when nobody was named.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.0.tenant
    }

    /// Its limit key; empty when it has none.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// When it was enqueued, by Redis's clock.
    #[must_use]
    pub fn enqueued_at(&self) -> Timestamp {
        self.0.enqueued_at
    }

    /// W3C `traceparent` of its enqueuer. The handler's span is already a child of it.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.0.trace.as_deref()
    }

    /// Fires when the handler should stop: see [`Attempt::stopped`] for why. A handler that goes on is dropped after a
    /// grace of 5 s at its next `await`.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        self.0.stop.get_or_init(CancellationToken::new)
    }

    /// Why the handler should stop, once it should.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        match self.0.why.load(Ordering::Acquire) {
            1 => Some(Stop::Cancelled),
            2 => Some(Stop::TimedOut),
            3 => Some(Stop::LeaseLost),
            4 => Some(Stop::ShuttingDown),
            _ => None,
        }
    }

    /// The first reason stays.
    pub(crate) fn stop(&self, why: Stop) {
        let _ = self.0.why.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
        self.cancelled().cancel();
    }

    /// Says how far it is: a percentage or a few words, at most 256 bytes, shown by `jobs show`.
    ///
    /// # Errors
    /// [`QueueError::LeaseLost`] when the job no longer belongs to this attempt, which is then also cancelled.
    pub async fn progress(&self, progress: impl fmt::Display) -> Result<(), QueueError> {
        let text = progress.to_string();
        self.report(capped(&text, 256), &[]).await
    }

    /// Adds a line to the job's own log: the last 200 lines of at most 2 KiB are kept for a week, shown by `jobs show`.
    ///
    /// # Errors
    /// As [`Attempt::progress`].
    pub async fn log(&self, line: impl AsRef<str>) -> Result<(), QueueError> {
        self.report("", &[capped(line.as_ref(), LOG_LINE_MAX)]).await
    }

    async fn report(&self, progress: &str, lines: &[&str]) -> Result<(), QueueError> {
        match &self.0.reporter {
            Reporter::Memory(reported) => {
                let mut reported = reported.lock().unwrap_or_else(PoisonError::into_inner);
                if !progress.is_empty() {
                    reported.progress = Some(progress.to_owned());
                }
                reported.log.extend(lines.iter().map(|l| (*l).to_owned()));
                Ok(())
            }
            Reporter::Redis { link, token } => {
                let Link { library, queue } = &**link;
                let mut args: Vec<Value> =
                    vec![self.0.id.as_str().into(), (&**token).into(), progress.into(), LOG_LINES_MAX.into()];
                args.extend(lines.iter().map(|l| Value::from(*l)));
                let owned: i64 = library
                    .call_apart(queue, "voiceai_v1_note", args)
                    .await
                    .map_err(|e| QueueError::from_redis(&queue.name, "report progress", e))?;
                if owned == 1 {
                    return Ok(());
                }
                self.stop(Stop::LeaseLost);
                Err(QueueError::LeaseLost { queue: queue.name.to_string(), id: self.0.id.to_string() })
            }
        }
    }

    /// What an inline run reported so far; `None` on a real worker.
    pub(crate) fn reported(&self) -> Option<Reported> {
        match &self.0.reporter {
            Reporter::Memory(reported) => {
                Some(reported.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            Reporter::Redis { .. } => None,
        }
    }
}
