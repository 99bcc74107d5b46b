//! Webhooks on a real PostgreSQL, against a receiver that misbehaves on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod ahead;
mod delivery;
mod faults;
mod lots;
mod oracle;
mod receiver;
mod stage;
