//! `cron …`

use std::collections::BTreeSet;

use serde_json::{Value, json};
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm};
use voiceai_queue::cron::{self as schedule, Line, MissedRuns};

use super::{Service, act, client, warn};
use crate::cli::{Cron, CronSet, Missed, Overlap};
use crate::jobs::registry::Kinds;
use crate::operate::Act;
use crate::operate::schedules::{self, Edit, Paused};

pub(super) async fn run(command: Cron, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Cron::List => list(service, output).await,
        Cron::Run { name, mutation } => run_now(&name, &mutation, service, output).await,
        Cron::Pause { name, all: _, for_, mutation } => {
            let pause = Quiet::Pause { for_ };
            quiet(pause, name.as_deref(), &mutation, service, output).await
        }
        Cron::Resume { name, all: _, mutation } => {
            quiet(Quiet::Resume, name.as_deref(), &mutation, service, output).await
        }
        Cron::Set(command) => set(command, service, output).await,
    }
}

async fn list(service: &Service, output: Output) -> Result<(), Failure> {
    let lines = schedules::list(&service.pool().await?).await?;
    let detail = |of: fn(&schedule::Details) -> String| {
        move |line: &Line| line.details.as_ref().map(of).unwrap_or_default()
    };
    let columns = [
        Column::new("NAME", |line: &Line| line.name.clone()),
        Column::new("STATE", |line: &Line| line.state.to_owned()),
        Column::new("KIND", detail(|details| details.kind.clone())),
        Column::new("SCHEDULE", detail(|details| format!("{} {}", details.expression, details.zone))),
        Column::new(
            "LAST",
            detail(|details| details.record.last_fired_at.map(|at| format!("{at:.0}")).unwrap_or_default()),
        ),
        Column::new(
            "NEXT",
            detail(|details| {
                details.next_runs.iter().map(|run| format!("{:.0}", run.at)).collect::<Vec<_>>().join(" ")
            }),
        ),
        Column::new("NOTE", |line: &Line| {
            let problem = line.problem.clone();
            let failed = line.details.as_ref().and_then(|details| details.record.last_error.clone());
            problem.or(failed).unwrap_or_default()
        }),
    ];
    output.list("schedules", &lines, None, &columns)
}

async fn run_now(name: &str, mutation: &Mutation, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(mutation)?;
    let pool = service.pool().await?;
    let definition = schedules::get(&pool, name).await?;
    let kinds = Kinds::of(&service.settings);
    // Asked only where it makes a difference: a schedule runs while Redis is away, too.
    let mut served = BTreeSet::new();
    if kinds.get(&definition.kind).is_none()
        && let Ok(client) = client(service).await
    {
        served = schedules::served(&client, &definition.queue).await;
    }
    if let Some(warning) = schedules::runnable(&definition, &kinds, &served)? {
        warn(&warning);
    }
    if mutation.dry_run {
        let document =
            json!({ "name": name, "kind": definition.kind, "queue": definition.queue, "dry_run": true });
        return output.one(&document, |_| {
            format!("would enqueue a {} job into {}\n", definition.kind, definition.queue)
        });
    }
    let ran = schedules::run_now(&pool, name, &act).await?;
    output.one(&ran, |ran| format!("{}\n", ran.id))
}

enum Quiet {
    Pause { for_: Option<std::time::Duration> },
    Resume,
}

impl Quiet {
    const fn verb(&self) -> &'static str {
        match self {
            Self::Pause { .. } => "Pause",
            Self::Resume => "Resume",
        }
    }
}

async fn quiet(
    what: Quiet,
    name: Option<&str>,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let act = act(mutation)?;
    let pool = service.pool().await?;
    let names = schedules::chosen(&pool, name).await?;
    if mutation.dry_run {
        let document = json!({ "schedules": names, "next": null, "dry_run": true });
        return output
            .one(&document, |_| format!("would {} {}\n", what.verb().to_lowercase(), names.join(", ")));
    }
    let object = match name {
        Some(name) => format!("schedule {name}"),
        None => "schedules".to_owned(),
    };
    let count = name.is_none().then_some(names.len() as u64);
    confirm(mutation, &Question { verb: what.verb(), object: &object, count })?;
    let done = match what {
        Quiet::Pause { for_ } => schedules::pause(&pool, &names, for_, &act).await?,
        Quiet::Resume => schedules::resume(&pool, &names, &act).await?,
    };
    let columns = [
        Column::new("NAME", |row: &Paused| row.name.clone()),
        Column::new("PAUSED UNTIL", |row: &Paused| {
            row.paused_until.map(|until| format!("{until:.0}")).unwrap_or_default()
        }),
    ];
    output.list("schedules", &done, None, &columns)
}

async fn set(command: CronSet, service: &Service, output: Output) -> Result<(), Failure> {
    let act: Act = act(&command.mutation)?;
    let edit = edit(&command)?;
    let kinds = Kinds::of(&service.settings);
    let pool = service.pool().await?;
    let (definition, created) = schedules::edited(&pool, &command.name, edit, &kinds).await?;
    let verb = if created { "Create" } else { "Change" };
    if command.mutation.dry_run {
        let document = json!({
            "name": definition.name, "created": created, "kind": definition.kind, "queue": definition.queue,
            "expression": definition.expression, "zone": definition.zone, "enabled": definition.enabled,
            "dry_run": true,
        });
        return output.one(&document, |_| format!("would {} {}\n", verb.to_lowercase(), definition.name));
    }
    let object = format!("schedule {}", definition.name);
    confirm(&command.mutation, &Question { verb, object: &object, count: None })?;
    let set = schedules::set(&pool, &definition, &kinds, &act).await?;
    if let Some(warning) = &set.warning {
        warn(warning);
    }
    output.one(&set, |set| format!("{} {}\n", if set.created { "created" } else { "changed" }, set.name))
}

fn edit(command: &CronSet) -> Result<Edit, Failure> {
    let missed = match (command.missed, command.catch_up) {
        (None, None) => None,
        (Some(Missed::Skip), None) => Some(MissedRuns::Skip),
        (Some(Missed::Once), None) => Some(MissedRuns::Once),
        (Some(Missed::CatchUp), count) => Some(MissedRuns::CatchUp(count.unwrap_or(10))),
        (_, Some(_)) => {
            let message = "--catch-up says nothing without --missed catch-up";
            return Err(Failure::usage(
                "invalid_schedule",
                message,
                "Add --missed catch-up, or leave --catch-up out.",
            ));
        }
    };
    let payload = match &command.payload {
        Some(text) => {
            let raw = super::enqueue::payload(text)?;
            let value: Value = serde_json::from_str(raw.get()).map_err(|error| {
                Failure::usage("invalid_payload", error.to_string(), "Pass one JSON value.")
            })?;
            Some(value)
        }
        None => None,
    };
    Ok(Edit {
        kind: command.kind.clone(),
        expression: command.cron.clone(),
        zone: command.zone.clone(),
        payload,
        queue: command.queue.clone(),
        priority: command.priority,
        missed,
        overlap: command.overlap.map(|overlap| match overlap {
            Overlap::Allow => schedule::Overlap::Allow,
            Overlap::Skip => schedule::Overlap::Skip,
        }),
        enabled: command.enabled,
    })
}
