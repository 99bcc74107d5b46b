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
    /// Who this process is and where it says how it is.
    pub instance: Instance,
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
            instance: Instance::read(reader),
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
            id: reader.optional(&INSTANCE_ID).unwrap_or_else(host_name),
            runtime_dir: reader.optional(&RUNTIME_DIR),
        }
    }

    /// The file that a running process writes: under `RUNTIME_DIR`, else under `/run/voiceai` where this user may write
    /// there (it is made when that is possible), else in the system's temporary folder.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        let folder = self.runtime_dir.clone().unwrap_or_else(|| {
            let folder = PathBuf::from(RUNTIME_DIR_DEFAULT);
            let usable = std::fs::create_dir_all(&folder).is_ok()
                && access(&folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
            if usable { folder } else { std::env::temp_dir() }
        });
        self.file_in(&folder)
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

/// The name of this host as the kernel knows it; `localhost` where it has none.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
