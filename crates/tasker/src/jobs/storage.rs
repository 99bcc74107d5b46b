//! The family of what goes to the object store: backups and exports.

use std::collections::BTreeMap;

use voiceai_aws::ObjectStore;
use voiceai_cli::Failure;
use voiceai_config::General;
use voiceai_postgres::PgPool;
use voiceai_queue::cron::Definition;
use voiceai_queue::{Job as _, Registry};
use voiceai_runtime::Secret;

use super::backup::{Address, BackupContext, BackupDatabase, BackupVerify, Tools};
use super::export::{CallbackContext, Callbacks, ExportCallback, ExportCleanup, ExportContext, ExportRun};
use super::registry::{Contexts, Kind};
use crate::operate::exports::Exports;
use crate::operate::webhook;
use crate::settings::TaskerSettings;

/// Name of the schedule that every installation has.
pub const BACKUP_SCHEDULE: &str = "database-backup";
/// Name of the schedule that proves the newest backup.
pub const VERIFY_SCHEDULE: &str = "backup-verify";
/// Name of the schedule that removes exports whose time is over.
pub const EXPORT_SCHEDULE: &str = "export-cleanup";

/// The kinds that `S3_BUCKET` switches on.
pub const BACKUPS: [&str; 2] = [BackupDatabase::KIND, BackupVerify::KIND];
/// The kinds that `EXPORTS_S3_BUCKET` or `S3_BUCKET` switches on.
pub const EXPORTS: [&str; 3] = [ExportRun::KIND, ExportCleanup::KIND, ExportCallback::KIND];

/// The kinds of the family: none where no bucket is set.
#[must_use]
pub fn kinds(settings: &TaskerSettings) -> Vec<Kind> {
    let mut kinds = Vec::new();
    if settings.store.is_some() {
        kinds.extend([Kind::of::<BackupDatabase>(), Kind::of::<BackupVerify>()]);
    }
    if settings.export_store.is_some() {
        kinds.extend([Kind::of::<ExportRun>(), Kind::of::<ExportCleanup>(), Kind::of::<ExportCallback>()]);
    }
    kinds
}

/// Their handlers.
#[must_use]
pub fn register(mut registry: Registry, contexts: &Contexts) -> Registry {
    if let Some(backup) = &contexts.backup {
        registry =
            registry.register::<BackupDatabase>(backup.clone()).register::<BackupVerify>(backup.clone());
    }
    if let Some((exports, callbacks)) = &contexts.exports {
        registry = registry
            .register::<ExportRun>(exports.clone())
            .register::<ExportCleanup>(exports.clone())
            .register::<ExportCallback>(callbacks.clone());
    }
    registry
}

/// The nightly backup, its proof, and the end of old exports: enabled where there is a bucket.
#[must_use]
pub fn schedules(settings: &TaskerSettings) -> Vec<Definition> {
    let schedule = |name, queue: &str, kind, expression, enabled| Definition {
        queue: queue.to_owned(),
        enabled,
        ..Definition::new(name, kind, expression)
    };
    let (backups, exports) = (settings.store.is_some(), settings.export_store.is_some());
    vec![
        schedule(BACKUP_SCHEDULE, BackupDatabase::QUEUE, BackupDatabase::KIND, "0 2 * * *", backups),
        schedule(VERIFY_SCHEDULE, BackupVerify::QUEUE, BackupVerify::KIND, "0 5 * * *", backups),
        schedule(EXPORT_SCHEDULE, ExportCleanup::QUEUE, ExportCleanup::KIND, "17 * * * *", exports),
    ]
}

/// Where exports are ordered, whether or not there is a bucket.
pub async fn exports(settings: &TaskerSettings, pool: PgPool) -> Exports {
    let store = match &settings.export_store {
        Some(store) => Some(ObjectStore::new(store).await),
        None => None,
    };
    Exports { pool, store, settings: settings.exports.clone(), guard: webhook::guard(settings) }
}

/// What exports and the calls after them work with; `None` where no bucket is set. `client` posts to addresses of others.
pub async fn export_contexts(
    settings: &TaskerSettings,
    general: &General,
    pool: PgPool,
    client: voiceai_webhook::Client,
) -> Option<(ExportContext, CallbackContext)> {
    let store = ObjectStore::new(settings.export_store.as_ref()?).await;
    let own = settings.exports.clone();
    let callbacks = Callbacks {
        client,
        keys: own.callback_keys.clone(),
        timeout: own.callback_timeout,
        ladder: own.callback_ladder.clone(),
    };
    let exports =
        ExportContext { store, pool: pool.clone(), instance: general.instance_id.clone(), settings: own };
    Some((exports, CallbackContext { pool, callbacks }))
}

/// What backups work with; `None` where no bucket is set.
///
/// # Errors
/// Refused (4) when `database_url`, or a further database's, is no address.
pub async fn backup_context(
    settings: &TaskerSettings,
    general: &General,
    database_url: &Secret,
    pool: Option<PgPool>,
) -> Result<Option<BackupContext>, Failure> {
    let Some(store) = &settings.store else { return Ok(None) };
    let mut others = BTreeMap::new();
    for (name, url) in &settings.backup_databases {
        others.insert(name.clone(), Address::parse("BACKUP_DATABASE_<NAME>_URL", url)?);
    }
    Ok(Some(BackupContext {
        store: ObjectStore::new(store).await,
        prefix: store.prefix.clone(),
        database: Address::parse("DATABASE_URL", database_url)?,
        pool,
        environment: general.environment.clone(),
        instance: general.instance_id.clone(),
        tools: Tools::default(),
        policy: settings.backup.clone(),
        others,
        target: None,
        schemas: Vec::new(),
    }))
}
