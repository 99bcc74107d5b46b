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
mod disk_full;
mod duty;
mod enqueue;
mod export;
mod export_api;
mod export_bench;
mod export_callback;
mod export_exact;
mod export_faults;
mod export_full;
mod export_parquet;
mod export_rest;
mod export_scope;
mod housekeeping;
mod http;
mod jobs;
mod kinds;
mod loss;
mod mail;
mod mail_faults;
mod mail_loss;
mod mail_rest;
mod mail_ways;
mod monitor;
mod notify;
mod orchestration;
mod process;
mod queue;
mod recording;
mod replay;
mod small_disk;
mod stage;
mod start;
mod store_faults;
mod store_front;
mod webhook;
mod webhook_pair;
