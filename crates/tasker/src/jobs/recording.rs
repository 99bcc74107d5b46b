//! The family of what follows a call: its record, its recording.

use voiceai_aws::ObjectStore;
use voiceai_postgres::PgPool;
use voiceai_queue::cron::Definition;
use voiceai_queue::{Job as _, Registry};
use voiceai_recording::{
    PostCall, PostCallContext, RecordingContext, RecordingProcess, RecordingSweep, SweepContext,
};

use super::registry::{Contexts, Kind};
use crate::settings::TaskerSettings;

/// Name of the schedule that ends the time of originals and of old records.
pub const SWEEP_SCHEDULE: &str = "recording-sweep";

/// What calls and recordings are handled with.
#[derive(Clone, Debug)]
pub struct CallContexts {
    /// The calls.
    pub calls: PostCallContext,
    /// The recordings; absent unless `RECORDING_ENABLED`.
    pub recordings: Option<RecordingContext>,
}

/// Sends nothing: the bucket is asked by the first job.
pub async fn contexts(settings: &TaskerSettings, pool: PgPool) -> CallContexts {
    let event_bytes_max = settings.webhook.event_bytes_max;
    let recordings = match &settings.recording.store {
        Some(store) => Some(RecordingContext {
            store: ObjectStore::new(store).await,
            pool: pool.clone(),
            settings: settings.recording.clone(),
            event_bytes_max,
        }),
        None => None,
    };
    let calls = PostCallContext {
        pool,
        bucket: settings.recording.store.as_ref().map(|store| store.bucket.clone()),
        table: settings.recording.call_table.clone(),
        event_bytes_max,
    };
    CallContexts { calls, recordings }
}

/// The kinds of the family: recordings are processed only where they are switched on.
#[must_use]
pub fn kinds(settings: &TaskerSettings) -> Vec<Kind> {
    let mut kinds = vec![Kind::of::<PostCall>(), Kind::of::<RecordingSweep>()];
    if settings.recording.is_enabled() {
        kinds.push(Kind::of::<RecordingProcess>());
    }
    kinds
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, contexts: &Contexts) -> Registry {
    let CallContexts { calls, recordings } = &contexts.calls;
    let sweep = SweepContext { pool: calls.pool.clone(), recordings: recordings.clone() };
    let registry = registry.register::<PostCall>(calls.clone()).register::<RecordingSweep>(sweep);
    match recordings {
        Some(recordings) => registry.register::<RecordingProcess>(recordings.clone()),
        None => registry,
    }
}

/// The nightly sweep. It removes no original unless `RECORDING_ORIGINALS_KEEP` says when.
#[must_use]
pub fn schedules(_settings: &TaskerSettings) -> Vec<Definition> {
    vec![Definition {
        queue: RecordingSweep::QUEUE.to_owned(),
        ..Definition::new(SWEEP_SCHEDULE, RecordingSweep::KIND, "47 3 * * *")
    }]
}
