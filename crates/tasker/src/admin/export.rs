//! Exports: order, look, download, end. Known to the platform as `/exports`.
//!
//! Every route is documented where it is made; [`openapi`] gives the whole as an OpenAPI document, which is kept as
//! `docs/api/exports-openapi.json`.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::OpenApi as Document;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_listener::axum; // The macro `routes!` names it.
use voiceai_listener::axum::extract::State;
use voiceai_listener::axum::http::StatusCode;
use voiceai_listener::axum::http::header::LOCATION;
use voiceai_listener::axum::response::{IntoResponse as _, Response};
use voiceai_listener::axum::{Json, Router};
use voiceai_listener::{
    Bearer, MaybeJson, Operator, Problem, ProblemDocument, StrictJson, StrictPath, StrictQuery,
};

use super::reply::of_failure as problem;
use crate::jobs::export::{self, Export, Format, Order};
use crate::operate::exports::{Ended, Exports, is_expired};
use crate::operate::{Act, database_failure};

/// Rows of a page where none are asked for, and at most.
const PAGE: u32 = 20;
const PAGE_MAX: u32 = 100;
/// Furthest that a list may be entered by number; a cursor goes on from anywhere.
const OFFSET_MAX: u32 = 10_000;
/// The head of a download that says how many rows it has.
const ROW_COUNT: &str = "x-export-row-count";

/// Where they stand beside the platform's own path.
const PREFIX: &str = "/api/v1";

/// The routes, under the platform's path and under that of this service's other routes.
pub fn routes(exports: Exports) -> Router {
    let routes = router().split_for_parts().0;
    Router::new().nest(PREFIX, routes.clone()).merge(routes).with_state(Arc::new(exports))
}

/// The OpenAPI document of the routes.
#[must_use]
pub fn openapi() -> Document {
    router().split_for_parts().1
}

fn router() -> OpenApiRouter<Arc<Exports>> {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(list, create))
        .routes(routes!(show, remove))
        .routes(routes!(download))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "voiceai-tasker: exports",
        description = "For trusted services and operators, on the internal listener of voiceai-tasker. JSON only; unknown fields and \
                       trailing input are refused. Every error is application/problem+json (RFC 9457): compare `code`. \
                       503 carries Retry-After.",
        version = "1",
    ),
    servers(
        (url = "/", description = "As the platform's clients know it."),
        (url = "/api/v1", description = "Beside the other routes of the service."),
    ),
    tags((name = "Exports", description = "Rows of the platform's tables as files.")),
    modifiers(&Bearer),
    security(("bearer" = [])),
)]
struct Api;

/// What is ordered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ordered {
    /// `devices`, `alerts`, `telemetry`, or `schema.table` out of `EXPORT_TABLES`.
    export_type: String,
    /// `csv`, `json`, `ndjson` or `parquet`; absent: `csv`.
    #[schema(schema_with = export::formats, required = false)]
    format: Option<String>,
    /// Only this tenant's rows; absent: everybody's.
    tenant_id: Option<String>,
    /// Which rows: `status`, `site_ids`, `device_ids`, `alert_types`, each a text or a list, and `time_range`, a text.
    #[schema(value_type = Option<Object>)]
    filters: Option<Map<String, Value>>,
    /// Where the end is told: an https:// address of the public internet.
    callback_url: Option<String>,
}

/// The answer to an order.
#[derive(Debug, Serialize, ToSchema)]
struct Accepted {
    /// The order's id.
    #[schema(value_type = String, format = "uuid")]
    export_id: Uuid,
    #[schema(schema_with = export::states)]
    status: String,
    /// As the planner guesses.
    estimated_rows: u64,
}

