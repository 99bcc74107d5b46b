//! The queue on real servers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod cron;
mod fake_queue;
mod history;
mod outbox;
mod outbox_redis;
mod queue;
mod support;
