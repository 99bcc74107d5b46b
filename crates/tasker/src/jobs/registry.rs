//! Which kinds there are: their handlers for a worker, and what the command line must know without running any.

use std::collections::BTreeMap;

use voiceai_aws::ObjectStore;
use voiceai_cli::Failure;
use voiceai_config::General;
use voiceai_mail::intake::Intake;
use voiceai_postgres::PgPool;
use voiceai_queue::probe::Probe;
use voiceai_queue::{Job, Registry};
use voiceai_redis::Redis;
use voiceai_runtime::Secret;

use super::backup::{Address, BackupContext, BackupDatabase, BackupVerify, Tools};
use super::export::{ExportCleanup, ExportContext, ExportRun};
use super::send_email::SendEmail;
use super::webhook_event::{WebhookContext, WebhookEvent};
use crate::notify::{Notice, NotificationService};
use crate::settings::{DEFAULT_QUEUE, TaskerSettings};

/// What the handlers work with.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// Redis.
    pub redis: Redis,
    /// The backups; absent where no bucket is set.
    pub backup: Option<BackupContext>,
    /// New mail.
    pub mail: Intake,
    /// New events of webhooks.
    pub webhook: WebhookContext,
    /// Notices to people.
    pub notices: NotificationService,
}

/// The handlers of every kind that `settings` switch on.
#[must_use]
pub fn handlers(settings: &TaskerSettings, contexts: &Contexts) -> Registry {
    let mut registry = Registry::new()
        .register::<SendEmail>(contexts.mail.clone())
        .register::<Notice>(contexts.notices.clone());
    registry = registry.register::<WebhookEvent>(contexts.webhook.clone());
    if settings.diagnostic_jobs {
        registry = registry.register::<Probe>(contexts.redis.clone());
    }
    if let Some(backup) = &contexts.backup {
        registry =
            registry.register::<BackupDatabase>(backup.clone()).register::<BackupVerify>(backup.clone());
        if let Some(pool) = &backup.pool {
            let exports = ExportContext {
                store: backup.store.clone(),
                pool: pool.clone(),
                instance: backup.instance.clone(),
                settings: settings.exports.clone(),
            };
            registry = registry.register::<ExportRun>(exports.clone()).register::<ExportCleanup>(exports);
        }
    }
    registry
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

/// A kind as the command line knows it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name on the wire.
    pub name: &'static str,
    /// The queue it goes to.
    pub queue: &'static str,
    /// Its priority.
    pub priority: u8,
    parses: fn(&str) -> Result<(), String>,
}

impl Kind {
    const fn of<J: Job>() -> Self {
        Self { name: J::KIND, queue: J::QUEUE, priority: J::PRIORITY, parses: parses::<J> }
    }

    /// Whether `payload` parses as this kind's.
    ///
    /// # Errors
    /// What the parser says.
    pub fn check_payload(&self, payload: &str) -> Result<(), String> {
        (self.parses)(payload)
    }
}

fn parses<J: Job>(payload: &str) -> Result<(), String> {
    serde_json::from_str::<J>(payload).map(drop).map_err(|error| error.to_string())
}

/// The kinds that this version handles with these settings.
#[derive(Clone, Debug)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Those that `settings` switch on.
    #[must_use]
    pub fn of(settings: &TaskerSettings) -> Self {
        let mut kinds = vec![Kind::of::<SendEmail>(), Kind::of::<Notice>()];
        kinds.push(Kind::of::<WebhookEvent>());
        if settings.diagnostic_jobs {
            kinds.push(Kind::of::<Probe>());
        }
        if settings.store.is_some() {
            kinds.push(Kind::of::<BackupDatabase>());
            kinds.push(Kind::of::<BackupVerify>());
            kinds.push(Kind::of::<ExportRun>());
            kinds.push(Kind::of::<ExportCleanup>());
        }
        Self(kinds)
    }

    /// One kind by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.0.iter().find(|kind| kind.name == name)
    }

    /// Names, in a fixed order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|kind| kind.name)
    }

    /// The queue of a kind; unknown kinds go to the default one.
    #[must_use]
    pub fn queue_of(&self, name: &str) -> &'static str {
        self.get(name).map_or(DEFAULT_QUEUE, |kind| kind.queue)
    }
}
