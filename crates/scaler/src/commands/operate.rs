//! Commands that change something. Each checks first, asks, then changes and writes the audit trail in one transaction.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use voiceai_cli::{
    ExitCode, Failure, Mutation, Output, Question, Surroundings, actor, confirm, human_duration,
};
use voiceai_postgres::term;
use voiceai_scaler_core::Policy;
use voiceai_service::{Command, failures};

use super::{OneServer, PauseArgs, ProtectArgs, ResumeArgs};
use crate::act::chain;
use crate::lead::drain_settings;
use crate::settings::ScalerSettings;
use crate::store::{DownSettings, OperateError, Store, StoreError, Target};

type Done = Result<ExitCode, Failure>;

/// What a change did, or would do.
#[derive(Debug, Serialize)]
struct Changed {
    action: &'static str,
    target: String,
    dry_run: bool,
    #[serde(flatten)]
    details: Value,
}

impl Changed {
    fn print(&self, output: Output, sentence: &str) -> Result<(), Failure> {
        output.one(self, |this| {
            let would = if this.dry_run { "would: " } else { "" };
            format!("{would}{sentence}\n")
        })
    }
}

pub(super) async fn drain(command: Command<ScalerSettings>, one: OneServer, output: Output) -> Done {
    let who = actor(one.mutation.as_name.as_deref(), &Surroundings::read())?;
    let store = Store::new(command.pool().await?);
    let target = Target { name: &one.name, actor: who.name(), reason: one.mutation.reason.as_deref() };
    let server = store.drain(target, &DownSettings::default(), true).await.map_err(|e| failure(&e))?;
    let settings = DownSettings { by_operator: true, ..settings_of(&store, &server.group_name).await? };
    if !one.mutation.dry_run {
        ask(
            &one.mutation,
            "Drain and delete",
            &format!("server {} of group {}", one.name, server.group_name),
        )?;
        store.drain(target, &settings, false).await.map_err(|e| failure(&e))?;
    }
    let changed = Changed {
        action: "drain",
        target: one.name.clone(),
        dry_run: one.mutation.dry_run,
        details: json!({"group": server.group_name}),
    };
    changed.print(output, &format!("drain and delete server {}", one.name))?;
    Ok(ExitCode::Done)
}

/// How the group's policy says a server is drained; the defaults where the group is gone or cannot be read.
async fn settings_of(store: &Store, group: &str) -> Result<DownSettings, Failure> {
    let groups = store.groups().await.map_err(|e| store_failure(&e))?;
    let policies = groups.iter().filter_map(|row| Policy::read(&row.0).ok());
    Ok(policies
        .filter(|policy| policy.name == group)
        .map(|policy| drain_settings(&policy))
        .next()
        .unwrap_or_default())
}

pub(super) async fn undrain(command: Command<ScalerSettings>, one: OneServer, output: Output) -> Done {
    let who = actor(one.mutation.as_name.as_deref(), &Surroundings::read())?;
    let store = Store::new(command.pool().await?);
    let target = Target { name: &one.name, actor: who.name(), reason: one.mutation.reason.as_deref() };
    let server = store.undrain(target, true).await.map_err(|e| failure(&e))?;
    if !one.mutation.dry_run {
        ask(&one.mutation, "Call back", &format!("server {} of group {}", one.name, server.group_name))?;
        store.undrain(target, false).await.map_err(|e| failure(&e))?;
    }
    let changed = Changed {
        action: "undrain",
        target: one.name.clone(),
        dry_run: one.mutation.dry_run,
        details: json!({"group": server.group_name}),
    };
    changed.print(output, &format!("call back server {}", one.name))?;
    Ok(ExitCode::Done)
}

pub(super) async fn protect(
    command: Command<ScalerSettings>,
    arguments: ProtectArgs,
    output: Output,
) -> Done {
    let ProtectArgs { name, duration, mutation } = arguments;
    let who = actor(mutation.as_name.as_deref(), &Surroundings::read())?;
    let store = Store::new(command.pool().await?);
    let target = Target { name: &name, actor: who.name(), reason: mutation.reason.as_deref() };
    let until = later(&store, duration).await?;
    store.protect(target, until, true).await.map_err(|e| failure(&e))?;
    if !mutation.dry_run {
        ask(&mutation, "Protect", &format!("server {name} from removal for {}", human_duration(duration)))?;
        store.protect(target, until, false).await.map_err(|e| failure(&e))?;
    }
    let changed = Changed {
        action: "protect",
        target: name.clone(),
        dry_run: mutation.dry_run,
        details: json!({"until": until}),
    };
    changed.print(output, &format!("protect server {name} until {until}"))?;
    Ok(ExitCode::Done)
}

