//! What may go wrong with a backup, by what the operator has to do.

use voiceai_aws::{S3Error, S3ErrorKind};
use voiceai_cli::{ExitCode, Failure};
use voiceai_postgres::sqlx;

/// A backup, a proof or a restore did not end well.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The object store.
    #[error("backup store: {0}")]
    Store(#[from] S3Error),
    /// A database did not do what was asked.
    #[error("{tried} of database `{database}`: {}", describe(.source))]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Host and name, without user or password.
        database: String,
        /// What the driver said.
        source: sqlx::Error,
    },
    /// `DATABASE_URL` or `--into` is not an address.
    #[error("{name} is not a PostgreSQL address")]
    Address {
        /// The setting or argument.
        name: &'static str,
    },
    /// No `pg_dump` or `pg_restore` that may be used with this server or archive.
    #[error("find {tool}: {}", .found)]
    NoTool {
        /// `pg_dump` or `pg_restore`.
        tool: &'static str,
        /// What is needed and what there is.
        found: String,
    },
    /// `pg_dump` or `pg_restore` failed.
    #[error("{tool} {how}{}", colon(.said))]
    Tool {
        /// `pg_dump` or `pg_restore`.
        tool: &'static str,
        /// How it ended.
        how: String,
        /// The last of what it wrote to stderr.
        said: String,
    },
    /// No further database of that name.
    #[error("no further database is called `{name}`{}", others(.known))]
    UnknownDatabase {
        /// What was asked for.
        name: String,
        /// Those that there are, with commas.
        known: String,
    },
    /// A schema to be dumped does not exist.
    #[error("database `{database}` has no schema `{schema}`")]
    NoSchema {
        /// Host and name.
        database: String,
        /// What was asked for.
        schema: String,
    },
    /// A dump cannot be encrypted or decrypted.
    #[error("encryption: {problem}")]
    Encryption {
        /// What is wrong.
        problem: String,
    },
    /// Another process is taking a backup of this database.
    #[error("a backup of database `{database}` is already under way ({by})")]
    Busy {
        /// Host and name.
        database: String,
        /// Who, as far as PostgreSQL tells.
        by: String,
    },
    /// There is no backup of that name.
    #[error("no backup `{id}` under {place}")]
    NotFound {
        /// What was asked for.
        id: String,
        /// Bucket and folder.
        place: String,
    },
    /// A manifest cannot be read.
    #[error("manifest {key}: {problem}")]
    Manifest {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The stored dump is not what was dumped.
    #[error("backup {id} is damaged: {problem}")]
    Damaged {
        /// The backup.
        id: String,
        /// What differs.
        problem: String,
    },
    /// The restored data differ from the manifest.
    #[error("backup {id} restored, but differs from its manifest: {}", .differences.join("; "))]
    Differs {
        /// The backup.
        id: String,
        /// Each difference.
        differences: Vec<String>,
    },
    /// The server that a proof would be made on cannot make the digests of the manifest.
    #[error(
        "the server of `{database}` (version {server_version}) hashes text in another way than the one the backup is of"
    )]
    Incomparable {
        /// Host and name.
        database: String,
        /// Such as `15.18`.
        server_version: String,
    },
    /// The target of a restore may not be used.
    #[error("restore into `{database}` refused: {problem}")]
    Target {
        /// Host and name.
        database: String,
        /// Why.
        problem: String,
    },
    /// The process is ending.
    #[error("cancelled; nothing was left behind")]
    Cancelled,
}

impl BackupError {
    /// Wraps what the driver said.
    pub(super) fn database(tried: &'static str, database: &str) -> impl FnOnce(sqlx::Error) -> Self {
        let database = database.to_owned();
        move |source| Self::Database { tried, database, source }
    }

