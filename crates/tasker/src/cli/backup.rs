//! `backup …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use voiceai_cli::Mutation;

use super::common::Page;

/// A series of backups.
#[derive(Debug, Args)]
pub struct Series {
    /// A further database, by the name of its `BACKUP_DATABASE_<NAME>_URL` in small letters
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Only this schema; may be given several times
    #[arg(long = "schema", value_name = "SCHEMA")]
    pub schemas: Vec<String>,
}

/// A key.
#[derive(Debug, Args)]
pub struct Identity {
    /// File with the age identity that opens an encrypted backup; without it BACKUP_AGE_IDENTITY_FILE
    #[arg(long = "identity", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `backup …`
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Take a backup now, in this process
    Run {
        /// Which series.
        #[command(flatten)]
        series: Series,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Backups of every series in the bucket, newest first
    List {
        /// Which part of the list.
        #[command(flatten)]
        page: Page,
    },
    /// Prove a backup: checksum it, restore it into a scratch database and compare the counts
    Verify {
        /// The backup's id; `latest` is the newest
        #[arg(default_value = "latest")]
        id: String,
        /// Which series `latest` is of.
        #[command(flatten)]
        series: Series,
        /// What an encrypted backup is opened with.
        #[command(flatten)]
        identity: Identity,
    },
    /// Restore a backup into an empty database
    Restore {
        /// The backup's id; `latest` is the newest
        id: String,
        /// The database: it must hold no table and must not be the service's own. The password is better given as
        /// PGPASSWORD than here
        #[arg(long, value_name = "DATABASE_URL")]
        into: String,
        /// Which series `latest` is of.
        #[command(flatten)]
        series: Series,
        /// What an encrypted backup is opened with.
        #[command(flatten)]
        identity: Identity,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
}
