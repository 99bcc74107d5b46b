//! What is done when a call has ended.

mod close;
mod finder;
mod job;
mod shape;

pub use finder::{CALL_RECORDS_KEPT, MissingCall, missing_calls};
pub use job::{PostCall, PostCallContext};

pub(crate) use finder::forget_old;
