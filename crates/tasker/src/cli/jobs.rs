//! `jobs …`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use voiceai_cli::{Mutation, duration_arg, time_arg};

use super::common::{Page, PerSecond, When};

/// `jobs …`
#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// Enqueue one job, or many from a file; prints the ids
    Enqueue(Enqueue),
    /// List jobs
    List(ListJobs),
    /// Everything known about one job, and why it is not running
    Show {
        /// The job's id
        id: String,
        /// Its queue, where it is known: quicker than looking in all
        #[arg(long, value_name = "Q")]
        queue: Option<String>,
    },
    /// Numbers of each queue: waiting, active, completed, failed, delayed, total
    Stats {
        /// Only this queue
        #[arg(long, value_name = "Q")]
        queue: Option<String>,
    },
    /// Cancel jobs: waiting ones are removed, running ones are told to stop
    Cancel(Cancel),
    /// Remove dead, waiting or delayed jobs for good; they stay in the history for 30 days
    Discard(Discard),
    /// Put dead jobs back to waiting, a few first; without --execute only shows what would happen
    Replay(Replay),
}

/// `jobs enqueue`
#[derive(Debug, Args)]
pub struct Enqueue {
    /// The job's kind
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub kind: Option<String>,
    /// Its payload as JSON, or @FILE
    #[arg(long, value_name = "JSON|@FILE", default_value = "{}", conflicts_with = "file")]
    pub payload: String,
    /// The queue; else the kind's own, for unknown kinds `default`
    #[arg(long, value_name = "Q", conflicts_with = "file")]
    pub queue: Option<String>,
    /// 0 to 10, higher first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=10), conflicts_with = "file")]
    pub priority: Option<u8>,
    /// Not before this long has passed
    #[arg(long, value_name = "D", value_parser = duration_arg, conflicts_with_all = ["at", "file"])]
    pub delay: Option<Duration>,
    /// Not before this time
    #[arg(long, value_name = "T", value_parser = time_arg, conflicts_with = "file")]
    pub at: Option<Timestamp>,
    /// Refused while another live job has this key
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    pub unique: Option<String>,
    /// An id of your own: enqueueing it again changes nothing
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    pub id: Option<String>,
    /// Whom it is for: tenants of one queue take turns
    #[arg(long, value_name = "T", conflicts_with = "file")]
    pub tenant: Option<String>,
    /// Many jobs, one JSON object a line: kind, payload, and optionally queue, priority, delay_ms, unique, id, tenant.
    /// `-` reads stdin. Every line is checked before the first job is enqueued
    #[arg(long, value_name = "F.ndjson")]
    pub file: Option<PathBuf>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// A job's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Ready to run
    Waiting,
    /// Waits for a time, a retry, or another job
    Delayed,
    /// Running
    Active,
    /// Done
    Completed,
    /// Given up: waits for a person
    Dead,
}

impl From<State> for voiceai_queue::State {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Delayed => Self::Delayed,
            State::Active => Self::Active,
            State::Completed => Self::Completed,
            State::Dead => Self::Dead,
        }
    }
}

/// `jobs list`
#[derive(Debug, Args)]
pub struct ListJobs {
    /// Only jobs in this state; else all states but completed
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Only this queue
    #[arg(long, value_name = "Q")]
    pub queue: Option<String>,
    /// Only this kind
    #[arg(long, value_name = "K")]
    pub kind: Option<String>,
    /// Only jobs whose last error holds this text
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
    /// Only this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only jobs older than this: dead ones since they died, ended ones since their end, others since they were enqueued
    #[arg(long, value_name = "D", value_parser = duration_arg)]
    pub older_than: Option<Duration>,
    /// Which part of the list.
    #[command(flatten)]
    pub page: Page,
}

/// Which jobs a change is meant for: by id, or by what they have in common.
#[derive(Clone, Debug, Args)]
pub struct Select {
    /// Ids of jobs
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Only this queue
    #[arg(long, value_name = "Q")]
    pub queue: Option<String>,
    /// Only this kind
    #[arg(long, value_name = "K")]
    pub kind: Option<String>,
    /// Only this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only jobs whose last error holds this text
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
}

/// `jobs cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    /// Ids of jobs
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Their queue, where it is known: quicker than looking in all
    #[arg(long, value_name = "Q")]
    pub queue: Option<String>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `jobs discard`
#[derive(Debug, Args)]
pub struct Discard {
    /// Ids of jobs
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Their queue, where it is known: quicker than looking in all
    #[arg(long, value_name = "Q")]
    pub queue: Option<String>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `jobs replay`
#[derive(Debug, Args)]
pub struct Replay {
    /// Which jobs.
    #[command(flatten)]
    pub select: Select,
    /// Only jobs that died since then; with --missing, work from that time on: a time, or how long ago
    #[arg(long, value_name = "T")]
    pub since: Option<When>,
    /// Also jobs given up for this reason, which needs naming: poison, discarded_by_handler, bad_payload
    #[arg(long, value_name = "REASON")]
    pub reason_is: Option<String>,
    /// Look for work that was never enqueued, by the kind's own finder
    #[arg(long, requires = "kind", requires = "since", conflicts_with_all = ["ids", "queue", "error_contains", "reason_is"])]
    pub missing: bool,
    /// Most jobs; more than 10 need a small batch first of which every job completed
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub limit: u32,
    /// Most jobs in a period
    #[arg(long, value_name = "N/s", default_value = "5/s")]
    pub rate: PerSecond,
    /// Really do it
    #[arg(long)]
    pub execute: bool,
    /// Go on with a replay that stopped or was interrupted
    #[arg(long, value_name = "REPLAY", conflicts_with_all = ["ids", "queue", "kind", "tenant", "error_contains", "since", "reason_is", "missing", "limit"])]
    pub resume: Option<uuid::Uuid>,
    /// How long to watch what becomes of the jobs once all are on their way
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration_arg)]
    pub wait: Duration,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}
