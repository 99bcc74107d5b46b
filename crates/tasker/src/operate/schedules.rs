//! Schedules: list, run now, pause, resume, set.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_queue::Client;
use voiceai_queue::cron::{self, Definition, Line, MissedRuns, Overlap, ScheduleError};

use super::{Act, database_failure, trail};
use crate::jobs::registry::{self, Kinds};

/// What a failed look at, or change of, a schedule means to an operator.
#[must_use]
pub fn schedule_failure(error: &ScheduleError) -> Failure {
    match error {
        ScheduleError::NotFound { .. } => {
            Failure::not_found("schedule_not_found", error.to_string(), "Look with `cron list`.")
        }
        ScheduleError::Definition(_) => {
            Failure::usage("invalid_schedule", error.to_string(), "Correct the schedule as the message says.")
        }
        ScheduleError::Database { source, .. } => {
            let failure = database_failure(source);
            Failure { message: format!("{error}: {}", failure.message), ..failure }
        }
    }
}

/// Every schedule with its next runs.
///
/// # Errors
/// As the database says.
pub async fn list(pool: &PgPool) -> Result<Vec<Line>, Failure> {
    cron::list(pool).await.map_err(|error| schedule_failure(&error))
}

/// A schedule that was run out of turn.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// The schedule.
    pub name: String,
    /// The job.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
}

/// What is to be said before a schedule is run out of turn, since nobody here takes its job: `None` where this version does with these
/// settings, or a live worker (`served`) does. A kind that no version of ours has is accepted with a warning, as `jobs enqueue` does.
///
/// # Errors
/// Refused (4) where a setting switches the kind on and is not set: the job would be parked as `no_handler`.
pub fn runnable(
    schedule: &Definition,
    kinds: &Kinds,
    served: &BTreeSet<String>,
) -> Result<Option<String>, Failure> {
    let kind = schedule.kind.as_str();
    if kinds.get(kind).is_some() || served.contains(kind) {
        return Ok(None);
    }
    let nobody = format!("schedule {:?}: nobody handles jobs of kind `{kind}`", schedule.name);
    match registry::switch(kind) {
        Some(setting) => Err(Failure::refused(
            "not_configured",
            format!("{nobody}: {setting} is not set here, and no live worker has it"),
            format!("Set {setting} for voiceai-tasker, then run the schedule."),
        )),
        None => Ok(Some(format!(
            "{nobody} in this version; a worker without a handler parks the job as no_handler"
        ))),
    }
}

/// The kinds that live workers of a queue handle; none where Redis cannot say.
pub async fn served(client: &Client, queue: &str) -> BTreeSet<String> {
    match client.stats(queue).await {
        Ok(stats) => stats.workers.into_iter().flat_map(|worker| worker.kinds).collect(),
        Err(_) => BTreeSet::new(),
    }
}

/// Enqueues a schedule's job now. It goes through the outbox, so that it survives a Redis that is away.
///
/// # Errors
/// Not found (3); else as the database says.
pub async fn run_now(pool: &PgPool, name: &str, act: &Act) -> Result<Ran, Failure> {
    let schedule = get(pool, name).await?;
    trail::record(pool, act, "cron.run", name, json!({})).await?;
    let id = cron::run_now(pool, name).await.map_err(|error| schedule_failure(&error))?;
    Ok(Ran { name: name.to_owned(), id, kind: schedule.kind, queue: schedule.queue })
}

/// What a schedule does.
///
/// # Errors
/// Not found (3); else as the database says.
pub async fn get(pool: &PgPool, name: &str) -> Result<Definition, Failure> {
    Ok(cron::get(pool, name).await.map_err(|error| schedule_failure(&error))?.definition)
}

/// A schedule that was paused or resumed.
#[derive(Clone, Debug, Serialize)]
pub struct Paused {
    /// The schedule.
    pub name: String,
    /// End of the pause; absent once resumed.
    pub paused_until: Option<Timestamp>,
}

/// The one named, or all.
///
/// # Errors
/// Not found (3); else as the database says.
pub async fn chosen(pool: &PgPool, name: Option<&str>) -> Result<Vec<String>, Failure> {
    match name {
        Some(name) => Ok(vec![get(pool, name).await?.name]),
        None => Ok(list(pool).await?.into_iter().map(|line| line.name).collect()),
    }
}

/// Fires nothing of these schedules for a while, or until they are resumed.
///
/// # Errors
/// As the database says; schedules before the failing one are paused.
pub async fn pause(
    pool: &PgPool,
    names: &[String],
    for_: Option<Duration>,
    act: &Act,
) -> Result<Vec<Paused>, Failure> {
    let mut paused = Vec::with_capacity(names.len());
    for name in names {
        let seconds = for_.map(|for_| for_.as_secs_f64());
        trail::record(pool, act, "cron.pause", name, json!({ "for_seconds": seconds })).await?;
        let until = cron::pause(pool, name, for_, act.reason.as_deref()).await;
        let until = until.map_err(|error| schedule_failure(&error))?;
        paused.push(Paused { name: name.clone(), paused_until: Some(until) });
    }
    Ok(paused)
}

