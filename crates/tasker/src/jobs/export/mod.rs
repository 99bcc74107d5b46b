//! Exports of the platform's tables: a row of `ops.export_jobs` is an order, an object in the bucket what becomes of it.
//!
//! The order is claimed under a lease that is renewed while the work goes on; every write names its claim, so that a worker
//! that was taken for dead changes nothing. Rows are streamed by one `COPY` into an upload in parts: memory does not grow with
//! their number. See docs/exports.md.

mod callback;
mod columns;
mod error;
mod job;
mod parquet;
mod query;
mod rows;
mod shape;
mod store;
mod text;
mod values;
mod wire;

use std::time::Duration;

use uuid::Uuid;
use voiceai_aws::ObjectStore;
use voiceai_postgres::PgPool;
use voiceai_webhook::Keys;

pub use callback::{CallbackContext, Callbacks, ExportCallback};
pub use error::ExportError;
pub use job::{ExportCleanup, ExportRun};
pub use query::{Source, check, source};
pub use rows::{Export, Filter, Order, STATES, create, get, list};
pub(crate) use rows::{formats, states};
pub use shape::Format;
pub use store::remove;

/// What exports work with.
#[derive(Debug, Clone)]
pub struct ExportContext {
    /// The bucket.
    pub store: ObjectStore,
    /// Our tables, and the platform's.
    pub pool: PgPool,
    /// `INSTANCE_ID`.
    pub instance: String,
    /// `EXPORT_…`.
    pub settings: ExportSettings,
}

/// `EXPORT_…`
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// `EXPORT_PREFIX`: folder in the bucket, without slashes at its ends.
    pub prefix: String,
    /// `EXPORT_RETENTION`: how long object and row stay after the export was made.
    pub retention: Duration,
    /// `EXPORT_LINK_TTL`: how long a link is good for.
    pub link_ttl: Duration,
    /// `EXPORT_TABLES`: `schema.table` that may be exported beside the named types.
    pub tables: Vec<String>,
    /// `EXPORT_CALLBACK_SECRET`: what calls to orderers are signed with.
    pub callback_keys: Option<Keys>,
    /// `EXPORT_CALLBACK_TIMEOUT`: longest time to the answer of an orderer.
    pub callback_timeout: Duration,
    /// `EXPORT_CALLBACK_RETRY_LADDER`: waits before the first, second, … call.
    pub callback_ladder: Vec<Duration>,
    /// How long a claim holds unless it is renewed. 60 s.
    pub lease: Duration,
}

impl ExportSettings {
    /// How long an orderer's address is not called after the end.
    fn first_call(&self) -> Duration {
        self.callback_ladder.first().copied().unwrap_or_default()
    }
}

/// Ends an order that is open, with `why` as its error; nothing where it has ended or is unknown. Whoever works on it stops within
/// seconds, and takes back what it has stored.
///
/// # Errors
/// The driver's.
pub async fn cancel(
    pool: &PgPool,
    id: Uuid,
    why: &str,
    settings: &ExportSettings,
) -> Result<Option<Export>, voiceai_postgres::sqlx::Error> {
    rows::cancel(pool, id, why, settings.retention, settings.first_call()).await
}