pub(super) async fn pause(command: Command<ScalerSettings>, arguments: PauseArgs, output: Output) -> Done {
    let PauseArgs { which, duration, mutation } = arguments;
    let who = actor(mutation.as_name.as_deref(), &Surroundings::read())?;
    let store = Store::new(command.pool().await?);
    let target = Target { name: which.target(), actor: who.name(), reason: mutation.reason.as_deref() };
    let until = later(&store, duration).await?;
    store.pause(target, until, true).await.map_err(|e| failure(&e))?;
    let object = named(which.target());
    if !mutation.dry_run {
        ask(&mutation, "Pause", &format!("{object} for {}", human_duration(duration)))?;
        store.pause(target, until, false).await.map_err(|e| failure(&e))?;
    }
    let changed = Changed {
        action: "pause",
        target: which.target().to_owned(),
        dry_run: mutation.dry_run,
        details: json!({"until": until}),
    };
    changed.print(output, &format!("pause {object} until {until}"))?;
    Ok(ExitCode::Done)
}

pub(super) async fn resume(command: Command<ScalerSettings>, arguments: ResumeArgs, output: Output) -> Done {
    let ResumeArgs { which, mutation } = arguments;
    let who = actor(mutation.as_name.as_deref(), &Surroundings::read())?;
    let pool = command.pool().await?;
    let store = Store::new(pool.clone());
    let target = Target { name: which.target(), actor: who.name(), reason: mutation.reason.as_deref() };
    let key = &command.shared.leader.key;
    let mut paused = store.resume(target, true).await.map_err(|e| failure(&e))?;
    let mut held = if which.all {
        term::held_reason(&pool, key).await.map_err(|e| failures::database(&e))?
    } else {
        None
    };
    let object = named(which.target());
    if !mutation.dry_run {
        ask(&mutation, "Resume", &object)?;
        paused = store.resume(target, false).await.map_err(|e| failure(&e))?;
        if held.is_some() && !term::release(&pool, key).await.map_err(|e| failures::database(&e))? {
            held = None;
        }
    }
    let changed = Changed {
        action: "resume",
        target: which.target().to_owned(),
        dry_run: mutation.dry_run,
        details: json!({"was_paused": paused.is_some(), "was_held": held}),
    };
    changed.print(output, &format!("resume {object}"))?;
    Ok(ExitCode::Done)
}

fn named(target: &str) -> String {
    if target == "*" { "all groups".to_owned() } else { format!("group {target}") }
}

fn ask(mutation: &Mutation, verb: &str, object: &str) -> Result<(), Failure> {
    confirm(mutation, &Question { verb, object, count: None })
}

/// By the database's clock, which is the one that the leader compares with.
async fn later(store: &Store, duration: Duration) -> Result<Timestamp, Failure> {
    let now = store.now().await.map_err(|e| store_failure(&e))?;
    SignedDuration::try_from(duration).ok().and_then(|duration| now.checked_add(duration).ok()).ok_or_else(
        || {
            Failure::usage(
                "duration_too_long",
                "the duration reaches beyond the calendar",
                "Give a shorter one.",
            )
        },
    )
}

pub(super) fn store_failure(error: &StoreError) -> Failure {
    match error {
        StoreError::Database { tried, source } => {
            let mut failure = failures::database(source);
            failure.message = format!("{tried}: {}", failure.message);
            failure
        }
        other => Failure::failed("store_failed", chain(other), "Look at the row that the message names."),
    }
}

fn failure(error: &OperateError) -> Failure {
    match error {
        OperateError::NotFound { what, .. } => {
            let code = if *what == "server" { "server_not_found" } else { "group_not_found" };
            Failure::not_found(code, error.to_string(), "See `voiceai-scaler status` for the names.")
        }
        OperateError::Refused { why, remedy } => Failure::refused("precondition", why.clone(), *remedy),
        OperateError::Store(error) => store_failure(error),
    }
}
