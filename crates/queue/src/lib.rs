//! The job queue: at-least-once jobs on Redis with leases, fencing, retry, cron and an outbox.
