//! The crate on real Redis servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests fails the test by panicking")]

mod calls;
mod faults;
