//! voiceai-scaler on real servers, with real provider scripts.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bootstrap;
mod clock;
mod clouds;
mod commands;
mod crash;
mod dispatcher;
mod evaluation;
mod harness;
mod hostile;
mod limits;
mod orphans;
mod panic;
mod proxies;
mod schedules;
mod scripts;
mod store;
mod voice;
mod whole;
