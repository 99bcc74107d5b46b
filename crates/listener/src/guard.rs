//! What every request goes through: its id, its span, its limits, and the form of its errors.

use std::any::Any;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tracing::{Instrument as _, Span, field};
use uuid::Uuid;

use crate::body::InTime;
use crate::problem::PROBLEM_JSON;
use crate::{Limits, Problem, metrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of one request: the caller's `X-Request-Id` where it has a sound one, else a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let sound =
            |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        given.filter(sound).map_or_else(|| Self(Uuid::now_v7().to_string()), |id| Self(id.to_owned()))
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(CURRENT.try_with(Clone::clone).unwrap_or_else(|_| Self::of(&parts.headers)))
    }
}

/// The id of the request that is being answered by this task.
pub(crate) fn current_request_id() -> Option<String> {
    CURRENT.try_with(|id| id.0.clone()).ok()
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The other end of the connection; unspecified where there is none, as in a test of a route.
    pub address: SocketAddr,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let none = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Self { address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or(none, |info| info.0) })
    }
}

/// The person behind a request, for the audit trail: the header `X-Operator`, in the word of a caller who has shown the token;
/// without it, the address that the request came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator(pub String);

impl Operator {
    /// Longest name in bytes.
    const LONGEST: usize = 128;
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(caller) = Caller::from_request_parts(parts, state).await;
        let Some(name) = parts.headers.get("x-operator") else {
            return Ok(Self(format!("http {}", caller.address.ip())));
        };
        let name = name.to_str().unwrap_or_default().trim();
        let sound = (1..=Self::LONGEST).contains(&name.len());
        sound.then(|| Self(name.to_owned())).ok_or_else(|| {
            Problem::bad_request("invalid_operator", "X-Operator is no name")
                .remedy(format!("Send at most {} visible ASCII characters, or leave it out.", Self::LONGEST))
        })
    }
}

/// What the guard of one listener knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    /// `internal` or `public`.
    pub(crate) listener: &'static str,
    /// Whether its callers may continue a trace of theirs: the public's may not choose our trace ids.
    pub(crate) trusts_traces: bool,
    pub(crate) limits: Limits,
}

/// The layer itself; the outermost.
pub(crate) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId::of(request.headers());
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = guard.span(&request, method, &route, &id);
    let active = metrics::Active::new(guard.listener, method);
    let answer = CURRENT.scope(id.clone(), guard.answer(request, next).instrument(span.clone()));
    let mut response = answer.await;
    drop(active);
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let took = began.elapsed();
    metrics::answered(guard.listener, method, &route, status.as_u16(), took);
    span.in_scope(|| tracing::debug!(duration_ms = as_millis(took), "request answered"));
    finish(&mut response, &id);
    response
}

fn as_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Guard {
    fn span(&self, request: &Request, method: &'static str, route: &str, id: &RequestId) -> Span {
        let span = tracing::info_span!(
            parent: None,
            "http",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            otel.status_code = field::Empty,
            listener = self.listener,
            http.request.method = method,
            http.route = route,
            http.response.status_code = field::Empty,
            request_id = id.0,
        );
        let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        if let Some(parent) = parent.filter(|_| self.trusts_traces) {
            voiceai_telemetry::continue_trace(&span, parent);
        }
        span
    }

    /// The route's answer, or the problem in its place.
    async fn answer(&self, request: Request, next: Next) -> Response {
        if self.is_head_too_large(&request) {
            let detail = format!(
                "request line and header fields may have {} bytes and {} fields",
                self.limits.head_bytes, self.limits.head_fields
            );
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Problem::new(status, "head_too_large", detail).into_response();
        }
        let read = self.limits.read;
        let request = request.map(|body| Body::new(InTime::new(body, read)));
        // A route's state is only behind locks that a panic poisons or releases; it is asked again, or not at all.
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
        match tokio::time::timeout(self.limits.handle, answer).await {
            Ok(Ok(response)) => as_problem(response),
            Ok(Err(panic)) => {
                // Where it panicked stands in the line of the panic hook. The payload may hold what the request held.
                drop::<Box<dyn Any + Send>>(panic);
                tracing::error!("a route panicked; the request is answered with 500");
                Problem::internal("internal_error", "the request failed")
                    .remedy("See the log of the service for the same request_id.")
                    .into_response()
            }
            Err(_) => {
                let limit = self.limits.handle;
                tracing::warn!(limit_ms = as_millis(limit), "a request was not answered in time");
                Problem::unavailable("not_in_time", format!("the request was not answered within {limit:?}"))
                    .remedy("Ask again; whether it took effect is not known.")
                    .into_response()
            }
        }
    }

    fn is_head_too_large(&self, request: &Request) -> bool {
        let headers = request.headers();
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let bytes = target
            + headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
                .sum::<usize>();
        bytes > self.limits.head_bytes || headers.len() > self.limits.head_fields
    }
}

/// Every error is a problem, also what routing and extractors answer by themselves.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let media_type = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !is_error || media_type == Some(PROBLEM_JSON.as_bytes()) {
        return response;
    }
    let mut problem = Problem::of_status(status).into_response();
    for name in [ALLOW, RETRY_AFTER, WWW_AUTHENTICATE] {
        if let Some(value) = response.headers().get(&name) {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
}

/// The header fields that every response has.
fn finish(response: &mut Response, id: &RequestId) {
    // What is left of the request is not read any more, so no further one can follow on the connection.
    let cuts = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::PAYLOAD_TOO_LARGE,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    ];
    if cuts.contains(&response.status()) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        headers.insert(REQUEST_ID, id);
    }
}

/// A method as a label: a client cannot make up new ones.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_request_id_is_taken_over() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(value).unwrap());
            RequestId::of(&headers).0
        };
        assert_eq!(of("abc-1"), "abc-1");
        assert_ne!(of("two words"), "two words");
        assert_ne!(of(&"x".repeat(129)), "x".repeat(129));
        assert!(Uuid::parse_str(&RequestId::of(&HeaderMap::new()).0).is_ok());
    }
}
