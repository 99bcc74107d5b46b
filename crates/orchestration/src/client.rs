//! One call of one agent, under limits of time and size.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use url::Url;
use voiceai_egress::{Rule, http_client};
use voiceai_runtime::Secret;

use crate::OrchestrationSettings;
use crate::answer::{Again, Failed, Heard, judge, retry_after};
use crate::error::{OrchestrationError, chain};

/// Longest time for making a connection, within the call's limit.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest time for telling an agent that its call was cancelled: a cancelled job has 5 s in all.
const CANCEL: Duration = Duration::from_secs(2);

/// Longest time for asking whether an agent can be reached.
const PROBE: Duration = Duration::from_secs(5);

/// Where the token of the moment comes from: it may change while the service runs.
pub type Token = Arc<dyn Fn() -> Option<Secret> + Send + Sync>;

/// Calls agents. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Token,
    timeout: Duration,
    bytes_max: usize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The agent.
    pub agent: String,
    /// `Idempotency-Key`: the same for every call that is to have one effect.
    pub key: String,
    /// The JSON body.
    pub body: String,
    /// W3C `traceparent`.
    pub trace: Option<String>,
}

impl Client {
    /// A client that goes out as `rule` says; `None` where no address of agents is set.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        settings: &OrchestrationSettings,
        rule: &Rule,
        token: Token,
    ) -> Result<Option<Self>, OrchestrationError> {
        let Some(base) = settings.agents_url.clone() else { return Ok(None) };
        let http = http_client(rule)
            .connect_timeout(CONNECT.min(settings.timeout))
            .timeout(settings.timeout)
            .build()
            .map_err(|source| OrchestrationError::Client { source })?;
        Ok(Some(Self {
            http,
            base,
            token,
            timeout: settings.timeout,
            bytes_max: settings.response_bytes_max,
        }))
    }

    /// Calls once. Never follows a redirect, never tries again by itself.
    pub async fn call(&self, call: &Call) -> Heard {
        let sent = self.request(Method::POST, call).body(call.body.clone()).send().await;
        match sent {
            Ok(response) => self.hear(response).await,
            Err(error) => self.unheard(&error),
        }
    }

    /// Tells an agent that nobody waits for a call any more. What it answers makes no difference.
    pub async fn cancel(&self, call: &Call) {
        let told = self.request(Method::DELETE, call).timeout(CANCEL).send().await;
        match told {
            Ok(answer) => {
                tracing::info!(
                    agent = call.agent,
                    status = answer.status().as_u16(),
                    "agent told that its call is cancelled"
                );
            }
            Err(error) => {
                let error = chain(&error.without_url());
                tracing::warn!(agent = call.agent, error, "agent cannot be told that its call is cancelled");
            }
        }
    }

    /// Asks with `HEAD`, which has no effect, whether an agent can be reached. Most agents take nothing but `POST` and say so: that is an
    /// answer too.
    ///
    /// # Errors
    /// Why a call now would come to nothing, in words.
    pub async fn probe(&self, agent: &str) -> Result<(), String> {
        let request = self.authorised(self.http.request(Method::HEAD, address(&self.base, agent)));
        match request.timeout(PROBE.min(self.timeout)).send().await.map(|answer| answer.status().as_u16()) {
            Ok(401) => {
                Err("the agent refuses the caller (HTTP 401): set ORCHESTRATION_AGENTS_TOKEN".to_owned())
            }
            // Whoever stands before it says that it is away.
            Ok(status @ (502..=504)) => Err(format!("HTTP {status}")),
            Ok(_) => Ok(()),
            Err(error) => Err(self.words(&error)),
        }
    }

    fn request(&self, method: Method, call: &Call) -> RequestBuilder {
        let request = self.authorised(self.http.request(method, address(&self.base, &call.agent)));
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header("Idempotency-Key", &call.key);
        match &call.trace {
            Some(trace) => request.header("traceparent", trace),
            None => request,
        }
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        if let Some(token) = (self.token)()
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
        {
            value.set_sensitive(true);
            return request.header(AUTHORIZATION, value);
        }
        request
    }

    async fn hear(&self, mut response: Response) -> Heard {
        let status = response.status().as_u16();
        let wish = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wish = wish.and_then(|value| retry_after(value, Timestamp::now()));
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > self.bytes_max => {
                    // Of a failure the beginning is enough; a report that is cut off is none.
                    if !(200..=299).contains(&status) {
                        return judge(status, wish, &body);
                    }
                    let error =
                        format!("HTTP {status}, but the answer is longer than {} bytes", self.bytes_max);
                    return Heard::Failed(Failed { status: Some(status), error, again: Again::Never });
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return judge(status, wish, &body),
                Err(_) if !(200..=299).contains(&status) => return judge(status, wish, &body),
                Err(error) => return self.unheard(&error),
            }
        }
    }

    fn unheard(&self, error: &reqwest::Error) -> Heard {
        Heard::Failed(Failed { status: None, error: self.words(error), again: Again::Later })
    }

    fn words(&self, error: &reqwest::Error) -> String {
        let error = if error.is_timeout() && !error.is_connect() {
            format!("no answer within {:?}", self.timeout)
        } else {
            // The error's own text names the address; its sources say what happened.
            let mut source = std::error::Error::source(error);
            let mut words =
                if error.is_connect() { "connect".to_owned() } else { "broken answer".to_owned() };
            while let Some(inner) = source {
                words = format!("{words}: {inner}");
                source = inner.source();
            }
            words
        };
        crate::answer::shown(&error)
    }
}

/// Where an agent is called: in the place of `{agent}`, else as the last part of the path.
fn address(base: &Url, agent: &str) -> Url {
    // In a URL's path the braces are written as escapes.
    let path = base.path().replace("%7B", "{").replace("%7D", "}");
    let path = if path.contains("{agent}") {
        path.replace("{agent}", agent)
    } else {
        format!("{}/{agent}", path.trim_end_matches('/'))
    };
    let mut url = base.clone();
    url.set_path(&path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_address_is_made_of_the_base() {
        for (base, expected) in [
            ("http://agents:8080", "http://agents:8080/seo"),
            ("http://agents:8080/v1/", "http://agents:8080/v1/seo"),
            ("https://x/v1/agents/{agent}/run", "https://x/v1/agents/seo/run"),
        ] {
            assert_eq!(address(&base.parse().unwrap(), "seo").as_str(), expected);
        }
    }
}
