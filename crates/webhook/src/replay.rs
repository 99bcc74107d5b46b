//! Dead deliveries as the source of a replay.

use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row};
use voiceai_replay::{Item, Outcome, Refusal, Release, Source};

use crate::endpoints::Endpoint;
use crate::error::WebhookError;

/// Where an item of a webhook replay lies.
pub const PLACE: &str = "webhook";

/// Why a dead delivery may not be sent back now: its endpoint would not get it. Pure.
#[must_use]
pub fn check_dead(endpoint: Option<&Endpoint>, now: Timestamp) -> Option<Refusal> {
    let Some(endpoint) = endpoint else {
        return Some(Refusal::new("target_gone", "its endpoint does not exist any more"));
    };
    if endpoint.state != "active" {
        let why = endpoint.disabled_reason.as_deref().unwrap_or("no reason given");
        return Some(Refusal::new(
            "endpoint_disabled",
            format!("endpoint {} is disabled ({why}); enable it first", endpoint.id),
        ));
    }
    let until = endpoint.resting_until.filter(|until| *until > now)?;
    Some(Refusal::new("circuit_open", format!("endpoint {} is left alone until {until:.0}", endpoint.id)))
}

/// Sends one dead delivery back, to the foot of the ladder. False: it is not dead any more.
///
/// # Errors
/// As the database says.
pub async fn release(pool: &PgPool, id: Uuid) -> Result<bool, WebhookError> {
    let tried = "send a dead webhook delivery back";
    let row = sqlx::query(
        "WITH back AS (DELETE FROM ops.webhook_ended d USING ops.webhook_endpoints e, ops.webhook_events v \
             WHERE d.id = $1 AND d.state = 'dead' AND e.id = d.endpoint_id AND e.state = 'active' AND v.seq = d.event_seq \
             RETURNING d.*, octet_length(v.body) AS bytes), \
         open AS (INSERT INTO ops.webhook_open (id, endpoint_id, event_seq, tenant, event_id, event_type, bytes, attempts, due_at, \
                 last_status, last_error, replays, created_at) \
             SELECT id, endpoint_id, event_seq, tenant, event_id, event_type, bytes, attempts, clock_timestamp(), \
                 last_status, last_error, replays + 1, created_at FROM back RETURNING id) \
         SELECT count(*), count(pg_notify('voiceai_webhook', '')) FROM open",
    )
    .bind(id)
    .fetch_one(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    row.try_get::<i64, _>(0).map(|count| count > 0).map_err(WebhookError::database(tried))
}

/// Replays what is dead.
#[derive(Debug)]
pub struct DeadReplay<'a>(pub &'a PgPool);

impl Source for DeadReplay<'_> {
    type Error = WebhookError;

    async fn release(&self, item: &Item) -> Result<Release, WebhookError> {
        let Ok(id) = item.id.parse() else {
            return Ok(Release::Skipped("its id is none of a delivery".to_owned()));
        };
        Ok(if release(self.0, id).await? { Release::Released } else { Release::NotGivenUp })
    }

    async fn outcomes(&self, items: &[Item]) -> Result<Vec<Outcome>, WebhookError> {
        let tried = "look what became of webhook deliveries";
        let ids: Vec<Uuid> = items.iter().filter_map(|item| item.id.parse().ok()).collect();
        let rows = sqlx::query(
            "SELECT id::text, state, COALESCE(last_error, dead_reason) FROM ops.webhook_deliveries WHERE id = ANY($1)",
        )
        .bind(&ids)
        .fetch_all(self.0)
        .await
        .map_err(WebhookError::database(tried))?;
        let mut found: HashMap<String, (String, Option<String>)> = HashMap::new();
        for row in &rows {
            let read =
                || -> Result<_, sqlx::Error> { Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?))) };
            let (id, state): (String, _) = read().map_err(WebhookError::database(tried))?;
            found.insert(id, state);
        }
        let outcome = |item: &Item| match found.get(&item.id) {
            None => Outcome::Gone("it is not kept any more".to_owned()),
            Some((state, error)) => match state.as_str() {
                "delivered" => Outcome::Completed,
                "dead" => Outcome::Died(error.clone().unwrap_or_default()),
                _ => Outcome::Open,
            },
        };
        Ok(items.iter().map(outcome).collect())
    }
}
