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
mod duty;
mod enqueue;
mod export;
mod export_bench;
mod export_callback;
mod export_faults;
mod export_parquet;
mod http;
mod jobs;
mod loss;
mod mail;
mod mail_faults;
mod mail_loss;
mod mail_rest;
mod monitor;
mod mail_ways;
mod notify;
mod orchestration;
mod process;
mod queue;
mod recording;
mod replay;
mod stage;
mod start;
mod webhook;
