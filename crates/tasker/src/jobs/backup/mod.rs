//! The database backup: `pg_dump` streamed to S3, and the restore that alone proves it.
//!
//! A backup is a dump and its manifest, which is written last and is what makes the dump a backup. Everything about it can
//! be learnt from the bucket alone; the rows of `ops.backups` are a copy for the status screen. See docs/backups.md.
//!
//! - [`run`] takes one, at most one at a time in a database, and reads it back before it counts; then [`superfluous`] says which
//!   older ones go.
//! - [`Watch`] tells people when none was proved for too long.
//! - [`list`] and [`find`] read the bucket.
//! - [`verify`] restores into a scratch database beside the service's own, and compares every count and digest.
//! - [`restore`] does the same into a database of the operator's choice.

mod address;
mod catalogue;
mod content;
mod crypt;
mod dump;
mod error;
mod job;
mod lock;
mod manifest;
mod pour;
mod prune;
mod record;
mod restore;
mod retention;
mod run;
mod scratch;
mod sweep;
mod tee;
mod tools;
mod verify;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use voiceai_aws::ObjectStore;
use voiceai_postgres::PgPool;

pub use address::Address;
pub use catalogue::{Entry, Listing, find, list};
pub use crypt::check as check_recipients;
pub use error::BackupError;
pub use job::{BackupDatabase, BackupVerify};
pub use manifest::{Content, DatabaseFacts, Encryption, Keys, Manifest, Proof, RowHash, TableFacts};
pub use record::{Newest, newest};
pub use restore::{Restored, restore};
pub use retention::{Judged, Keep, Worth, superfluous};
pub use run::{BackupRecord, run};
pub use tools::Tools;
pub use verify::verify;
pub use watch::{EVERY as WATCH_EVERY, Watch};

/// What the settings say of every backup.
#[derive(Debug, Clone)]
pub struct BackupPolicy {
    /// `BACKUP_KEEP_…`: which ones stay.
    pub keep: Keep,
    /// `BACKUP_COMPRESSION`: `none`, `gzip`, `lz4` or `zstd`, with a level after a colon. Default `gzip`.
    pub compression: String,
    /// `BACKUP_AGE_RECIPIENTS`: to whom dumps are encrypted; to nobody where it is empty.
    pub recipients: Vec<String>,
    /// `BACKUP_AGE_IDENTITY_FILE`, or `--identity`: what encrypted dumps are opened with.
    pub identity_file: Option<PathBuf>,
    /// `BACKUP_PROVED_MAX_AGE`: an older newest proof is an alarm. Default 50 h.
    pub proved_max_age: Duration,
}

impl Default for BackupPolicy {
    /// Nothing is removed or encrypted.
    fn default() -> Self {
        Self {
            keep: Keep::default(),
            compression: "gzip".to_owned(),
            recipients: Vec::new(),
            identity_file: None,
            proved_max_age: Duration::from_secs(50 * 3600),
        }
    }
}

/// What the backup works with.
#[derive(Debug, Clone)]
pub struct BackupContext {
    /// The bucket.
    pub store: ObjectStore,
    /// `S3_PREFIX`, without slashes at its ends.
    pub prefix: String,
    /// What is dumped, and beside what scratch databases are made: the service's own database, or that of `target`.
    pub database: Address,
    /// For the rows of `ops.backups`; without it none are written.
    pub pool: Option<PgPool>,
    /// `ENVIRONMENT`.
    pub environment: String,
    /// `INSTANCE_ID`.
    pub instance: String,
    /// Where `pg_dump` and `pg_restore` are.
    pub tools: Tools,
    /// `BACKUP_…`.
    pub policy: BackupPolicy,
    /// `BACKUP_DATABASE_<NAME>_URL`: further databases, by name in small letters.
    pub others: BTreeMap<String, Address>,
    /// The further database that `database` is; absent for the service's own.
    pub target: Option<String>,
    /// The only schemas to dump, in order; empty for the whole database.
    pub schemas: Vec<String>,
}

impl BackupContext {
    /// The context of one series: a further database by its name, or only these schemas of a database. Each series has ids,
    /// retention and a `latest` of its own.
    ///
    /// # Errors
    /// [`BackupError::UnknownDatabase`].
    pub fn series(&self, database: Option<&str>, schemas: &[String]) -> Result<Self, BackupError> {
        let mut series = self.clone();
        if let Some(name) = database {
            let known = || self.others.keys().cloned().collect::<Vec<_>>().join(", ");
            let address = self.others.get(name);
            let unknown = || BackupError::UnknownDatabase { name: name.to_owned(), known: known() };
            series.database = address.ok_or_else(unknown)?.clone();
            series.target = Some(name.to_owned());
        }
        series.schemas = schemas.to_vec();
        series.schemas.sort_unstable();
        series.schemas.dedup();
        Ok(series)
    }

    /// Six hexadecimal digits that stand for this environment's database: they begin the id of each of its backups and
    /// mark its scratch databases, so that clearing up never touches another's.
    fn mark(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.environment.as_bytes());
        hash.update([0]);
        hash.update(self.database.database().as_bytes());
        // Nothing more for the service's own whole database: its backups are known by this mark since the first one.
        for part in self.target.iter().chain(&self.schemas) {
            hash.update([0]);
            hash.update(part.as_bytes());
        }
        if self.target.is_some() {
            hash.update([1]);
        }
        hex(&hash.finalize()).chars().take(6).collect()
    }

    /// Bucket and folder, for errors.
    fn place(&self) -> String {
        format!("s3://{}/{}", self.store.bucket(), self.prefix)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds since `begun`.
fn millis(begun: std::time::Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Eight hexadecimal digits that differ each time.
fn random_digits() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect()
}
