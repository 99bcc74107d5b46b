//! Watching on real parts: a database of each test's own, receivers that misbehave on command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod alerts;
mod figures;
mod receiver;
mod stage;
mod states;
