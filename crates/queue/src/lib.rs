//! The job queue: at-least-once jobs on Redis with leases, fencing, retry, cron and an outbox.
//!
//! `docs/queue.md` explains the design, the keys, the guarantees and the limits; `docs/protocol.md` how other languages
//! enqueue.

mod attempt;
mod client;
pub mod cron;
mod envelope;
mod error;
mod finished;
pub mod history;
mod id;
mod inline;
mod job;
mod library;
mod metrics;
mod new_job;
pub mod outbox;
pub mod probe;
mod registry;
mod retry;
mod trace;
mod worker;

pub use attempt::{Attempt, Reported, Stop};
pub use client::{
    CancelOutcome, ChildPolicy, Client, JobView, ListFilter, Page, QueueLimits, QueueStats, Quiet,
    ReplayOutcome, Selection, State, WhyNot, WorkerView,
};
pub use error::QueueError;
pub use finished::{DeadReason, Ending, FinishedJob, HistoryError, HistoryMode, HistorySink, NoHistory};
pub use id::JobId;
pub use inline::{Inline, InlineRunner, Ran};
pub use job::{Cause, Job, JobError, Outcome, RESULT_MAX_BYTES};
pub use metrics::{OutboxGauges, QueueGauges};
pub use new_job::{AddOutcome, Added, Due, NewJob, PAYLOAD_MAX_BYTES, REMEMBER_DEFAULT, UniqueMode};
pub use registry::{Middleware, Next, Registry, Running};
pub use retry::RetryPolicy;
pub use worker::{QueueSettings, Worker, WorkerSettings};

/// Compiles the examples of the page that explains the queue.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/queue.md")]
struct QueuePage;
