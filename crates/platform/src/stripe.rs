//! The little of Stripe's API that housekeeping needs.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Client, Method, StatusCode, header};
use serde_json::Value;
use url::Url;
use voiceai_egress::{Rule, http_client};
use voiceai_runtime::Secret;

use crate::error::PlatformError;
use crate::settings::StripeSettings;

/// Most of an answer that is read.
const BODY_MAX: usize = 1 << 20;
/// Longest wait that an answer of too many requests is obeyed for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Stripe's API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stripe {
    client: Client,
    base: Url,
    key: Secret,
}

/// What Stripe knows of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StripeSubscription {
    /// Stripe's word: `active`, `past_due`, `canceled`, …
    pub(crate) status: String,
    /// Until when it is paid.
    pub(crate) paid_until: Option<Timestamp>,
}

impl StripeSubscription {
    /// The instant until which it is good, where Stripe says it goes on after `now`.
    pub(crate) fn renewed_until(&self, now: Timestamp) -> Option<Timestamp> {
        let is_good = matches!(self.status.as_str(), "active" | "trialing");
        self.paid_until.filter(|until| is_good && *until > now)
    }
}

impl Stripe {
    /// A client that goes out as `rule` says.
    ///
    /// # Errors
    /// When no TLS can be had.
    pub fn new(settings: &StripeSettings, rule: &Rule) -> Result<Self, PlatformError> {
        let client = http_client(rule)
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            .build()
            .map_err(|error| PlatformError::invalid("the client of STRIPE_API_URL", error.to_string()))?;
        Ok(Self { client, base: settings.url.clone(), key: settings.key.clone() })
    }

