//! The scaler's decisions and state machines: pure, no clock, no I/O, no randomness.
//!
//! Everything here is a function of its arguments. The service reads the world, calls [`decide()`], writes the answer
//! down and acts on it; `plan` and `simulate` call the very same code and stop before the acting.

pub mod candidate;
pub mod decide;
pub mod fleet;
pub mod heartbeat;
pub mod name;
pub mod operation;
pub mod orphan;
pub mod policy;
pub mod schedule;
pub mod simulate;

pub use decide::{Action, Clamp, Decision, Inputs, Reason, decide};
pub use fleet::{GroupState, Limits, Phase, Sample, Server, Unmanaged};
pub use heartbeat::{Beat, Reading, Unknown};
pub use operation::{Event, Kind, Operation, ServerStatus, State};
pub use policy::{Policy, PolicyError, Service, Violation};
