use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use voiceai_runtime::vitals;

use crate::catalogue::general::{ENVIRONMENT, INSTANCE_ID, LOG_LEVEL, RUNTIME_DIR, SHUTDOWN_TIMEOUT};
use crate::reader::Reader;

/// Where state files go unless `RUNTIME_DIR` says otherwise.
const RUNTIME_DIR_DEFAULT: &str = "/run/voiceai";

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
        let Instance { id, runtime_dir, .. } = Instance::read(reader);
        Self {
            environment: reader.get(&ENVIRONMENT),
            instance_id: id,
            runtime_dir,
            shutdown_timeout: reader.get(&SHUTDOWN_TIMEOUT),
            log_level: reader.get(&LOG_LEVEL),
        }
    }
}

/// One process among its equals, and its state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `voiceai-scaler` or `voiceai-tasker`.
    pub service: &'static str,
    /// `INSTANCE_ID`, else the host name. Two processes of one service on one host need two ids.
    pub id: String,
    /// `RUNTIME_DIR`, when it is set.
    pub runtime_dir: Option<PathBuf>,
}

impl Instance {
    /// Reads them; nothing else of the settings is looked at, so that a health check answers whatever else is wrong.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            service: reader.binary().name(),
            id: reader.optional(&INSTANCE_ID).unwrap_or_else(|| HostName::read().0),
            runtime_dir: reader.optional(&RUNTIME_DIR),
        }
    }

    /// The file that a running process writes.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.file_in(&runtime_dir(self.runtime_dir.as_deref()))
    }

    /// Where a reader looks: the writer may be another user and so have chosen the other folder.
    #[must_use]
    pub fn state_files(&self) -> Vec<PathBuf> {
        match &self.runtime_dir {
            Some(folder) => vec![self.file_in(folder)],
            None => vec![self.file_in(Path::new(RUNTIME_DIR_DEFAULT)), self.file_in(&std::env::temp_dir())],
        }
    }

    fn file_in(&self, folder: &Path) -> PathBuf {
        vitals::file_path(folder, self.service, &self.id)
    }
}

/// The folder of state files: `given` (`RUNTIME_DIR`), else `/run/voiceai` where this user may write there (it is made when
/// that is possible), else the system's temporary folder.
#[must_use]
pub fn runtime_dir(given: Option<&Path>) -> PathBuf {
    given.map_or_else(
        || {
            let folder = PathBuf::from(RUNTIME_DIR_DEFAULT);
            let usable = std::fs::create_dir_all(&folder).is_ok()
                && access(&folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
            if usable { folder } else { std::env::temp_dir() }
        },
        Path::to_owned,
    )
}

/// The name of this host.
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
