//! `mail …`

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm, human_duration};
use voiceai_mail::malformed::{self, Malformed};
use voiceai_mail::operate::{
    self as mail, AttemptRow, Cursor, DeadFilter, Delivery, DeliveryRow, Filter, Pause, Scope, Suppression,
};
use voiceai_mail::template::Template;
use voiceai_mail::{Address, Wake};
use voiceai_replay::{Candidate, Pace, Plan, Store};

use super::{Service, act, stopping};
use crate::cli::{ListMail, Mail, Part, PauseMail, Preview, ReplayMail, Subject, Suppressions, When};
use crate::operate::mail::{self as operate, mail_failure, resend_failure};
use crate::operate::queues::age;
use crate::operate::replay::Carried;
use crate::operate::trail;

pub(super) async fn run(command: Mail, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Mail::List(wanted) => list(wanted, service, output).await,
        Mail::Show { id } => show(&id, service, output).await,
        Mail::Resend { id, mutation } => resend(&id, &mutation, service, output).await,
        Mail::Replay(command) => replay(command, service, output).await,
        Mail::Preview(command) => preview(&command, service, output),
        Mail::Templates => templates(service, output),
        Mail::Malformed { page } => malformed(page.limit, page.cursor.as_deref(), service, output).await,
        Mail::Suppressions(command) => Box::pin(suppressions(command, service, output)).await,
        Mail::Pause(command) => pause(command, service, output).await,
        Mail::Resume { subject, mutation } => resume(&subject, &mutation, service, output).await,
    }
}

async fn list(command: ListMail, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let now = Timestamp::now();
    let filter = Filter {
        status: command.status.map(Into::into),
        source: command.source,
        tenant: command.tenant,
        template: command.template,
        recipient: command.recipient,
        since: command.since.map(|since| since.timestamp(now)),
        error_contains: command.error_contains,
    };
    let after = command.page.cursor.as_deref().map(str::parse::<Cursor>).transpose().map_err(wrong_cursor)?;
    let limit = command.page.limit;
    let mut rows =
        mail::list(&pool, &filter, after.as_ref(), limit + 1).await.map_err(|e| mail_failure(&e))?;
    let next = further(&mut rows, limit).map(|row| row.cursor().to_string());
    let columns = [
        Column::new("ID", |row: &DeliveryRow| row.delivery_id.clone()),
        Column::new("STATUS", |row: &DeliveryRow| row.status.to_string()),
        Column::new("AGE", move |row: &DeliveryRow| age(row.created_at, now)),
        Column::new("SOURCE", |row: &DeliveryRow| row.source.clone()),
        Column::new("TEMPLATE", |row: &DeliveryRow| row.template_id.clone().unwrap_or_default()),
        Column::new("TO", |row: &DeliveryRow| match row.recipients {
            1 => row.recipient.clone(),
            n => format!("{} +{}", row.recipient, n - 1),
        }),
        Column::new("ATTEMPTS", |row: &DeliveryRow| row.attempts.to_string()),
        Column::new("LAST", |row: &DeliveryRow| row.last_result.clone().unwrap_or_default()),
    ];
    output.list("deliveries", &rows, next.as_deref(), &columns)
}

/// Takes the row off that only says that there are more; the last row that stays is where they follow.
fn further<T>(rows: &mut Vec<T>, limit: u32) -> Option<&T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more)
}

fn wrong_cursor(expected: impl std::fmt::Display) -> Failure {
    Failure::usage("invalid_cursor", format!("--cursor: {expected}"), "Pass the `next` of the page before.")
}

/// A delivery with its attempts.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    delivery: Delivery,
    attempt_rows: Vec<AttemptRow>,
}

async fn show(id: &str, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let delivery = mail::show(&pool, id).await.map_err(|error| mail_failure(&error))?;
    let Some(delivery) = delivery else {
        return Err(Failure::not_found(
            "delivery_not_found",
            format!("there is no delivery `{id}`"),
            "Look with `mail list`; one that was rejected stands in `mail malformed`.",
        ));
    };
    let attempt_rows = mail::attempts(&pool, id).await.map_err(|error| mail_failure(&error))?;
    output.one(&Shown { delivery, attempt_rows }, |shown| text(shown, output))
}

