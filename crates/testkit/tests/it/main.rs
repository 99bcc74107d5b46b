//! The testkit keeps its own promises, on real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod failover;
mod postgres_server;
mod process;
mod proxy;
mod redis_server;
mod shared;
mod stack;
mod wait;
