//! Elections on real servers, with real processes that are killed, paused and cut off.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking"
)]

mod fleet;
mod installation;
mod kill;
mod lone;
mod pause;
mod postgres_faults;
mod redis_faults;
mod redis_replies;
mod subject;
