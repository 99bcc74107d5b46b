//! `orchestration …`

use clap::{Args, Subcommand, ValueEnum};

/// `orchestration …`
#[derive(Debug, Subcommand)]
pub enum Orchestration {
    /// Every schedule, and why it does not fire at present
    Schedules,
    /// Jobs, newest first
    Jobs(ListOrchestration),
    /// One job: what each agent was asked and did, phase by phase
    Show {
        /// The job's id
        id: String,
    },
}

/// Which jobs.
#[derive(Debug, Args)]
pub struct ListOrchestration {
    /// Only this project's
    #[arg(long, value_name = "P")]
    pub project: Option<String>,
    /// Only those in this state
    #[arg(long, value_enum)]
    pub status: Option<OrchestrationStatus>,
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

/// Where an orchestration job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OrchestrationStatus {
    /// Fired, waits for a worker or for its next attempt
    Queued,
    /// Calls its agents
    Running,
    /// Every agent succeeded or was passed over
    Completed,
    /// An agent failed
    Failed,
    /// Cancelled
    Cancelled,
    /// Its last attempt ran out of time
    Timeout,
}

impl OrchestrationStatus {
    /// The word in rows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }
}
