//! `cron …`

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use voiceai_cli::{Mutation, duration_arg};

/// `cron …`
#[derive(Debug, Subcommand)]
pub enum Cron {
    /// Every schedule with its next five runs
    List,
    /// Enqueue a schedule's job now, whatever its plan says
    Run {
        /// The schedule
        name: String,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Fire nothing for a while; what falls into it is not made up for
    Pause {
        /// The schedule
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every schedule
        #[arg(long)]
        all: bool,
        /// How long; else until it is resumed
        #[arg(long = "for", value_name = "D", value_parser = duration_arg)]
        for_: Option<Duration>,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// End a pause
    Resume {
        /// The schedule
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Every schedule
        #[arg(long)]
        all: bool,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Create or change a schedule
    Set(CronSet),
}

/// What happens to runs that were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Missed {
    /// They are dropped
    Skip,
    /// One run makes up for all of them
    Once,
    /// Each is made up for, newest first, up to --catch-up
    CatchUp,
}

/// What happens when the run before is still going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Overlap {
    /// The new run starts beside it
    Allow,
    /// The new run is dropped
    Skip,
}

/// `cron set`
#[derive(Debug, Args)]
pub struct CronSet {
    /// The schedule
    pub name: String,
    /// The kind of job it enqueues; required for a new schedule
    #[arg(long, value_name = "K")]
    pub kind: Option<String>,
    /// When: minute hour day month weekday, such as '0 2 * * *'; required for a new schedule
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: Option<String>,
    /// IANA time zone, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// The job's payload as JSON, or @FILE
    #[arg(long, value_name = "JSON|@FILE")]
    pub payload: Option<String>,
    /// The queue; else the kind's own
    #[arg(long, value_name = "Q")]
    pub queue: Option<String>,
    /// 0 to 10, higher first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=10))]
    pub priority: Option<u8>,
    /// What happens to runs that were missed
    #[arg(long, value_enum)]
    pub missed: Option<Missed>,
    /// With --missed catch-up: at most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub catch_up: Option<u16>,
    /// What happens when the run before is still going on
    #[arg(long, value_enum)]
    pub overlap: Option<Overlap>,
    /// Switch it on or off
    #[arg(long, value_name = "BOOL")]
    pub enabled: Option<bool>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}
