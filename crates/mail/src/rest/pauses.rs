//! Pauses: of a provider, a domain, a tenant.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use voiceai_listener::{MaybeJson, Operator, Problem, StrictJson, StrictPath};

use super::{ProblemDocument, Rest, Why, problems};
use crate::operate::{self, PAUSE_LONGEST, Pause, Scope};

/// All pauses that are not over.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pauses {
    /// The latest first.
    pauses: Vec<Pause>,
    /// Always null: the list is whole.
    next: Option<String>,
}

/// List the pauses, automatic ones too.
#[utoipa::path(
    get,
    path = "/pauses",
    operation_id = "listPauses",
    tag = "OperatorIntegration",
    responses(
        (status = 200, description = "All that are not over", body = Pauses),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Result<Json<Pauses>, Problem> {
    let pauses = operate::pauses(rest.pool()).await.map_err(|error| problems::store(&error))?;
    Ok(Json(Pauses { pauses, next: None }))
}

/// A pause to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPause {
    /// Why; it stands in the list and in the audit trail.
    reason: String,
    /// For how long, 1 second to 30 days. It ends by itself.
    #[schema(minimum = 1, maximum = 2_592_000)]
    for_seconds: u64,
}

fn subject_of(scope: &str, subject: &str) -> Result<(Scope, String), Problem> {
    let scope: Scope = scope.parse().map_err(|expected| {
        Problem::not_found("scope_not_found", format!("the scope of a pause: {expected}"))
    })?;
    let subject = scope.subject(subject).map_err(|expected| {
        Problem::bad_request("invalid_subject", expected).remedy("Correct what the path names.")
    })?;
    Ok((scope, subject))
}

/// Pause a provider, a domain or a tenant.
///
/// Mail is still accepted and waits. A pause that a person made before is replaced. Written to the audit trail.
#[utoipa::path(
    put,
    path = "/pauses/{scope}/{subject}",
    operation_id = "pauseMail",
    tag = "OperatorIntegration",
    params(
        ("scope" = Scope, Path, description = "`provider`, `domain` or `tenant`."),
        ("subject" = String, Path, description = "`smtp` or `ses`; a domain; a tenant."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail."),
    ),
    request_body = NewPause,
    responses(
        (status = 204, description = "Paused"),
        (status = 400, description = "A wrong subject, reason or length", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn pause(
    State(rest): State<Arc<Rest>>,
    StrictPath((scope, subject)): StrictPath<(String, String)>,
    operator: Operator,
    StrictJson(NewPause { reason, for_seconds }): StrictJson<NewPause>,
) -> Result<StatusCode, Problem> {
    let (scope, subject) = subject_of(&scope, &subject)?;
    let longest = PAUSE_LONGEST.as_secs();
    if reason.trim().is_empty() || !(1..=longest).contains(&for_seconds) {
        let detail = format!("a pause has a reason, and for_seconds from 1 to {longest}");
        return Err(Problem::bad_request("invalid_pause", detail).remedy("Correct the body."));
    }
    let named = format!("{scope}:{subject}");
    rest.audit(&operator, "mail.pause", &named, Some(&reason), json!({ "for_seconds": for_seconds })).await?;
    let length = Duration::from_secs(for_seconds);
    let paused = operate::pause(rest.pool(), scope, &subject, &reason, &operator.0, length).await;
    paused.map_err(|error| problems::store(&error)).map(|()| StatusCode::NO_CONTENT)
}

/// End the pauses of a provider, a domain or a tenant.
///
/// Automatic ones too; what they kept is sent at once. Written to the audit trail.
#[utoipa::path(
    delete,
    path = "/pauses/{scope}/{subject}",
    operation_id = "resumeMail",
    tag = "OperatorIntegration",
    params(
        ("scope" = Scope, Path, description = "`provider`, `domain` or `tenant`."),
        ("subject" = String, Path, description = "`smtp` or `ses`; a domain; a tenant."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail."),
    ),
    request_body = Option<Why>,
    responses(
        (status = 204, description = "Nothing is paused any more"),
        (status = 404, description = "Nothing was paused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn resume(
    State(rest): State<Arc<Rest>>,
    StrictPath((scope, subject)): StrictPath<(String, String)>,
    operator: Operator,
    MaybeJson(why): MaybeJson<Why>,
) -> Result<StatusCode, Problem> {
    let (scope, subject) = subject_of(&scope, &subject)?;
    let named = format!("{scope}:{subject}");
    rest.audit(&operator, "mail.resume", &named, why.reason.as_deref(), json!({})).await?;
    let resumed =
        operate::resume(rest.pool(), scope, &subject).await.map_err(|error| problems::store(&error))?;
    if resumed {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found("pause_not_found", format!("{named} is not paused"))
            .remedy("List the pauses."))
    }
}