fn text(shown: &Shown, output: Output) -> String {
    let Shown { delivery, attempt_rows } = shown;
    let row = &delivery.row;
    let mut text = format!("delivery {}: {}\n", row.delivery_id, row.status);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Subjects and replies come from outside: nothing in them may move the cursor.
            let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "  {name:<14} {value}");
        }
    };
    line("subject", Some(row.subject.clone()));
    line("source", Some(row.source.clone()));
    line("template", row.template_id.clone());
    line("class", Some(row.class.clone()));
    line("tenant", row.tenant.clone());
    line("key", Some(delivery.idempotency_key.clone()));
    line("message id", Some(delivery.message_id.clone()));
    line("accepted", Some(format!("{:.0}", row.created_at)));
    line("next attempt", row.next_attempt_at.map(|at| format!("{at:.0}")));
    line("expires", row.finished_at.is_none().then(|| format!("{:.0}", delivery.expires_at)));
    line("finished", row.finished_at.map(|at| format!("{at:.0}")));
    line("dead letter", delivery.dead_letter.clone());
    line("resend of", row.resend_of.clone());
    line("request", delivery.request_id.clone());
    line("trace", delivery.trace_id.clone());
    let content = if delivery.content_kept { "kept" } else { "not kept any more" };
    line("content", Some(content.to_owned()));
    for recipient in &delivery.recipient_rows {
        let named = format!("{} ({})", recipient.address, recipient.kind);
        line(&recipient.status, Some(named));
    }
    text.push_str(&output.table(attempt_rows, &attempt_columns()));
    text
}

fn attempt_columns<'c>() -> Vec<Column<'c, AttemptRow>> {
    vec![
        Column::new("RCPT", |row: &AttemptRow| row.position.to_string()),
        Column::new("NO", |row: &AttemptRow| row.attempt_no.to_string()),
        Column::new("STATUS", |row: &AttemptRow| match &row.parked {
            Some(parked) => format!("{} ({parked})", row.status),
            None => row.status.clone(),
        }),
        Column::new("AT", |row: &AttemptRow| format!("{:.0}", row.started_at.unwrap_or(row.due_at))),
        Column::new("TOOK", |row: &AttemptRow| {
            let ms = row.duration_ms.and_then(|ms| u64::try_from(ms).ok());
            ms.map(|ms| human_duration(Duration::from_millis(ms))).unwrap_or_default()
        }),
        Column::new("PHASE", |row: &AttemptRow| row.phase.clone().unwrap_or_default()),
        Column::new("REASON", |row: &AttemptRow| row.reason.clone().unwrap_or_default()),
        Column::new("HOST", |row: &AttemptRow| row.host.clone().unwrap_or_default()),
        Column::new("SAID", |row: &AttemptRow| row.detail.clone().unwrap_or_default()),
    ]
}

async fn resend(id: &str, mutation: &Mutation, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(mutation)?;
    let pool = service.pool().await?;
    if mutation.dry_run {
        let known = mail::show(&pool, id).await.map_err(|error| mail_failure(&error))?;
        if known.is_none() {
            return Err(resend_failure(&mail::ResendError::NotFound(id.to_owned())));
        }
        let document = json!({ "resend_of": id, "dry_run": true });
        return output.one(&document, |_| format!("would send delivery {id} again\n"));
    }
    let object = format!("delivery {id}");
    confirm(mutation, &Question { verb: "Send again", object: &object, count: None })?;
    let intake = crate::mail::intake(&pool, &service.settings.mail, Wake::new())?;
    trail::record(&pool, &act, "mail.resend", id, json!({})).await?;
    let accepted = mail::resend(&intake, id, None).await.map_err(|error| resend_failure(&error))?;
    let document = json!({ "delivery_id": accepted.delivery_id, "resend_of": id, "status": accepted.status });
    output.one(&document, |_| format!("{}: {}, sends {id} again\n", accepted.delivery_id, accepted.status))
}

async fn replay(command: ReplayMail, service: &Service, output: Output) -> Result<(), Failure> {
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

fn preview(command: &Preview, service: &Service, output: Output) -> Result<(), Failure> {
    let catalogue = crate::mail::catalogue(&service.settings.mail)?;
    let made = match &command.variables {
        None => catalogue.preview(&command.id, &command.locale),
        Some(given) => catalogue.render(&command.id, &command.locale, &variables(given)?),
    };
    let made = made.map_err(|error| {
        let text = error.to_string();
        if catalogue.template(&command.id).is_none() {
            Failure::not_found("template_not_found", text, "See `mail templates`.")
        } else {
            Failure::refused(
                "cannot_render",
                text,
                "Correct the variables: `mail templates --json` shows what it takes.",
            )
        }
    })?;
    let html = made.html.clone().unwrap_or_default();
    output.one(&made, |made| match command.part {
        Part::All => format!("Subject: {}\n\n{}\n", made.subject, made.text.trim_end()),
        Part::Subject => format!("{}\n", made.subject),
        Part::Text => format!("{}\n", made.text.trim_end()),
        Part::Html => format!("{}\n", html.trim_end()),
    })
}

fn variables(given: &str) -> Result<Map<String, Value>, Failure> {
    let text = match given.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(
                "unreadable_file",
                format!("read {path}: {error}"),
                "Name a file that can be read.",
            )
        })?,
        None => given.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage("invalid_variables", format!("--variables: {error}"), "Give a JSON object.")
    })
}

