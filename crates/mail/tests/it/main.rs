//! Tests of the mail crate on real parts.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends by panicking")]

mod api;
mod composition;
mod core;
mod feedback;
mod templates;
mod transport;
mod unsubscribe;
