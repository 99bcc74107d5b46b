//! Which kinds there are: their handlers for a worker, the schedules that come with them, and what the command line must know
//! without running any. Each family of jobs says all three in a file of its own; here they are put together.

use voiceai_mail::intake::Intake;
use voiceai_orchestration::OrchestrationContext;
use voiceai_platform::Upkeep;
use voiceai_queue::cron::Definition;
use voiceai_queue::probe::Probe;
use voiceai_queue::{Job, Registry};
use voiceai_recording::RecordingProcess;
use voiceai_redis::Redis;

use super::backup::BackupContext;
use super::duty::DutyContexts;
use super::export::{CallbackContext, ExportContext};
use super::recording::CallContexts;
use super::webhook_event::WebhookContext;
use super::{duty, housekeeping, messages, orchestration, recording, storage};
use crate::notify::NotificationService;
use crate::settings::{DEFAULT_QUEUE, TaskerSettings};

/// What the handlers work with.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// Redis.
    pub redis: Redis,
    /// The backups; absent where no bucket is set.
    pub backup: Option<BackupContext>,
    /// The exports, and the calls to those who ordered them; absent where no bucket is set.
    pub exports: Option<(ExportContext, CallbackContext)>,
    /// New mail.
    pub mail: Intake,
    /// New events of webhooks.
    pub webhook: WebhookContext,
    /// Notices to people.
    pub notices: NotificationService,
    /// The agents; absent where no address of theirs is set.
    pub orchestration: Option<OrchestrationContext>,
    /// Calls that have ended, and their recordings.
    pub calls: CallContexts,
    /// The platform's own tables.
    pub upkeep: Upkeep,
    /// Certificates, alerts, reports, rollouts.
    pub duties: DutyContexts,
}

/// The handlers of every kind that `settings` switch on.
#[must_use]
pub fn handlers(settings: &TaskerSettings, contexts: &Contexts) -> Registry {
    let registry = messages::register(Registry::new(), settings, contexts);
    let registry = orchestration::register(registry, contexts);
    let registry = housekeeping::register(registry, &contexts.upkeep);
    let registry = recording::register(registry, contexts);
    let registry = duty::register(registry, &contexts.duties);
    storage::register(registry, contexts)
}

/// The schedules that come with the kinds: made where they are absent, and from then on the operators'.
#[must_use]
pub fn schedules(settings: &TaskerSettings) -> Vec<Definition> {
    let mut schedules = storage::schedules(settings);
    schedules.extend(recording::schedules(settings));
    schedules.extend(housekeeping::schedules());
    schedules.extend(duty::schedules(settings));
    schedules.extend(orchestration::schedules(settings));
    schedules
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
    ids: Option<fn(&str) -> Option<String>>,
}

impl Kind {
    /// The kind of `J`.
    #[must_use]
    pub const fn of<J: Job>() -> Self {
        Self { name: J::KIND, queue: J::QUEUE, priority: J::PRIORITY, parses: parses::<J>, ids: None }
    }

    /// The same with ids that say what they are of, where an enqueuer names none.
    #[must_use]
    pub const fn with_ids(self, ids: fn(&str) -> Option<String>) -> Self {
        Self { ids: Some(ids), ..self }
    }

    /// An id for a job with this payload; `None`: a generated one will do.
    #[must_use]
    pub fn new_id(&self, payload: &str) -> Option<String> {
        self.ids.and_then(|ids| ids(payload))
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

/// The setting that switches a kind of this version on; `None` for a kind that is always on, or that this version does not know.
#[must_use]
pub fn switch(kind: &str) -> Option<&'static str> {
    match kind {
        _ if storage::BACKUPS.contains(&kind) => Some("S3_BUCKET"),
        _ if storage::EXPORTS.contains(&kind) => Some("EXPORTS_S3_BUCKET or S3_BUCKET"),
        _ if orchestration::KINDS.contains(&kind) => Some("ORCHESTRATION_AGENTS_URL"),
        RecordingProcess::KIND => Some("RECORDING_ENABLED"),
        Probe::KIND => Some("DIAGNOSTIC_JOBS"),
        _ => None,
    }
}

/// The kinds that this version handles with these settings.
#[derive(Clone, Debug)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Those that `settings` switch on.
    #[must_use]
    pub fn of(settings: &TaskerSettings) -> Self {
        let mut kinds = messages::kinds(settings);
        kinds.extend(orchestration::kinds(settings));
        kinds.extend(storage::kinds(settings));
        kinds.extend(recording::kinds(settings));
        kinds.extend(housekeeping::kinds());
        kinds.extend(duty::kinds());
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
