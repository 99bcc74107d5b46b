//! Orchestration on real PostgreSQL and Redis, against agents that misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod agents;
mod clock;
mod platform;
mod run;
mod schedules;
mod stage;
mod upkeep;
