//! `webhook …`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_cli::{Column, Failure, Output, Question, confirm};
use voiceai_replay::{Candidate, Pace, Plan, Store};
use voiceai_webhook::deliveries::{self, AttemptRow, Cursor, Delivery, Filter};
use voiceai_webhook::endpoints::{self, Endpoint, NewEndpoint};

use super::{Service, act, stopping};
use crate::cli::{
    Endpoints, EndpointsCommand, ListDeliveries, OneEndpoint, ReplayWebhooks, SelectDeliveries, TestEndpoint,
    Webhook,
};
use crate::operate::queues::age;
use crate::operate::replay::Carried;
use crate::operate::trail;
use crate::operate::webhook::{self as operate, Wanted, webhook_failure};

pub(super) async fn run(command: Webhook, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        Webhook::Endpoints(Endpoints { command: None, tenant, page }) => {
            list_endpoints(tenant.as_deref(), page.limit, page.cursor.as_deref(), service, output).await
        }
        Webhook::Endpoints(Endpoints { command: Some(command), .. }) => {
            Box::pin(change(command, service, output)).await
        }
        Webhook::Deliveries(wanted) => match wanted.id {
            Some(id) => show(id, service, output).await,
            None => list(wanted, service, output).await,
        },
        Webhook::Test(command) => Box::pin(test(command, service, output)).await,
        Webhook::Replay(command) => Box::pin(replay(command, service, output)).await,
    }
}

fn wrong_cursor(expected: impl std::fmt::Display) -> Failure {
    Failure::usage("invalid_cursor", format!("--cursor: {expected}"), "Pass the `next` of the page before.")
}

/// Takes the row off that only says that there are more; the last row that stays is where they follow.
fn further<T>(rows: &mut Vec<T>, limit: u32) -> Option<&T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more)
}

/// What comes from tenants must not move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn list_endpoints(
    tenant: Option<&str>,
    limit: u32,
    cursor: Option<&str>,
    service: &Service,
    output: Output,
) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let after = cursor.map(str::parse::<Uuid>).transpose().map_err(wrong_cursor)?;
    let rows = endpoints::list(&pool, tenant, after, i64::from(limit) + 1).await;
    let mut rows = rows.map_err(|error| webhook_failure(&error))?;
    let next = further(&mut rows, limit).map(|row| row.id.to_string());
    let now = Timestamp::now();
    let columns = [
        Column::new("ID", |row: &Endpoint| row.id.to_string()),
        Column::new("TENANT", |row: &Endpoint| plain(&row.tenant)),
        Column::new("STATE", move |row: &Endpoint| match (&row.disabled_reason, row.is_open(now)) {
            (Some(reason), _) => format!("disabled: {}", plain(reason)),
            (None, true) => row.state.clone(),
            (None, false) => format!(
                "resting {}",
                row.resting_until.map(|at| format!("until {at:.0}")).unwrap_or_default()
            ),
        }),
        Column::new("FAILURES", |row: &Endpoint| row.failures.to_string()),
        Column::new("WAITING", |row: &Endpoint| row.waiting.to_string()),
        Column::new("DEAD", |row: &Endpoint| row.dead.to_string()),
        Column::new("EVENTS", |row: &Endpoint| row.events.join(",")),
        Column::new("URL", |row: &Endpoint| plain(&row.url)),
    ];
    output.list("endpoints", &rows, next.as_deref(), &columns)
}

