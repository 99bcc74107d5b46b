//! Kamailio's JSON-RPC over HTTP.

use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use url::Url;
use voiceai_egress::{Rule, http_client};
use voiceai_runtime::Secret;

/// A list of many thousand destinations is still far below this.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// A call that brought no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// Nobody answered in time, or not to the end.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// What answered is no Kamailio, or does not let us in.
    #[error("not a JSON-RPC answer: {0}")]
    NotRpc(String),
    /// Kamailio answered with an error.
    #[error("{message} ({code})")]
    Refused {
        /// Its code, such as 500.
        code: i64,
        /// Its words.
        message: String,
    },
}

/// One proxy's remote control. Every call ends within the limit that it was made with.
#[derive(Debug)]
pub struct Rpc {
    client: Client,
    url: Secret,
    address: String,
}

impl Rpc {
    /// For `url`, which may hold user and password. A URL without a path means `/RPC`.
    ///
    /// # Errors
    /// In words, when it is no URL or no client can be made.
    pub fn new(url: &str, limit: Duration) -> Result<Self, String> {
        let mut url = Url::parse(url.trim()).map_err(|error| error.to_string())?;
        if url.path() == "/" {
            url.set_path("/RPC");
        }
        let mut shown = url.clone();
        // Both fail only for addresses without a host, which have neither.
        let _ = (shown.set_username(""), shown.set_password(None));
        shown.set_query(None);
        // A proxy for calls is a neighbour: no proxy for the web stands in between. A connection of its own for each call, so
        // that none is found dead.
        let client = http_client(&Rule::default())
            .timeout(limit)
            .connect_timeout(limit)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| error.without_url().to_string())?;
        Ok(Self { client, url: Secret::new(url.as_str()), address: shown.into() })
    }

    /// The address without user, password and query: for people.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Calls a method.
    ///
    /// # Errors
    /// [`RpcError`], always within the limit.
    pub async fn call(&self, method: &str, parameters: Value) -> Result<Value, RpcError> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters }).to_string();
        let request =
            self.client.post(self.url.expose()).header("content-type", "application/json").body(body);
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(part) = response.chunk().await.map_err(no_answer)? {
            if answer.len() + part.len() > ANSWER_MAX {
                return Err(RpcError::NotRpc(format!("more than {ANSWER_MAX} bytes")));
            }
            answer.extend_from_slice(&part);
        }
        read(status.as_u16(), &answer)
    }
}

fn no_answer(error: reqwest::Error) -> RpcError {
    let error = error.without_url();
    if error.is_timeout() {
        return RpcError::NoAnswer("time is up".to_owned());
    }
    RpcError::NoAnswer(crate::act::chain(&error))
}

/// Kamailio says errors with status 500, and the same words in the body.
fn read(status: u16, body: &[u8]) -> Result<Value, RpcError> {
    let mut answer: Value = serde_json::from_slice(body).map_err(|_| {
        RpcError::NotRpc(format!("status {status} with {} bytes that are no JSON", body.len()))
    })?;
    if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("an error without words");
        let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
        return Err(RpcError::Refused { code, message: message.to_owned() });
    }
    match answer.get_mut("result").map(Value::take) {
        Some(result) => Ok(result),
        None => Err(RpcError::NotRpc(format!("status {status} with neither result nor error"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_result_an_error_or_nothing_of_ours() {
        assert_eq!(read(200, br#"{"jsonrpc":"2.0","result":[1],"id":1}"#), Ok(json!([1])));
        let refused = br#"{"jsonrpc":"2.0","error":{"code":500,"message":"Reload Failed"},"id":1}"#;
        let expected = RpcError::Refused { code: 500, message: "Reload Failed".to_owned() };
        assert_eq!(read(500, refused), Err(expected));
        for other in ["", "<html>", "{}", "[]", "null", "1"] {
            assert!(matches!(read(200, other.as_bytes()), Err(RpcError::NotRpc(_))), "{other}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        let rpc = Rpc::new("http://user:secret@10.0.0.4:5062", Duration::from_secs(1)).expect("a client");
        assert_eq!(rpc.address(), "http://10.0.0.4:5062/RPC");
        assert!(!format!("{rpc:?}").contains("secret"));
        assert!(Rpc::new("nonsense", Duration::from_secs(1)).is_err());
    }
}
