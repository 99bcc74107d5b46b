//! The crate on real Redis servers.

mod calls;
mod faults;
