//! Exports as people and other programs order, see and end them: what the command line and the HTTP routes share.

use jiff::Timestamp;
use serde_json::json;
use url::Url;
use uuid::Uuid;
use voiceai_aws::{ObjectStore, S3ErrorKind};
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_webhook::Guard;

use super::{Act, database_failure, trail};
use crate::jobs::export::{self, Export, ExportError, ExportSettings, Order};

/// Longest address that is called, in bytes.
const CALLBACK_MAX: usize = 2_000;

/// Where exports are ordered.
#[derive(Clone, Debug)]
pub struct Exports {
    /// The orders, and the tables that are exported.
    pub pool: PgPool,
    /// The bucket; absent where none is set.
    pub store: Option<ObjectStore>,
    /// `EXPORT_…`
    pub settings: ExportSettings,
    /// Which addresses may be called.
    pub guard: Guard,
}

/// What became of an order that was to go.
#[derive(Clone, Debug)]
pub enum Ended {
    /// It was open: it has failed now, and whoever works on it stops within seconds.
    Cancelled(Box<Export>),
    /// It had ended: object and row are gone.
    Removed,
}

impl Exports {
    /// Whether an order could be carried out, and about how many rows it would have.
    ///
    /// # Errors
    /// Refused (4) with what is wrong with it; as the database says.
    pub async fn check(&self, order: &Order) -> Result<u64, Failure> {
        self.bucket()?;
        if order.tenant.as_deref() == Some("") {
            return Err(refused_order(
                "the tenant is empty".to_owned(),
                "Name a tenant, or leave it out for everybody's rows.",
            ));
        }
        if let Some(url) = &order.callback_url {
            self.check_callback(url)?;
        }
        export::check(&self.pool, order, &self.settings.tables).await.map_err(|error| match error {
            ExportError::Database(source) => database_failure(&source),
            ExportError::Refused { problem, remedy } => refused_order(problem, remedy),
            other => refused_order(other.to_string(), "Correct the order as the message says."),
        })
    }

    /// Orders an export, which must have been checked.
    ///
    /// # Errors
    /// As the database says; then nothing was ordered.
    pub async fn create(&self, order: &Order, act: &Act) -> Result<Export, Failure> {
        let what = json!({ "type": order.export_type, "tenant": order.tenant, "filters": order.filters });
        trail::record(&self.pool, act, "export.create", &order.export_type, what).await?;
        export::create(&self.pool, order).await.map_err(|error| database_failure(&error))
    }

    /// As far as an address can be judged without looking its name up; each call judges what the name leads to.
    fn check_callback(&self, url: &str) -> Result<(), Failure> {
        let refused = |why: String| {
            let remedy = "Give an https:// address of the public internet; for development see WEBHOOK_ALLOW_NETWORKS.";
            Failure::refused("callback_url", format!("the callback URL {why}"), remedy)
        };
        if url.len() > CALLBACK_MAX {
            return Err(refused(format!("is longer than {CALLBACK_MAX} bytes")));
        }
        // Without the address itself: it may hold a password, which is one of the things it is refused for.
        let parsed = Url::parse(url).map_err(|error| refused(format!("cannot be read: {error}")))?;
        self.guard.check_url(&parsed).map_err(|error| refused(format!("is refused: {error}")))
    }

    /// One order.
    ///
    /// # Errors
    /// Not found (3); as the database says.
    pub async fn find(&self, id: Uuid) -> Result<Export, Failure> {
        let found = export::get(&self.pool, id).await.map_err(|error| database_failure(&error))?;
        found.ok_or_else(|| {
            Failure::not_found("export_not_found", format!("no export {id}"), "Look with `export list`.")
        })
    }

    /// A link by which anybody may read the object of an order for `EXPORT_LINK_TTL`; nothing where it has none (yet).
    ///
    /// # Errors
    /// Failed (1) when it cannot be signed.
    pub async fn link(&self, export: &Export) -> Result<Option<String>, Failure> {
        let Some(key) = made(export) else { return Ok(None) };
        let link = self.bucket()?.presigned(key, self.settings.link_ttl).await;
        link.map(Some).map_err(|error| store_failure(&error))
    }

    /// Whether the object of an order is still in the bucket.
    ///
    /// # Errors
    /// As the store says.
    pub async fn is_there(&self, export: &Export) -> Result<bool, Failure> {
        let Some(key) = made(export) else { return Ok(false) };
        let head = self.bucket()?.head(key).await;
        head.map(|object| object.is_some()).map_err(|error| store_failure(&error))
    }

    /// Ends an order that is open; removes object and row of one that has ended.
    ///
    /// # Errors
    /// Not found (3); as the database or the store says: then the row is still there, and this may be asked again.
    pub async fn remove(&self, id: Uuid, act: &Act) -> Result<Ended, Failure> {
        let found = self.find(id).await?;
        let what = json!({ "type": found.export_type, "tenant": found.tenant_id, "status": found.status });
        trail::record(&self.pool, act, "export.delete", &id.to_string(), what).await?;
        let why = match &act.reason {
            Some(reason) => format!("cancelled by {}: {reason}", act.actor),
            None => format!("cancelled by {}", act.actor),
        };
        let cancelled = export::cancel(&self.pool, id, &why, &self.settings).await;
        if let Some(export) = cancelled.map_err(|error| database_failure(&error))? {
            return Ok(Ended::Cancelled(Box::new(export)));
        }
        let removed = export::remove(&self.pool, self.bucket()?, &self.settings, id).await;
        removed.map(|()| Ended::Removed).map_err(|error| match error {
            ExportError::Database(source) => database_failure(&source),
            ExportError::Store { error } => store_failure(&error),
            other => Failure::failed("export_failed", other.to_string(), "Ask again."),
        })
    }

    /// The bucket.
    ///
    /// # Errors
    /// Refused (4) where none is set.
    pub fn bucket(&self) -> Result<&ObjectStore, Failure> {
        self.store.as_ref().ok_or_else(|| {
            Failure::refused(
                "no_bucket",
                "neither EXPORTS_S3_BUCKET nor S3_BUCKET is set, so there are no exports",
                "Set EXPORTS_S3_BUCKET.",
            )
        })
    }
}

/// The key of an order's object.
fn made(export: &Export) -> Option<&str> {
    export.file_path.as_deref().filter(|_| export.status == "COMPLETED")
}

/// Whether an order's time is over, so that its object may go at any moment.
#[must_use]
pub fn is_expired(export: &Export, now: Timestamp) -> bool {
    export.expires_at.is_some_and(|at| at <= now)
}

fn refused_order(message: String, remedy: &str) -> Failure {
    Failure::refused("export_order", message, remedy)
}

fn store_failure(error: &voiceai_aws::S3Error) -> Failure {
    let (message, remedy) = (error.to_string(), error.kind().remedy());
    match error.kind() {
        S3ErrorKind::Unreachable | S3ErrorKind::Unavailable => {
            Failure::unreachable("export_store", message, remedy)
        }
        _ => Failure::failed("export_store", message, remedy),
    }
}
