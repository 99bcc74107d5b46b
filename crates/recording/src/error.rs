//! What may go wrong with a recording or a call, told apart by whether another attempt can heal it.

use std::path::PathBuf;

use voiceai_aws::{S3Error, S3ErrorKind};
use voiceai_postgres::sqlx;
use voiceai_webhook::WebhookError;

/// A recording that was not processed, or a call that was not closed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// What the job asks for makes no sense.
    #[error("the job cannot be carried out: {0}")]
    Order(String),
    /// There is no such object.
    #[error("the recording s3://{bucket}/{key} does not exist")]
    Missing {
        /// Where it was looked for.
        bucket: String,
        /// Under which name.
        key: String,
    },
    /// The platform knows no such call.
    #[error("{table} has no call {id}")]
    NoCall {
        /// Where it was looked for.
        table: String,
        /// The call.
        id: String,
    },
    /// The file is no audio that is processed.
    #[error("the recording {key} cannot be used: {why}")]
    Unusable {
        /// Which.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file is cut short.
    #[error("the recording {key} is truncated: {why}")]
    Truncated {
        /// Which.
        key: String,
        /// What is missing.
        why: String,
    },
    /// The file, or what is made of it, goes beyond what is allowed.
    #[error("the recording {key} goes beyond {setting}: {why}")]
    Beyond {
        /// Which.
        key: String,
        /// The setting that says so.
        setting: &'static str,
        /// By how much.
        why: String,
    },
    /// No room for the files under work.
    #[error("{} has too little space: {why}; free space there, or set RECORDING_WORK_DIR", folder.display())]
    DiskFull {
        /// Where.
        folder: PathBuf,
        /// What is needed, and what is there.
        why: String,
    },
    /// A file under work could not be used.
    #[error("{tried} {}", path.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A program that is needed is not there.
    #[error("{tool} is not installed, or not in PATH; install ffmpeg and util-linux on this host")]
    NoTool {
        /// Which.
        tool: String,
    },
    /// A program ended otherwise than it should.
    #[error("{tool} {how}: {said}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// How it ended.
        how: String,
        /// The last it said.
        said: String,
    },
    /// What ffmpeg made is not what was wanted.
    #[error("the processed copy of {key} did not pass its check: {why}")]
    Unverified {
        /// Of which original.
        key: String,
        /// What does not fit.
        why: String,
    },
    /// Somebody wants the work to end.
    #[error("the work was cancelled")]
    Cancelled,
    /// The store.
    #[error(transparent)]
    Store(#[from] S3Error),
    /// The database.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// The event of a webhook.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
}

impl RecordingError {
    /// True when no further attempt can heal it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Order(_)
            | Self::Missing { .. }
            | Self::NoCall { .. }
            | Self::Unusable { .. }
            | Self::Truncated { .. }
            | Self::Beyond { .. } => true,
            Self::Webhook(error) => error.is_about_the_data(),
            _ => false,
        }
    }

    /// True when the database refuses what is to be written, and will again: it is for a person to mend.
    #[must_use]
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_refused(source))
    }

    /// The same, and it was one of these that was tried.
    #[must_use]
    pub(crate) fn is_refused_in(&self, which: &[&str]) -> bool {
        self.is_refused() && matches!(self, Self::Database { tried, .. } if which.contains(tried))
    }

    /// True when PostgreSQL is away.
    #[must_use]
    pub fn is_database_away(&self) -> bool {
        match self {
            Self::Database { source, .. } => voiceai_postgres::is_unavailable(source),
            Self::Webhook(error) => error.is_unavailable(),
            _ => false,
        }
    }

    /// A word for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Order(_) | Self::NoCall { .. } => "refused",
            Self::Missing { .. } => "missing",
            Self::Unusable { .. } => "unusable",
            Self::Truncated { .. } => "truncated",
            Self::Beyond { .. } => "beyond_limits",
            Self::DiskFull { .. } => "disk_full",
            Self::File { .. } => "file",
            Self::NoTool { .. } | Self::Tool { .. } | Self::Unverified { .. } => "tool",
            Self::Cancelled => "cancelled",
            Self::Store(error) if error.kind() == S3ErrorKind::NoSuchBucket => "no_bucket",
            Self::Store(_) => "store",
            Self::Database { .. } | Self::Webhook(_) => "database",
        }
    }

    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// A file's error; a full disk by its own name.
    pub(crate) fn file(tried: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            if matches!(source.kind(), StorageFull | QuotaExceeded) {
                let folder = path.parent().map_or_else(|| path.clone(), std::path::Path::to_path_buf);
                return Self::DiskFull { folder, why: source.to_string() };
            }
            Self::File { tried, path, source }
        }
    }
}
