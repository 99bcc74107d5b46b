//! voiceai-tasker: the platform's background work on a Redis job queue.
//!
//! - [`cli`] says what may be asked, [`commands`] answer it;
//! - [`operate`] holds what operators do and see, as typed functions;
//! - [`run`] composes the service: workers, scheduler, outbox relay, history;
//! - [`admin`] answers the same over HTTP, where a listener is opened;
//! - [`jobs`] holds every kind of job;
//! - [`notify`] tells people what happens to the platform.

pub mod admin;
pub mod cli;
pub mod commands;
pub mod jobs;
pub mod mail;
pub mod notify;
pub mod operate;
pub mod run;
pub mod ses;
pub mod settings;

use voiceai_config::Binary;
use voiceai_postgres::{COMMON, MAIL, TASKER};
use voiceai_service::Identity;

/// What makes this binary differ from the other.
pub const IDENTITY: Identity = Identity {
    binary: Binary::Tasker,
    version: env!("CARGO_PKG_VERSION"),
    components: &[COMMON, TASKER, MAIL],
};