async fn change(command: EndpointsCommand, service: &Service, output: Output) -> Result<(), Failure> {
    match command {
        EndpointsCommand::Add { tenant, url, events, description, concurrency, timeout, mutation } => {
            let guard = operate::guard(&service.settings);
            let new = NewEndpoint { tenant, url, events, description, concurrency, timeout, secret: None };
            endpoints::check(&new, &guard).map_err(|error| webhook_failure(&error))?;
            let act = act(&mutation)?;
            let details = json!({ "tenant": new.tenant, "url": new.url, "events": new.events });
            if mutation.dry_run {
                return output.one(&json!({ "dry_run": true, "endpoint": details }), |_| {
                    format!("would make an endpoint at {}\n", plain(&new.url))
                });
            }
            let object = format!("webhook endpoint {} of {}", plain(&new.url), plain(&new.tenant));
            confirm(&mutation, &Question { verb: "Make", object: &object, count: None })?;
            let pool = service.pool().await?;
            trail::record(&pool, &act, "webhook.endpoint_add", &new.url, details).await?;
            let made = endpoints::add(&pool, &new, &guard).await.map_err(|error| webhook_failure(&error))?;
            let (endpoint, secret) = made;
            let document = json!({ "endpoint": endpoint, "secret": secret.expose() });
            output.one(&document, |_| {
                format!("endpoint {}\nsecret   {} (shown this once)\n", endpoint.id, secret.expose())
            })
        }
        EndpointsCommand::Rotate(one) => {
            let Some(pool) = begin(&one, "Rotate the secret of", "webhook.rotate", service, output).await?
            else {
                return Ok(());
            };
            let grace = service.settings.webhook.secret_grace;
            let secret =
                endpoints::rotate(&pool, one.id, grace).await.map_err(|error| webhook_failure(&error))?;
            let document =
                json!({ "id": one.id, "secret": secret.expose(), "grace_seconds": grace.as_secs() });
            output.one(&document, |_| format!("secret   {} (shown this once)\n", secret.expose()))
        }
        EndpointsCommand::Enable(one) => {
            let Some(pool) = begin(&one, "Enable", "webhook.enable", service, output).await? else {
                return Ok(());
            };
            endpoints::enable(&pool, one.id).await.map_err(|error| webhook_failure(&error))?;
            output.one(&json!({ "id": one.id, "state": "active" }), |_| format!("{} is enabled\n", one.id))
        }
        EndpointsCommand::Disable(one) => {
            let reason = needed(&one)?;
            let Some(pool) = begin(&one, "Disable", "webhook.disable", service, output).await? else {
                return Ok(());
            };
            let by = act(&one.mutation)?.actor;
            let dead = endpoints::disable(&pool, one.id, &by, &reason).await;
            let dead = dead.map_err(|error| webhook_failure(&error))?;
            let document = json!({ "id": one.id, "state": "disabled", "dead": dead });
            output.one(&document, |_| format!("{} is disabled, {dead} deliveries died with it\n", one.id))
        }
        EndpointsCommand::Remove(one) => {
            needed(&one)?;
            let Some(pool) = begin(&one, "Remove", "webhook.remove", service, output).await? else {
                return Ok(());
            };
            endpoints::remove(&pool, one.id).await.map_err(|error| webhook_failure(&error))?;
            output.one(&json!({ "id": one.id, "removed": true }), |_| format!("{} is removed\n", one.id))
        }
    }
}

fn needed(one: &OneEndpoint) -> Result<String, Failure> {
    one.mutation.reason.clone().ok_or_else(|| {
        Failure::usage("reason_needed", "this keeps events from a tenant and says why", "Pass --reason TEXT.")
    })
}

/// Asks and writes the trail; `None` for a dry run.
async fn begin(
    one: &OneEndpoint,
    verb: &str,
    action: &str,
    service: &Service,
    output: Output,
) -> Result<Option<voiceai_postgres::PgPool>, Failure> {
    let act = act(&one.mutation)?;
    let pool = service.pool().await?;
    let endpoint = endpoints::get(&pool, one.id).await.map_err(|error| webhook_failure(&error))?;
    let object =
        format!("webhook endpoint {} of {} ({})", one.id, plain(&endpoint.tenant), plain(&endpoint.url));
    if one.mutation.dry_run {
        let document = json!({ "dry_run": true, "endpoint": endpoint });
        output.one(&document, |_| format!("would: {verb} {object}\n"))?;
        return Ok(None);
    }
    confirm(&one.mutation, &Question { verb, object: &object, count: None })?;
    let details = json!({ "tenant": endpoint.tenant, "url": endpoint.url });
    trail::record(&pool, &act, action, &one.id.to_string(), details).await?;
    Ok(Some(pool))
}

fn filter(select: &SelectDeliveries, state: Option<&str>) -> Filter {
    Filter {
        endpoint: select.endpoint,
        tenant: select.tenant.clone(),
        state: state.map(str::to_owned),
        event_type: select.event_type.clone(),
        since: select.since.map(|since| since.timestamp(Timestamp::now())),
        error_contains: select.error_contains.clone(),
    }
}

