//! The lines that operators grep for. Two queues have names of their own in them; the others are told by their field.

use std::time::Duration;

use crate::attempt::Attempt;

/// How a queue's lines begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    Email,
    Orchestration,
    Plain,
}

impl Voice {
    pub(super) fn of(queue: &str) -> Self {
        match queue {
            "email-queue" => Self::Email,
            "orchestration-queue" => Self::Orchestration,
            _ => Self::Plain,
        }
    }

    pub(super) fn started(self, queue: &str, concurrency: u32) {
        match self {
            Self::Email => tracing::info!(queue, concurrency, "Email queue initialized"),
            Self::Orchestration => tracing::info!(queue, concurrency, "Orchestration queue initialized"),
            Self::Plain => tracing::info!(queue, concurrency, "worker pool started"),
        }
    }

    pub(super) fn begins(self, attempt: &Attempt) {
        let (id, queue, number, priority) =
            (attempt.id(), attempt.queue(), attempt.number(), attempt.priority());
        match self {
            Self::Email => {
                tracing::info!(jobId = %id, queueId = queue, attempt = number, priority, "Processing email job");
            }
            Self::Orchestration => {
                tracing::info!(jobId = %id, queueId = queue, attempt = number, priority, "Processing orchestration job");
            }
            Self::Plain => {
                tracing::debug!(jobId = %id, queueId = queue, attempt = number, priority, "job begins");
            }
        }
    }

    pub(super) fn completed(self, attempt: &Attempt, took: Duration) {
        let (id, queue) = (attempt.id(), attempt.queue());
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        match self {
            Self::Email => tracing::info!(jobId = %id, queueId = queue, duration_ms, "Email job completed"),
            Self::Orchestration => {
                tracing::info!(jobId = %id, queueId = queue, duration_ms, "Orchestration job completed");
            }
            Self::Plain => tracing::debug!(jobId = %id, queueId = queue, duration_ms, "job completed"),
        }
    }

    /// `next`: when it is tried again; `None` when it is parked with `reason`.
    pub(super) fn failed(self, attempt: &Attempt, error: &str, next: Option<Duration>, reason: &str) {
        let (id, queue, kind, number) = (attempt.id(), attempt.queue(), attempt.kind(), attempt.number());
        let retry_in_ms = next.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let text = match self {
            Self::Email => "Email job failed",
            Self::Orchestration => "Orchestration job failed",
            Self::Plain => "job failed",
        };
        if next.is_some() {
            tracing::warn!(jobId = %id, queueId = queue, kind, attempt = number, error, retry_in_ms, "{text}");
        } else {
            tracing::error!(jobId = %id, queueId = queue, kind, attempt = number, error, reason, "{text}");
        }
    }

    /// Jobs whose worker is gone wait again.
    pub(super) fn stalled(self, queue: &str, jobs: u64) {
        match self {
            Self::Orchestration => tracing::warn!(
                queue,
                jobs,
                "Orchestration job stalled: its worker is gone, it goes back to waiting"
            ),
            Self::Email | Self::Plain => {
                tracing::warn!(queue, jobs, "Job stalled: its worker is gone, it goes back to waiting");
            }
        }
    }

    pub(super) fn trouble(self, queue: &str, error: &dyn std::fmt::Display) {
        match self {
            Self::Email => tracing::warn!(queue, %error, "Email worker error"),
            Self::Orchestration => tracing::warn!(queue, %error, "Orchestration worker error"),
            Self::Plain => tracing::warn!(queue, %error, "worker error"),
        }
    }
}
