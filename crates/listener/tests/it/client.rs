//! A client that says exactly the bytes it is given.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends")]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use voiceai_listener::axum::Router;
use voiceai_listener::{Limits, Listener, ListenerSettings};
use voiceai_runtime::{Secret, Vitals};

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) stopping: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

pub(crate) fn settings(limits: Limits) -> ListenerSettings {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    ListenerSettings {
        internal: Some(any_port),
        public: Some(any_port),
        token: Some(Secret::new(TOKEN)),
        metrics: false,
        limits,
    }
}

pub(crate) fn serve(routes: Router, limits: Limits) -> Served {
    let listener = Listener::internal(&settings(limits)).unwrap().unwrap();
    run(listener.mount(routes), Duration::from_secs(5))
}

pub(crate) fn run(listener: Listener, drain: Duration) -> Served {
    let address = listener.address();
    let stopping = CancellationToken::new();
    let pulse = Vitals::new().register("listener", Listener::SILENCE_MAX);
    let task = tokio::spawn(listener.serve(stopping.clone(), drain, pulse));
    Served { address, stopping, task }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The problem document, which every error has.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.field("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert_eq!(problem["request_id"].as_str(), self.field("x-request-id"), "{problem}");
        assert_eq!(problem["type"], format!("urn:voiceai:problem:{}", problem["code"].as_str().unwrap()));
        problem
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    have: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), have: Vec::new() }
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next response; `None` when the connection ended first.
    pub(crate) async fn hear(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a response in time")
    }

    async fn read(&mut self) -> Option<Answer> {
        loop {
            if let Some((answer, length)) = whole(&self.have) {
                self.have.drain(..length);
                return Some(answer);
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.have.extend_from_slice(&more[..n]),
            }
        }
    }
}

fn whole(bytes: &[u8]) -> Option<(Answer, usize)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let answer = Answer { status, head: head.to_owned(), body: String::new() };
    let length = answer.field("content-length").map_or(0, |length| length.parse().unwrap());
    (rest.len() >= length)
        .then(|| (Answer { body: rest[..length].to_owned(), ..answer }, head.len() + 4 + length))
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.say(request).await;
    client.hear().await.expect("a response")
}

/// A request with the token and without a body.
pub(crate) fn with_token(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
}

/// A request with the token and a JSON body.
pub(crate) fn post(path: &str, media_type: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {media_type}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
