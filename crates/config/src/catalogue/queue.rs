//! Workers and schedules of voiceai-tasker.

use std::time::Duration;

use crate::setting::{Binaries, settings};
use crate::value::Rate;
use crate::value::kinds::{boolean, duration, integer, millis, rate};

settings! {
    "Jobs", "Workers and schedules of voiceai-tasker. `<NAME>` is a queue's name in upper case, hyphens as underscores: `email-queue` is `EMAIL_QUEUE`, or `EMAIL` for short.";

    /// Jobs that one process runs at a time, per queue.
    WORKER_CONCURRENCY: u32 = integer().default("5").between(1, 1_000).only(Binaries::Tasker);
    /// Longest time between two looks at a queue. A new job wakes the workers at once; this is the safety net.
    WORKER_POLL_INTERVAL_MS: Duration = millis().default("5000").between(10, 600_000).only(Binaries::Tasker);
    /// Longest time between two looks at the schedules.
    SCHEDULER_POLL_INTERVAL_MS: Duration = millis().default("10000").between(10, 600_000).only(Binaries::Tasker);
    /// Jobs of one queue that one process runs at a time.
    QUEUE_CONCURRENCY as "QUEUE_<NAME>_CONCURRENCY": u32 = integer().between(1, 1_000).only(Binaries::Tasker)
        .computed_default("5 for `EMAIL_QUEUE`, 3 for `ORCHESTRATION_QUEUE`, else `WORKER_CONCURRENCY`");
    /// Most jobs of one queue that start in a period, over all processes.
    QUEUE_RATE as "QUEUE_<NAME>_RATE": Rate = rate().only(Binaries::Tasker)
        .computed_default("`MAIL_SEND_RATE` for `EMAIL_QUEUE`, 5/60s for `ORCHESTRATION_QUEUE`, else unlimited");
    /// Attempts of a job in all, the first included, where its kind names none.
    QUEUE_ATTEMPTS as "QUEUE_<NAME>_ATTEMPTS": u32 = integer().between(1, 1_000).only(Binaries::Tasker)
        .computed_default("the kind's own");
    /// Wait before the second attempt; it doubles with each further one.
    QUEUE_BACKOFF as "QUEUE_<NAME>_BACKOFF": Duration = duration().between(1, 86_400_000).only(Binaries::Tasker)
        .computed_default("the kind's own");
    /// Longest time for one attempt of a job of the queue; then its handler is cancelled and the attempt has failed.
    QUEUE_TIMEOUT as "QUEUE_<NAME>_TIMEOUT": Duration = duration().between(1, 604_800_000).only(Binaries::Tasker)
        .computed_default("the kind's own; at most 10m for `ORCHESTRATION_QUEUE`");
    /// How long the results of completed jobs of the queue are kept in Redis.
    QUEUE_KEEP_COMPLETED as "QUEUE_<NAME>_KEEP_COMPLETED": Duration = duration().between(1_000, 31_536_000_000).only(Binaries::Tasker)
        .computed_default("1d");
    /// How many results of completed jobs of the queue are kept in Redis, the newest.
    QUEUE_KEEP_COMPLETED_COUNT as "QUEUE_<NAME>_KEEP_COMPLETED_COUNT": u64 = integer().between(1, 10_000_000).only(Binaries::Tasker)
        .computed_default("1000; 500 for `ORCHESTRATION_QUEUE`");
    /// How long dead jobs of the queue are kept in Redis before retention removes them, with a record.
    QUEUE_KEEP_DEAD as "QUEUE_<NAME>_KEEP_DEAD": Duration = duration().between(1_000, 31_536_000_000).only(Binaries::Tasker)
        .computed_default("7d");
    /// How long `ops.job_history` keeps completions and failed attempts.
    JOB_HISTORY_RETENTION: Duration = duration().default("7d").between(60_000, 315_360_000_000).only(Binaries::Tasker);
    /// How long `ops.job_history` keeps what a person may ask for: dead, cancelled, discarded, removed and replayed jobs.
    JOB_HISTORY_NOTABLE_RETENTION: Duration = duration().default("30d").between(60_000, 315_360_000_000).only(Binaries::Tasker);
    /// True registers the kind `diagnostic.probe`, for canaries and fault tests.
    DIAGNOSTIC_JOBS: bool = boolean().default("false").only(Binaries::Tasker);
}
