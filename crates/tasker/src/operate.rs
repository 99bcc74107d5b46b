//! What operators do and see: typed functions over the stores. The command line only writes down what they answer.

pub mod enqueue;
pub mod exports;
pub mod jobs;
pub mod limits;
pub mod mail;
pub mod queues;
pub mod replay;
pub mod schedules;
pub mod status;
pub mod trail;
pub mod webhook;

use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_queue::{Client, QueueError};
use voiceai_service::failures;

/// The stores that operators' acts work on.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The queues.
    pub client: Client,
    /// Everything that outlives Redis.
    pub pool: PgPool,
}

/// Who does something, and why: what the audit trail keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// The operator.
    pub actor: String,
    /// The operator's reason.
    pub reason: Option<String>,
}

impl Act {
    /// The reason, or a text that says there is none.
    #[must_use]
    pub fn why(&self) -> String {
        self.reason.clone().unwrap_or_else(|| format!("by {}, no reason given", self.actor))
    }
}

/// What a failed call to the queue means to an operator.
#[must_use]
pub fn queue_failure(error: &QueueError) -> Failure {
    let text = error.to_string();
    match error {
        QueueError::Invalid { .. } | QueueError::Payload { .. } => {
            Failure::usage("invalid_value", text, "Correct the value.")
        }
        QueueError::Draining { queue } => Failure::refused(
            "queue_draining",
            text,
            format!("Run `queue resume {queue}` to take new jobs again."),
        ),
        QueueError::ProducersPaused { queue } => Failure::refused(
            "queue_paused",
            text,
            format!("Run `queue resume {queue}` to take new jobs again."),
        ),
        QueueError::Full { .. } => Failure::failed(
            "redis_out_of_memory",
            text,
            "Raise maxmemory, or let the queues drain; then try again.",
        ),
        QueueError::Redis { source, .. } => {
            let failure = failures::redis(source);
            Failure { message: format!("{text}: {}", failure.message), ..failure }
        }
        _ => Failure::failed("queue_failed", text, "Look at the tasker's log for the same moment."),
    }
}

/// What a failed statement means to an operator.
#[must_use]
pub fn database_failure(error: &voiceai_postgres::sqlx::Error) -> Failure {
    failures::database(error)
}
