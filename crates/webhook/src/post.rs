//! One POST to one endpoint: the address is judged, then connected to, then spoken with under limits of time and size.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use url::{Position, Url};
use voiceai_egress::{EgressError, NoProxy, Purpose, Rule};

use crate::error::chain;
use crate::guard::{Guard, GuardError};
use crate::retry::retry_after;
use crate::signature::Keys;

/// Of an answer that is kept to be shown.
const SHOWN: usize = 1_024;
/// Largest head of an answer.
const HEAD_MAX: usize = 64 * 1024;
/// The body says nothing that counts: it is not waited for any longer.
const BODY_WAIT: Duration = Duration::from_secs(2);
/// How long a connection that worked is kept for the next delivery, and how many in all; of one host as many as are posted at once:
/// many tenants may have their endpoints at one host.
const IDLE: Duration = Duration::from_secs(15);
const IDLE_ALL: usize = 1_000;

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What is posted.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to.
    pub url: Url,
    /// `webhook-id`.
    pub id: String,
    /// The event.
    pub body: Bytes,
    /// What it is signed with; without, it carries no signature.
    pub keys: Option<Keys>,
    /// Longest time to the last header of the answer.
    pub timeout: Duration,
}

/// The endpoint answered, well or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its wish for time, unclamped.
    pub retry_after: Option<Duration>,
    /// The beginning of its body, control characters taken out.
    pub text: String,
    /// Which address answered; behind a proxy the one that the proxy was sent to.
    pub address: SocketAddr,
}

impl Answer {
    /// True for 2xx alone: a redirect is no delivery.
    #[must_use]
    pub const fn is_taken(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// There was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The address may not be connected to.
    #[error(transparent)]
    Refused(#[from] GuardError),
    /// Nobody took the connection.
    #[error("connect to {address}: {reason}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// TLS did not come about.
    #[error("TLS with {host}: {reason}")]
    Tls {
        /// The name that the certificate had to have.
        host: String,
        /// Why not.
        reason: String,
    },
    /// What came is no HTTP, or less than an answer.
    #[error("no answer: {0}")]
    Broken(String),
    /// A limit passed.
    #[error("no answer within {limit:?} ({phase})")]
    TimedOut {
        /// What was waited for.
        phase: &'static str,
        /// The limit.
        limit: Duration,
    },
}

impl Failure {
    /// A fixed word, for rows and metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused(GuardError::Resolve { .. }) => "unresolved",
            Self::Refused(_) => "address_refused",
            Self::Connect { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Broken(_) => "broken_answer",
            Self::TimedOut { .. } => "timed_out",
        }
    }
}

/// Limits that hold for every POST.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) response_bytes: usize,
    pub(crate) idle_each: usize,
}

type Sender = SendRequest<Full<Bytes>>;

struct Idle {
    sender: Sender,
    address: SocketAddr,
    since: Instant,
}

/// Posts. Cheap to clone; clones share their idle connections.
#[derive(Clone)]
pub struct Client {
    guard: Guard,
    rule: Rule,
    tls: TlsConnector,
    limits: Limits,
    idle: Arc<Mutex<Shelf>>,
}

/// Connections that wait for their next use, by host.
#[derive(Default)]
struct Shelf {
    kept: HashMap<String, Vec<Idle>>,
    count: usize,
}

impl Shelf {
    /// The one that was used last, of those that still stand.
    fn take(&mut self, key: &str) -> Option<Idle> {
        let kept = self.kept.get_mut(key)?;
        let before = kept.len();
        let found = std::iter::from_fn(|| kept.pop())
            .find(|idle| idle.since.elapsed() < IDLE && idle.sender.is_ready());
        self.count -= before - kept.len();
        if kept.is_empty() {
            self.kept.remove(key);
        }
        found
    }

    fn keep(&mut self, key: String, idle: Idle, each: usize) {
        if self.count >= IDLE_ALL {
            for kept in self.kept.values_mut() {
                kept.retain(Idle::stands);
            }
            self.kept.retain(|_, kept| !kept.is_empty());
            self.count = self.kept.values().map(Vec::len).sum();
        }
        let kept = self.kept.entry(key).or_default();
        if kept.len() >= each {
            let before = kept.len();
            kept.retain(Idle::stands);
            self.count -= before - kept.len();
        }
        if kept.len() < each && self.count < IDLE_ALL {
            kept.push(idle);
            self.count += 1;
        }
    }
}

