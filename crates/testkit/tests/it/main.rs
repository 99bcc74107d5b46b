//! The testkit keeps its own promises, on real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests, their helpers too"
)]

mod failover;
mod postgres_server;
mod process;
mod proxy;
mod redis_server;
mod shared;
mod stack;
mod test_servers;
mod wait;

/// Whether a process runs; one that has ended and was not yet reaped does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
