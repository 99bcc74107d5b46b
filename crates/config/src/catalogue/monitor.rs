//! Monitoring: services that are watched, and figures that are kept.

use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::is_http;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{boolean, duration, integer, list, seconds, secret_url};

settings! {
    "Monitoring", "The leading voiceai-tasker asks the services that are named here how they are, and keeps figures of the platform in PostgreSQL; see docs/monitoring.md. A URL without a path means its `/health`. A service without a URL is not watched.";

    /// Where the ingest service says how it is. It is watched as `ingest`.
    INGEST_HEALTH_URL: Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http);
    /// Where the evaluator says how it is. It is watched as `evaluator`.
    EVALUATOR_HEALTH_URL: Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http);
    /// Further services, each as `name=URL`: `api=http://10.0.0.5:3001,edge=https://edge.internal/status`. A URL with a login or a query does not belong here, where it would be shown: give it as `WATCHED_SERVICE_<NAME>_URL`.
    WATCHED_SERVICES: Vec<String> = list().only(Binaries::Tasker)
        .check("name=URL pairs separated by commas, such as api=http://10.0.0.5:3001, each name once and at most 2,000; names of a-z, 0-9, `-`, `_` and `.`; URLs without login and query, which belong into `WATCHED_SERVICE_<NAME>_URL`", are_services);
    /// One further service by itself: `WATCHED_SERVICE_BILLING_API_URL` is watched as `billing-api`.
    WATCHED_SERVICE_URL as "WATCHED_SERVICE_<NAME>_URL": Secret = secret_url().only(Binaries::Tasker).check(HTTP_URL, is_http);
    /// Time between two rounds in which every watched service is asked.
    HEALTH_CHECK_INTERVAL: Duration = seconds().default("60").between(5_000, 86_400_000).only(Binaries::Tasker);
    /// Longest time to the end of a service's answer. A service that takes longer is `unknown`.
    HEALTH_CHECK_TIMEOUT: Duration = duration().default("5s").between(50, 60_000).only(Binaries::Tasker);
    /// Services that are asked at the same time.
    HEALTH_CHECK_CONCURRENCY: u32 = integer().default("256").between(1, 2_000).only(Binaries::Tasker);
    /// So many bad answers in a row open an alert.
    HEALTH_ALERT_AFTER: u32 = integer().default("2").between(1, 1_000).only(Binaries::Tasker);
    /// So many good answers in a row close it.
    HEALTH_RECOVER_AFTER: u32 = integer().default("2").between(1, 1_000).only(Binaries::Tasker);
    /// False opens no alert and tells nobody; the states are still kept, and an alert that is open is closed when its service is well.
    SYSTEM_ALERT_ENABLED: bool = boolean().default("true").only(Binaries::Tasker);
    /// False collects no figures.
    METRICS_COLLECTION_ENABLED: bool = boolean().default("true").only(Binaries::Tasker);
    /// Time between two collections of figures.
    METRICS_COLLECTION_INTERVAL: Duration = seconds().default("5").between(1_000, 3_600_000).only(Binaries::Tasker);
    /// Longest time for one source of figures. A source that takes longer leaves a gap.
    METRICS_SOURCE_TIMEOUT: Duration = duration().default("4s").between(50, 60_000).only(Binaries::Tasker);
    /// How long each figure is kept, in whole days; hourly averages are kept `METRICS_HOURLY_RETENTION`.
    METRICS_RETENTION: Duration = duration().default("7d").between(86_400_000, 31_536_000_000).only(Binaries::Tasker);
    /// How long the hourly averages are kept.
    METRICS_HOURLY_RETENTION: Duration = duration().default("365d").between(86_400_000, 315_360_000_000).only(Binaries::Tasker);
}

const HTTP_URL: &str = "an http:// or https:// URL of a service, such as http://10.0.0.5:8080";

/// True for a name under which a service may be watched.
#[must_use]
pub fn is_service_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(is_known)
}

fn are_services(raw: &str) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    let is_service = |entry: &str| {
        let Some((name, url)) = entry.trim().split_once('=') else { return false };
        let shown = |url: Url| url.username().is_empty() && url.password().is_none() && url.query().is_none();
        is_service_name(name.trim()) && is_http(url.trim()) && Url::parse(url.trim()).is_ok_and(shown)
    };
    raw.split(',').count() <= 2_000
        && raw.split(',').all(|entry| is_service(entry) && seen.insert(entry.trim().split('=').next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_services_names_each_once_and_holds_no_login() {
        for good in ["a=http://h", "a=http://h:1/x, b.c-d_9=https://[::1]:2/y"] {
            assert!(are_services(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "http://h",
            "A=http://h",
            "a=http://h,a=http://i",
            "a=ftp://h",
            "a=http://u:p@h",
            "a=http://h?token=1",
            "a=http://h,",
            "a =",
        ] {
            assert!(!are_services(bad), "{bad}");
        }
        assert!(is_http("http://user:pass@h:1") && !is_http("h:1") && !is_http("unix:/x"));
    }
}