impl Idle {
    fn stands(&self) -> bool {
        self.since.elapsed() < IDLE && !self.sender.is_closed()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("guard", &self.guard).field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl Client {
    /// Trusts the system's certificate authorities.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn new(settings: &crate::WebhookSettings, guard: Guard, rule: Rule) -> Result<Self, rustls::Error> {
        Ok(Self::trusting(settings, guard, rule, crate::tls::config()?))
    }

    /// Trusts what `tls` trusts.
    #[must_use]
    pub fn trusting(
        settings: &crate::WebhookSettings,
        guard: Guard,
        rule: Rule,
        tls: Arc<rustls::ClientConfig>,
    ) -> Self {
        let limits = Limits {
            connect: settings.connect_timeout,
            response_bytes: settings.response_bytes_max,
            idle_each: settings.concurrency,
        };
        Self { guard, rule, tls: tls.into(), limits, idle: Arc::default() }
    }

    /// Posts once. Never follows a redirect, never tries again by itself once a byte may have been read.
    ///
    /// # Errors
    /// [`Failure`], within the request's limit.
    pub async fn post(&self, request: &Request) -> Result<Answer, Failure> {
        let deadline = Instant::now() + request.timeout;
        // A connection that is used again leads to an address that was judged when it was made.
        let key = request.url[..Position::BeforePath].to_owned();
        let overdue = |phase| Failure::TimedOut { phase, limit: request.timeout };
        while let Some(mut idle) = self.take(&key) {
            let sent = timeout_at(deadline, idle.sender.try_send_request(message(request)?));
            match sent.await.map_err(|_| overdue("answer"))? {
                Ok(response) => return Ok(self.read(response, idle, key, deadline).await),
                Err(mut error) => {
                    // With the request still in hand it never left: the connection had been closed meanwhile.
                    if error.take_message().is_none() {
                        return Err(Failure::Broken(chain(error.error())));
                    }
                }
            }
        }
        let limit = self.limits.connect.min(request.timeout);
        let connecting = tokio::time::timeout(limit, self.connect(&request.url));
        let mut idle = connecting.await.map_err(|_| Failure::TimedOut { phase: "connection", limit })??;
        let sent = timeout_at(deadline, idle.sender.send_request(message(request)?));
        let response = sent.await.map_err(|_| overdue("answer"))?;
        let response = response.map_err(|error| Failure::Broken(chain(&error)))?;
        Ok(self.read(response, idle, key, deadline).await)
    }

    async fn connect(&self, url: &Url) -> Result<Idle, Failure> {
        let addresses = self.guard.addresses(url).await?;
        let (stream, address) = self.reach(url, &addresses).await?;
        let _ = stream.set_nodelay(true);
        let sender = if url.scheme() == "https" {
            let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let failed = |reason: String| Failure::Tls { host: host.to_owned(), reason };
            let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
            let secured = self.tls.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
            handshake(TokioIo::new(secured)).await?
        } else {
            handshake(TokioIo::new(stream)).await?
        };
        Ok(Idle { sender, address, since: Instant::now() })
    }

    /// Tries the judged addresses one after the other. Through a proxy it is the address, not the name, that the proxy is asked for: a
    /// second look at the name, by whomever, could answer something else.
    async fn reach(&self, url: &Url, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Failure> {
        let purpose = if url.scheme() == "https" { Purpose::Https } else { Purpose::Http };
        let proxied = self.rule.proxy_for_url(url).is_some();
        let forced = Rule { direct: NoProxy::default(), ..self.rule.clone() };
        // A name may have many addresses; the first few must not use up all the time.
        let tried = addresses.len().clamp(1, 4);
        let each = self.limits.connect / u32::try_from(tried).unwrap_or(1);
        let mut last = None;
        for address in addresses.iter().take(tried) {
            let made: Result<TcpStream, String> = if proxied {
                let host = address.ip().to_string();
                let made = voiceai_egress::connect(&forced, purpose, &host, address.port(), each).await;
                made.map_err(|error: EgressError| chain(&error))
            } else {
                let made = tokio::time::timeout(each, TcpStream::connect(address)).await;
                made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(|error| error.to_string())
            };
            match made {
                Ok(stream) => return Ok((stream, *address)),
                Err(reason) => last = Some(Failure::Connect { address: *address, reason }),
            }
        }
        Err(last.unwrap_or_else(|| Failure::Broken("there is no address to connect to".to_owned())))
    }

    /// The status has decided; of the body only a beginning is read, and not for long.
    async fn read(&self, response: Response<Incoming>, idle: Idle, key: String, deadline: Instant) -> Answer {
        let (head, mut body) = response.into_parts();
        let wish = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let answer = |text: &[u8]| Answer {
            status: head.status.as_u16(),
            retry_after: wish.and_then(|wish| retry_after(wish, Timestamp::now())),
            text: shown(text),
            address: idle.address,
        };
        let until = deadline.max(Instant::now()).min(Instant::now() + BODY_WAIT);
        let (mut beginning, mut read) = (Vec::new(), 0);
        let whole = loop {
            match timeout_at(until, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    read += data.len();
                    let room = SHOWN.saturating_sub(beginning.len()).min(data.len());
                    beginning.extend_from_slice(&data[..room]);
                    if read > self.limits.response_bytes {
                        break false;
                    }
                }
                Ok(None) => break true,
                Ok(Some(Err(_))) | Err(_) => break false,
            }
        };
        let answer = answer(&beginning);
        if whole {
            self.keep(key, Idle { since: Instant::now(), ..idle });
        }
        answer
    }

    fn take(&self, key: &str) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take(key)
    }

    fn keep(&self, key: String, idle: Idle) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).keep(key, idle, self.limits.idle_each);
    }
}

fn handshake<S>(stream: S) -> BoxFuture<'static, Result<Sender, Failure>>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    Box::pin(async move {
        let made = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(stream).await;
        let (sender, connection) = made.map_err(|error| Failure::Broken(chain(&error)))?;
        // Ends with the sender, or with the peer.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    })
}

fn message(request: &Request) -> Result<hyper::Request<Full<Bytes>>, Failure> {
    let url = &request.url;
    let timestamp = Timestamp::now().as_second();
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let mut builder = hyper::Request::builder()
        .method(Method::POST)
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, host)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(USER_AGENT, HeaderValue::from_static(concat!("voiceai-webhooks/", env!("CARGO_PKG_VERSION"))))
        .header(ID, &request.id)
        .header(TIMESTAMP, timestamp);
    if let Some(keys) = &request.keys {
        builder = builder.header(SIGNATURE, keys.sign(&request.id, timestamp, &request.body));
    }
    let built = builder.body(Full::new(request.body.clone()));
    built.map_err(|error| Failure::Broken(format!("the request cannot be made: {error}")))
}

/// What an endpoint says may be anything, and is shown on a terminal.
fn shown(text: &[u8]) -> String {
    if text.is_empty() {
        return String::new();
    }
    let text: String =
        String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().to_owned()
}
