//! Webhooks as operators meet them: what failures mean, and the replay of dead deliveries.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_postgres::PgPool;
use voiceai_replay::rule;
use voiceai_replay::{Begin, Candidate, Counts, Filter, Pace, Plan, Refusal, RunError, Stopped, Store};
use voiceai_webhook::replay::{DeadReplay, PLACE, check_dead};
use voiceai_webhook::{Client, Guard, SystemResolver, WebhookError, deliveries, endpoints};

use super::replay::{Carried, limit_failure, replay_failure, runner, shown, version};
use super::{Act, database_failure};
use crate::settings::TaskerSettings;

/// What is replayed, in the rows and the audit trail.
const SUBJECT: &str = "webhooks";
/// Most dead deliveries that are looked at in one plan. Those beyond it still count as matching.
const LOOK_MAX: u32 = 10_000;

/// What a failed call means to an operator.
#[must_use]
pub fn webhook_failure(error: &WebhookError) -> Failure {
    let text = error.to_string();
    match error {
        WebhookError::Database { tried, source } => {
            let failure = database_failure(source);
            Failure { message: format!("{tried}: {}", failure.message), ..failure }
        }
        WebhookError::Invalid { .. } => Failure::refused(
            "invalid_value",
            text,
            "Correct what is named; for development see WEBHOOK_ALLOW_NETWORKS and WEBHOOK_ALLOW_HTTP.",
        ),
        WebhookError::NoEndpoint(_) => {
            Failure::not_found("endpoint_not_found", text, "Look with `webhook endpoints`.")
        }
        WebhookError::NoDelivery(_) => {
            Failure::not_found("delivery_not_found", text, "Look with `webhook deliveries`.")
        }
    }
}

/// Which addresses may be posted to.
#[must_use]
pub fn guard(settings: &TaskerSettings) -> Guard {
    Guard::new(settings.webhook.allowed.clone(), Arc::new(SystemResolver))
}

/// What posts.
///
/// # Errors
/// Refused (4) when TLS cannot be set up.
pub fn client(settings: &TaskerSettings) -> Result<Client, Failure> {
    Client::new(&settings.webhook, guard(settings), settings.egress.clone()).map_err(|error| {
        Failure::refused(
            "webhook_tls",
            format!("set TLS up for webhooks: {error}"),
            "Install ca-certificates.",
        )
    })
}

/// Which dead deliveries.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// These; none: all that the filter selects.
    pub ids: Vec<Uuid>,
    /// The rest of the selection.
    pub filter: deliveries::Filter,
    /// The form of `since` that a proof is compared by.
    pub since: Option<String>,
}

impl Wanted {
    /// In the form that a replay's proof is compared by.
    #[must_use]
    pub fn normalised(&self) -> Filter {
        Filter::new()
            .with_any("id", self.ids.iter().map(Uuid::to_string))
            .with("endpoint", self.filter.endpoint.map(|id| id.to_string()))
            .with("tenant", self.filter.tenant.clone())
            .with("type", self.filter.event_type.clone())
            .with("error_contains", self.filter.error_contains.clone())
            .with("since", self.since.clone())
    }
}

/// The dead deliveries that are wanted, checked. Changes nothing.
///
/// # Errors
/// Not found (3) when ids were given and none is dead; else as the database says.
pub async fn plan(pool: &PgPool, wanted: &Wanted, limit: u32) -> Result<Plan, Failure> {
    let found = deliveries::dead(pool, &wanted.filter, &wanted.ids, LOOK_MAX).await;
    let (dead, matched) = found.map_err(|error| webhook_failure(&error))?;
    if dead.is_empty() && !wanted.ids.is_empty() {
        return Err(Failure::not_found(
            "dead_delivery_not_found",
            "none of these ids is a dead delivery".to_owned(),
            "Look with `webhook deliveries --state dead`; one that is still tried is left alone.",
        ));
    }
    let now = Timestamp::now();
    let mut known = HashMap::new();
    for delivery in &dead {
        if let std::collections::hash_map::Entry::Vacant(place) = known.entry(delivery.endpoint_id) {
            let endpoint = match endpoints::get(pool, delivery.endpoint_id).await {
                Ok(endpoint) => Some(endpoint),
                Err(WebhookError::NoEndpoint(_)) => None,
                Err(error) => return Err(webhook_failure(&error)),
            };
            place.insert(check_dead(endpoint.as_ref(), now));
        }
    }
    let mut candidates: Vec<Candidate> = dead
        .iter()
        .map(|delivery| {
            candidate(delivery.id, json!(delivery), known.get(&delivery.endpoint_id).cloned().flatten())
        })
        .collect();
    let missing = wanted.ids.iter().filter(|id| !dead.iter().any(|delivery| delivery.id == **id));
    candidates.extend(missing.map(|id| {
        let why = "it is not dead: what is still tried is left alone";
        candidate(*id, json!({}), Some(Refusal::new("not_dead", why)))
    }));
    Ok(Plan::of(candidates, matched, usize::try_from(limit).unwrap_or(usize::MAX)))
}

