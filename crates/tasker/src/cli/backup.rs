//! `backup …`

use clap::Subcommand;

use voiceai_cli::Mutation;

use super::common::Page;

/// `backup …`
#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Take a backup now, in this process
    Run {
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Backups in the bucket, newest first
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
    },
    /// Restore a backup into an empty database
    Restore {
        /// The backup's id; `latest` is the newest
        id: String,
        /// The database: it must hold no table and must not be the service's own. The password is better given as
        /// PGPASSWORD than here
        #[arg(long, value_name = "DATABASE_URL")]
        into: String,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
}
