//! Replays on a real PostgreSQL, with a domain made of memory.
#![allow(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod carry_out;
mod proof;
mod source;
