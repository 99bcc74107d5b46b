//! What a request brings, read strictly: what is not understood is refused and never ignored.

use std::error::Error;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body::Body as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::Problem;
use crate::body::ReadTimeout;

/// A JSON object as the body. The media type must say so (415); trailing input, a repeated or a wrong field is a 400 that names the
/// field and never its value. `T` says by `#[serde(deny_unknown_fields)]` that unknown fields are refused.
#[derive(Clone, Copy, Debug)]
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for StrictJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let status = rejection.status();
            unread(status, &rejection)
        })?;
        parse(&bytes).map(Self)
    }
}

/// A JSON object as the body, read as [`StrictJson`], or no body at all, which is `T`'s default.
#[derive(Clone, Copy, Debug)]
pub struct MaybeJson<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for MaybeJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        StrictJson::from_request(request, state).await.map(|StrictJson(value)| Self(value))
    }
}

/// The parameters of a path. What is no text in UTF-8, or not of its type, names nothing that is there: 404.
#[derive(Clone, Copy, Debug)]
pub struct StrictPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for StrictPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        let nothing = |_| Problem::not_found("not_found", "the path names nothing that is there");
        path.map(|Path(value)| Self(value)).map_err(nothing)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// Why a body did not arrive whole.
fn unread(status: StatusCode, error: &(dyn Error + 'static)) -> Problem {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::of_status(status);
    }
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(timeout) = error.downcast_ref::<ReadTimeout>() {
            return Problem::new(StatusCode::REQUEST_TIMEOUT, "read_timeout", timeout.to_string());
        }
        cause = error.source();
    }
    Problem::bad_request("body_unreadable", "the body did not arrive whole")
}

/// Reads the one JSON object that `bytes` are.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // A list would be read too, as the values of the fields in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::bad_request("invalid_body", "a list was sent, expected an object"));
    }
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut document).map_err(|error| {
        let path = error.path().to_string();
        let wrong = error.into_inner();
        match wrong.classify() {
            Category::Data => Problem::bad_request("invalid_body", without_values(&wrong.to_string()))
                .with("field", path)
                .remedy("Correct the field and send the request again."),
            _ => Problem::bad_request("invalid_json", without_values(&wrong.to_string()))
                .remedy("Send one JSON document."),
        }
    })?;
    document.end().map_err(|_| {
        Problem::bad_request("invalid_json", "something follows the JSON document")
            .remedy("Send one JSON document.")
    })?;
    Ok(value)
}

/// What was expected, without what was given: that may be a secret.
fn without_values(message: &str) -> String {
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(kind)
            && let Some((given, expected)) = rest.rsplit_once(", expected ")
        {
            let what = given.split(['`', '"']).next().unwrap_or_default().trim_end();
            return format!("{kind}{what}, expected {expected}");
        }
    }
    message.to_owned()
}

/// A query string, read as strictly: a 400 names what is wrong.
#[derive(Clone, Copy, Debug)]
pub struct StrictQuery<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for StrictQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(query) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            let cause = rejection.source().map_or_else(String::new, ToString::to_string);
            Problem::bad_request("invalid_query", format!("the query string cannot be read: {cause}"))
                .remedy("Correct the parameter and send the request again.")
        })?;
        Ok(Self(query))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Login {
        email: String,
        #[serde(default)]
        tries: u8,
    }

    #[test]
    fn one_whole_document_is_read() {
        let login: Login = parse(br#" {"email":"a@example.com","tries":2} "#).unwrap();
        assert_eq!((login.email.as_str(), login.tries), ("a@example.com", 2));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let code = |text: &str| parse::<Login>(text.as_bytes()).unwrap_err().code().to_owned();
        assert_eq!(code(r#"{"email":"a","extra":1}"#), "invalid_body");
        assert_eq!(code(r#"{"email":"a","email":"b"}"#), "invalid_body");
        assert_eq!(code(r#"{"tries":1}"#), "invalid_body");
        assert_eq!(code(r#"{"email":"a"} {"email":"b"}"#), "invalid_json");
        assert_eq!(code(r#"{"email":"a"}x"#), "invalid_json");
        assert_eq!(code(r#"{"email":"#), "invalid_json");
        assert_eq!(code(""), "invalid_json");
        assert_eq!(code(r#"["a@example.com",2]"#), "invalid_body");
        assert_eq!(code(&format!(r#"{{"email":{}"#, "[".repeat(100_000))), "invalid_body");
    }

    #[test]
    fn an_error_names_the_field_and_not_its_value() {
        for given in ["424242", "\"424242\""] {
            let problem =
                parse::<Login>(format!(r#"{{"email":"a","tries":{given}}}"#).as_bytes()).unwrap_err();
            let text = format!("{problem:?}");
            assert!(
                text.contains("tries") && text.contains("expected u8") && !text.contains("424242"),
                "{text}"
            );
        }
    }

    #[test]
    fn json_is_what_the_media_type_says() {
        let is = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            is_json(&headers)
        };
        assert!(is("application/json") && is("Application/JSON; charset=utf-8"));
        assert!(!is("text/plain") && !is("application/jsonp") && !is_json(&HeaderMap::new()));
    }
}
