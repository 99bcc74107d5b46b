//! Jobs on the platform's tables, on a real PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod certificates;
mod duty;
mod stage;
mod tables;