fn templates(service: &Service, output: Output) -> Result<(), Failure> {
    let catalogue = crate::mail::catalogue(&service.settings.mail)?;
    let templates: Vec<&Template> = catalogue.templates().collect();
    let columns = [
        Column::new("ID", |row: &&Template| row.id.clone()),
        Column::new("CLASS", |row: &&Template| row.class.to_string()),
        Column::new("LOCALES", |row: &&Template| row.locales.join(",")),
        Column::new("VARIABLES", |row: &&Template| {
            row.variables.keys().cloned().collect::<Vec<_>>().join(",")
        }),
        Column::new("FOR", |row: &&Template| row.description.clone()),
    ];
    output.list("templates", &templates, None, &columns)
}

async fn malformed(
    limit: u32,
    cursor: Option<&str>,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let before = cursor.map(str::parse).transpose().map_err(wrong_cursor)?;
    let mut rows =
        malformed::list(&pool, before, i64::from(limit) + 1).await.map_err(|error| mail_failure(&error))?;
    let next = further(&mut rows, limit).map(|row| row.id.to_string());
    let now = Timestamp::now();
    let columns = [
        Column::new("ENTRY", |row: &Malformed| row.stream_entry_id.clone()),
        Column::new("AGE", move |row: &Malformed| age(row.recorded_at, now)),
        Column::new("DELIVERY", |row: &Malformed| row.delivery_id.clone().unwrap_or_default()),
        Column::new("SOURCE", |row: &Malformed| row.source.clone().unwrap_or_default()),
        Column::new("CODE", |row: &Malformed| row.failure_code.clone()),
        Column::new("WHAT", |row: &Malformed| row.failure_message.clone()),
    ];
    output.list("malformed", &rows, next.as_deref(), &columns)
}

async fn suppressions(command: Suppressions, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let parse = |text: &str| {
        Address::parse(text)
            .map_err(|error| Failure::usage("invalid_address", error.to_string(), "Correct the address."))
    };
    match command {
        Suppressions::List { address, page } => {
            let before = page.cursor.as_deref().map(str::parse).transpose().map_err(wrong_cursor)?;
            let rows = mail::suppressions(&pool, address.as_deref(), before, i64::from(page.limit) + 1).await;
            let mut rows = rows.map_err(|error| mail_failure(&error))?;
            let next = further(&mut rows, page.limit).map(|row| row.id.to_string());
            let columns = [
                Column::new("ADDRESS", |row: &Suppression| row.address.clone()),
                Column::new("REASON", |row: &Suppression| row.reason.clone()),
                Column::new("CLASS", |row: &Suppression| row.class.clone()),
                Column::new("TENANT", |row: &Suppression| row.tenant.clone()),
                Column::new("SINCE", |row: &Suppression| format!("{:.0}", row.created_at)),
                Column::new("UNTIL", |row: &Suppression| {
                    row.expires_at.map(|at| format!("{at:.0}")).unwrap_or_default()
                }),
                Column::new("DETAIL", |row: &Suppression| row.detail.clone().unwrap_or_default()),
            ];
            output.list("suppressions", &rows, next.as_deref(), &columns)
        }
        Suppressions::Add { address, tenant, class, length, mutation } => {
            let address = parse(&address)?;
            let act = act(&mutation)?;
            let document = json!({
                "address": address.normalised(), "tenant": tenant, "class": class,
                "for_seconds": length.map(|length| length.as_secs_f64()), "dry_run": mutation.dry_run,
            });
            if mutation.dry_run {
                return output.one(&document, |_| format!("would write to {address} no more\n"));
            }
            let object = address.to_string();
            confirm(&mutation, &Question { verb: "Write no more to", object: &object, count: None })?;
            trail::record(&pool, &act, "mail.suppress", &address.normalised(), document.clone()).await?;
            mail::suppress(&pool, &address, tenant.as_deref(), class, &act.why(), &act.actor, length)
                .await
                .map_err(|error| mail_failure(&error))?;
            output.one(&document, |_| format!("{address} is written to no more\n"))
        }
        Suppressions::Remove { address, mutation } => {
            let address = parse(&address)?;
            let act = act(&mutation)?;
            if mutation.dry_run {
                let document = json!({ "address": address.normalised(), "dry_run": true });
                return output.one(&document, |_| format!("would take {address} off the list\n"));
            }
            let object = address.to_string();
            confirm(&mutation, &Question { verb: "Write again to", object: &object, count: None })?;
            trail::record(&pool, &act, "mail.unsuppress", &address.normalised(), json!({})).await?;
            let removed = mail::unsuppress(&pool, &address).await.map_err(|error| mail_failure(&error))?;
            if removed == 0 {
                return Err(Failure::not_found(
                    "not_suppressed",
                    format!("{address} is not on the list"),
                    "See `mail suppressions list`.",
                ));
            }
            let document = json!({ "address": address.normalised(), "removed": removed });
            output.one(&document, |_| format!("{address} is written to again\n"))
        }
    }
}

