//! Exports: order, look, download, end. Known to the platform as `/exports`.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use voiceai_cli::Failure;
use voiceai_listener::axum::extract::State;
use voiceai_listener::axum::http::StatusCode;
use voiceai_listener::axum::http::header::LOCATION;
use voiceai_listener::axum::response::{IntoResponse as _, Response};
use voiceai_listener::axum::routing::get;
use voiceai_listener::axum::{Json, Router};
use voiceai_listener::{MaybeJson, Operator, Problem, StrictJson, StrictPath, StrictQuery};

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

/// The routes, under the platform's path and under that of this service's other routes.
pub fn routes(exports: Exports) -> Router {
    let routes = |prefix: &str| {
        Router::new()
            .route(prefix, get(list).post(create))
            .route(&format!("{prefix}/{{id}}"), get(show).delete(remove))
            .route(&format!("{prefix}/{{id}}/download"), get(download))
    };
    routes("/api/v1/exports").merge(routes("/exports")).with_state(Arc::new(exports))
}

/// What is ordered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordered {
    /// `devices`, `alerts`, `telemetry`, or `schema.table` out of `EXPORT_TABLES`.
    export_type: String,
    /// `csv`, `json`, `ndjson` or `parquet`.
    format: Option<String>,
    /// Only this tenant's rows.
    tenant_id: Option<String>,
    /// Which rows.
    filters: Option<Map<String, Value>>,
    /// Where the end is told.
    callback_url: Option<String>,
}

/// The answer to an order.
#[derive(Debug, Serialize)]
struct Accepted {
    export_id: Uuid,
    status: String,
    /// As the planner guesses.
    estimated_rows: u64,
}

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
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tenant_id: Option<String>,
    status: Option<String>,
    limit: Option<u32>,
    offset: Option<u32>,
    cursor: Option<String>,
}

/// An order as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    /// By the name that the answer to the order and the callback give it.
    export_id: Uuid,
    #[serde(flatten)]
    export: Export,
}

impl Shown {
    const fn of(export: Export) -> Self {
        Self { export_id: export.id, export }
    }
}

#[derive(Debug, Serialize)]
struct Page {
    /// Newest first.
    exports: Vec<Shown>,
    limit: u32,
    offset: u32,
    /// The cursor of the page after this one; null on the last.
    next: Option<String>,
}

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

async fn show(
    State(exports): State<Arc<Exports>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Json<Shown>, Problem> {
    exports.find(identified(&id)?).await.map(Shown::of).map(Json).map_err(problem)
}

/// Leads to the object.
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
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    /// For the audit trail, and the order's error.
    reason: Option<String>,
}

/// 200 with the order that was cancelled, 204 for one that is gone.
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