async fn list(wanted: ListDeliveries, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let limit = wanted.page.limit;
    let before = wanted.page.cursor.as_deref().map(str::parse::<Cursor>).transpose().map_err(wrong_cursor)?;
    let filter = filter(&wanted.select, wanted.state.map(crate::cli::DeliveryState::word));
    let rows = deliveries::list(&pool, &filter, before.as_ref(), limit + 1).await;
    let mut rows = rows.map_err(|error| webhook_failure(&error))?;
    let next = further(&mut rows, limit).map(|row| row.cursor().to_string());
    let now = Timestamp::now();
    let columns = [
        Column::new("ID", |row: &Delivery| row.id.to_string()),
        Column::new("STATE", |row: &Delivery| row.state.clone()),
        Column::new("AGE", move |row: &Delivery| age(row.created_at, now)),
        Column::new("TYPE", |row: &Delivery| row.event_type.clone()),
        Column::new("EVENT", |row: &Delivery| row.event_id.clone()),
        Column::new("ENDPOINT", |row: &Delivery| row.endpoint_id.to_string()),
        Column::new("ATTEMPTS", |row: &Delivery| row.attempts.to_string()),
        Column::new("LAST", |row: &Delivery| plain(row.last_error.as_deref().unwrap_or_default())),
    ];
    output.list("deliveries", &rows, next.as_deref(), &columns)
}

async fn show(id: Uuid, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let shown = deliveries::show(&pool, id).await.map_err(|error| webhook_failure(&error))?;
    let (delivery, attempts) = shown;
    let mut document = json!(delivery);
    document["attempt_rows"] = json!(attempts);
    output.one(&document, |_| shown_text(&delivery, &attempts))
}

fn shown_text(delivery: &Delivery, attempts: &[AttemptRow]) -> String {
    let mut text = format!(
        "delivery {}: {} {}\n  event     {} {}\n  endpoint  {}\n  tenant    {}\n",
        delivery.id,
        delivery.state,
        delivery.dead_reason.as_deref().unwrap_or_default(),
        delivery.event_type,
        delivery.event_id,
        delivery.endpoint_id,
        plain(&delivery.tenant)
    );
    if let Some(due) = delivery.due_at {
        let _ = writeln!(text, "  next      {due:.0}");
    }
    for attempt in attempts {
        let took = attempt.duration_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
        let said = attempt.error.as_deref().or(attempt.response.as_deref()).unwrap_or_default();
        let outcome = attempt.outcome.as_deref().unwrap_or("under way");
        let (no, at) = (attempt.attempt_no, attempt.started_at);
        let _ = writeln!(text, "  attempt {no} at {at:.0}: {outcome} {took} {}", plain(said));
    }
    text
}

async fn test(command: TestEndpoint, service: &Service, output: Output) -> Result<(), Failure> {
    let act = act(&command.mutation)?;
    let pool = service.pool().await?;
    let settings = &service.settings;
    let request = endpoints::probe(&pool, command.id, settings.webhook.timeout).await;
    let request = request.map_err(|error| webhook_failure(&error))?;
    let url = plain(request.url.as_str());
    if command.mutation.dry_run {
        let document = json!({ "dry_run": true, "id": command.id, "url": url });
        return output.one(&document, |_| format!("would post a probe to {url}\n"));
    }
    let object = format!("to {url}");
    confirm(&command.mutation, &Question { verb: "Post a probe", object: &object, count: None })?;
    trail::record(&pool, &act, "webhook.test", &command.id.to_string(), json!({ "resend": command.resend }))
        .await?;
    let started = Instant::now();
    let answered = operate::client(settings)?.post(&request).await;
    let took = started.elapsed();
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let (taken, mut document, line) = match &answered {
        Ok(answer) => (
            answer.is_taken(),
            json!({ "status": answer.status, "response": answer.text, "address": answer.address.to_string() }),
            format!("{} answered {} in {ms} ms\n", answer.address, answer.status),
        ),
        Err(failure) => (
            false,
            json!({ "error": chain(failure), "outcome": failure.word() }),
            format!("no answer in {ms} ms: {}\n", plain(&chain(failure))),
        ),
    };
    document["id"] = json!(command.id);
    document["taken"] = taken.into();
    document["duration_ms"] = ms.into();
    if !taken {
        output.one(&document, |_| line)?;
        return Err(Failure::failed(
            "probe_not_taken",
            format!("endpoint {} did not take the probe", command.id),
            "Let its owner mend it; then test again.",
        ));
    }
    if !command.resend {
        return output.one(&document, |_| line);
    }
    resend(&command, &pool, &act, document, output).await
}

