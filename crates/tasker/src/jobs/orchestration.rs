//! The family of orchestration: jobs that call the platform's agents, and what keeps them in order.

use std::sync::Arc;

use voiceai_cli::Failure;
use voiceai_config::catalogue::orchestration::ORCHESTRATION_AGENTS_TOKEN;
use voiceai_orchestration::jobs::{
    ATTEMPT_TIMEOUT, Batch, Cleanup, GithubAnalysis, QUEUE, Retry, RetryFailed, SingleAgent,
};
use voiceai_orchestration::order::{Order, new_job_id};
use voiceai_orchestration::{Client, OrchestrationContext, Token};
use voiceai_postgres::PgPool;
use voiceai_queue::cron::Definition;
use voiceai_queue::{Job as _, Registry};
use voiceai_service::Secrets;

use super::registry::{Contexts, Kind};
use crate::settings::TaskerSettings;

/// Name of the schedule that looks for failed jobs.
pub const RETRY_SCHEDULE: &str = "orchestration-retry-failed";
/// Name of the schedule that deletes old rows.
pub const CLEANUP_SCHEDULE: &str = "orchestration-cleanup";

/// The kinds that call agents.
pub const ORDERS: [&str; 4] = [Batch::KIND, SingleAgent::KIND, GithubAnalysis::KIND, Retry::KIND];
/// The kinds that `ORCHESTRATION_AGENTS_URL` switches on.
pub const KINDS: [&str; 6] =
    [Batch::KIND, SingleAgent::KIND, GithubAnalysis::KIND, Retry::KIND, RetryFailed::KIND, Cleanup::KIND];

/// The kinds of the family: none where no address of agents is set.
#[must_use]
pub fn kinds(settings: &TaskerSettings) -> Vec<Kind> {
    if settings.orchestration.agents_url.is_none() {
        return Vec::new();
    }
    vec![
        Kind::of::<Batch>().with_ids(new_id),
        Kind::of::<SingleAgent>().with_ids(new_id),
        Kind::of::<GithubAnalysis>().with_ids(new_id),
        Kind::of::<Retry>().with_ids(new_id),
        Kind::of::<RetryFailed>(),
        Kind::of::<Cleanup>(),
    ]
}

/// The id of a new job, from its payload; `None` for a payload that no handler will take.
fn new_id(payload: &str) -> Option<String> {
    let order: Order = serde_json::from_str(payload).ok()?;
    Some(new_job_id(&order.project_id))
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, contexts: &Contexts) -> Registry {
    let Some(context) = &contexts.orchestration else { return registry };
    registry
        .register::<Batch>(context.clone())
        .register::<SingleAgent>(context.clone())
        .register::<GithubAnalysis>(context.clone())
        .register::<Retry>(context.clone())
        .register::<RetryFailed>(context.clone())
        .register::<Cleanup>(context.clone())
}

/// The hourly look for failed jobs, and the weekly end of old rows: enabled where there are agents.
#[must_use]
pub fn schedules(settings: &TaskerSettings) -> Vec<Definition> {
    let enabled = settings.orchestration.agents_url.is_some();
    let schedule = |name, queue: &str, kind, expression| Definition {
        queue: queue.to_owned(),
        enabled,
        ..Definition::new(name, kind, expression)
    };
    vec![
        schedule(RETRY_SCHEDULE, RetryFailed::QUEUE, RetryFailed::KIND, "30 * * * *"),
        schedule(CLEANUP_SCHEDULE, Cleanup::QUEUE, Cleanup::KIND, "0 8 * * 0"),
    ]
}

/// The token as the settings had it, for a command that ends soon.
#[must_use]
pub fn fixed_token(settings: &TaskerSettings) -> Token {
    let token = settings.orchestration.token.clone();
    Arc::new(move || token.clone())
}

/// The token of the moment: it may rotate while the service runs.
#[must_use]
pub fn rotating_token(secrets: Secrets) -> Token {
    Arc::new(move || secrets.current().get(&ORCHESTRATION_AGENTS_TOKEN))
}

/// What the family works with; `None` where no address of agents is set. The token is read anew for each call.
///
/// # Errors
/// Refused (4) when TLS cannot be set up.
pub fn context(
    settings: &TaskerSettings,
    pool: PgPool,
    token: Token,
) -> Result<Option<OrchestrationContext>, Failure> {
    let own = &settings.orchestration;
    let client = Client::new(own, &settings.egress, token).map_err(|error| {
        let remedy = "Look at the system's certificate authorities.";
        Failure::refused("orchestration_client", error.to_string(), remedy)
    })?;
    let limit = settings.pool(QUEUE).timeout.unwrap_or(ATTEMPT_TIMEOUT);
    let settings = Arc::new(own.clone());
    Ok(client.map(|client| OrchestrationContext { pool, client, settings, limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orchestration_job_is_named_after_its_project() {
        let id = new_id(r#"{"projectId":"acme"}"#).unwrap();
        let parts: Vec<_> = id.split('-').collect();
        assert_eq!((parts[0], parts[1], parts.len()), ("orch", "acme", 4), "{id}");
        assert!(parts[2].parse::<u64>().is_ok_and(|ms| ms > 1_700_000_000_000), "{id}");
        assert_eq!(new_id("[]"), None);
    }
}
