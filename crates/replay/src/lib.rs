//! Replay of work that was given up: read first, a small proof, then the rest at a bounded rate.
//!
//! The crate knows nothing of what is replayed. A domain (jobs, mail, webhooks)
//! - selects candidates by a [`Filter`] and checks each one; [`Plan`] sums that up and changes nothing;
//! - asks [`rule::judge_limit`] whether so many may go at once;
//! - gives the checked items to [`Store::begin`], which writes the replay, its items and its audit entry in one transaction;
//! - carries it out with [`run`], which releases items at a bounded rate through the domain's [`Source`], watches what becomes
//!   of them and stops when too many die. Every step is a row, so [`run`] may be interrupted anywhere and called again.

mod filter;
mod plan;
mod record;
pub mod rule;
mod run;
mod store;

pub use filter::Filter;
pub use plan::{Candidate, Plan, Refusal};
pub use record::{Counts, Item, ItemState, Replay, ReplayState};
pub use run::{Outcome, Pace, Release, RunError, Source, Stopped, run};
pub use store::{Begin, ReplayError, Store};
