//! The crate on a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of tests fails the test by panicking")]

mod connecting;
mod migrating;
mod terms;
