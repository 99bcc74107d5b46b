//! Login codes: the session service's one call.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;
use voiceai_listener::{Problem, RequestId, StrictJson};

use super::{ProblemDocument, Rest, problems};
use crate::delivery::DeliveryStatus;
use crate::intake::{Accepted, Command, Content, Source};
use crate::operate;

/// The template of login codes.
const TEMPLATE: &str = "auth.login_code";

/// A login code to be sent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginCode {
    /// The reader's address.
    #[schema(example = "ada@example.com")]
    email: String,
    /// The code, as it is shown to the reader. Not kept once it was sent.
    #[schema(example = "482913")]
    code: String,
    /// The reader's language (BCP 47); the nearest one that there is is used.
    #[schema(example = "fr-FR")]
    locale: String,
}

/// What became of a login code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Durably accepted; sending has begun or is about to.
    Sent,
    /// Durably recorded and never to be sent, as with the transport `stub`. A success.
    Suppressed,
}

/// The answer, the same for every repetition of the request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoginCodeAnswer {
    /// What became of it.
    outcome: Outcome,
}

/// Accept a login code.
///
/// `sent` means durably accepted, not that the mail has arrived. The same key with the same content is answered the same and sends
/// nothing anew; with another content it is 409. Callers must not retry by themselves with a new key.
#[utoipa::path(
    post,
    path = "/login-code-deliveries",
    operation_id = "acceptLoginCodeDelivery",
    tag = "AuthIntegration",
    params(("Idempotency-Key" = String, Header, description = "The challenge's id, as it is: 1 to 256 bytes without blanks.")),
    request_body = LoginCode,
    responses(
        (status = 200, description = "Accepted, now or before", body = LoginCodeAnswer),
        (status = 400, description = "The request cannot be a mail", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "The key was used for another content", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 500, description = "The mail could not be made from its template", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn accept(
    State(rest): State<Arc<Rest>>,
    headers: HeaderMap,
    RequestId(request_id): RequestId,
    StrictJson(login): StrictJson<LoginCode>,
) -> Result<Json<LoginCodeAnswer>, Problem> {
    let command = command(required_key(&headers)?, request_id, login);
    let accepted = rest.intake.accept(command).await.map_err(|error| problems::accept(&error))?;
    outcome(&rest, &accepted).await.map(|outcome| Json(LoginCodeAnswer { outcome }))
}

/// The one `Idempotency-Key` of a request that needs one.
fn required_key(headers: &HeaderMap) -> Result<String, Problem> {
    super::login::key(headers)?.ok_or_else(|| {
        Problem::bad_request("missing_idempotency_key", "the request has no Idempotency-Key")
            .remedy("Send the challenge's id as Idempotency-Key.")
    })
}

/// The `Idempotency-Key` of a request.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let wrong = |detail| {
        Problem::bad_request("invalid_idempotency_key", detail)
            .remedy("Send one key of 1 to 256 visible ASCII characters.")
    };
    let mut all = headers.get_all("idempotency-key").iter();
    let Some(value) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(wrong("the request has more than one Idempotency-Key"));
    }
    let key = value.to_str().map_err(|_| wrong("Idempotency-Key is no text in ASCII"))?;
    Ok(Some(key.to_owned()))
}

fn command(idempotency_key: String, request_id: String, login: LoginCode) -> Command {
    let LoginCode { email, code, locale } = login;
    let variables: Map<String, Value> = [("code".to_owned(), Value::String(code))].into_iter().collect();
    Command {
        delivery_id: Uuid::now_v7().to_string(),
        source: Source::Authsession,
        idempotency_key,
        to: vec![email],
        cc: Vec::new(),
        bcc: Vec::new(),
        reply_to: Vec::new(),
        content: Content::Template { template_id: TEMPLATE.to_owned(), locale, variables },
        attachments: Vec::new(),
        tenant: None,
        priority: None,
        request_id: Some(request_id),
        trace_id: None,
        requested_at_ms: None,
    }
}

/// What the first answer was. A delivery that has ended since is told from one that ended by being accepted: the latter has both
/// times from the same clock reading.
async fn outcome(rest: &Rest, accepted: &Accepted) -> Result<Outcome, Problem> {
    let ended = matches!(accepted.status, DeliveryStatus::Suppressed | DeliveryStatus::Failed);
    let at_once = if ended && accepted.known {
        let shown = operate::show(rest.pool(), &accepted.delivery_id)
            .await
            .map_err(|error| problems::store(&error))?;
        shown.is_some_and(|delivery| delivery.row.finished_at == Some(delivery.row.created_at))
    } else {
        ended
    };
    match accepted.status {
        DeliveryStatus::Suppressed if at_once => Ok(Outcome::Suppressed),
        DeliveryStatus::Failed if at_once => Err(Problem::internal(
            "mail_not_made",
            format!("no mail could be made from the template {TEMPLATE}"),
        )
        .with("delivery_id", accepted.delivery_id.as_str())
        .remedy(format!("See `mail show {}` for what is wrong with it.", accepted.delivery_id))),
        _ => Ok(Outcome::Sent),
    }
}
