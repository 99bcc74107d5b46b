//! Calls and recordings on a real PostgreSQL, a real S3 store and the real ffmpeg, which also makes the sound.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod calls;
mod faults;
mod hostile;
mod process;
mod stage;
mod sweep;
