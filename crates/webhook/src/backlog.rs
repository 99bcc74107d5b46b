use std::time::Duration;

use serde::Serialize;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row};

use crate::error::WebhookError;

/// How webhooks stand as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Deliveries that are due, those of endpoints that rest or are disabled apart.
    pub due: u64,
    /// How long the oldest of them has been due, in seconds.
    pub oldest_seconds: u64,
    /// Deliveries that wait for their time, or for their endpoint.
    pub waiting: u64,
    /// Attempts under way.
    pub active: u64,
    /// Deliveries given up and not replayed.
    pub dead: u64,
    /// Endpoints that get events.
    pub endpoints: u64,
    /// Those of them that only failed of late and are left alone for a while: their circuit is open, or they asked for time.
    pub endpoints_resting: u64,
    /// Endpoints that are disabled.
    pub endpoints_disabled: u64,
    /// Those of them that were disabled by themselves, not by a person.
    pub endpoints_disabled_by_themselves: u64,
}

impl Backlog {
    /// How long the oldest has been due.
    #[must_use]
    pub const fn oldest(&self) -> Duration {
        Duration::from_secs(self.oldest_seconds)
    }
}

/// Looks how webhooks stand.
///
/// # Errors
/// As the database says.
pub async fn backlog(pool: &PgPool) -> Result<Backlog, WebhookError> {
    let tried = "count webhook deliveries";
    // Of the due ones the oldest is looked for at each endpoint, so that its index answers.
    let row = sqlx::query(
        "SELECT \
             (SELECT count(*) FROM ops.webhook_open d JOIN ops.webhook_endpoints e ON e.id = d.endpoint_id \
              WHERE d.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims) AND d.due_at <= now() AND e.state = 'active' \
                  AND (e.resting_until IS NULL OR e.resting_until <= now())), \
             (SELECT COALESCE(floor(max(extract(epoch FROM now() - o.due_at))), 0)::bigint FROM ops.webhook_endpoints e, LATERAL ( \
                  SELECT d.due_at FROM ops.webhook_open d WHERE d.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims) AND d.endpoint_id = e.id \
                  ORDER BY d.due_at LIMIT 1) o \
              WHERE e.state = 'active' AND (e.resting_until IS NULL OR e.resting_until <= now()) AND o.due_at <= now()), \
             (SELECT count(*) FROM ops.webhook_open d WHERE d.ticket NOT IN (SELECT unnest(tickets) FROM ops.webhook_claims)), \
             (SELECT count(*) FROM ops.webhook_open d WHERE d.ticket IN (SELECT unnest(tickets) FROM ops.webhook_claims)), \
             (SELECT count(*) FROM ops.webhook_ended WHERE state = 'dead'), \
             count(*) FILTER (WHERE state = 'active'), \
             count(*) FILTER (WHERE state = 'active' AND resting_until > now()), \
             count(*) FILTER (WHERE state = 'disabled'), \
             count(*) FILTER (WHERE state = 'disabled' AND disabled_by = 'itself') \
         FROM ops.webhook_endpoints",
    )
    .fetch_one(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let number = |at: usize| -> Result<u64, WebhookError> {
        let number: i64 = row.try_get(at).map_err(WebhookError::database(tried))?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    let all = Backlog {
        due: number(0)?,
        oldest_seconds: number(1)?,
        waiting: number(2)?,
        active: number(3)?,
        dead: number(4)?,
        endpoints: number(5)?,
        endpoints_resting: number(6)?,
        endpoints_disabled: number(7)?,
        endpoints_disabled_by_themselves: number(8)?,
    };
    Ok(Backlog { waiting: all.waiting.saturating_sub(all.due), ..all })
}
