//! The database backup: `pg_dump` streamed to S3, and the restore that alone proves it.
//!
//! A backup is a dump and its manifest, which is written last and is what makes the dump a backup. Everything about it can
//! be learnt from the bucket alone; the rows of `ops.backups` are a copy for the status screen. See docs/backups.md.
//!
//! - [`run`] takes one, at most one at a time in a database, and reads it back before it counts.
//! - [`list`] and [`find`] read the bucket.
//! - [`verify`] restores into a scratch database beside the service's own, and compares every count and digest.
//! - [`restore`] does the same into a database of the operator's choice.

mod address;
mod catalogue;
mod content;
mod error;
mod job;
mod lock;
mod manifest;
mod pour;
mod record;
mod restore;
mod run;
mod scratch;
mod sweep;
mod tools;
mod verify;

use sha2::{Digest as _, Sha256};
use voiceai_aws::ObjectStore;
use voiceai_postgres::PgPool;

pub use address::Address;
pub use catalogue::{Entry, Listing, find, list};
pub use error::BackupError;
pub use job::BackupDatabase;
pub use manifest::{Content, DatabaseFacts, Keys, Manifest, Proof, TableFacts};
pub use record::{Newest, newest};
pub use restore::{Restored, restore};
pub use run::{BackupRecord, run};
pub use tools::Tools;
pub use verify::verify;

/// What the backup works with.
#[derive(Debug, Clone)]
pub struct BackupContext {
    /// The bucket.
    pub store: ObjectStore,
    /// `S3_PREFIX`, without slashes at its ends.
    pub prefix: String,
    /// The service's own database: what is dumped, and beside what scratch databases are made.
    pub database: Address,
    /// For the rows of `ops.backups`; without it none are written.
    pub pool: Option<PgPool>,
    /// `ENVIRONMENT`.
    pub environment: String,
    /// `INSTANCE_ID`.
    pub instance: String,
    /// Where `pg_dump` and `pg_restore` are.
    pub tools: Tools,
}

impl BackupContext {
    /// Six hexadecimal digits that stand for this environment's database: they begin the id of each of its backups and
    /// mark its scratch databases, so that clearing up never touches another's.
    fn mark(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.environment.as_bytes());
        hash.update([0]);
        hash.update(self.database.database().as_bytes());
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
