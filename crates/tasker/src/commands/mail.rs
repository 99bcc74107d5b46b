//! `mail …`

mod holds;
mod replay;

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm, human_duration};
use voiceai_mail::Wake;
use voiceai_mail::malformed::{self, Malformed};
use voiceai_mail::operate::{self as mail, AttemptRow, Cursor, Delivery, DeliveryRow, Filter};
use voiceai_mail::template::Template;

use super::{Service, act};
use crate::cli::{ListMail, Mail, Part, Preview};
use crate::operate::mail::{mail_failure, resend_failure};
use crate::operate::queues::age;
use crate::operate::trail;

pub(super) async fn run(command: Mail, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Mail::List(wanted) => list(wanted, service, output).await,
        Mail::Show { id } => show(&id, service, output).await,
        Mail::Resend { id, mutation } => resend(&id, &mutation, service, output).await,
        Mail::Replay(command) => replay::run(command, service, output).await,
        Mail::Preview(command) => preview(&command, service, output),
        Mail::Templates => templates(service, output),
        Mail::Malformed { page } => malformed(page.limit, page.cursor.as_deref(), service, output).await,
        Mail::Suppressions(command) => Box::pin(holds::suppressions(command, service, output)).await,
        Mail::Pause(command) => holds::pause(command, service, output).await,
        Mail::Resume { subject, mutation } => holds::resume(&subject, &mutation, service, output).await,
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
