//! Start-up, readiness and shutdown, shared by both binaries, so that they fail, drain and exit alike.
//!
//! Start-up order, each step strictly before the next: settings (exit 4), telemetry, signals, state file, Redis and
//! PostgreSQL with bounded retry (exit 5), migrations, installation check (exit 4), election, the service's own loops,
//! ready. Once started, losing a backend makes the process unready and never ends it.
//!
//! Shutdown order on the first SIGTERM or SIGINT: no new work, drain within `SHUTDOWN_TIMEOUT`, resign, flush telemetry,
//! exit 0. A second signal forces.

mod backends;
mod command;
pub mod failures;
mod keys;
mod leading;
mod notify;
mod patience;
mod readiness;
mod run;
mod secrets;
mod settings;
mod shared;

use voiceai_config::Binary;
use voiceai_postgres::Component;

pub use backends::{Backends, connect, connect_pool, connect_redis};
pub use command::{Command, bare_command, command};
pub use keys::KeySettings;
pub use leading::{Rounds, while_leading};
pub use patience::patiently;
pub use run::{Context, run};
pub use secrets::{Secrets, Values};
pub use settings::resolve;
pub use shared::Shared;

/// What makes one binary differ from the other before its own loops start.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Which of the two.
    pub binary: Binary,
    /// The version, `env!("CARGO_PKG_VERSION")` of the binary's crate.
    pub version: &'static str,
    /// The histories of migrations that this binary runs, in order.
    pub components: &'static [Component],
}

impl Identity {
    /// `voiceai-scaler` or `voiceai-tasker`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.binary.name()
    }
}