/// Ends the pause of these schedules.
///
/// # Errors
/// As the database says; schedules before the failing one are resumed.
pub async fn resume(pool: &PgPool, names: &[String], act: &Act) -> Result<Vec<Paused>, Failure> {
    let mut resumed = Vec::with_capacity(names.len());
    for name in names {
        trail::record(pool, act, "cron.resume", name, json!({})).await?;
        cron::resume(pool, name).await.map_err(|error| schedule_failure(&error))?;
        resumed.push(Paused { name: name.clone(), paused_until: None });
    }
    Ok(resumed)
}

/// What is to be changed of a schedule; what is absent stays, or is the default of a new one.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// Kind of its jobs.
    pub kind: Option<String>,
    /// Cron expression.
    pub expression: Option<String>,
    /// IANA zone.
    pub zone: Option<String>,
    /// Payload of its jobs.
    pub payload: Option<Value>,
    /// Queue of its jobs.
    pub queue: Option<String>,
    /// Priority of its jobs.
    pub priority: Option<u8>,
    /// Missed-run policy.
    pub missed: Option<MissedRuns>,
    /// Overlap policy.
    pub overlap: Option<Overlap>,
    /// Whether it fires.
    pub enabled: Option<bool>,
}

/// A schedule that was created or changed.
#[derive(Clone, Debug, Serialize)]
pub struct Set {
    /// The schedule.
    pub name: String,
    /// Whether it is new.
    pub created: bool,
    /// What is odd about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The schedule as it would be, and whether it is new. Writes nothing.
///
/// # Errors
/// Usage (2) when a new one lacks kind or expression, or a value is wrong; else as the database says.
pub async fn edited(
    pool: &PgPool,
    name: &str,
    edit: Edit,
    kinds: &Kinds,
) -> Result<(Definition, bool), Failure> {
    let have = match cron::get(pool, name).await {
        Ok(schedule) => Some(schedule.definition),
        Err(ScheduleError::NotFound { .. }) => None,
        Err(error) => return Err(schedule_failure(&error)),
    };
    let created = have.is_none();
    let definition = apply(have, name, edit, kinds)?;
    definition.check().map_err(|error| schedule_failure(&ScheduleError::Definition(error)))?;
    Ok((definition, created))
}

fn apply(have: Option<Definition>, name: &str, edit: Edit, kinds: &Kinds) -> Result<Definition, Failure> {
    let mut definition = match (have, &edit.kind, &edit.expression) {
        (Some(have), ..) => have,
        (None, Some(kind), Some(expression)) => {
            let new = Definition::new(name, kind.clone(), expression.clone());
            Definition { queue: kinds.queue_of(kind).to_owned(), ..new }
        }
        (None, ..) => {
            return Err(Failure::usage(
                "invalid_schedule",
                format!("there is no schedule `{name}`, and a new one needs --kind and --cron"),
                "Give both, or choose one that `cron list` shows.",
            ));
        }
    };
    let Edit { kind, expression, zone, payload, queue, priority, missed, overlap, enabled } = edit;
    if let Some(kind) = kind {
        definition.kind = kind;
    }
    if let Some(expression) = expression {
        definition.expression = expression;
    }
    if let Some(zone) = zone {
        definition.zone = zone;
    }
    if let Some(payload) = payload {
        definition.payload = payload;
    }
    if let Some(queue) = queue {
        definition.queue = queue;
    }
    if let Some(priority) = priority {
        definition.priority = priority;
    }
    if let Some(missed) = missed {
        definition.missed = missed;
    }
    if let Some(overlap) = overlap {
        definition.overlap = overlap;
    }
    if let Some(enabled) = enabled {
        definition.enabled = enabled;
    }
    Ok(definition)
}

/// Writes a schedule. From now on a release does not change it.
///
/// # Errors
/// Usage (2) when a value is wrong; else as the database says.
pub async fn set(pool: &PgPool, definition: &Definition, kinds: &Kinds, act: &Act) -> Result<Set, Failure> {
    let details = json!({
        "kind": definition.kind,
        "expression": definition.expression,
        "zone": definition.zone,
        "queue": definition.queue,
        "enabled": definition.enabled,
    });
    trail::record(pool, act, "cron.set", &definition.name, details).await?;
    let created = cron::set(pool, definition).await.map_err(|error| schedule_failure(&error))?;
    Ok(Set { name: definition.name.clone(), created, warning: oddity(definition, kinds) })
}

fn oddity(definition: &Definition, kinds: &Kinds) -> Option<String> {
    match kinds.get(&definition.kind) {
        None => Some(format!(
            "no handler for kind `{}` in this version with these settings{}; its jobs will be parked as no_handler",
            definition.kind,
            unset(&definition.kind)
        )),
        Some(kind) => kind.check_payload(&definition.payload.to_string()).err().map(|problem| {
            format!(
                "the payload is not that of a `{}` job ({problem}); its jobs will be parked as bad_payload",
                kind.name
            )
        }),
    }
}

/// What would switch a kind on, as a part of a sentence.
pub(super) fn unset(kind: &str) -> String {
    registry::switch(kind).map_or_else(String::new, |setting| format!(": {setting} is not set"))
}
