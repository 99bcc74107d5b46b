//! What a person sees of the watched services.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use voiceai_postgres::PgPool;

use crate::decide::State;
use crate::error::MonitorError;
use crate::settings::MonitorSettings;
use crate::store::{self, Kept};

/// A row is old when so many rounds should have come after it.
const ROUNDS_OLD: u32 = 3;
/// And never before that: a leader that is replaced leaves a pause.
const OLD_AT_LEAST: Duration = Duration::from_secs(30);

/// A watched service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Its name.
    pub service: String,
    /// How it is; `unknown` where that was not asked for too long.
    pub status: State,
    /// Time to the head of its last answer.
    pub latency_ms: Option<f64>,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// When it was asked.
    pub checked_at: Option<Timestamp>,
    /// The status of its last answer.
    pub http_status: Option<u64>,
    /// Why it is not healthy.
    pub note: Option<String>,
    /// Where it is asked, without login.
    pub url: Option<String>,
    /// When the trouble began that its open alert is about.
    pub alert_since: Option<Timestamp>,
    /// The figures of its last healthy answer.
    pub counters: BTreeMap<String, f64>,
}

/// Every service that the leader watches, and those of `settings` that nobody has asked yet.
///
/// # Errors
/// As the database says.
pub async fn list(
    pool: &PgPool,
    settings: &MonitorSettings,
    now: Timestamp,
) -> Result<Vec<Line>, MonitorError> {
    Ok(lines(store::kept(pool).await?, settings, now))
}

fn lines(kept: Vec<Kept>, settings: &MonitorSettings, now: Timestamp) -> Vec<Line> {
    let old = (settings.interval * ROUNDS_OLD).max(OLD_AT_LEAST);
    let mut lines: BTreeMap<String, Line> =
        kept.into_iter().map(|kept| (kept.service.clone(), line(kept, old, now))).collect();
    for service in &settings.services {
        lines.entry(service.name().to_owned()).or_insert_with(|| Line {
            service: service.name().to_owned(),
            status: State::Unknown,
            latency_ms: None,
            since: None,
            checked_at: None,
            http_status: None,
            note: Some(
                "not asked yet: the leading voiceai-tasker asks it, if its settings name it".to_owned(),
            ),
            url: Some(service.shown().to_owned()),
            alert_since: None,
            counters: BTreeMap::new(),
        });
    }
    lines.into_values().collect()
}

fn line(kept: Kept, old: Duration, now: Timestamp) -> Line {
    let text = |name: &str| kept.details.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let counters = kept.details.get("counters").and_then(|value| value.as_object());
    let counters = counters.into_iter().flatten();
    let age = Duration::try_from(now.duration_since(kept.checked_at)).unwrap_or_default();
    let (mut status, mut note) = (kept.state, text("note"));
    if age > old {
        note = Some(format!(
            "not asked for {} s; it was {} then: see `status` for the leader",
            age.as_secs(),
            kept.state.word()
        ));
        status = State::Unknown;
    }
    Line {
        status,
        latency_ms: kept.latency_ms.map(|ms| (ms * 10.0).round() / 10.0),
        since: Some(kept.since),
        checked_at: Some(kept.checked_at),
        http_status: kept.details.get("http_status").and_then(serde_json::Value::as_u64),
        note,
        url: text("url"),
        alert_since: kept.alert_since,
        counters: counters.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect(),
        service: kept.service,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decide::Policy;
    use crate::settings::Service;

    #[test]
    fn what_is_old_is_unknown_and_what_was_never_asked_too() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let settings = MonitorSettings {
            services: ["a", "c"].iter().filter_map(|name| Service::new(*name, "http://h")).collect(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            concurrency: 1,
            policy: Policy { alert_after: 1, recover_after: 1, alerts: true },
        };
        let kept = |service: &str, second| Kept {
            service: service.to_owned(),
            state: State::Healthy,
            latency_ms: Some(1.26),
            details: json!({ "url": "http://h/health", "http_status": 200, "counters": { "n": 7 } }),
            checked_at: at(second),
            since: at(0),
            alert_since: None,
        };
        let seen = lines(vec![kept("a", 1_000), kept("b", 819)], &settings, at(1_000));
        let states: Vec<_> = seen.iter().map(|line| (line.service.as_str(), line.status)).collect();
        assert_eq!(states, [("a", State::Healthy), ("b", State::Unknown), ("c", State::Unknown)]);
        assert_eq!(
            (seen[0].latency_ms, seen[0].http_status, seen[0].counters["n"]),
            (Some(1.3), Some(200), 7.0)
        );
        assert!(seen[1].note.as_ref().is_some_and(|note| note.contains("181 s") && note.contains("healthy")));
        assert!(seen[2].note.as_ref().is_some_and(|note| note.contains("not asked yet")));
        assert_eq!(seen[2].url.as_deref(), Some("http://h/health"));
        let seen = lines(vec![kept("b", 820)], &settings, at(1_000));
        assert_eq!(seen[1].status, State::Healthy, "three rounds exactly");
    }
}
