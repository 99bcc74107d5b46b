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
        .computed_default("`WORKER_CONCURRENCY`");
    /// Most jobs of one queue that start in a period, over all processes.
    QUEUE_RATE as "QUEUE_<NAME>_RATE": Rate = rate().only(Binaries::Tasker).computed_default("unlimited");
    /// Attempts of a job in all, the first included, where its kind names none.
    QUEUE_ATTEMPTS as "QUEUE_<NAME>_ATTEMPTS": u32 = integer().between(1, 1_000).only(Binaries::Tasker)
        .computed_default("the kind's own");
    /// Wait before the second attempt; it doubles with each further one.
    QUEUE_BACKOFF as "QUEUE_<NAME>_BACKOFF": Duration = duration().between(1, 86_400_000).only(Binaries::Tasker)
        .computed_default("the kind's own");
    /// True registers the kind `diagnostic.probe`, for canaries and fault tests.
    DIAGNOSTIC_JOBS: bool = boolean().default("false").only(Binaries::Tasker);
}
