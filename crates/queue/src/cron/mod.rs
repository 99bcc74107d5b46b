//! Schedules: recurring jobs, fired by the leader.
//!
//! The parts, from pure to effect: [`Calendar`] says when an expression is due, [`decide`] says which slots fire now, and
//! [`Scheduler`] applies that, one statement a schedule. Commands use [`list`], [`set`], [`run_now`], [`pause`], [`resume`]
//! and [`delete`]; a release brings its own schedules with [`declare`]. Whoever calls one that changes something writes the
//! audit row.

mod calendar;
mod clock;
mod expression;
mod overview;
mod policy;
mod schedule;
mod scheduler;
mod store;
mod zone;

#[cfg(test)]
mod calendar_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod store_tests;

pub use calendar::{Calendar, CalendarError, Latest};
pub use expression::{ExpressionError, Field};
pub use overview::{Details, Line, NEXT_RUNS, NextRun, list};
pub use policy::{
    CATCH_UP_MAX, Dropped, MissedRuns, MissedRunsError, Overlap, OverlapError, Pause, Rules, Standing,
    Verdict, decide, next_look,
};
pub use schedule::{Definition, DefinitionError, Record, Schedule, schedule_of_job, slot_job_id};
pub use scheduler::{Scheduler, SchedulerSettings};
pub use store::{ScheduleError, declare, delete, get, pause, resume, run_now, set};
pub use zone::ZoneError;
