//! Jobs on the platform's tables, on a real PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod absent;
mod certificates;
mod duty;
mod escalation;
mod expiry;
mod figures;
mod newsletter;
mod odd;
mod rollout;
mod sla;
mod stage;
mod subscriptions;
mod sweep;
mod tables;
mod upkeep;
