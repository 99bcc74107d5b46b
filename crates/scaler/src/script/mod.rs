//! Provider scripts: what they are given, how they are run, and how their answers are read.

mod answer;
mod environment;
mod guard;
mod runner;

pub use answer::{Answer, Class, Listed, Outcome, STDOUT_MAX, ScriptError, Status};
pub(crate) use environment::MANAGED_BY;
pub use environment::{Call, Labels, PATH, Surroundings, is_never_passed, script};
pub use guard::run_if_asked;
pub use runner::{Ran, RanList, Run, ScriptRunner};
