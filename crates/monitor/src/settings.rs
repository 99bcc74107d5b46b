use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::Duration;

use url::Url;
use voiceai_config::Reader;
use voiceai_config::catalogue::monitor as names;
use voiceai_runtime::Secret;

use crate::decide::Policy;

/// A service that is watched.
#[derive(Clone)]
pub struct Service {
    name: String,
    url: Secret,
    shown: String,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.shown)
    }
}

impl Service {
    /// A service that says at `url` how it is; a URL without a path means its `/health`. `None` where it is no URL of HTTP.
    #[must_use]
    pub fn new(name: impl Into<String>, url: &str) -> Option<Self> {
        let mut url = Url::parse(url.trim()).ok()?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return None;
        }
        if matches!(url.path(), "" | "/") {
            url.set_path("/health");
        }
        url.set_fragment(None);
        let mut shown = url.clone();
        // Neither fails on a URL that has a host.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.set_query(None);
        Some(Self { name: name.into(), url: Secret::new(url.as_str()), shown: shown.into() })
    }

    /// The name it is watched under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is asked, user, password and query left out.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Where it is asked.
    #[must_use]
    pub const fn url(&self) -> &Secret {
        &self.url
    }
}

/// What is watched, and how.
#[derive(Clone, Debug)]
pub struct MonitorSettings {
    /// `INGEST_HEALTH_URL`, `EVALUATOR_HEALTH_URL`, `WATCHED_SERVICES`, `WATCHED_SERVICE_<NAME>_URL`. By name.
    pub services: Vec<Service>,
    /// `HEALTH_CHECK_INTERVAL`. From the beginning of one round to the beginning of the next.
    pub interval: Duration,
    /// `HEALTH_CHECK_TIMEOUT`. For one service's answer, to its end.
    pub timeout: Duration,
    /// `HEALTH_CHECK_CONCURRENCY`. Services that are asked at a time.
    pub concurrency: usize,
    /// When an alert is opened and closed.
    pub policy: Policy,
}

impl MonitorSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let timeout = reader.get(&names::HEALTH_CHECK_TIMEOUT);
        let interval = reader.get(&names::HEALTH_CHECK_INTERVAL);
        if timeout > interval {
            reader.violation(
                &names::HEALTH_CHECK_TIMEOUT,
                format!("at most HEALTH_CHECK_INTERVAL ({interval:?})"),
                "Lower HEALTH_CHECK_TIMEOUT or raise HEALTH_CHECK_INTERVAL.",
            );
        }
        Self {
            services: services(reader),
            interval,
            timeout,
            concurrency: usize::try_from(reader.get(&names::HEALTH_CHECK_CONCURRENCY)).unwrap_or(usize::MAX),
            policy: Policy {
                alert_after: reader.get(&names::HEALTH_ALERT_AFTER),
                recover_after: reader.get(&names::HEALTH_RECOVER_AFTER),
                alerts: reader.get(&names::SYSTEM_ALERT_ENABLED),
            },
        }
    }
}

fn services(reader: &Reader<'_>) -> Vec<Service> {
    let mut all: BTreeMap<String, Service> = BTreeMap::new();
    let mut add = |name: String, url: &str, twice: &dyn Fn(&str)| {
        match (all.entry(name.clone()), Service::new(name, url)) {
            (Entry::Occupied(before), _) => twice(before.key()),
            (Entry::Vacant(free), Some(service)) => drop(free.insert(service)),
            // Its own check has said so.
            (Entry::Vacant(_), None) => {}
        }
    };
    let remedy = "Give it once.";
    let expected = |name: &str| format!("each name once, but `{name}` is watched by another setting already");
    let named = [("ingest", &names::INGEST_HEALTH_URL), ("evaluator", &names::EVALUATOR_HEALTH_URL)];
    for (name, setting) in named {
        if let Some(url) = reader.optional(setting) {
            add(name.to_owned(), url.expose(), &|_| ());
        }
    }
    for (part, url) in reader.each(&names::WATCHED_SERVICE_URL) {
        let name = part.to_ascii_lowercase().replace('_', "-");
        if !names::is_service_name(&name) {
            let expected = format!("a name of letters, digits and underscores in place of `{part}`");
            reader.violation(&names::WATCHED_SERVICE_URL, expected, "Rename the variable.");
        }
        add(name, url.expose(), &|name| {
            reader.violation(&names::WATCHED_SERVICE_URL, expected(name), remedy);
        });
    }
    for entry in reader.optional(&names::WATCHED_SERVICES).unwrap_or_default() {
        let Some((name, url)) = entry.split_once('=') else { continue };
        add(name.trim().to_owned(), url, &|name| {
            reader.violation(&names::WATCHED_SERVICES, expected(name), remedy);
        });
    }
    all.into_values().collect()
}