/// Order an export.
///
/// The row is written and its job enqueued; the file is made in the background. Written to the audit trail.
#[utoipa::path(
    post,
    path = "/exports",
    operation_id = "orderExport",
    tag = "Exports",
    params(("X-Operator" = Option<String>, Header, description = "Who orders, for `created_by` and the audit trail.")),
    request_body = Ordered,
    responses(
        (status = 202, description = "Ordered", body = Accepted),
        (status = 400, description = "What cannot be meant: `export_order`, `callback_url`, `invalid_format`, `invalid_body`",
         body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Without the token", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "`no_bucket`: there is nowhere to put it", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn create(
    State(exports): State<Arc<Exports>>,
    Operator(actor): Operator,
    StrictJson(asked): StrictJson<Ordered>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let word = asked.format.unwrap_or_else(|| Format::Csv.word().to_owned());
    let format = Format::of(&word).ok_or_else(|| {
        Problem::bad_request("invalid_format", format!("the format is none of {}", Format::words()))
            .remedy("Correct `format`, or leave it out for csv.")
    })?;
    let order = Order {
        export_type: asked.export_type,
        format,
        tenant: asked.tenant_id,
        filters: Value::Object(asked.filters.unwrap_or_default()),
        created_by: actor.clone(),
        callback_url: asked.callback_url,
    };
    let estimated_rows = exports.check(&order).await.map_err(of_order)?;
    let made = exports.create(&order, &Act { actor, reason: None }).await.map_err(problem)?;
    let accepted = Accepted { export_id: made.id, status: made.status, estimated_rows };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Which orders.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Only this tenant's.
    tenant_id: Option<String>,
    /// Only those that stand there.
    #[param(schema_with = export::states, required = false)]
    status: Option<String>,
    /// Rows of a page, 1 to 100.
    #[param(default = 20, minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// Rows to leave out, at most 10,000; not beside a cursor.
    #[param(default = 0, minimum = 0, maximum = 10_000)]
    offset: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// An order as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ShownExport)]
struct Shown {
    /// By the name that the answer to the order and the callback give it.
    #[schema(value_type = String, format = "uuid")]
    export_id: Uuid,
    #[serde(flatten)]
    export: Export,
}

impl Shown {
    const fn of(export: Export) -> Self {
        Self { export_id: export.id, export }
    }
}

/// A page of orders.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExportPage)]
struct Page {
    /// Newest first.
    exports: Vec<Shown>,
    /// As asked for, or 20.
    limit: u32,
    /// As asked for, or 0.
    offset: u32,
    /// The cursor of the page after this one; null on the last.
    next: Option<String>,
}

/// List orders, newest first.
#[utoipa::path(
    get,
    path = "/exports",
    operation_id = "listExports",
    tag = "Exports",
    params(Wanted),
    responses(
        (status = 200, description = "A page", body = Page),
        (status = 400, description = "A wrong parameter or cursor", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Without the token", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn list(
    State(exports): State<Arc<Exports>>,
    StrictQuery(wanted): StrictQuery<Wanted>,
) -> Result<Json<Page>, Problem> {
    let limit = wanted.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(wrong("invalid_limit", format!("limit is not between 1 and {PAGE_MAX}"), "Correct it."));
    }
    let offset = wanted.offset.unwrap_or(0);
    if offset > OFFSET_MAX || (offset > 0 && wanted.cursor.is_some()) {
        let detail = format!("offset is above {OFFSET_MAX}, or beside a cursor");
        return Err(wrong("invalid_offset", detail, "Go on with `cursor` and the page's `next`."));
    }
    let after = wanted.cursor.as_deref().map(identified).transpose().map_err(|_| {
        wrong(
            "invalid_cursor",
            "cursor is no `next` of this list".to_owned(),
            "Take `next` of the page before.",
        )
    })?;
    if let Some(status) = &wanted.status
        && !export::STATES.contains(&status.as_str())
    {
        let detail = format!("status is none of {}", export::STATES.join(", "));
        return Err(wrong("invalid_status", detail, "Correct it."));
    }
    let filter = export::Filter { tenant: wanted.tenant_id, status: wanted.status, after, offset };
    let rows = export::list(&exports.pool, &filter, limit + 1).await;
    let mut rows = rows.map_err(|error| problem(database_failure(&error)))?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| has_more).map(|row| row.id.to_string());
    Ok(Json(Page { exports: rows.into_iter().map(Shown::of).collect(), limit, offset, next }))
}

/// Show an order.
#[utoipa::path(
    get,
    path = "/exports/{id}",
    operation_id = "getExport",
    tag = "Exports",
    params(("id" = String, Path, description = "`export_id` of the answer to the order.")),
    responses(
        (status = 200, description = "The order as it stands", body = Shown),
        (status = 400, description = "That is no id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Without the token", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is none of this id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn show(
    State(exports): State<Arc<Exports>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Json<Shown>, Problem> {
    exports.find(identified(&id)?).await.map(Shown::of).map(Json).map_err(problem)
}

/// Lead to the file.
///
/// The link is good for EXPORT_LINK_TTL, for anybody who has it, without the token. It leads to S3_PUBLIC_ENDPOINT where one is set.
#[utoipa::path(
    get,
    path = "/exports/{id}/download",
    operation_id = "downloadExport",
    tag = "Exports",
    params(("id" = String, Path, description = "`export_id` of the answer to the order.")),
    responses(
        (status = 307, description = "There it is", headers(
            ("Location" = String, description = "The signed link."),
            ("X-Export-Row-Count" = u64, description = "Rows in the file."),
        )),
        (status = 400, description = "That is no id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Without the token", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is none of this id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "`export_not_ready`: ask again once it is COMPLETED", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 410, description = "`export_gone`: there is no file (any more)", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL or the store is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn download(
    State(exports): State<Arc<Exports>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Response, Problem> {
    let export = exports.find(identified(&id)?).await.map_err(problem)?;
    if matches!(export.status.as_str(), "PENDING" | "PROCESSING") {
        let detail = format!("export {id} is {}", export.status);
        return Err(Problem::conflict("export_not_ready", detail).remedy("Ask again once it is COMPLETED."));
    }
    let gone =
        |why: String| Problem::new(StatusCode::GONE, "export_gone", why).remedy("Order the export again.");
    if export.status != "COMPLETED" {
        let why = export.error.as_deref().unwrap_or("it failed");
        return Err(gone(format!("export {id} has no file: {why}")));
    }
    let away = |failure: Failure| Problem::unavailable(failure.code, failure.message).remedy(failure.remedy);
    if is_expired(&export, Timestamp::now()) || !exports.is_there(&export).await.map_err(away)? {
        return Err(gone(format!("the file of export {id} is no longer there")));
    }
    let link = exports.link(&export).await.map_err(away)?;
    let link = link.ok_or_else(|| gone(format!("export {id} has no file")))?;
    let rows = export.row_count.unwrap_or(0).to_string();
    let heads = [(LOCATION.as_str(), link), (ROW_COUNT, rows), ("cache-control", "no-store".to_owned())];
    Ok((StatusCode::TEMPORARY_REDIRECT, heads).into_response())
}

/// What the end of an order may say about itself.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// For the audit trail, and the order's error.
    reason: Option<String>,
}

/// End an order, or remove what has ended.
///
/// Whoever works on one that is open stops within seconds. Written to the audit trail.
#[utoipa::path(
    delete,
    path = "/exports/{id}",
    operation_id = "endExport",
    tag = "Exports",
    params(
        ("id" = String, Path, description = "`export_id` of the answer to the order."),
        ("X-Operator" = Option<String>, Header, description = "Who asks, for the audit trail and the order's error."),
    ),
    request_body = Option<Why>,
    responses(
        (status = 200, description = "It was open and is cancelled", body = Shown),
        (status = 204, description = "It had ended: its file and its row are gone"),
        (status = 400, description = "That is no id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "Without the token", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "There is none of this id", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "`no_bucket`: its file cannot be reached", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "PostgreSQL or the store is away", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
async fn remove(
    State(exports): State<Arc<Exports>>,
    StrictPath(id): StrictPath<String>,
    Operator(actor): Operator,
    MaybeJson(Why { reason }): MaybeJson<Why>,
) -> Result<Response, Problem> {
    match exports.remove(identified(&id)?, &Act { actor, reason }).await.map_err(problem)? {
        Ended::Cancelled(export) => Ok(Json(Shown::of(*export)).into_response()),
        Ended::Removed => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn identified(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| {
        wrong(
            "invalid_export_id",
            "that is no id of an export".to_owned(),
            "Take `export_id` of the answer to the order.",
        )
    })
}

fn wrong(code: &str, detail: String, remedy: &str) -> Problem {
    Problem::bad_request(code, detail).remedy(remedy)
}

/// An order that cannot be meant is the request's own fault.
fn of_order(failure: Failure) -> Problem {
    match failure.code {
        "export_order" | "callback_url" => wrong(failure.code, failure.message, &failure.remedy),
        _ => problem(failure),
    }
}
