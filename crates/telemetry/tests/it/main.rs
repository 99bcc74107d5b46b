//! The telemetry of a real process, seen from outside: its stderr, and a real OTLP receiver.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod child;
mod export;
mod lines;
mod receiver;
mod scrape;
