//! `jobs replay`

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use voiceai_cli::{Column, Failure, Output, Question, confirm};
use voiceai_replay::{Candidate, Filter, Pace, Plan, Store};

use super::{Service, act, desk, stopping};
use crate::cli::Replay;
use crate::jobs::registry::Kinds;
use crate::jobs::{housekeeping, orchestration, recording};
use crate::operate::Desk;
use crate::operate::replay::{self, Carried, Checks, Orders, Wanted};
use crate::operate::trail;

/// Candidates that a plan shows beside those that would go back.
const REFUSED_SHOWN: usize = 50;

pub(super) async fn run(command: Replay, service: &Service, output: Output) -> Result<(), Failure> {
    let desk = desk(service).await?;
    let store = Store::new(desk.pool.clone(), trail::SERVICE);
    let pace =
        Pace { per_second: command.rate.0, look_every: Duration::from_millis(250), follow: command.wait };
    if let Some(id) = command.resume {
        return resume(id, &command, &desk, &store, pace, output).await;
    }
    let wanted = wanted(&command)?;
    let filter = wanted.filter();
    let backup = super::backup::context(service, desk.pool.clone()).await?;
    let calls = recording::contexts(&service.settings, desk.pool.clone()).await;
    let checks = Checks::new(Kinds::of(&service.settings), backup).with_calls(calls);
    let token = orchestration::fixed_token(&service.settings);
    let agents = orchestration::context(&service.settings, desk.pool.clone(), token)?;
    let checks = checks.with_stripe(housekeeping::stripe(&service.settings)?).with_agents(agents);
    let plan = replay::plan(&desk, &checks, &wanted, command.limit).await?;
    let allowed = replay::allow(&desk, &store, &filter, command.limit).await;
    let execute = command.execute && !command.mutation.dry_run;
    if !execute || allowed.is_err() || plan.would_replay == 0 {
        show_plan(&plan, &filter, &command, allowed.as_ref().err(), output)?;
        allowed?;
        return if execute { refuse_empty(&plan) } else { Ok(()) };
    }
    let act = act(&command.mutation)?;
    let object = format!("of {} dead jobs matching {filter}", plan.matched);
    confirm(
        &command.mutation,
        &Question { verb: "Replay", object: &object, count: Some(plan.would_replay) },
    )?;
    let orders = Orders { limit: command.limit, pace };
    let stop = stopping()?;
    let carried = replay::execute(&desk, &store, &wanted, &plan, &orders, &act, &stop).await?;
    show_carried(&carried, Some(&plan), output)
}

async fn resume(
    id: uuid::Uuid,
    command: &Replay,
    desk: &Desk,
    store: &Store,
    pace: Pace,
    output: Output,
) -> Result<(), Failure> {
    if !command.execute || command.mutation.dry_run {
        return show_state(&replay::shown(store, id, "planned").await?, output);
    }
    let act = act(&command.mutation)?;
    let have = replay::shown(store, id, "planned").await?;
    let object = format!("replay {id}, of which {} jobs are left", have.replay.counts.pending);
    confirm(&command.mutation, &Question { verb: "Go on with", object: &object, count: None })?;
    let carried = replay::resume(desk, store, id, pace, &act, &stopping()?).await?;
    show_carried(&carried, None, output)
}

fn wanted(command: &Replay) -> Result<Wanted, Failure> {
    let select = &command.select;
    Ok(Wanted {
        ids: select.ids.clone(),
        queue: select.queue.clone(),
        kind: select.kind.clone(),
        tenant: select.tenant.clone(),
        error_contains: select.error_contains.clone(),
        since: command.since,
        reason_is: command.reason_is.as_deref().map(replay::reason).transpose()?,
        missing: command.missing,
    })
}

fn refuse_empty(plan: &Plan) -> Result<(), Failure> {
    if plan.matched == 0 {
        return Ok(());
    }
    let why: Vec<_> = plan.refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
    Err(Failure::refused(
        "nothing_to_replay",
        format!("none of the {} matching jobs passes the checks: {}", plan.matched, why.join(", ")),
        "Heal what the checks name, or discard these jobs.",
    ))
}