fn candidate(id: Uuid, mut shown: serde_json::Value, refused: Option<Refusal>) -> Candidate {
    // The candidate names it itself.
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("id");
    }
    Candidate { place: PLACE.to_owned(), id: id.to_string(), content: None, shown, refused }
}

/// Whether so many may be replayed now. Earlier small batches that have ended meanwhile are counted first.
///
/// # Errors
/// Refused (4), saying which proof is missing; else as the database says.
pub async fn allow(pool: &PgPool, store: &Store, filter: &Filter, limit: u32) -> Result<(), Failure> {
    if limit > rule::PROOF_MAX {
        let open = store.unsettled_proofs(SUBJECT, filter, &version()).await;
        let once = Pace { per_second: 1.0, look_every: Duration::ZERO, follow: Duration::ZERO };
        for id in open.map_err(|error| replay_failure(&error))? {
            carry_out(pool, store, id, once, &CancellationToken::new()).await?;
        }
    }
    let proof = store.proof(SUBJECT, filter, &version()).await.map_err(|error| replay_failure(&error))?;
    rule::judge_limit(limit, proof).map_err(|refused| limit_failure(&refused))
}

/// What a replay is begun with.
#[derive(Debug)]
pub struct Orders<'a> {
    /// What was selected.
    pub filter: &'a Filter,
    /// What was found.
    pub plan: &'a Plan,
    /// Most deliveries.
    pub limit: u32,
    /// How fast, and how long its end is waited for.
    pub pace: Pace,
}

/// Writes the replay down and carries it out.
///
/// # Errors
/// As the database says; what was done by then is written down, and the failure names the replay to go on with.
pub async fn execute(
    pool: &PgPool,
    store: &Store,
    orders: &Orders<'_>,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let begin = Begin {
        subject: SUBJECT,
        filter: orders.filter,
        version: &version(),
        actor: &act.actor,
        reason: &act.why(),
        limit: orders.limit,
        per_second: orders.pace.per_second,
        plan: orders.plan,
    };
    let id = store.begin(&begin).await.map_err(|error| replay_failure(&error))?;
    carry_out(pool, store, id, orders.pace, stop).await
}

/// Goes on with a replay that stopped or was interrupted.
///
/// # Errors
/// Not found (3); refused (4) while somebody else carries it out; else as [`execute`].
pub async fn resume(
    pool: &PgPool,
    store: &Store,
    id: Uuid,
    pace: Pace,
    act: &Act,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let replay = store.go_on(id, &act.actor, act.reason.as_deref()).await;
    let replay = replay.map_err(|error| replay_failure(&error))?;
    carry_out(pool, store, id, Pace { per_second: replay.per_second, ..pace }, stop).await
}

async fn carry_out(
    pool: &PgPool,
    store: &Store,
    id: Uuid,
    pace: Pace,
    stop: &CancellationToken,
) -> Result<Carried, Failure> {
    let ended = voiceai_replay::run(store, &DeadReplay(pool), id, &runner(), pace, stop).await;
    let ended = match ended.map_err(|error| run_failure(id, &error))? {
        Stopped::Settled => "settled",
        Stopped::Released => "released",
        Stopped::TooManyDeaths(_) => "stopped",
        Stopped::Interrupted => "interrupted",
    };
    shown(store, id, ended).await
}

fn run_failure(id: Uuid, error: &RunError<WebhookError>) -> Failure {
    let failure = match error {
        RunError::Store(error) => replay_failure(error),
        RunError::Source(error) => webhook_failure(error),
    };
    let message = format!("replay {id}: {}", failure.message);
    let remedy = format!("{} Then go on with `webhook replay --resume {id} --execute`.", failure.remedy);
    Failure { message, remedy, ..failure }
}

/// The exit code of a replay that was carried out: all well (`None`), or partly done (6) with how to go on.
#[must_use]
pub fn judge(carried: &Carried) -> Option<Failure> {
    let Carried { replay, ended, .. } = carried;
    let Counts { items, pending, died, skipped, .. } = replay.counts;
    let go_on = format!("Look at the deaths, then run `webhook replay --resume {} --execute`.", replay.id);
    match *ended {
        "stopped" => {
            let why = replay.stop_reason.clone().unwrap_or_default();
            let message = format!("the replay stopped: {why}; {pending} of {items} were left alone");
            Some(Failure::partial("replay_stopped", message, go_on))
        }
        "interrupted" => {
            let message = format!("the replay was interrupted; {pending} of {items} were left alone");
            Some(Failure::partial("replay_interrupted", message, go_on))
        }
        _ if died + skipped > 0 => {
            let message =
                format!("of {items} replayed deliveries {died} died again and {skipped} were skipped");
            Some(Failure::partial("replay_partial", message, "Look with `webhook deliveries ID`."))
        }
        _ => None,
    }
}
