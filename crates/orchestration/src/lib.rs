//! Orchestration: jobs that call the platform's agents over HTTP, and the schedules that fire them.
//!
//! A job's row, and a row for each agent it asked, outlive the queue: an agent that succeeded is never asked again, and every
//! call of an agent within a line of retries has one `Idempotency-Key`. [`schedule`] decides, purely, which schedules fire;
//! the leader applies it in one fenced statement.

mod answer;
mod budget;
mod cleanup;
mod client;
mod conclude;
mod error;
pub mod jobs;
mod limits;
mod metrics;
pub mod order;
mod retry_failed;
mod run;
pub mod schedule;
mod settings;
mod show;
mod store;
mod tables;
mod tell;
mod told;
mod trail;

pub use answer::retry_after;
pub use client::{Client, Token};
pub use error::OrchestrationError;
pub use limits::reset_day;
pub use run::OrchestrationContext;
pub use settings::OrchestrationSettings;
pub use show::{JobLine, jobs as list_jobs, show};
pub use store::{Summary, reconcile};
pub use tell::due as tell_platform;
