//! Errors of mail as problems.

use axum::http::StatusCode;
use voiceai_listener::Problem;

use crate::MailError;
use crate::error::chain;
use crate::intake::AcceptError;
use crate::operate::ResendError;

/// A store that failed.
pub(super) fn store(error: &MailError) -> Problem {
    if error.is_unavailable() || error.is_conflict() {
        return Problem::unavailable("postgres_unreachable", chain(error))
            .remedy("Ask again after Retry-After.");
    }
    if error.is_about_the_data() {
        return Problem::bad_request(
            "invalid_value",
            "a value of the request cannot be looked for or stored",
        )
        .remedy("Correct the value: text holds no NUL.");
    }
    tracing::error!(error = chain(error), "a request of mail failed");
    Problem::internal("internal_error", "the request failed").remedy("See the log for the same request_id.")
}

/// A command that became no delivery.
pub(super) fn accept(error: &AcceptError) -> Problem {
    match error {
        AcceptError::Rejected(rejected) => {
            Problem::bad_request(rejected.code, rejected.message.clone()).remedy("Correct the request.")
        }
        AcceptError::Conflict { delivery_id, .. } => {
            Problem::conflict("idempotency_conflict", error.to_string())
                .with("delivery_id", delivery_id.as_str())
                .remedy("Send another mail under another key.")
        }
        AcceptError::Store(error) => store(error),
    }
}

/// A delivery that was not sent again.
pub(super) fn resend(error: &ResendError) -> Problem {
    match error {
        ResendError::NotFound(id) => no_delivery(id),
        ResendError::NotKept { .. } => Problem::conflict("content_not_kept", error.to_string()),
        // What is kept was accepted once; it is the rules that have changed.
        ResendError::Accept(AcceptError::Rejected(rejected))
            if rejected.code != "invalid_idempotency_key" =>
        {
            Problem::conflict(rejected.code, rejected.message.clone())
        }
        ResendError::Accept(error) => accept(error),
        ResendError::Store(error) => store(error),
    }
}

/// There is no delivery of this id, whatever its form.
pub(super) fn no_delivery(id: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "delivery_not_found",
        format!("there is no delivery `{}`", id.escape_debug()),
    )
    .remedy("List deliveries to find its id.")
}
