//! The real binary on a real Redis and PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod backup;
mod backup_commands;
mod cron;
mod enqueue;
mod export;
mod http;
mod jobs;
mod loss;
mod mail;
mod mail_loss;
mod mail_rest;
mod notify;
mod process;
mod queue;
mod replay;
mod stage;
mod start;
mod webhook;
