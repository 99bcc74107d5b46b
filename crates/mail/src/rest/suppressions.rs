//! The list of those who must not be written to.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use voiceai_listener::{MaybeJson, Operator, Problem, StrictJson, StrictPath, StrictQuery};

use super::{ProblemDocument, Rest, Why, next_of, page, problems};
use crate::suppression::{self, Entry, Reason, Suppression};
use crate::{Address, Class};

/// Longest time for which an address is put on the list; without one it is for good.
const LONGEST: u64 = 10 * 365 * 24 * 60 * 60;
/// Longest name of a tenant.
const TENANT_LONGEST: usize = 64;

/// Which entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only those of this address, without regard to case.
    address: Option<String>,
    /// Rows of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A page of the list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SuppressionPage {
    /// Newest first; expired entries are left out.
    suppressions: Vec<Suppression>,
    /// The cursor of the page after this one; null on the last.
    next: Option<String>,
}

/// List those who must not be written to.
#[utoipa::path(
    get,
    path = "/suppressions",
    operation_id = "listSuppressions",
    tag = "OperatorIntegration",
    params(Wanted),
    responses(
        (status = 200, description = "A page", body = SuppressionPage),
        (status = 400, description = "A wrong parameter or cursor", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(rest): State<Arc<Rest>>,
    StrictQuery(Wanted { address, limit, cursor }): StrictQuery<Wanted>,
) -> Result<Json<SuppressionPage>, Problem> {
    let limit = page(limit)?;
    let before = cursor.map(|text| text.parse::<i64>().map_err(|_| super::wrong_cursor())).transpose()?;
    let rows = suppression::suppressions(rest.pool(), address.as_deref(), before, i64::from(limit) + 1).await;
    let mut suppressions = rows.map_err(|error| problems::store(&error))?;
    let next = next_of(&mut suppressions, limit, |row| row.id.to_string());
    Ok(Json(SuppressionPage { suppressions, next }))
}

/// An entry to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSuppression {
    /// Why; it stands in the list and in the audit trail.
    reason: String,
    /// Only for this tenant; absent: for all.
    tenant: Option<String>,
    /// Only for this class of mail; absent: for all.
    class: Option<Class>,
    /// For how long; absent: for good.
    #[schema(minimum = 1, maximum = 315_360_000)]
    for_seconds: Option<u64>,
}

fn address_of(text: &str) -> Result<Address, Problem> {
    Address::parse(text).map_err(|why| {
        Problem::bad_request("invalid_address", format!("the address: {why}"))
            .remedy("Name a bare address, such as ada@example.com.")
    })
}

/// Put an address on the list.
///
/// An entry for the same address, tenant and class is replaced. Written to the audit trail.
#[utoipa::path(
    put,
    path = "/suppressions/{address}",
    operation_id = "suppressAddress",
    tag = "OperatorIntegration",
    params(
        ("address" = String, Path, description = "A bare address."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail."),
    ),
    request_body = NewSuppression,
    responses(
        (status = 204, description = "On the list"),
        (status = 400, description = "A wrong address, reason, tenant or length", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn suppress(
    State(rest): State<Arc<Rest>>,
    StrictPath(address): StrictPath<String>,
    operator: Operator,
    StrictJson(entry): StrictJson<NewSuppression>,
) -> Result<StatusCode, Problem> {
    let address = address_of(&address)?;
    let NewSuppression { reason, tenant, class, for_seconds } = entry;
    let tenant_fits = tenant.as_ref().is_none_or(|tenant| (1..=TENANT_LONGEST).contains(&tenant.len()));
    let length_fits = for_seconds.is_none_or(|seconds| (1..=LONGEST).contains(&seconds));
    if reason.trim().is_empty() || !tenant_fits || !length_fits {
        let detail = format!(
            "an entry has a reason, a tenant of at most {TENANT_LONGEST} bytes, and for_seconds from 1 to {LONGEST}"
        );
        return Err(Problem::bad_request("invalid_suppression", detail).remedy("Correct the body."));
    }
    let details = json!({ "tenant": tenant, "class": class, "for_seconds": for_seconds });
    rest.audit(&operator, "mail.suppress", &address.normalised(), Some(&reason), details).await?;
    let done = suppression::record(
        rest.pool(),
        &Entry {
            address: &address.normalised(),
            tenant: tenant.as_deref(),
            class,
            reason: Reason::Operator,
            detail: &reason,
            origin: &operator.0,
            lasts: for_seconds.map(Duration::from_secs),
        },
    )
    .await;
    done.map_err(|error| problems::store(&error)).map(|()| StatusCode::NO_CONTENT)
}

/// Take an address off the list.
///
/// Every entry of it, whatever its tenant and class. Written to the audit trail.
#[utoipa::path(
    delete,
    path = "/suppressions/{address}",
    operation_id = "unsuppressAddress",
    tag = "OperatorIntegration",
    params(
        ("address" = String, Path, description = "A bare address."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail."),
    ),
    request_body = Option<Why>,
    responses(
        (status = 204, description = "Off the list"),
        (status = 404, description = "It was not on it", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn unsuppress(
    State(rest): State<Arc<Rest>>,
    StrictPath(address): StrictPath<String>,
    operator: Operator,
    MaybeJson(why): MaybeJson<Why>,
) -> Result<StatusCode, Problem> {
    let address = address_of(&address)?;
    rest.audit(&operator, "mail.unsuppress", &address.normalised(), why.reason.as_deref(), json!({})).await?;
    let removed =
        suppression::unsuppress(rest.pool(), &address).await.map_err(|error| problems::store(&error))?;
    if removed > 0 {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = "the address is on no list";
    Err(Problem::not_found("not_suppressed", detail).remedy("List the suppressions."))
}
