//! What an operator needs of a call that failed: the service's own words, or the chain of what failed on the way, and a remedy.

use std::error::Error;
use std::fmt;

use aws_sdk_ssm::config::http::HttpResponse;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};

/// A call of an AWS service that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {reason}")]
pub struct CallError {
    /// The call as a policy names it, such as `ssm:GetParametersByPath`.
    pub call: &'static str,
    /// Why, without any value.
    pub reason: String,
    /// What to do, as an order.
    pub remedy: String,
}

impl CallError {
    pub(crate) fn of<E>(call: &'static str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + fmt::Debug + 'static,
    {
        let code = error.code().unwrap_or_default();
        let reason = match (error.message(), code) {
            (Some(message), code) if !code.is_empty() => format!("{code}: {message}"),
            (_, "") => chain(error),
            (_, code) => code.to_owned(),
        };
        Self { call, remedy: remedy(call, code, &reason), reason }
    }
}

fn remedy(call: &str, code: &str, reason: &str) -> String {
    let lower = reason.to_ascii_lowercase();
    if is_about_the_clock(code, &lower) {
        "Set this host's clock (is NTP running?): AWS refuses what is signed more than five minutes early or late."
            .to_owned()
    } else if code.contains("AccessDenied") {
        format!("Grant the role of this host {call}.")
    } else if code.contains("Throttl") || code.contains("TooManyRequests") {
        "Start again in a moment; if it stays, look who else calls this service.".to_owned()
    } else if lower.contains("communicate with imds") && lower.contains("time") {
        "Set the instance's metadata hop limit 2 (its answer does not reach a container with 1), or give AWS_ keys."
            .to_owned()
    } else if CREDENTIALS.contains(&code) || lower.contains("credential") {
        "Check the credentials of this host: its role and hop limit 2, or the AWS_ variables.".to_owned()
    } else if code.contains("Decrypt") || code.contains("KMS") {
        "Grant the role of this host kms:Decrypt on the key.".to_owned()
    } else if lower.contains("through the proxy") {
        "Check HTTPS_PROXY, the proxy and what it allows, or name the host in NO_PROXY.".to_owned()
    } else if code.is_empty() {
        "Check the route to AWS, HTTPS_PROXY and NO_PROXY, and the region.".to_owned()
    } else {
        "See the service's own words.".to_owned()
    }
}

/// Codes of keys that are unknown, expired or do not fit.
const CREDENTIALS: [&str; 6] = [
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "ExpiredTokenException",
    "ExpiredToken",
];

/// A wrong clock gives the same code as a wrong key; only the words tell them apart.
fn is_about_the_clock(code: &str, words: &str) -> bool {
    matches!(code, "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture")
        || words.contains("signature expired")
        || words.contains("signature not yet current")
}

/// The causes, outermost first; the SDK's own outermost text says nothing.
fn chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        next = cause.source();
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_told_apart_from_a_wrong_key() {
        let early = "InvalidSignatureException: Signature not yet current: 20261122T201500Z is still later than 20261122T201000Z";
        let late = "InvalidSignatureException: Signature expired: 20261122T200000Z is now earlier than 20261122T200500Z";
        for words in [early, late] {
            assert!(remedy("ssm:GetParametersByPath", "InvalidSignatureException", words).contains("clock"));
        }
        assert!(remedy("s3:PutObject", "RequestTimeTooSkewed", "").contains("clock"));
        let wrong = "InvalidSignatureException: The request signature we calculated does not match";
        assert!(
            remedy("ssm:GetParametersByPath", "InvalidSignatureException", wrong).contains("credentials")
        );
        let lost = "the credential provider was not enabled: could not communicate with IMDS: timeout: HTTP read timeout occurred after 1s";
        assert!(remedy("x", "", lost).contains("hop limit 2"));
        let none = "no providers in chain provided credentials";
        assert!(remedy("x", "", none).contains("Check the credentials"));
        assert!(remedy("x", "", "dispatch failure: through the proxy squid:3128: 403").contains("proxy"));
    }
}
