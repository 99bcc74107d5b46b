//! What OpenAPI documents of the listener's routes have in common.

use serde::Serialize;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, ToSchema};

/// The bearer token of the internal listener, as the security scheme `bearer`.
#[derive(Clone, Copy, Debug)]
pub struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some("The value of INTERNAL_HTTP_TOKEN.".to_owned());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// An error (RFC 9457). Described here, written by the listener.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    /// `urn:voiceai:problem:` and the code.
    r#type: String,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// A stable snake_case word, which clients may compare.
    code: String,
    /// What happened.
    detail: String,
    /// What to do.
    remedy: Option<String>,
    /// The request, as it stands in the log.
    request_id: Option<String>,
    /// The field of the body that is wrong.
    field: Option<String>,
}
