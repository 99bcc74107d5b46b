//! What can go wrong with a queue, named after what was tried.

use voiceai_redis::{RedisError, RedisErrorKind};

use crate::finished::HistoryError;

/// A call to the queue that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// A value cannot be a job's.
    #[error("{what} `{given}` is not usable: expected {expected}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// The value, shortened.
        given: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A job's payload cannot be written as JSON.
    #[error("write the payload of a `{kind}` job as JSON: {reason}")]
    Payload {
        /// The job's kind.
        kind: String,
        /// What the serializer said.
        reason: String,
    },
    /// The queue refuses new work until it is resumed.
    #[error("queue `{queue}` is draining and takes no new jobs; `queue resume {queue}` ends that")]
    Draining {
        /// Which queue.
        queue: String,
    },
    /// An operator has paused producers.
    #[error("enqueueing to queue `{queue}` is paused by an operator; `queue resume {queue}` ends that")]
    ProducersPaused {
        /// Which queue.
        queue: String,
    },
    /// A leader's enqueue carried a term that is over; nothing was done.
    #[error("enqueue to queue `{queue}` under term {term}: {detail}")]
    StaleTerm {
        /// Which queue.
        queue: String,
        /// The term it carried.
        term: i64,
        /// What the server said.
        detail: String,
    },
    /// Redis is at its memory limit: new work is refused, running work drains.
    #[error("queue `{queue}` takes no new jobs: Redis is at maxmemory; free memory or raise maxmemory")]
    Full {
        /// Which queue.
        queue: String,
    },
    /// Too many enqueues wait for Redis in this process.
    #[error("queue `{queue}`: {waiting} enqueues already wait for Redis in this process")]
    Overloaded {
        /// Which queue.
        queue: String,
        /// How many wait.
        waiting: usize,
    },
    /// The job no longer belongs to this attempt: its lease ended or was taken.
    #[error("queue `{queue}`: job {id} no longer belongs to this attempt")]
    LeaseLost {
        /// Which queue.
        queue: String,
        /// Which job.
        id: String,
    },
    /// Redis failed, or refused the call.
    #[error("queue `{queue}`: {tried}")]
    Redis {
        /// Which queue, or `*`.
        queue: String,
        /// What was tried.
        tried: &'static str,
        /// The reason.
        #[source]
        source: RedisError,
    },
    /// The history could not be written, so nothing was removed.
    #[error("queue `{queue}`: write down what is to be removed; it was left where it is")]
    History {
        /// Which queue.
        queue: String,
        /// The reason.
        #[source]
        source: HistoryError,
    },
    /// The server's answer does not have the expected form.
    #[error("queue `{queue}`: the answer to {tried} is not understood: {detail}")]
    BadReply {
        /// Which queue.
        queue: String,
        /// What was tried.
        tried: &'static str,
        /// What was wrong with it.
        detail: String,
    },
}

impl QueueError {
    /// Maps a server's refusal to its own variant.
    pub(crate) fn from_redis(queue: &str, tried: &'static str, source: RedisError) -> Self {
        let queue = queue.to_owned();
        let detail = source.detail();
        if detail.contains("QDRAINING") {
            return Self::Draining { queue };
        }
        if detail.contains("QPAUSED") {
            return Self::ProducersPaused { queue };
        }
        if source.kind() == RedisErrorKind::OutOfMemory {
            return Self::Full { queue };
        }
        Self::Redis { queue, tried, source }
    }

    /// True when the call may have taken effect although no answer came.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Redis { source, .. } if source.outcome_unknown())
    }

    /// True when the same call may succeed later, or through the outbox: Redis is away, full or quieted.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        match self {
            Self::Draining { .. }
            | Self::ProducersPaused { .. }
            | Self::Full { .. }
            | Self::Overloaded { .. } => true,
            Self::Redis { source, .. } => source.is_unavailable(),
            _ => false,
        }
    }
}