/// The endpoint has just answered: its circuit is closed, and what is dead goes back under the rules of every replay.
async fn resend(
    command: &TestEndpoint,
    pool: &voiceai_postgres::PgPool,
    act: &crate::operate::Act,
    mut document: Value,
    output: Output,
) -> Result<(), Failure> {
    endpoints::enable(pool, command.id).await.map_err(|error| webhook_failure(&error))?;
    let wanted =
        Wanted { filter: Filter { endpoint: Some(command.id), ..Filter::default() }, ..Wanted::default() };
    let store = Store::new(pool.clone(), trail::SERVICE);
    let filter = wanted.normalised();
    operate::allow(pool, &store, &filter, command.limit).await?;
    let plan = operate::plan(pool, &wanted, command.limit).await?;
    if plan.would_replay == 0 {
        document["replayed"] = 0.into();
        return output.one(&document, |_| "the probe was taken; nothing is dead\n".to_owned());
    }
    let pace = pace(command.rate.0, Duration::from_secs(30));
    let orders = operate::Orders { filter: &filter, plan: &plan, limit: command.limit, pace };
    let carried = operate::execute(pool, &store, &orders, act, &stopping()?).await?;
    document["replay"] = json!(carried);
    output.one(&document, |_| carried_text(&carried))?;
    operate::judge(&carried).map_or(Ok(()), Err)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let _ = write!(text, ": {inner}");
        source = inner.source();
    }
    text
}

const fn pace(per_second: f64, follow: Duration) -> Pace {
    Pace { per_second, look_every: Duration::from_millis(250), follow }
}

async fn replay(command: ReplayWebhooks, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let store = Store::new(pool.clone(), trail::SERVICE);
    let pace = pace(command.rate.0, command.wait);
    let execute = command.execute && !command.mutation.dry_run;
    if let Some(id) = command.resume {
        if !execute {
            let carried = crate::operate::replay::shown(&store, id, "planned").await?;
            return output.one(&json!({ "executed": false, "replay": carried }), |_| carried_text(&carried));
        }
        let act = act(&command.mutation)?;
        let object = format!("replay {id}");
        confirm(&command.mutation, &Question { verb: "Go on with", object: &object, count: None })?;
        let carried = operate::resume(&pool, &store, id, pace, &act, &stopping()?).await?;
        return show_carried(&carried, None, output);
    }
    let wanted = Wanted {
        ids: command.ids.clone(),
        filter: filter(&command.select, None),
        since: command.select.since.map(crate::cli::When::normalised),
    };
    let filter = wanted.normalised();
    let plan = operate::plan(&pool, &wanted, command.limit).await?;
    let allowed = operate::allow(&pool, &store, &filter, command.limit).await;
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
    let object = format!("of {} dead deliveries matching {filter}", plan.matched);
    let question = Question { verb: "Replay", object: &object, count: Some(plan.would_replay) };
    confirm(&command.mutation, &question)?;
    let orders = operate::Orders { filter: &filter, plan: &plan, limit: command.limit, pace };
    let carried = operate::execute(&pool, &store, &orders, &act, &stopping()?).await?;
    show_carried(&carried, Some(&plan), output)
}

fn nothing_passes(plan: &Plan) -> Failure {
    let why: Vec<_> = plan.refused.iter().map(|(code, count)| format!("{count} {code}")).collect();
    Failure::refused(
        "nothing_to_replay",
        format!("none of the {} matching deliveries passes the checks: {}", plan.matched, why.join(", ")),
        "Run `webhook test ID`, and `webhook endpoints enable ID` once it is mended.",
    )
}

fn plan_text(plan: &Plan, filter: &str, limit: u32, output: Output) -> String {
    let text_of = |row: &Candidate, name: &str| plain(row.shown[name].as_str().unwrap_or_default());
    let columns = [
        Column::new("ID", |row: &Candidate| row.id.clone()),
        Column::new("TYPE", move |row: &Candidate| text_of(row, "event_type")),
        Column::new("DEAD SINCE", move |row: &Candidate| text_of(row, "ended_at")),
        Column::new("REASON", move |row: &Candidate| text_of(row, "dead_reason")),
        Column::new("LAST", move |row: &Candidate| text_of(row, "last_error")),
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

fn show_carried(carried: &Carried, plan: Option<&Plan>, output: Output) -> Result<(), Failure> {
    let mut document = json!(carried);
    document["executed"] = true.into();
    if let Some(plan) = plan {
        document["matched"] = plan.matched.into();
        document["passed"] = plan.passed.into();
        document["refused"] = json!(plan.refused);
    }
    output.one(&document, |_| carried_text(carried))?;
    operate::judge(carried).map_or(Ok(()), Err)
}

fn carried_text(carried: &Carried) -> String {
    let counts = &carried.replay.counts;
    let mut text = format!(
        "replay {} {}: {} deliveries, {} delivered, {} not ended yet, {} died again, {} skipped, {} gone, {} left alone\n",
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
        let detail = plain(item.detail.as_deref().unwrap_or_default());
        let _ = writeln!(text, "  {} {:?}: {detail}", item.id, item.state);
    }
    text
}
