//! The history of jobs in PostgreSQL: what became of them, for people.
//!
//! [`History`] takes records from the workers without making them wait, and [`Writer`] writes them in batches of at most 500, at least
//! four times a second. Its buffer is bounded: when PostgreSQL is away for long, records of ordinary ends are dropped and counted,
//! never the jobs' business. What a person must find again (dead, cancelled, discarded, replayed) is written at once.
//!
//! Beside the row, the same statement settles the outbox row of a critical job and keeps the record of the schedule that
//! fired it.

mod insert;
mod query;
mod retention;
mod writer;

pub use query::{CursorError, Filter, HistoryRow, Page, list, of_job};
pub use retention::{Retention, RetentionSettings};
pub use writer::{History, HistorySettings, Writer};
