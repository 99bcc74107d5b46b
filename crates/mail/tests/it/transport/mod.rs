//! Transports against real and scripted servers.

// The adapter that the binary joins both by, as it is.
#[allow(unreachable_pub, reason = "public where it belongs")]
#[path = "../../../../tasker/src/ses.rs"]
mod adapter;
mod contract;
mod faults;
mod real;
mod ses;
mod support;
mod ways;
