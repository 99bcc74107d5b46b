use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::Value;
use url::Url;
use voiceai_egress::{Rule, http_client};

use crate::decide::State;
use crate::settings::Service;

/// Most of an answer that is read. What is longer is still an answer; its counters are not taken.
const BODY_MAX: usize = 64 * 1024;
/// Most counters of one answer.
const COUNTERS_MAX: usize = 64;

/// What came of asking a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// How it is.
    pub state: State,
    /// Time to the head of its answer; `None` where none came.
    pub latency: Option<Duration>,
    /// The status of its answer.
    pub http_status: Option<u16>,
    /// Why it is not healthy, for people; or what could not be used of a healthy answer.
    pub note: Option<String>,
    /// The figures of a healthy answer, by name.
    pub counters: BTreeMap<String, f64>,
}

impl Observation {
    fn bad(state: State, note: impl Into<String>) -> Self {
        Self { state, latency: None, http_status: None, note: Some(note.into()), counters: BTreeMap::new() }
    }
}

/// Asks services how they are: by a connection of its own each time, so that one that is kept open does not hide that nobody can
/// connect any more. Redirects are not followed.
#[derive(Clone, Debug)]
pub struct Prober {
    client: Client,
    rule: Rule,
    limit: Duration,
}

impl Prober {
    /// A prober that goes out as `rule` says; `limit` is the longest time to the end of an answer.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(rule: &Rule, limit: Duration) -> Result<Self, reqwest::Error> {
        let agent = concat!("voiceai-health/", env!("CARGO_PKG_VERSION"));
        let client = http_client(rule).user_agent(agent).pool_max_idle_per_host(0).build()?;
        Ok(Self { client, rule: rule.clone(), limit })
    }

    /// Asks one service. Never fails: whatever happens says how the service is.
    pub async fn ask(&self, service: &Service) -> Observation {
        match tokio::time::timeout(self.limit, self.answer(service)).await {
            Ok(observation) => observation,
            Err(_) => {
                let note = format!("no whole answer within {:?}", self.limit);
                Observation::bad(State::Unknown, note)
            }
        }
    }

    async fn answer(&self, service: &Service) -> Observation {
        let began = Instant::now();
        let sent = self.client.get(service.url().expose()).header("accept", "application/json").send().await;
        let latency = Some(began.elapsed());
        let response = match sent {
            Ok(response) => response,
            Err(error) => return self.failed(service, &error),
        };
        let status = response.status().as_u16();
        let answered =
            |state, note| Observation { latency, http_status: Some(status), ..bad_or_good(state, note) };
        if status != 200 {
            let mut note = format!("answers {status}");
            if response.status().is_redirection() {
                note.push_str(", and redirects are not followed");
            }
            return answered(State::Degraded, Some(note));
        }
        match body(response).await {
            Ok(Some(body)) => Observation { counters: counters(&body), ..answered(State::Healthy, None) },
            Ok(None) => {
                let note = format!("its counters are not read: the answer is longer than {BODY_MAX} bytes");
                answered(State::Healthy, Some(note))
            }
            Err(error) => answered(State::Unknown, Some(format!("its answer broke off: {}", cause(&error)))),
        }
    }

    fn failed(&self, service: &Service, error: &reqwest::Error) -> Observation {
        let proxy = Url::parse(service.url().expose()).ok();
        let proxy = proxy.and_then(|url| self.rule.proxy_for_url(&url).map(ToString::to_string));
        match proxy {
            // Whose fault it is cannot be told.
            Some(proxy) if error.is_connect() => {
                Observation::bad(State::Unknown, format!("through the proxy {proxy}: {}", cause(error)))
            }
            None if error.is_connect() && !error.is_timeout() => Observation::bad(State::Down, cause(error)),
            _ => Observation::bad(State::Unknown, format!("no answer that can be read: {}", cause(error))),
        }
    }
}

fn bad_or_good(state: State, note: Option<String>) -> Observation {
    Observation { state, latency: None, http_status: None, note, counters: BTreeMap::new() }
}

/// The whole body; `None` when it is too long.
async fn body(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_MAX {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Numbers of the answer's object, and of the object `counters` in it, which win. What is no number, or not named like one, is
/// left aside.
fn counters(body: &[u8]) -> BTreeMap<String, f64> {
    let Ok(Value::Object(answer)) = serde_json::from_slice(body) else { return BTreeMap::new() };
    let own = answer.get("counters").and_then(Value::as_object);
    let mut counters = BTreeMap::new();
    for (name, value) in own.into_iter().flatten().chain(&answer) {
        if let Some(number) = value.as_f64().filter(|number| number.is_finite())
            && counters.len() < COUNTERS_MAX
            && is_name(name)
        {
            counters.entry(name.clone()).or_insert(number);
        }
    }
    counters
}

fn is_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=100).contains(&name.len()) && name.bytes().all(is_known)
}

/// The innermost reason in one short line, without the URL, which may hold a login.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = match innermost.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => "Connection refused".to_owned(),
        _ if std::ptr::addr_eq(innermost, error) => "the request cannot be made".to_owned(),
        _ => innermost.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_numbers_of_an_object() {
        let read = |text: &str| counters(text.as_bytes());
        let found = read(
            r#"{"status":"ok","queue_depth":7,"counters":{"messages_received":12.5,"name":"x","queue_depth":8},
                "deep":{"a":1},"ok":true,"bad name":1}"#,
        );
        let wanted = [("messages_received", 12.5), ("queue_depth", 8.0)];
        assert_eq!(found, wanted.into_iter().map(|(name, n)| (name.to_owned(), n)).collect());
        for none in ["", "[1,2]", "7", "{", "not json"] {
            assert!(read(none).is_empty(), "{none}");
        }
        let many: Vec<String> = (0..200).map(|n| format!("\"c{n}\":1")).collect();
        assert_eq!(read(&format!("{{{}}}", many.join(","))).len(), COUNTERS_MAX);
    }
}
