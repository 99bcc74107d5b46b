//! Deliveries: list, show, send again; and the commands that became none.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use voiceai_listener::{MaybeJson, Operator, Problem, StrictPath, StrictQuery};

use super::{ProblemDocument, Rest, Why, login, next_of, page, problems, wrong_cursor};
use crate::delivery::DeliveryStatus;
use crate::intake::Source;
use crate::malformed::{self, Malformed};
use crate::operate::{self, AttemptRow, Cursor, Delivery, DeliveryRow, Filter};

/// Which deliveries; what is not given selects all.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Where they stand.
    status: Option<DeliveryStatus>,
    /// Who asked.
    source: Option<Source>,
    /// On whose behalf.
    tenant: Option<String>,
    /// From which template.
    template: Option<String>,
    /// To whom; without regard to case.
    recipient: Option<String>,
    /// Accepted since then (RFC 3339).
    since: Option<Timestamp>,
    /// Part of what was said last about any recipient.
    error_contains: Option<String>,
    /// Rows of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeliveryPage {
    /// Newest first: by `created_at_ms`, then by `delivery_id`, both descending.
    deliveries: Vec<DeliveryRow>,
    /// The cursor of the page after this one; null on the last.
    next: Option<String>,
}

/// List deliveries, newest first.
#[utoipa::path(
    get,
    path = "/deliveries",
    operation_id = "listDeliveries",
    tag = "OperatorIntegration",
    params(Wanted),
    responses(
        (status = 200, description = "A page", body = DeliveryPage),
        (status = 400, description = "A wrong parameter or cursor", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(rest): State<Arc<Rest>>,
    StrictQuery(wanted): StrictQuery<Wanted>,
) -> Result<Json<DeliveryPage>, Problem> {
    let Wanted { status, source, tenant, template, recipient, since, error_contains, limit, cursor } = wanted;
    let limit = page(limit)?;
    let after = cursor.map(|text| text.parse::<Cursor>().map_err(|_| wrong_cursor())).transpose()?;
    let filter = Filter { status, source, tenant, template, recipient, since, error_contains };
    let rows = operate::list(rest.pool(), &filter, after.as_ref(), limit + 1).await;
    let mut deliveries = rows.map_err(|error| problems::store(&error))?;
    let next = next_of(&mut deliveries, limit, |row| row.cursor().to_string());
    Ok(Json(DeliveryPage { deliveries, next }))
}

/// Show one delivery.
///
/// Its content is not shown. An id of any form that is not there is 404.
#[utoipa::path(
    get,
    path = "/deliveries/{delivery_id}",
    operation_id = "getDelivery",
    tag = "OperatorIntegration",
    params(("delivery_id" = String, Path, description = "The caller's id.")),
    responses(
        (status = 200, description = "The delivery with its recipients", body = Delivery),
        (status = 404, description = "There is none of this id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(rest): State<Arc<Rest>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Json<Delivery>, Problem> {
    found(&rest, &id).await.map(Json)
}

async fn found(rest: &Rest, id: &str) -> Result<Delivery, Problem> {
    let shown = operate::show(rest.pool(), id).await.map_err(|error| problems::store(&error))?;
    shown.ok_or_else(|| problems::no_delivery(id))
}

/// All attempts of a delivery.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Attempts {
    /// By recipient and number; the one that is to come included.
    attempts: Vec<AttemptRow>,
}

/// Show a delivery's attempts.
#[utoipa::path(
    get,
    path = "/deliveries/{delivery_id}/attempts",
    operation_id = "listAttempts",
    tag = "OperatorIntegration",
    params(("delivery_id" = String, Path, description = "The caller's id.")),
    responses(
        (status = 200, description = "Its attempts", body = Attempts),
        (status = 404, description = "There is no such delivery", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn attempts(
    State(rest): State<Arc<Rest>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Json<Attempts>, Problem> {
    found(&rest, &id).await?;
    let attempts = operate::attempts(rest.pool(), &id).await.map_err(|error| problems::store(&error))?;
    Ok(Json(Attempts { attempts }))
}

/// A delivery that repeats another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Resent {
    /// The new delivery.
    delivery_id: String,
    /// The one that it repeats, which is left as it is.
    resend_of: String,
    /// Where the new one stands.
    status: DeliveryStatus,
    /// True when the same key had made it before.
    known: bool,
}

/// Send a delivery again.
///
/// Makes a new delivery that names the old one, for those recipients that the old one did not reach, or for all when it reached all.
/// With an `Idempotency-Key` the same key makes one resend. Written to the audit trail.
#[utoipa::path(
    post,
    path = "/deliveries/{delivery_id}/resend",
    operation_id = "resendDelivery",
    tag = "OperatorIntegration",
    params(
        ("delivery_id" = String, Path, description = "The caller's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key makes one resend."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail."),
    ),
    request_body = Option<Why>,
    responses(
        (status = 200, description = "The new delivery", body = Resent),
        (status = 404, description = "There is no such delivery", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "Its content is not kept, or the key was used for another", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn resend(
    State(rest): State<Arc<Rest>>,
    StrictPath(id): StrictPath<String>,
    operator: Operator,
    headers: HeaderMap,
    MaybeJson(why): MaybeJson<Why>,
) -> Result<Json<Resent>, Problem> {
    let key = login::key(&headers)?;
    found(&rest, &id).await?;
    let details = json!({ "idempotency_key": key });
    rest.audit(&operator, "mail.resend", &id, why.reason.as_deref(), details).await?;
    let resent = operate::resend(&rest.intake, &id, key.as_deref()).await;
    let resent = resent.map_err(|error| problems::resend(&error))?;
    Ok(Json(Resent {
        delivery_id: resent.delivery_id,
        resend_of: id,
        status: resent.status,
        known: resent.known,
    }))
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedPage {
    /// Rows of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A page of rejected commands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MalformedPage {
    /// Newest first.
    commands: Vec<Malformed>,
    /// The cursor of the page after this one; null on the last.
    next: Option<String>,
}

/// List the commands of the stream that no delivery could be made of.
#[utoipa::path(
    get,
    path = "/malformed-commands",
    operation_id = "listMalformedCommands",
    tag = "OperatorIntegration",
    params(WantedPage),
    responses(
        (status = 200, description = "A page", body = MalformedPage),
        (status = 400, description = "A wrong parameter or cursor", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn malformed(
    State(rest): State<Arc<Rest>>,
    StrictQuery(WantedPage { limit, cursor }): StrictQuery<WantedPage>,
) -> Result<Json<MalformedPage>, Problem> {
    let limit = page(limit)?;
    let before = cursor.map(|text| text.parse::<i64>().map_err(|_| wrong_cursor())).transpose()?;
    let rows = malformed::list(rest.pool(), before, i64::from(limit) + 1).await;
    let mut commands = rows.map_err(|error| problems::store(&error))?;
    let next = next_of(&mut commands, limit, |row| row.id.to_string());
    Ok(Json(MalformedPage { commands, next }))
}
