use std::path::PathBuf;
use std::time::Duration;

use crate::catalogue::general::{ENVIRONMENT, INSTANCE_ID, LOG_LEVEL, RUNTIME_DIR, SHUTDOWN_TIMEOUT};
use crate::reader::Reader;

/// What every process of ours needs to know about itself.
#[derive(Debug, Clone)]
pub struct General {
    /// `ENVIRONMENT`. Part of every server's name.
    pub environment: String,
    /// `INSTANCE_ID`, else the host name. Two processes of one service on one host need two ids.
    pub instance_id: String,
    /// `RUNTIME_DIR`, when it is set.
    pub runtime_dir: Option<PathBuf>,
    /// `SHUTDOWN_TIMEOUT`. From SIGTERM to the end.
    pub shutdown_timeout: Duration,
    /// `LOG_LEVEL`. A level, or directives such as `info,fred=warn`.
    pub log_level: String,
}

impl General {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            environment: reader.get(&ENVIRONMENT),
            instance_id: reader.optional(&INSTANCE_ID).unwrap_or_else(|| HostName::read().0),
            runtime_dir: reader.optional(&RUNTIME_DIR),
            shutdown_timeout: reader.get(&SHUTDOWN_TIMEOUT),
            log_level: reader.get(&LOG_LEVEL),
        }
    }
}

/// The name of this host as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(
    /// The name; `localhost` where the kernel has none.
    pub String,
);

impl HostName {
    /// Asks the kernel.
    #[must_use]
    pub fn read() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self(if name.is_empty() { "localhost".to_owned() } else { name })
    }
}
