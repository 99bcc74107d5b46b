//! A job to be enqueued, typed or by kind and JSON.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::envelope::{self, Meta};
use crate::error::QueueError;
use crate::id::JobId;
use crate::job::{Job, payload_of};

/// When a job may run first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// After this long, measured by Redis's clock.
    After(Duration),
    /// At this time; one in the past means at once.
    At(Timestamp),
}

/// What happens when the unique key is held by another live job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UniqueMode {
    /// The new job is refused as long as the other waits, is delayed or runs.
    Reject,
    /// At most one job is accepted per this long, whatever became of it.
    Throttle(Duration),
    /// A waiting or delayed holder is cancelled and the new job takes its place; a running one goes on beside it.
    Replace,
    /// Like `Replace`, but while the holder runs the newest waits until it has ended; never two at a time.
    Latest,
}

/// A job to be enqueued.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub(crate) queue: Cow<'static, str>,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) payload: Box<RawValue>,
    pub(crate) priority: u8,
    pub(crate) due: Due,
    pub(crate) id: Option<JobId>,
    pub(crate) tenant: String,
    pub(crate) key: String,
    pub(crate) unique: Option<(UniqueMode, String)>,
    pub(crate) trace: Option<String>,
    pub(crate) remember: Option<Duration>,
    pub(crate) parent: Option<(String, char)>,
    pub(crate) children: Option<u32>,
}

/// How long a chosen id is remembered after its job ended, unless [`NewJob::remember`] says otherwise.
pub const REMEMBER_DEFAULT: Duration = Duration::from_secs(86_400);

/// Largest payload.
pub const PAYLOAD_MAX_BYTES: usize = 1 << 20;

impl NewJob {
    /// A job of a type, with its kind's queue and priority.
    ///
    /// # Errors
    /// [`QueueError::Payload`] when the value cannot be written as JSON.
    pub fn of<J: Job>(job: &J) -> Result<Self, QueueError> {
        let mut this = Self::raw(J::KIND, payload_of(job, J::KIND)?);
        this.queue = Cow::Borrowed(J::QUEUE);
        this.priority = J::PRIORITY;
        Ok(this)
    }

    /// A job by kind and payload; goes to the queue `default`.
    #[must_use]
    pub fn raw(kind: impl Into<Cow<'static, str>>, payload: Box<RawValue>) -> Self {
        Self {
            queue: Cow::Borrowed("default"),
            kind: kind.into(),
            payload,
            priority: 0,
            due: Due::Now,
            id: None,
            tenant: String::new(),
            key: String::new(),
            unique: None,
            trace: None,
            remember: None,
            parent: None,
            children: None,
        }
    }

    /// A job by kind and any JSON value.
    ///
    /// # Errors
    /// [`QueueError::Payload`] when the value cannot be written as JSON.
    pub fn json(kind: impl Into<Cow<'static, str>>, payload: &serde_json::Value) -> Result<Self, QueueError> {
        let kind = kind.into();
        let payload = payload_of(payload, &kind)?;
        Ok(Self::raw(kind, payload))
    }

