//! The settings as the services and their operators meet them.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests assert too")]

mod document;
mod layers;
mod typed;
