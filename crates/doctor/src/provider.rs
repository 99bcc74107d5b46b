//! A provider's own API: the token is taken, and requests are left.

use std::time::Duration;

use reqwest::header::HeaderMap;
use voiceai_aws::{AwsAccess, caller_identity};
use voiceai_cli::doctor::Finding;
use voiceai_egress::{Rule, http_client};
use voiceai_runtime::Secret;

const WITHIN: Duration = Duration::from_secs(8);
const HETZNER: &str = "https://api.hetzner.cloud";
/// Of the requests of one hour; below, the next scale-up may be refused.
const LEFT_WARNING: f64 = 0.1;

/// Hetzner Cloud: asks for one location, which every token may.
pub async fn hetzner(way: &Rule, endpoint: Option<&str>, token: Option<&Secret>) -> Finding {
    let Some(token) = token else {
        return Finding::failed(
            "HETZNER_API_TOKEN is not set, and a group is scaled at Hetzner",
            "Put it into the service's secret in Secrets Manager.",
        );
    };
    let endpoint = endpoint.unwrap_or(HETZNER).trim_end_matches('/');
    let has_path = endpoint.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let url = format!("{endpoint}{}/locations?per_page=1", if has_path { "" } else { "/v1" });
    let client = match http_client(way).timeout(WITHIN).build() {
        Ok(client) => client,
        Err(error) => return Finding::failed(error.to_string(), "Report this."),
    };
    match client.get(&url).bearer_auth(token.expose()).send().await {
        Ok(answer) => judge(answer.status().as_u16(), answer.headers(), endpoint),
        Err(error) => Finding::failed(
            format!("{endpoint}: {}", causes(&error.without_url())),
            "Check the network, HTTPS_PROXY and what the proxy allows, and HCLOUD_ENDPOINT.",
        ),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn judge(status: u16, headers: &HeaderMap, endpoint: &str) -> Finding {
    let number = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<f64>().ok())
    };
    let left = number("ratelimit-remaining").zip(number("ratelimit-limit"));
    let rate = left.map_or_else(String::new, |(left, most)| format!(", {left} of {most} requests left"));
    let slower = "Raise SCALING_EVALUATION_INTERVAL_MS and SCALING_STATUS_POLL_INTERVAL_MS, or look who else uses the project's token.";
    match status {
        200 if left.is_some_and(|(left, most)| left < most * LEFT_WARNING) => {
            Finding::warning(format!("{endpoint} takes the token{rate}"), slower)
        }
        200 => Finding::ok(format!("{endpoint} takes the token{rate}")),
        401 | 403 => Finding::failed(
            format!("{endpoint} refuses the token ({status})"),
            "Make a new token with read and write in the Hetzner console, and store it as HETZNER_API_TOKEN.",
        ),
        429 => Finding::failed(format!("{endpoint} is asked too often{rate}"), slower),
        status => Finding::failed(
            format!("{endpoint} answers {status}"),
            "Look at the provider's status page, and at HCLOUD_ENDPOINT and the proxy.",
        ),
    }
}

/// AWS: the credentials that the scripts' command line is given are known.
pub async fn aws(access: &AwsAccess) -> Finding {
    match caller_identity(access, WITHIN).await {
        Ok(arn) => Finding::ok(format!("{arn} in {}", access.region)),
        Err(error) => Finding::failed(error.to_string(), error.remedy),
    }
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_testkit::{AwsFault, AwsFaults};

    use super::*;

    fn headers(left: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", "3600".parse().unwrap());
        headers.insert("ratelimit-remaining", left.parse().unwrap());
        headers
    }

    #[test]
    fn a_token_that_is_refused_and_a_rate_that_is_used_up_are_told_apart() {
        for (status, left, verdict, part) in [
            (200, "3000", Verdict::Ok, "3000 of 3600 requests left"),
            (200, "359", Verdict::Warning, "359 of 3600"),
            (401, "3000", Verdict::Failed, "refuses the token"),
            (429, "0", Verdict::Failed, "too often, 0 of 3600"),
            (503, "3000", Verdict::Failed, "answers 503"),
        ] {
            let found = judge(status, &headers(left), "https://api");
            assert!(found.verdict() == verdict && found.evidence().contains(part), "{found:?}");
        }
    }

    #[tokio::test]
    async fn the_api_is_asked_with_the_token_and_without_showing_it() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let api = AwsFaults::before(1).await;
        api.set("GET /v1/locations?per_page=1", Some(AwsFault::Answer(401, "{}".to_owned())));
        let token = Secret::new("token-canary");
        let found = hetzner(&Rule::default(), Some(api.endpoint()), Some(&token)).await;
        assert!(found.evidence().contains("refuses the token (401)"), "{found:?}");
        let found = hetzner(&Rule::default(), Some("http://127.0.0.1:1"), Some(&token)).await;
        assert!(found.verdict() == Verdict::Failed && !format!("{found:?}").contains("canary"), "{found:?}");
        assert_eq!(hetzner(&Rule::default(), None, None).await.verdict(), Verdict::Failed);
    }
}