    /// The queue it goes to.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<Cow<'static, str>>) -> Self {
        self.queue = queue.into();
        self
    }

    /// 0 to 10, higher first.
    #[must_use]
    pub const fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Not before this much time has passed on Redis's clock.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::After(delay);
        self
    }

    /// Not before this time.
    #[must_use]
    pub const fn at(mut self, at: Timestamp) -> Self {
        self.due = Due::At(at);
        self
    }

    /// An id of the caller's own: enqueueing it again, also within [`REMEMBER_DEFAULT`] after its end, is known.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// How long a chosen id stays known after the job ended.
    #[must_use]
    pub const fn remember(mut self, span: Duration) -> Self {
        self.remember = Some(span);
        self
    }

    /// Whom it is for: tenants of one priority are served in turn.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }

    /// The limit key: jobs with the same key share the queue's per-key concurrency and rate.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// At most one live job with this key, in the given sense.
    #[must_use]
    pub fn unique(mut self, key: impl Into<String>, mode: UniqueMode) -> Self {
        self.unique = Some((mode, key.into()));
        self
    }

    /// W3C `traceparent` of whoever caused it; by default the current span's.
    #[must_use]
    pub fn trace(mut self, traceparent: impl Into<String>) -> Self {
        self.trace = Some(traceparent.into());
        self
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The queue it goes to.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        &self.queue
    }

    /// The id it was given.
    #[must_use]
    pub const fn chosen_id(&self) -> Option<&JobId> {
        self.id.as_ref()
    }

    /// Its payload.
    #[must_use]
    pub const fn payload(&self) -> &RawValue {
        &self.payload
    }

    /// True when it can go by the batched path: a generated id, at once, without ties.
    pub(crate) const fn is_plain(&self) -> bool {
        self.id.is_none()
            && matches!(self.due, Due::Now)
            && self.unique.is_none()
            && self.parent.is_none()
            && self.children.is_none()
    }

    /// Checks what enqueueing it would check: queue, kind, priority, tenant and keys.
    ///
    /// # Errors
    /// [`QueueError::Invalid`], naming the value and what was expected.
    pub fn check(&self) -> Result<(), QueueError> {
        check_queue(&self.queue)?;
        check_kind(&self.kind)?;
        if self.payload.get().len() > PAYLOAD_MAX_BYTES {
            return Err(QueueError::Invalid {
                what: "payload",
                given: format!("{} bytes of a `{}` job", self.payload.get().len(), self.kind),
                expected: "at most 1 MiB of JSON: store larger things elsewhere and name them",
            });
        }
        if self.priority > 10 {
            return Err(QueueError::Invalid {
                what: "priority",
                given: self.priority.to_string(),
                expected: "a whole number from 0 to 10, higher first",
            });
        }
        for (what, value) in [("tenant", &self.tenant), ("limit key", &self.key)] {
            if value.len() > 64 || envelope::encode(value).len() > 64 {
                return Err(QueueError::Invalid {
                    what,
                    given: envelope::capped(value, 80).to_owned(),
                    expected: "at most 64 bytes once percent-encoded",
                });
            }
        }
        if let Some((_, key)) = &self.unique
            && (key.is_empty() || key.len() > 256)
        {
            return Err(QueueError::Invalid {
                what: "unique key",
                given: envelope::capped(key, 80).to_owned(),
                expected: "1 to 256 bytes",
            });
        }
        Ok(())
    }

    pub(crate) fn meta(&self, trace: Option<String>) -> Meta {
        let unique = self.unique.as_ref().map(|(mode, key)| {
            let (letter, ttl) = match mode {
                UniqueMode::Reject => ('r', 0),
                UniqueMode::Throttle(ttl) => ('t', ttl.as_millis()),
                UniqueMode::Replace => ('x', 0),
                UniqueMode::Latest => ('l', 0),
            };
            format!("{letter}{ttl}:{}", envelope::encode(key))
        });
        let remember_ms = if self.is_plain() {
            None
        } else {
            // A generated id cannot come twice, so there is nothing to remember; the server's default is a day.
            let default = if self.id.is_some() { REMEMBER_DEFAULT } else { Duration::ZERO };
            let span = self.remember.unwrap_or(default);
            Some(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
        };
        Meta {
            trace,
            unique,
            parent: self.parent.as_ref().map(|(id, _)| id.clone()),
            child_policy: self.parent.as_ref().map(|(_, policy)| *policy),
            children: self.children,
            remember_ms,
        }
    }
}

/// A queue's name goes into key names and settings' names.
pub(crate) fn check_queue(queue: &str) -> Result<(), QueueError> {
    let good = !queue.is_empty()
        && queue.len() <= 64
        && queue.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if good {
        return Ok(());
    }
    Err(QueueError::Invalid {
        what: "queue name",
        given: envelope::capped(queue, 80).to_owned(),
        expected: "1 to 64 ASCII letters, digits, dots, dashes or underscores",
    })
}

/// A kind is one word of the envelope.
pub(crate) fn check_kind(kind: &str) -> Result<(), QueueError> {
    let good = !kind.is_empty()
        && kind.len() <= 128
        && kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':'));
    if good {
        return Ok(());
    }
    Err(QueueError::Invalid {
        what: "job kind",
        given: envelope::capped(kind, 80).to_owned(),
        expected: "1 to 128 ASCII letters, digits, dots, dashes, colons or underscores",
    })
}

/// What an enqueue came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The job that now stands for the request: the new one, the known one, or the holder of the unique key.
    pub id: JobId,
    /// How it was taken.
    pub outcome: AddOutcome,
}

/// How an enqueue was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddOutcome {
    /// A new job was accepted.
    Accepted,
    /// The id is known: nothing was done.
    Known,
    /// Another live job holds the unique key: nothing was done.
    Duplicate,
}

impl Added {
    /// True when nothing new was accepted.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        !matches!(self.outcome, AddOutcome::Accepted)
    }
}
