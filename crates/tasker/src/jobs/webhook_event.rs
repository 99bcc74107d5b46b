//! `webhook.event`: tells a tenant's endpoints of an event. The job ends when the event's row is committed; from there on each delivery
//! has its own attempts, so that nothing is retried twice.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, Job, JobError, Outcome};
use voiceai_webhook::{NewEvent, emit_within};

/// How long a job waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);

/// What the handler works with.
#[derive(Clone, Debug)]
pub struct WebhookContext {
    /// Where events are written.
    pub pool: PgPool,
    /// `WEBHOOK_EVENT_BYTES_MAX`.
    pub bytes_max: usize,
}

/// An event of a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookEvent {
    /// Whose; else the job's tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Its type, such as `call.ended`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The same id is the same event; else the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the receiver is to know.
    pub data: Value,
}

impl Job for WebhookEvent {
    const KIND: &'static str = "webhook.event";
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = WebhookContext;

    async fn run(&self, context: &WebhookContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let job = attempt.id().to_string();
        let event = NewEvent {
            tenant: self.tenant.as_deref().unwrap_or_else(|| attempt.tenant()),
            event_type: &self.event_type,
            id: self.id.as_deref().unwrap_or(&job),
            data: &self.data,
            at: attempt.enqueued_at(),
        };
        match emit_within(&context.pool, &event, context.bytes_max).await {
            Ok(emitted) => Ok(Outcome::DoneWith(json!(emitted))),
            Err(error) if error.is_about_the_data() => Err(JobError::discard(error)),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, "a webhook event waits for PostgreSQL");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(error) => Err(JobError::retry(error)),
        }
    }
}
