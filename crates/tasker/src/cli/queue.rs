//! `queue …`

use std::time::Duration;

use clap::{Args, Subcommand};
use voiceai_cli::{Mutation, duration_arg, rate_arg};
use voiceai_config::Rate;

use super::jobs::State;

/// `queue …`
#[derive(Debug, Subcommand)]
pub enum Queue {
    /// Every queue: depth, oldest, workers, rate, time to empty
    List,
    /// One queue: numbers, limits, workers
    Show {
        /// The queue
        queue: String,
    },
    /// Stop handing out jobs; running ones finish
    Pause {
        /// The queue
        queue: String,
        /// Stop enqueueing instead: our own producers write to the outbox, others are refused
        #[arg(long)]
        enqueue: bool,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// End every pause and drain of the queue
    Resume {
        /// The queue
        queue: String,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Refuse new jobs and end once the queue is empty; removes nothing
    Drain {
        /// The queue
        queue: String,
        /// Wait at most this long, then exit 6; the queue goes on draining
        #[arg(long, value_name = "D", value_parser = duration_arg)]
        wait: Option<Duration>,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Discard every job in a state; they stay in the history for 30 days
    Purge(Purge),
    /// Remove old jobs in a state
    Clean(Clean),
    /// Change limits at once on all workers; kept over restarts, stronger than QUEUE_ settings
    Set(QueueSet),
}

/// `queue purge`
#[derive(Debug, Args)]
pub struct Purge {
    /// The queue
    pub queue: String,
    /// Jobs in this state: waiting, delayed or dead
    #[arg(long, value_enum)]
    pub state: State,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `queue clean`
#[derive(Debug, Args)]
pub struct Clean {
    /// The queue
    pub queue: String,
    /// Jobs in this state: completed, dead, waiting or delayed
    #[arg(long, value_enum)]
    pub state: State,
    /// Only jobs older than this: dead ones since they died, completed ones since their end, others since they were enqueued
    #[arg(long, value_name = "D", value_parser = duration_arg)]
    pub older_than: Duration,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `queue set`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
pub struct QueueSet {
    /// The queue
    pub queue: String,
    /// Jobs that each worker process runs at a time; `none`: what the settings say
    #[arg(long, value_name = "N|none", value_parser = count_or_none, group = "limits")]
    pub concurrency: Option<OrNone<u32>>,
    /// Most jobs that start in a period, over all workers; `none`: what the settings say
    #[arg(long, value_name = "N/s|none", value_parser = rate_or_none, group = "limits")]
    pub rate: Option<OrNone<Rate>>,
    /// Jobs with the same limit key that run at a time; `none`: no limit
    #[arg(long, value_name = "N|none", value_parser = count_or_none, group = "limits")]
    pub key_concurrency: Option<OrNone<u32>>,
    /// Only for this long, then back to what was before
    #[arg(long = "for", value_name = "D", value_parser = duration_arg)]
    pub for_: Option<Duration>,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// A limit, or none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrNone<T>(
    /// `None` takes away what was set.
    pub Option<T>,
);

fn rate_or_none(text: &str) -> Result<OrNone<Rate>, String> {
    if text == "none" { Ok(OrNone(None)) } else { rate_arg(text).map(|rate| OrNone(Some(rate))) }
}

fn count_or_none(text: &str) -> Result<OrNone<u32>, String> {
    if text == "none" {
        return Ok(OrNone(None));
    }
    match text.parse() {
        Ok(count @ 1..=1_000) => Ok(OrNone(Some(count))),
        _ => Err("expected a whole number from 1 to 1000, or `none`".to_owned()),
    }
}
