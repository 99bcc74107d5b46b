//! Tells whoever ordered an export that it has ended: one POST to the order's `callback_url`, tried again by a ladder of its own.
//!
//! The job is a row of the outbox, written with the order's end; the export is `COMPLETED` whatever comes of the call.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;
use uuid::Uuid;
use voiceai_postgres::{PgPool, sqlx};
use voiceai_queue::{Attempt, Job, JobError, Outcome};
use voiceai_webhook::{Answer, Client, Failure, GuardError, Keys, Request};

use super::rows::{self, Called, Export};

/// Longest text of an error that is kept.
const ERROR_MAX: usize = 500;

/// How callers of exports are called.
#[derive(Debug, Clone)]
pub struct Callbacks {
    /// What posts: the same guard against private addresses as of webhooks.
    pub client: Client,
    /// `EXPORT_CALLBACK_SECRET`: what calls are signed with; unsigned without.
    pub keys: Option<Keys>,
    /// `EXPORT_CALLBACK_TIMEOUT`.
    pub timeout: Duration,
    /// `EXPORT_CALLBACK_RETRY_LADDER`: waits before the first, second, … call.
    pub ladder: Vec<Duration>,
}

/// What calls work with.
#[derive(Debug, Clone)]
pub struct CallbackContext {
    /// The orders.
    pub pool: PgPool,
    /// How.
    pub callbacks: Callbacks,
}

/// Calls the address of one order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportCallback {
    /// The order.
    pub id: Uuid,
}

impl Job for ExportCallback {
    const KIND: &'static str = "export.callback";
    // Twice the longest call.
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
    type Context = CallbackContext;

    async fn run(&self, ctx: &CallbackContext, _attempt: &Attempt) -> Result<Outcome, JobError> {
        let Some(export) = rows::get(&ctx.pool, self.id).await? else { return Ok(Outcome::Done) };
        let Some(url) = export.callback_url.clone().filter(|_| is_wanted(&export)) else {
            return Ok(Outcome::Done);
        };
        // A call that had been given up begins anew: somebody replays it.
        let before =
            if export.callback_state.as_deref() == Some("failed") { 0 } else { export.callback_attempts };
        let attempts = before + 1;
        let wait = usize::try_from(attempts).ok().and_then(|next| ctx.callbacks.ladder.get(next).copied());
        let step = judge(&post(&ctx.callbacks, &export, &url).await, wait);
        write(&ctx.pool, self.id, attempts, &step).await?;
        match step {
            Step::Delivered => Ok(Outcome::DoneWith(json!({ "attempts": attempts }))),
            Step::Again { wait, error } => {
                tracing::warn!(export_id = %self.id, attempts, error, "the export's callback failed; it is called again");
                Ok(Outcome::Snooze(wait))
            }
            Step::GivenUp { error } => {
                tracing::error!(export_id = %self.id, attempts, error, "the export's callback is given up");
                Err(JobError::discard(format!("callback given up after {attempts} calls: {error}")))
            }
        }
    }
}

fn is_wanted(export: &Export) -> bool {
    let has_ended = export.status == "COMPLETED" || export.status == "FAILED";
    has_ended && export.callback_state.as_deref() != Some("delivered")
}

/// What follows a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Delivered,
    Again { wait: Duration, error: String },
    GivenUp { error: String },
}

/// What follows; `wait` is the ladder's next rung. Pure.
fn judge(called: &Result<Answer, Failure>, wait: Option<Duration>) -> Step {
    let (error, is_final) = match called {
        Ok(answer) if answer.is_taken() => return Step::Delivered,
        Ok(answer) => (format!("answered {}", answer.status), answer.status == 410),
        // An address that must not be called will not be one later; a name may have another address then.
        Err(failure @ Failure::Refused(GuardError::Url(_))) => (failure.to_string(), true),
        Err(failure) => (text(failure), false),
    };
    let error: String = error.chars().take(ERROR_MAX).collect();
    match wait.filter(|_| !is_final) {
        Some(wait) => Step::Again { wait, error },
        None => Step::GivenUp { error },
    }
}

fn text(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut source = std::error::Error::source(failure);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

async fn post(callbacks: &Callbacks, export: &Export, url: &str) -> Result<Answer, Failure> {
    let url = Url::parse(url).map_err(|_| Failure::Refused(GuardError::Url("cannot be read")))?;
    let request = Request {
        url,
        id: format!("export:{}", export.id),
        body: body(export).into(),
        keys: callbacks.keys.clone(),
        timeout: callbacks.timeout,
    };
    callbacks.client.post(&request).await
}

/// What is told: the same bytes in every call.
fn body(export: &Export) -> String {
    let mut body = json!({
        "export_id": export.id,
        "status": export.status,
        "row_count": export.row_count,
        "completed_at": export.completed_at,
    });
    if let Some(error) = &export.error {
        body["error"] = json!(error);
    }
    body.to_string()
}

async fn write(pool: &PgPool, id: Uuid, attempts: i32, step: &Step) -> Result<(), sqlx::Error> {
    let called = match step {
        Step::Delivered => Called { state: "delivered", attempts, error: None },
        Step::Again { error, .. } => Called { state: "waiting", attempts, error: Some(error) },
        Step::GivenUp { error } => Called { state: "failed", attempts, error: Some(error) },
    };
    rows::called(pool, id, &called).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Result<Answer, Failure> {
        let address = "127.0.0.1:80".parse().expect("an address");
        Ok(Answer { status, retry_after: None, text: String::new(), address })
    }

    #[test]
    fn only_a_2xx_is_taken_and_what_cannot_get_better_is_given_up() {
        let wait = Some(Duration::from_secs(10));
        assert_eq!(judge(&answer(204), None), Step::Delivered);
        for status in [302, 404, 500] {
            assert!(matches!(judge(&answer(status), wait), Step::Again { .. }), "{status}");
            assert!(matches!(judge(&answer(status), None), Step::GivenUp { .. }), "{status}");
        }
        assert!(matches!(judge(&answer(410), wait), Step::GivenUp { .. }));
        let refused = Err(Failure::Refused(GuardError::Url("names no host")));
        assert!(matches!(judge(&refused, wait), Step::GivenUp { .. }));
        let broken = Err(Failure::Broken("x".repeat(2_000)));
        let Step::Again { error, .. } = judge(&broken, wait) else { panic!("it is called again") };
        assert_eq!(error.len(), ERROR_MAX);
    }
}