/// What figures are kept, how often and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorSettings {
    /// `METRICS_COLLECTION_ENABLED`.
    pub enabled: bool,
    /// `METRICS_COLLECTION_INTERVAL`. From the beginning of one collection to the beginning of the next.
    pub interval: Duration,
    /// `METRICS_SOURCE_TIMEOUT`. For one source.
    pub source_timeout: Duration,
    /// `METRICS_RETENTION`. Of single points; whole days.
    pub retention: Duration,
    /// `METRICS_HOURLY_RETENTION`. Of hourly averages.
    pub hourly_retention: Duration,
}

impl CollectorSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            enabled: reader.get(&names::METRICS_COLLECTION_ENABLED),
            interval: reader.get(&names::METRICS_COLLECTION_INTERVAL),
            source_timeout: reader.get(&names::METRICS_SOURCE_TIMEOUT),
            retention: reader.get(&names::METRICS_RETENTION),
            hourly_retention: reader.get(&names::METRICS_HOURLY_RETENTION),
        }
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<MonitorSettings, String> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        let read = resolved.read(MonitorSettings::read);
        read.map(|loaded| loaded.settings).map_err(|report| report.to_string())
    }

    #[test]
    fn services_come_from_every_setting_and_a_bare_url_means_its_health() {
        assert!(read(&[]).unwrap().services.is_empty(), "nothing without a URL is watched");
        let settings = read(&[
            ("INGEST_HEALTH_URL", "http://iot-ingest:8080"),
            ("EVALUATOR_HEALTH_URL", "http://iot-evaluator:8080/"),
            ("WATCHED_SERVICES", "api=http://10.0.0.5:3001/status , edge=https://edge.internal"),
            ("WATCHED_SERVICE_BILLING_API_URL", "https://ops:pw@billing.internal/up?token=t"),
        ])
        .unwrap();
        let seen: Vec<_> = settings.services.iter().map(|s| (s.name(), s.shown())).collect();
        assert_eq!(
            seen,
            [
                ("api", "http://10.0.0.5:3001/status"),
                ("billing-api", "https://billing.internal/up"),
                ("edge", "https://edge.internal/health"),
                ("evaluator", "http://iot-evaluator:8080/health"),
                ("ingest", "http://iot-ingest:8080/health"),
            ]
        );
        assert_eq!(settings.services[1].url().expose(), "https://ops:pw@billing.internal/up?token=t");
        assert!(!format!("{settings:?}").contains("pw") && !format!("{settings:?}").contains("token"));
        assert_eq!((settings.interval, settings.timeout), (Duration::from_secs(60), Duration::from_secs(5)));
    }

    #[test]
    fn a_service_that_is_named_twice_and_a_time_limit_beyond_the_interval_are_refused() {
        let twice = read(&[("INGEST_HEALTH_URL", "http://a"), ("WATCHED_SERVICES", "ingest=http://b")]);
        assert!(twice.is_err_and(|text| text.contains("WATCHED_SERVICES") && text.contains("`ingest`")));
        let twice = read(&[("WATCHED_SERVICE_A_URL", "http://a"), ("WATCHED_SERVICES", "a=http://b")]);
        assert!(twice.is_err_and(|text| text.contains("`a`")));
        let slow = read(&[("HEALTH_CHECK_INTERVAL", "5"), ("HEALTH_CHECK_TIMEOUT", "6s")]);
        assert!(slow.is_err_and(|text| text.contains("HEALTH_CHECK_TIMEOUT")));
        let often = read(&[("HEALTH_CHECK_INTERVAL", "4")]);
        assert!(often.is_err_and(|text| text.contains("HEALTH_CHECK_INTERVAL")), "the floor is 5 s");
    }
}