    /// Whether Stripe answers and takes the key; asked before anything is done on its account.
    ///
    /// # Errors
    /// [`PlatformError::StripeAway`] when it does not answer as a working service, [`PlatformError::StripeRefused`] when it does not take the key.
    pub async fn probe(&self) -> Result<(), PlatformError> {
        match self.ask(Method::GET, "v1/subscriptions?limit=1", None).await {
            Ok(_) => Ok(()),
            Err(error @ PlatformError::StripeRefused { status: 401 | 403, .. }) => Err(error),
            // It answered: what it thinks of this question does not matter.
            Err(PlatformError::StripeRefused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A subscription.
    ///
    /// # Errors
    /// As [`Self::probe`]; refused also when there is no such subscription.
    pub(crate) async fn subscription(&self, id: &str) -> Result<StripeSubscription, PlatformError> {
        let answer = self.ask(Method::GET, &path(id)?, None).await?;
        let second = |value: &Value| value.as_i64().and_then(|second| Timestamp::from_second(second).ok());
        // Since 2025 the end stands at the items, the last of which decides.
        let of_items = answer["items"]["data"]
            .as_array()
            .and_then(|items| items.iter().filter_map(|item| second(&item["current_period_end"])).max());
        let status = answer["status"].as_str().ok_or_else(|| away("its answer has no `status`"))?;
        Ok(StripeSubscription {
            status: status.to_owned(),
            paid_until: second(&answer["current_period_end"]).or(of_items),
        })
    }

    /// Stops the collection of money for a subscription; its invoices are void until it is resumed. The same key is the same request.
    ///
    /// # Errors
    /// As [`Self::subscription`].
    pub(crate) async fn pause_collection(&self, id: &str, key: &str) -> Result<(), PlatformError> {
        self.ask(Method::POST, &path(id)?, Some((key, "pause_collection[behavior]=void"))).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        post: Option<(&str, &str)>,
    ) -> Result<Value, PlatformError> {
        let url = self
            .base
            .join(path)
            .map_err(|error| PlatformError::invalid("STRIPE_API_URL", error.to_string()))?;
        let mut request = self.client.request(method, url).bearer_auth(self.key.expose());
        if let Some((key, form)) = post {
            request = request
                .header("Idempotency-Key", key)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.to_owned());
        }
        // The error's text would name the address only; it holds no key.
        let mut response = request.send().await.map_err(|error| away(reason(&error)))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| away(reason(&error)))? {
            if body.len() + chunk.len() > BODY_MAX {
                return Err(away("its answer is larger than 1 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        judge(status, retry_after, &body)
    }
}

/// The path of a subscription. Nothing in an id can lead elsewhere, least of all to no id at all: there Stripe lists and creates.
fn path(id: &str) -> Result<String, PlatformError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=255).contains(&id.len()) && id.bytes().all(is_plain) {
        return Ok(format!("v1/subscriptions/{id}"));
    }
    let shown: String = id.chars().take(40).collect();
    Err(PlatformError::invalid(
        "stripe_subscription",
        format!("{shown:?} is no id of Stripe's, such as sub_1MowQVLkdIwHu7ix"),
    ))
}

fn reason(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke"
    }
}

fn away(reason: &str) -> PlatformError {
    PlatformError::StripeAway { reason: reason.to_owned(), wait: None }
}

/// What an answer means. A 4xx is Stripe's last word, but for "not now" (409 while the same request is under way, 429).
fn judge(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Result<Value, PlatformError> {
    let parsed = serde_json::from_slice::<Value>(body);
    if status.is_success() {
        return parsed.map_err(|_| away("its answer is not JSON"));
    }
    let code = status.as_u16();
    if code == 429 || code == 409 {
        let wait = retry_after.unwrap_or(Duration::from_secs(30)).min(RETRY_AFTER_MAX);
        return Err(PlatformError::StripeAway { reason: format!("HTTP {code}"), wait: Some(wait) });
    }
    if !status.is_client_error() {
        return Err(away(&format!("HTTP {code}")));
    }
    let error = parsed.map(|answer| answer["error"].clone()).unwrap_or_default();
    let words: Vec<_> = ["code", "message"].iter().filter_map(|name| error[name].as_str()).collect();
    let message = if words.is_empty() { "no reason given".to_owned() } else { words.join(": ") };
    // Stripe repeats a part of a wrong key in its message.
    let message = if code == 401 { "it does not take STRIPE_SECRET_KEY".to_owned() } else { message };
    Err(PlatformError::StripeRefused { status: code, message: message.chars().take(300).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_4xx_is_the_last_word_and_anything_else_is_not() {
        let judged = |code: u16, after: Option<u64>, body: &str| {
            judge(StatusCode::from_u16(code).unwrap(), after.map(Duration::from_secs), body.as_bytes())
        };
        assert_eq!(judged(200, None, r#"{"a":1}"#).unwrap(), json!({"a": 1}));
        for code in [500, 502, 503, 302, 304] {
            let error = judged(code, None, "").unwrap_err();
            assert!(matches!(error, PlatformError::StripeAway { wait: None, .. }), "{code}");
            assert!(!error.is_final());
        }
        assert!(matches!(judged(200, None, "<html>").unwrap_err(), PlatformError::StripeAway { .. }));
        for (code, after, wait) in [(429, None, 30), (429, Some(7), 7), (409, Some(99_999), 3_600)] {
            let PlatformError::StripeAway { wait: Some(waits), .. } = judged(code, after, "").unwrap_err()
            else {
                panic!("{code}")
            };
            assert_eq!(waits.as_secs(), wait);
        }
        let body = r#"{"error":{"code":"resource_missing","message":"No such subscription"}}"#;
        for code in [400, 402, 404, 422] {
            let error = judged(code, None, body).unwrap_err();
            assert!(error.is_final() && error.to_string().contains("resource_missing"), "{error}");
        }
        let error =
            judged(401, None, r#"{"error":{"message":"Invalid API Key provided: sk_l***123"}}"#).unwrap_err();
        assert!(!error.to_string().contains("sk_l"), "{error}");
    }

    #[test]
    fn only_what_stripe_says_is_paid_is_renewed() {
        let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-12-22T00:00:00Z".parse().unwrap();
        let known = |status: &str, until| StripeSubscription { status: status.into(), paid_until: until };
        assert_eq!(known("active", Some(later)).renewed_until(now), Some(later));
        assert_eq!(known("past_due", Some(later)).renewed_until(now), None);
        assert_eq!(known("active", Some(now)).renewed_until(now), None);
        assert_eq!(known("active", None).renewed_until(now), None);
        assert_eq!(path("sub_1-A").unwrap(), "v1/subscriptions/sub_1-A");
        for odd in ["", ".", "..", "sub_1/../x?y", "a\0b", "a b", "ü", &"x".repeat(256)] {
            let error = path(odd).unwrap_err();
            assert!(error.is_final() && error.to_string().len() < 400, "{error}");
        }
    }
}
