use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

/// The media type of every error.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// An error as HTTP clients meet it: RFC 9457, with a stable word and an order what to do.
///
/// ```json
/// {"type":"urn:voiceai:problem:job_not_found","title":"Not Found","status":404,
///  "code":"job_not_found","detail":"no job has the id \"a\"","remedy":"List the dead jobs.","request_id":"…"}
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    status: StatusCode,
    code: String,
    detail: String,
    remedy: String,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

impl Problem {
    /// A problem. `code` is a stable snake_case word that clients may compare; `detail` says what happened, and never holds a
    /// secret.
    #[must_use]
    pub fn new(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            detail: detail.into(),
            remedy: String::new(),
            retry_after: None,
            more: Map::new(),
        }
    }

    /// 400: the request itself is wrong.
    #[must_use]
    pub fn bad_request(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404: what is named does not exist.
    #[must_use]
    pub fn not_found(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409: the request contradicts what is there.
    #[must_use]
    pub fn conflict(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 503 with Retry-After: a backend is away; asking again later helps.
    #[must_use]
    pub fn unavailable(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(5)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
        }
    }

    /// 500: our fault; the log has more.
    #[must_use]
    pub fn internal(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, detail)
    }

    /// What to do, as an order.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }

    /// Tells the client when to ask again, in whole seconds, rounded up.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// A further member of the document. The standard members and ours keep their meaning whatever it is called.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.more.insert(name.into(), value.into());
        self
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable word.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What a status means that was answered without a document.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, detail, remedy) = match status {
            StatusCode::NOT_FOUND => {
                ("route_not_found", "there is no such route", "See docs/http.md for the routes.")
            }
            StatusCode::METHOD_NOT_ALLOWED => (
                "method_not_allowed",
                "the route does not take this method",
                "Use one of the methods in Allow.",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("body_too_large", "the body is larger than this route takes", "Send less at a time.")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                "unsupported_media_type",
                "the body is not of a media type that this route takes",
                "Send JSON, with Content-Type: application/json.",
            ),
            StatusCode::BAD_REQUEST => ("bad_request", "the request cannot be read", ""),
            _ if status.is_server_error() => {
                ("internal_error", "the request failed", "See the log of the service.")
            }
            _ => ("refused", "the request was refused", ""),
        };
        Self::new(status, code, detail).remedy(remedy)
    }

    /// The document.
    fn document(self) -> Map<String, Value> {
        let mut document = self.more;
        document.insert("type".into(), format!("urn:voiceai:problem:{}", self.code).into());
        document.insert("title".into(), self.status.canonical_reason().unwrap_or("Error").into());
        document.insert("status".into(), self.status.as_u16().into());
        document.insert("code".into(), self.code.into());
        document.insert("detail".into(), self.detail.into());
        if !self.remedy.is_empty() {
            document.insert("remedy".into(), self.remedy.into());
        }
        if let Some(id) = crate::guard::current_request_id() {
            document.insert("request_id".into(), id.into());
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, wait) = (self.status, self.retry_after);
        let body = Value::Object(self.document()).to_string();
        let mut response = (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(wait) = wait {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
