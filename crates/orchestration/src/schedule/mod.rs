//! Schedules: which times are due, whether the rules admit them now, and the one statement that fires.

pub mod decide;
mod evaluator;
pub(crate) mod row;
pub(crate) mod store;

#[cfg(test)]
mod decide_tests;

pub use evaluator::Evaluator;
pub use row::{Malformed, Schedule, slot_job_id};
pub use store::{Line, list};
