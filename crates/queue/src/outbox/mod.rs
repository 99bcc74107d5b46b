//! The outbox: jobs that are enqueued inside an SQL transaction, or while Redis is away.
//!
//! A row of `ops.outbox` becomes exactly one job, under the row's id as the job's id. The steps, and why none of them can
//! lose or double the job when the process is killed right after it:
//!
//! 1. **The row is committed** with the caller's own data, or not at all. From here on it is the job.
//! 2. **A relay claims it** by moving `visible_at` 30 s ahead, in one statement under `SKIP LOCKED`. Killed here: the claim runs out
//!    and another relay takes the row.
//! 3. **The job is added to its queue** under the row's id. The queue takes an id once: while the job lives, and for a day after it has
//!    ended. Killed here, or the answer was lost: the row is relayed again, and the queue answers "known".
//! 4. **The row is marked relayed.** Only now it is done; it stays a day to be looked at, then it is deleted.
//!
//! No transaction is open while Redis is waited for. A row that is `critical` is looked after until its job has finished:
//! when Redis has lost the job (a power cut loses up to the last second of writes), the row is relayed again.
//!
//! The one way to a second run: every relay is away for more than a day between steps 3 and 4, so that the queue has
//! forgotten the id. Jobs are delivered at least once anyway.
//!
//! # From another program
//!
//! ```sql
//! BEGIN;
//! INSERT INTO recordings (…) VALUES (…);
//! INSERT INTO ops.outbox (queue, kind, payload) VALUES ('default', 'recording.process', '{"recording_id": 7}');
//! COMMIT;
//! ```
//!
//! The columns stand in `migrations/common/0010_outbox.sql`; wrong values are refused by the INSERT itself.

mod fallback;
mod insert;
mod job;
mod queue;
mod relay;
mod upkeep;
mod wake;

use std::future::Future;

pub use fallback::{EnqueueError, Enqueued, FallbackEnqueuer, Route};
pub use insert::{Inserted, insert, insert_many};
pub use job::{Options, OutboxJob};
pub use relay::{Relay, RelaySettings};
pub use upkeep::{Waiting, waiting};
pub use wake::{Wakeups, listen};

/// How the queue took a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is there now.
    New,
    /// Its id was there before: the earlier call did it.
    Known,
    /// A live job holds its unique key; this one is not needed.
    Duplicate {
        /// The job that holds the key.
        holder: String,
    },
}

/// Why the queue did not take a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Redis is away, or its answer was lost: the job may or may not be there. Adding it again under its id is safe.
    #[error("the queue cannot be reached: {0}")]
    Unreachable(String),
    /// The queue takes nothing at present: it is being drained, its producers are paused, or Redis is full.
    #[error("the queue takes no jobs at present: {0}")]
    NotNow(String),
    /// The queue will never take this job as it is.
    #[error("the queue refuses the job: {0}")]
    Refused(String),
}

/// What the queue knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStanding {
    /// Waiting, delayed or active.
    Unfinished,
    /// Completed, dead, cancelled or discarded, and still remembered.
    Finished,
    /// The queue has no such job: it was never added, was forgotten, or was lost.
    Unknown,
}

/// What the outbox and the scheduler need of the job queue.
pub trait Enqueue: Clone + Send + Sync + 'static {
    /// Adds jobs of any queues under their own ids; one result a job, in order. Bounded in time by the implementation.
    fn add_all(&self, jobs: &[OutboxJob]) -> impl Future<Output = Vec<Result<Added, AddError>>> + Send;

    /// What the queue knows of these jobs of one queue; one answer an id, in order.
    ///
    /// # Errors
    /// When the queue cannot be asked.
    fn standings(
        &self,
        queue: &str,
        ids: &[String],
    ) -> impl Future<Output = Result<Vec<JobStanding>, AddError>> + Send;
}

/// Bounds a statement that runs outside any transaction: a server that was paused or whose network is gone would otherwise hold a
/// loop for as long as the kernel waits. Its outcome is unknown then; every statement here may be run again.
pub(crate) async fn bounded<T>(
    statement: impl Future<Output = Result<T, voiceai_postgres::sqlx::Error>>,
) -> Result<T, voiceai_postgres::sqlx::Error> {
    match tokio::time::timeout(STATEMENT_BOUND, statement).await {
        Ok(result) => result,
        Err(_) => Err(voiceai_postgres::sqlx::Error::PoolTimedOut),
    }
}

/// Longer than waiting for a connection and the server's own statement limit together.
const STATEMENT_BOUND: std::time::Duration = std::time::Duration::from_secs(15);
