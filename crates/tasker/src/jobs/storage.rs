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
use super::export::{ExportCleanup, ExportContext, ExportRun};
use super::registry::{Contexts, Kind};
use crate::settings::TaskerSettings;

/// Name of the schedule that every installation has.
pub const BACKUP_SCHEDULE: &str = "database-backup";
/// Name of the schedule that proves the newest backup.
pub const VERIFY_SCHEDULE: &str = "backup-verify";
/// Name of the schedule that removes exports whose time is over.
pub const EXPORT_SCHEDULE: &str = "export-cleanup";

/// The kinds of the family: none where no bucket is set.
#[must_use]
pub fn kinds(settings: &TaskerSettings) -> Vec<Kind> {
    if settings.store.is_none() {
        return Vec::new();
    }
    vec![
        Kind::of::<BackupDatabase>(),
        Kind::of::<BackupVerify>(),
        Kind::of::<ExportRun>(),
        Kind::of::<ExportCleanup>(),
    ]
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, settings: &TaskerSettings, contexts: &Contexts) -> Registry {
    let Some(backup) = &contexts.backup else { return registry };
    let registry =
        registry.register::<BackupDatabase>(backup.clone()).register::<BackupVerify>(backup.clone());
    let Some(pool) = &backup.pool else { return registry };
    let exports = ExportContext {
        store: backup.store.clone(),
        pool: pool.clone(),
        instance: backup.instance.clone(),
        settings: settings.exports.clone(),
    };
    registry.register::<ExportRun>(exports.clone()).register::<ExportCleanup>(exports)
}

/// The nightly backup, its proof, and the end of old exports: enabled where there is a bucket.
#[must_use]
pub fn schedules(settings: &TaskerSettings) -> Vec<Definition> {
    let enabled = settings.store.is_some();
    let schedule = |name, queue: &str, kind, expression| Definition {
        queue: queue.to_owned(),
        enabled,
        ..Definition::new(name, kind, expression)
    };
    vec![
        schedule(BACKUP_SCHEDULE, BackupDatabase::QUEUE, BackupDatabase::KIND, "0 2 * * *"),
        schedule(VERIFY_SCHEDULE, BackupVerify::QUEUE, BackupVerify::KIND, "0 5 * * *"),
        schedule(EXPORT_SCHEDULE, ExportCleanup::QUEUE, ExportCleanup::KIND, "17 * * * *"),
    ]
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