    /// How a command ends with it.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Store(error) => match error.kind() {
                S3ErrorKind::Unreachable | S3ErrorKind::Unavailable => ExitCode::Unreachable,
                S3ErrorKind::Source | S3ErrorKind::Integrity | S3ErrorKind::Other | S3ErrorKind::NotFound => {
                    ExitCode::Failed
                }
                S3ErrorKind::Cancelled | S3ErrorKind::Full => ExitCode::Failed,
                S3ErrorKind::NoSuchBucket
                | S3ErrorKind::Credentials
                | S3ErrorKind::Denied
                | S3ErrorKind::ClockSkew
                | S3ErrorKind::Region => ExitCode::Refused,
            },
            Self::Database { source, .. } if voiceai_postgres::is_unavailable(source) => {
                ExitCode::Unreachable
            }
            Self::Database { source, .. } if is_refusal(source) => ExitCode::Refused,
            Self::Database { .. } | Self::Tool { .. } | Self::Manifest { .. } | Self::Cancelled => {
                ExitCode::Failed
            }
            Self::Damaged { .. } | Self::Differs { .. } => ExitCode::Failed,
            Self::Address { .. }
            | Self::NoTool { .. }
            | Self::Busy { .. }
            | Self::Target { .. }
            | Self::Incomparable { .. }
            | Self::UnknownDatabase { .. }
            | Self::NoSchema { .. }
            | Self::Encryption { .. } => ExitCode::Refused,
            Self::NotFound { .. } => ExitCode::NotFound,
        }
    }

    /// A stable word for scripts and metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Store(_) => "backup_store",
            Self::Database { .. } => "backup_database",
            Self::Address { .. } => "backup_address",
            Self::NoTool { .. } => "backup_tool_missing",
            Self::Tool { .. } => "backup_tool_failed",
            Self::UnknownDatabase { .. } => "backup_unknown_database",
            Self::NoSchema { .. } => "backup_no_schema",
            Self::Encryption { .. } => "backup_encryption",
            Self::Busy { .. } => "backup_busy",
            Self::NotFound { .. } => "backup_not_found",
            Self::Manifest { .. } => "backup_manifest",
            Self::Damaged { .. } => "backup_damaged",
            Self::Differs { .. } => "backup_differs",
            Self::Incomparable { .. } => "backup_incomparable",
            Self::Target { .. } => "backup_target",
            Self::Cancelled => "cancelled",
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Store(error) => error.kind().remedy(),
            Self::Database { source, .. } if is_refusal(source) => {
                "Check user, password, database name and rights in the address; see docs/backups.md."
            }
            Self::Database { .. } => {
                "Check that PostgreSQL answers; the backup may be started again at any time."
            }
            Self::Address { .. } => "Write postgres://user@host:5432/database.",
            Self::NoTool { .. } => {
                "Install the PostgreSQL client of the server's major version, or a newer one."
            }
            Self::Tool { .. } => "Read what the tool said; docs/backups.md lists the usual causes.",
            Self::UnknownDatabase { .. } => {
                "Set BACKUP_DATABASE_<NAME>_URL; the name is written in small letters."
            }
            Self::NoSchema { .. } => "Write the schema's name as the database has it.",
            Self::Encryption { .. } => {
                "Check BACKUP_AGE_RECIPIENTS; give the matching identities with --identity or BACKUP_AGE_IDENTITY_FILE."
            }
            Self::Busy { .. } => "Wait for it to end.",
            Self::NotFound { .. } => "Look at `backup list`.",
            Self::Manifest { .. } => {
                "Use another backup; docs/backups.md says how to restore a dump by hand."
            }
            Self::Damaged { .. } | Self::Differs { .. } => {
                "Do not rely on this backup: take a new one at once, and look after the store."
            }
            Self::Incomparable { .. } => {
                "Prove it where DATABASE_URL is a server on a machine of the same byte order; `backup restore` works here, and compares counts."
            }
            Self::Target { .. } => "Create an empty database of its own and give its address with --into.",
            Self::Cancelled => "Start it again.",
        }
    }
}

/// The server answered and said no: another try changes nothing. 28: authorisation, 3D: no such database, 42501: no right.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    code.is_some_and(|code| code.starts_with("28") || code.starts_with("3D") || code == "42501")
}

fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    }
}

fn others(known: &str) -> String {
    if known.is_empty() { String::new() } else { format!("; there are {known}") }
}

fn colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        Self::new(error.exit_code(), error.code(), error.to_string(), error.remedy())
    }
}
