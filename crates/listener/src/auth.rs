use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use voiceai_runtime::Secret;

use crate::{Caller, Problem};

/// The token that every internal route asks for, as its digest: of equal length for all, so that a comparison tells nothing
/// of the length either.
#[derive(Clone)]
pub(crate) struct Bearer(Arc<[u8; 32]>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer([REDACTED])")
    }
}

impl Bearer {
    pub(crate) fn new(token: &Secret) -> Self {
        Self(Arc::new(Sha256::digest(token.expose()).into()))
    }

    fn judge(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let given = all.next().ok_or("the request has no bearer token")?;
        if all.next().is_some() {
            return Err("the request has more than one Authorization field");
        }
        let token = bearer_of(given).ok_or("the Authorization field is not of the scheme Bearer")?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        if bool::from(digest.ct_eq(self.0.as_ref())) { Ok(()) } else { Err("the bearer token is wrong") }
    }
}

fn bearer_of(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked("Bearer".len())?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer") && !token.is_empty()).then_some(token)
}

/// Lets nobody through without the token.
pub(crate) async fn require(
    State(bearer): State<Bearer>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Response {
    match bearer.judge(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => {
            tracing::warn!(peer = %caller.address.ip(), why, "request refused");
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
                .remedy("Send Authorization: Bearer with the value of INTERNAL_HTTP_TOKEN.");
            let mut response = problem.into_response();
            let challenge = HeaderValue::from_static("Bearer realm=\"voiceai-tasker\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_token_passes() {
        let bearer = Bearer::new(&Secret::new("0123456789abcdef0123456789abcdef"));
        let judge = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer.judge(&headers).is_ok()
        };
        assert!(judge(&["Bearer 0123456789abcdef0123456789abcdef"]));
        assert!(judge(&["bearer  0123456789abcdef0123456789abcdef"]));
        assert!(!judge(&[]));
        for wrong in [
            "Bearer 0123456789abcdef0123456789abcdeF",
            "Bearer 0123456789abcdef0123456789abcde",
            "Bearer 0123456789abcdef0123456789abcdef0",
            "Bearer",
            "Bearer ",
            "Basic 0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert!(!judge(&[wrong]), "{wrong}");
        }
        let right = "Bearer 0123456789abcdef0123456789abcdef";
        assert!(!judge(&[right, right]), "two fields may be read as either");
    }
}
