//! What keeps mail back: `mail suppressions`, `mail pause` and `mail resume`.

use serde_json::json;
use voiceai_cli::{Column, Failure, Mutation, Output, Question, confirm, human_duration};
use voiceai_mail::Address;
use voiceai_mail::operate::{self as mail, PAUSE_LONGEST, Pause, Scope};
use voiceai_mail::suppression::{self, Entry, Reason, Suppression};

use super::super::{Service, act};
use super::{further, wrong_cursor};
use crate::cli::{PauseMail, Subject, Suppressions};
use crate::operate::mail::mail_failure;
use crate::operate::trail;

pub(super) async fn suppressions(
    command: Suppressions,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let parse = |text: &str| {
        Address::parse(text)
            .map_err(|error| Failure::usage("invalid_address", error.to_string(), "Correct the address."))
    };
    match command {
        Suppressions::List { address, page } => {
            let before = page.cursor.as_deref().map(str::parse).transpose().map_err(wrong_cursor)?;
            let rows =
                suppression::suppressions(&pool, address.as_deref(), before, i64::from(page.limit) + 1).await;
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
            let entry = Entry {
                address: &address.normalised(),
                tenant: tenant.as_deref(),
                class,
                reason: Reason::Operator,
                detail: &act.why(),
                origin: &act.actor,
                lasts: length,
            };
            suppression::record(&pool, &entry).await.map_err(|error| mail_failure(&error))?;
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
            let removed =
                suppression::unsuppress(&pool, &address).await.map_err(|error| mail_failure(&error))?;
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

/// What is named, as its rows name it; `None`: nothing.
fn subject(subject: &Subject) -> Result<Option<(Scope, String)>, Failure> {
    let Subject { provider, domain, tenant } = subject;
    let scopes = [(Scope::Provider, provider), (Scope::Domain, domain), (Scope::Tenant, tenant)];
    let Some((scope, given)) = scopes.into_iter().find_map(|(scope, given)| Some((scope, given.as_ref()?)))
    else {
        return Ok(None);
    };
    let named = scope.subject(given).map_err(|expected| {
        Failure::usage("invalid_subject", format!("--{scope}: {expected}"), "Correct the name.")
    })?;
    Ok(Some((scope, named)))
}

pub(super) async fn pause(command: PauseMail, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let Some((scope, name)) = subject(&command.subject)? else {
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
    if command.length.is_zero() || command.length > PAUSE_LONGEST {
        let longest = human_duration(PAUSE_LONGEST);
        return Err(Failure::usage(
            "invalid_pause",
            format!("--for: a pause lasts up to {longest}"),
            "Take the setting away for what is to rest for longer, such as EMAIL_TRANSPORT.",
        ));
    }
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

pub(super) async fn resume(
    wanted: &Subject,
    mutation: &Mutation,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let Some((scope, name)) = subject(wanted)? else {
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
