//! The template catalogue.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use voiceai_listener::{Problem, StrictPath, StrictQuery};

use super::{ProblemDocument, Rest};
use crate::template::{RenderError, Rendered, Template};

/// All templates.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Templates {
    /// By name.
    templates: Vec<Template>,
    /// Always null: the list is whole.
    next: Option<String>,
}

/// List the templates.
#[utoipa::path(
    get,
    path = "/templates",
    operation_id = "listTemplates",
    tag = "OperatorIntegration",
    responses((status = 200, description = "All of them", body = Templates)),
)]
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Json<Templates> {
    Json(Templates { templates: rest.catalogue.templates().cloned().collect(), next: None })
}

fn no_template(id: &str) -> Problem {
    Problem::not_found("template_not_found", format!("there is no template `{}`", id.escape_debug()))
        .remedy("List the templates to find its name.")
}

/// Show one template.
#[utoipa::path(
    get,
    path = "/templates/{template_id}",
    operation_id = "getTemplate",
    tag = "OperatorIntegration",
    params(("template_id" = String, Path, description = "Its name, such as `auth.login_code`.")),
    responses(
        (status = 200, description = "The template", body = Template),
        (status = 404, description = "There is none of this name", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(rest): State<Arc<Rest>>,
    StrictPath(id): StrictPath<String>,
) -> Result<Json<Template>, Problem> {
    rest.catalogue.template(&id).cloned().map(Json).ok_or_else(|| no_template(&id))
}

/// In which language.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Language {
    /// BCP 47; the nearest one that there is is used. Absent: the default locale.
    locale: Option<String>,
}

/// Render a template's sample, by the very renderer that sends.
#[utoipa::path(
    get,
    path = "/templates/{template_id}/preview",
    operation_id = "previewTemplate",
    tag = "OperatorIntegration",
    params(("template_id" = String, Path, description = "Its name."), Language),
    responses(
        (status = 200, description = "Subject and parts", body = Rendered),
        (status = 404, description = "There is none of this name", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn preview(
    State(rest): State<Arc<Rest>>,
    StrictPath(id): StrictPath<String>,
    StrictQuery(Language { locale }): StrictQuery<Language>,
) -> Result<Json<Rendered>, Problem> {
    rest.catalogue.preview(&id, locale.as_deref().unwrap_or_default()).map(Json).map_err(
        |error| match error {
            RenderError::Unknown(id) => no_template(&id),
            // The sample was rendered in every locale when the service started.
            other => Problem::internal("template_failed", other.to_string()),
        },
    )
}
