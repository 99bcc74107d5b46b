//! `mail replay`: dead letters, under the rules of every replay.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use voiceai_cli::{Column, Failure, Output, Question, confirm};
use voiceai_mail::operate::DeadFilter;
use voiceai_replay::{Candidate, Pace, Plan, Store};

use super::super::{Service, act, stopping};
use crate::cli::{ReplayMail, When};
use crate::operate::mail as operate;
use crate::operate::replay::Carried;
use crate::operate::trail;

pub(super) async fn run(command: ReplayMail, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let policy = &service.settings.mail.policy;
    let store = Store::new(pool.clone(), trail::SERVICE);
    let pace =
        Pace { per_second: command.rate.0, look_every: Duration::from_millis(250), follow: command.wait };
    if let Some(id) = command.resume {
        if !command.execute || command.mutation.dry_run {
            let carried = crate::operate::replay::shown(&store, id, "planned").await?;
            return output.one(&document(&carried, None), |_| carried_text(&carried));
        }
        let act = act(&command.mutation)?;
        let object = format!("replay {id}");
        confirm(&command.mutation, &Question { verb: "Go on with", object: &object, count: None })?;
        let carried = operate::resume(&pool, policy, &store, id, pace, &act, &stopping()?).await?;
        return show_carried(&carried, None, output);
    }
    let dead = DeadFilter {
        ids: command.ids.clone(),
        tenant: command.tenant.clone(),
        template: command.template.clone(),
        error_contains: command.error_contains.clone(),
        since: command.since.map(operate::since),
        reason: command.reason_is,
    };
    // The proof compares what the person wrote: `2h` is the same selection an hour later.
    let filter = DeadFilter { since: None, ..dead.clone() };
    let filter = filter.normalised().with("since", command.since.map(When::normalised));
    let plan = operate::plan(&pool, &dead, command.limit).await?;
    let allowed = operate::allow(&pool, policy, &store, &filter, command.limit).await;
    let execute = command.execute && !command.mutation.dry_run;
    if !execute || allowed.is_err() || plan.would_replay == 0 {
        let shown = json!({
            "executed": false, "filter": filter, "limit": command.limit, "allowed": allowed.is_ok(), "matched": plan.matched,
            "checked": plan.checked, "passed": plan.passed, "would_replay": plan.would_replay, "refused": plan.refused,
            "candidates": plan.candidates.iter().take(1_000).collect::<Vec<_>>(), "next": null,
        });
        output.one(&shown, |_| plan_text(&plan, &filter.to_string(), command.limit, output))?;
        allowed?;
        return if execute && plan.matched > 0 { Err(nothing_passes(&plan)) } else { Ok(()) };
    }
    let act = act(&command.mutation)?;
    let object = format!("of {} dead letters matching {filter}", plan.matched);
    confirm(
        &command.mutation,
        &Question { verb: "Replay", object: &object, count: Some(plan.would_replay) },
    )?;
    let orders = operate::Orders { filter: &filter, plan: &plan, limit: command.limit, pace };
    let carried = operate::execute(&pool, policy, &store, &orders, &act, &stopping()?).await?;
    show_carried(&carried, Some(&plan), output)
}

fn nothing_passes(plan: &Plan) -> Failure {
    let why: Vec<_> = plan.refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
    Failure::refused(
        "nothing_to_replay",
        format!("none of the {} matching dead letters passes the checks: {}", plan.matched, why.join(", ")),
        "Heal what the checks name, such as a pause of the provider.",
    )
}

fn plan_text(plan: &Plan, filter: &str, limit: u32, output: Output) -> String {
    let text_of = |row: &Candidate, name: &str| row.shown[name].as_str().unwrap_or_default().to_owned();
    let columns = [
        Column::new("ID", |row: &Candidate| row.id.clone()),
        Column::new("TEMPLATE", move |row: &Candidate| text_of(row, "template_id")),
        Column::new("DEAD SINCE", move |row: &Candidate| text_of(row, "dead_at")),
        Column::new("REASON", move |row: &Candidate| text_of(row, "reason")),
        Column::new("SAID", move |row: &Candidate| text_of(row, "error")),
        Column::new("CHECK", |row: &Candidate| match &row.refused {
            Some(refusal) => refusal.message.clone(),
            None => "passes".to_owned(),
        }),
    ];
    let mut text = format!(
        "{} match ({filter}), {} were checked, {} pass; with --limit {limit} {} would be replayed. Nothing was changed.\n",
        plan.matched, plan.checked, plan.passed, plan.would_replay
    );
    if !plan.candidates.is_empty() {
        text.push_str(&output.table(&plan.candidates, &columns));
    }
    text
}

fn document(carried: &Carried, plan: Option<&Plan>) -> Value {
    let mut document = json!(carried);
    document["executed"] = (carried.ended != "planned").into();
    if let Some(plan) = plan {
        document["matched"] = plan.matched.into();
        document["passed"] = plan.passed.into();
        document["refused"] = json!(plan.refused);
    }
    document
}

fn show_carried(carried: &Carried, plan: Option<&Plan>, output: Output) -> Result<(), Failure> {
    output.one(&document(carried, plan), |_| carried_text(carried))?;
    operate::judge(carried).map_or(Ok(()), Err)
}

fn carried_text(carried: &Carried) -> String {
    let counts = &carried.replay.counts;
    let mut text = format!(
        "replay {} {}: {} deliveries, {} sent, {} not ended yet, {} died again, {} skipped, {} gone, {} left alone\n",
        carried.replay.id,
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
        let _ = writeln!(text, "  {} {:?}: {}", item.id, item.state, item.detail.clone().unwrap_or_default());
    }
    text
}