fn subject(subject: &Subject) -> Option<(Scope, String)> {
    let Subject { provider, domain, tenant } = subject;
    provider
        .clone()
        .map(|name| (Scope::Provider, name))
        .or_else(|| domain.as_ref().map(|name| (Scope::Domain, name.to_lowercase())))
        .or_else(|| tenant.clone().map(|name| (Scope::Tenant, name)))
}

async fn pause(command: PauseMail, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let Some((scope, name)) = subject(&command.subject) else {
        let rows = mail::pauses(&pool).await.map_err(|error| mail_failure(&error))?;
        let columns = [
            Column::new("SCOPE", |row: &Pause| row.scope.clone()),
            Column::new("SUBJECT", |row: &Pause| row.subject.clone()),
            Column::new(
                "BY",
                |row: &Pause| {
                    if row.automatic { "itself".to_owned() } else { row.created_by.clone() }
                },
            ),
            Column::new("UNTIL", |row: &Pause| format!("{:.0}", row.until)),
            Column::new("REASON", |row: &Pause| row.reason.clone()),
        ];
        return output.list("pauses", &rows, None, &columns);
    };
    let Some(reason) = command.mutation.reason.clone() else {
        return Err(Failure::usage(
            "reason_needed",
            "a pause keeps mail from people and says why",
            "Pass --reason TEXT.",
        ));
    };
    let act = act(&command.mutation)?;
    let document = json!({
        "scope": scope, "subject": name, "for_seconds": command.length.as_secs_f64(), "dry_run": command.mutation.dry_run,
    });
    if command.mutation.dry_run {
        return output.one(&document, |_| format!("would pause {scope} {name}\n"));
    }
    let object = format!("mail of {scope} {name} for {}", human_duration(command.length));
    confirm(&command.mutation, &Question { verb: "Pause", object: &object, count: None })?;
    trail::record(&pool, &act, "mail.pause", &format!("{scope}:{name}"), document.clone()).await?;
    mail::pause(&pool, scope, &name, &reason, &act.actor, command.length)
        .await
        .map_err(|error| mail_failure(&error))?;
    output.one(&document, |_| format!("{scope} {name} is paused for {}\n", human_duration(command.length)))
}

async fn resume(
    wanted: &Subject,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let Some((scope, name)) = subject(wanted) else {
        return Err(Failure::usage(
            "subject_needed",
            "it is not said what to resume",
            "Pass --provider, --domain or --tenant; `mail pause` shows what is paused.",
        ));
    };
    let act = act(mutation)?;
    let pool = service.pool().await?;
    let paused = mail::pauses(&pool).await.map_err(|error| mail_failure(&error))?;
    if !paused.iter().any(|pause| pause.scope == scope.as_str() && pause.subject == name) {
        return Err(Failure::not_found(
            "not_paused",
            format!("{scope} {name} is not paused"),
            "`mail pause` shows what is.",
        ));
    }
    if mutation.dry_run {
        let document = json!({ "scope": scope, "subject": name, "dry_run": true });
        return output.one(&document, |_| format!("would resume {scope} {name}\n"));
    }
    let object = format!("mail of {scope} {name}");
    confirm(mutation, &Question { verb: "Resume", object: &object, count: None })?;
    trail::record(&pool, &act, "mail.resume", &format!("{scope}:{name}"), json!({})).await?;
    let resumed = mail::resume(&pool, scope, &name).await.map_err(|error| mail_failure(&error))?;
    let document = json!({ "scope": scope, "subject": name, "resumed": resumed });
    output.one(&document, |_| format!("{scope} {name} is resumed\n"))
}
