//! The internal REST of mail, as routes of the internal listener: intake of login codes, and what operators see and do.
//!
//! Every route is documented where it is made; [`openapi`] gives the whole as an OpenAPI document, which is kept as
//! `docs/api/mail-openapi.json`.

mod deliveries;
mod login;
mod pauses;
mod problems;
mod suppressions;
mod templates;

use std::sync::Arc;

use axum::Router;
use serde::Deserialize;
use serde_json::Value;
use utoipa::openapi::OpenApi as Document;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use voiceai_listener::{Bearer, Operator, Problem, ProblemDocument};
use voiceai_postgres::PgPool;
use voiceai_postgres::audit::{self, Entry};

use crate::MailError;
use crate::delivery::DeliveryStatus;
use crate::intake::{Intake, Source};
use crate::operate::Scope;
use crate::template::Catalogue;

/// Where all of it is mounted.
pub const PREFIX: &str = "/api/v1/internal";

/// What the routes work with.
#[derive(Debug)]
pub struct Rest {
    intake: Intake,
    catalogue: Arc<Catalogue>,
    /// Under which the audit trail is written: the binary's name.
    service: &'static str,
}

impl Rest {
    /// Routes that accept through `intake`, and show `catalogue`. `service` is the binary's name, for the audit trail.
    #[must_use]
    pub fn new(intake: Intake, catalogue: Arc<Catalogue>, service: &'static str) -> Self {
        Self { intake, catalogue, service }
    }

    /// The routes, complete with their prefix.
    pub fn routes(self) -> Router {
        router().split_for_parts().0.with_state(Arc::new(self))
    }

    fn pool(&self) -> &PgPool {
        self.intake.pool()
    }

    /// Writes down what is about to be done: what cannot be written down is not done.
    async fn audit(
        &self,
        Operator(actor): &Operator,
        action: &str,
        subject: &str,
        reason: Option<&str>,
        details: Value,
    ) -> Result<(), Problem> {
        let entry = Entry { service: self.service, actor, action, subject, reason, details };
        let written = audit::record(self.pool(), entry).await;
        written.map_err(|source| {
            problems::store(&MailError::Database { tried: "write the audit trail", source })
        })
    }
}

/// The OpenAPI document of the routes.
#[must_use]
pub fn openapi() -> Document {
    router().split_for_parts().1
}

fn router() -> OpenApiRouter<Arc<Rest>> {
    let routes = OpenApiRouter::new()
        .routes(routes!(login::accept))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::show))
        .routes(routes!(deliveries::attempts))
        .routes(routes!(deliveries::resend))
        .routes(routes!(templates::list))
        .routes(routes!(templates::show))
        .routes(routes!(templates::preview))
        .routes(routes!(deliveries::malformed))
        .routes(routes!(pauses::list))
        .routes(routes!(pauses::pause, pauses::resume))
        .routes(routes!(suppressions::list))
        .routes(routes!(suppressions::suppress, suppressions::unsuppress));
    OpenApiRouter::with_openapi(Api::openapi()).nest(PREFIX, routes)
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "voiceai-tasker: internal mail API",
        description = "For trusted services and operators, on the internal listener of voiceai-tasker. JSON only; unknown fields and \
                       trailing input are refused. Every error is application/problem+json (RFC 9457): compare `code`. \
                       503 carries Retry-After.",
        version = "1",
    ),
    tags(
        (name = "AuthIntegration", description = "For the session service."),
        (name = "OperatorIntegration", description = "For operators and their tools."),
    ),
    modifiers(&Bearer),
    components(schemas(Source, Scope, DeliveryStatus)),
    security(("bearer" = [])),
)]
struct Api;

/// Why something is done, for the audit trail.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// The operator's reason.
    reason: Option<String>,
}

/// How a list goes on.
fn next_of<T>(rows: &mut Vec<T>, limit: u32, cursor: impl FnOnce(&T) -> String) -> Option<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| more).map(cursor)
}

fn wrong_cursor() -> Problem {
    Problem::bad_request("invalid_cursor", "cursor is not the cursor of an earlier page")
        .remedy("Pass the `next` of the page before.")
}

/// Rows of a page where the query says nothing.
const PAGE: u32 = 50;
/// Most rows of a page.
const PAGE_MAX: u32 = 500;

/// The number of rows that a query asks for.
fn page(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        other => {
            let detail = format!("limit is {other}, expected 1 to {PAGE_MAX}");
            Err(Problem::bad_request("invalid_query", detail)
                .remedy("Ask for fewer at a time, and go on with `next`."))
        }
    }
}