/// A plan for scripts.
#[derive(Serialize)]
struct Document<'a> {
    executed: bool,
    filter: &'a Filter,
    limit: u32,
    /// Whether this limit may be used now.
    allowed: bool,
    matched: u64,
    checked: u64,
    passed: u64,
    would_replay: u64,
    refused: &'a std::collections::BTreeMap<&'static str, u64>,
    candidates: Vec<&'a Candidate>,
    next: Option<&'a str>,
}

fn show_plan(
    plan: &Plan,
    filter: &Filter,
    command: &Replay,
    refused: Option<&Failure>,
    output: Output,
) -> Result<(), Failure> {
    let others = plan.candidates.iter().filter(|candidate| candidate.refused.is_some()).take(REFUSED_SHOWN);
    let document = Document {
        executed: false,
        filter,
        limit: command.limit,
        allowed: refused.is_none(),
        matched: plan.matched,
        checked: plan.checked,
        passed: plan.passed,
        would_replay: plan.would_replay,
        refused: &plan.refused,
        candidates: plan.chosen().take(1_000).chain(others).collect(),
        next: None,
    };
    output.one(&document, |document| plan_text(document, output))
}

fn plan_text(document: &Document<'_>, output: Output) -> String {
    let columns = [
        Column::new("ID", |row: &&Candidate| row.id.clone()),
        Column::new("QUEUE", |row: &&Candidate| row.place.clone()),
        Column::new("KIND", |row: &&Candidate| text_of(row, "kind")),
        Column::new("DEAD SINCE", |row: &&Candidate| text_of(row, "dead_at")),
        Column::new("REASON", |row: &&Candidate| text_of(row, "dead_reason")),
        Column::new("CHECK", |row: &&Candidate| match &row.refused {
            Some(refusal) => refusal.message.clone(),
            None => "passes".to_owned(),
        }),
    ];
    let mut text = format!(
        "{} match ({}), {} were checked, {} pass; with --limit {} {} would be replayed. Nothing was changed.\n",
        document.matched,
        document.filter,
        document.checked,
        document.passed,
        document.limit,
        document.would_replay
    );
    if !document.candidates.is_empty() {
        text.push_str(&output.table(&document.candidates, &columns));
    }
    text
}

fn text_of(candidate: &Candidate, name: &str) -> String {
    candidate.shown[name].as_str().unwrap_or_default().to_owned()
}

fn show_carried(carried: &Carried, plan: Option<&Plan>, output: Output) -> Result<(), Failure> {
    let mut document = json!(carried);
    document["executed"] = true.into();
    if let Some(plan) = plan {
        document["matched"] = plan.matched.into();
        document["passed"] = plan.passed.into();
        document["refused"] = json!(plan.refused);
    }
    output.one(&document, |_| carried_text(carried))?;
    replay::judge(carried).map_or(Ok(()), Err)
}

fn show_state(carried: &Carried, output: Output) -> Result<(), Failure> {
    let mut document = json!(carried);
    document["executed"] = false.into();
    output.one(&document, |_| carried_text(carried))
}

fn carried_text(carried: &Carried) -> String {
    let replay = &carried.replay;
    let counts = &replay.counts;
    let mut text = format!(
        "replay {} {}: {} jobs, {} completed, {} not ended yet, {} died again, {} skipped, {} removed, {} left alone\n",
        replay.id,
        carried.ended,
        counts.items,
        counts.completed,
        counts.open,
        counts.died,
        counts.skipped,
        counts.gone,
        counts.pending
    );
    for item in carried.items.iter().filter(|item| item.detail.is_some()) {
        text.push_str(&format!(
            "  {} {:?}: {}\n",
            item.id,
            item.state,
            item.detail.clone().unwrap_or_default()
        ));
    }
    text
}
