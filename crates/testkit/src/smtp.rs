//! A mail server that does as it is told: what it offers, and at which step it refuses, hangs or hangs up.

mod talk;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use crate::certificate::Certificate;
use crate::wait::wait_until;
use talk::Talk;

/// Where in the conversation something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The first line, which the server says.
    Greeting,
    /// EHLO.
    Ehlo,
    /// STARTTLS.
    Starttls,
    /// The TLS handshake, of whichever kind.
    Handshake,
    /// AUTH, when all of it was read.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// The content, while it is being read: after its first 64 KiB, or at its end.
    Content,
    /// The final dot.
    Dot,
}

/// What the server does instead of what it should do.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers these lines, given without line ends; the conversation goes on.
    Reply(String),
    /// Answers these lines and hangs up.
    ReplyAndDrop(String),
    /// Answers exactly these bytes; the conversation goes on.
    Bytes(Vec<u8>),
    /// Hangs up without an answer.
    Drop,
    /// Never answers, and reads no further.
    Hang,
    /// Does what it should, this much later.
    Late(Duration),
}

impl Act {
    /// An answer of one line, or of several.
    #[must_use]
    pub fn reply(lines: &str) -> Self {
        Self::Reply(lines.to_owned())
    }
}

/// How connections to the sink are secured.
#[derive(Debug, Clone, Default)]
pub enum SinkTls {
    /// Not at all.
    #[default]
    Off,
    /// STARTTLS is offered.
    Starttls(Certificate),
    /// From the first byte.
    Implicit(Certificate),
}

/// What the sink offers.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// How it is secured.
    pub tls: SinkTls,
    /// Who may log in; then mail is taken from nobody else.
    pub login: Option<(String, String)>,
    /// The mechanisms it offers, where somebody may log in.
    pub mechanisms: Vec<&'static str>,
    /// Further lines of its answer to EHLO.
    pub offers: Vec<String>,
}

impl Default for SinkOptions {
    fn default() -> Self {
        let offers = ["PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"];
        let offers = offers.map(ToOwned::to_owned).to_vec();
        Self { tls: SinkTls::Off, login: None, mechanisms: vec!["PLAIN", "LOGIN"], offers }
    }
}

/// One mail that the sink has taken.
#[derive(Debug, Clone)]
pub struct Received {
    /// Of the envelope.
    pub from: String,
    /// Of the envelope.
    pub to: Vec<String>,
    /// The parameters of MAIL.
    pub parameters: String,
    /// The content as it was sent, doubled dots undone.
    pub content: Vec<u8>,
    /// Whether it came over TLS.
    pub secured: bool,
    /// Who had logged in.
    pub user: Option<String>,
    /// The connection's number, from 1.
    pub connection: usize,
}

impl Received {
    /// The value of a header's first line.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.content).into_owned();
        let headers = text.split("\r\n\r\n").next()?.to_owned();
        headers.lines().find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

#[derive(Debug, Default)]
struct State {
    always: HashMap<Step, Act>,
    next: HashMap<Step, Vec<Act>>,
    recipients: HashMap<String, Act>,
    login: Option<(String, String)>,
    received: Vec<Received>,
    connections: usize,
    open: usize,
    commands: Vec<String>,
}

/// The server. Stops when it is dropped.
#[derive(Debug)]
pub struct SmtpSink {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl SmtpSink {
    /// Starts a sink that takes everything, in clear.
    pub async fn start() -> Self {
        Self::with(SinkOptions::default()).await
    }

    /// Starts a sink that offers this.
    #[allow(clippy::unused_async, reason = "needs a runtime, and every other server is awaited")]
    pub async fn with(options: SinkOptions) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Little is taken that is not read: a client notices soon that its content does not move.
        socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let listener = socket.listen(1024).expect("a listener");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(Mutex::new(State { login: options.login.clone(), ..State::default() }));
        let shared = Arc::clone(&state);
        let options = Arc::new(options);
        let server = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let number = {
                    let mut state = look(&shared);
                    state.connections += 1;
                    state.open += 1;
                    state.connections
                };
                let talk = Talk {
                    state: Arc::clone(&shared),
                    options: Arc::clone(&options),
                    number,
                    secured: false,
                    user: None,
                };
                connections.spawn(talk.run(stream));
            }
        });
        Self { address, state, server }
    }

    /// Its address; the host is `127.0.0.1`, for which [`Certificate::localhost`] is good too.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on does this at that step.
    pub fn always(&self, step: Step, act: Act) {
        look(&self.state).always.insert(step, act);
    }

    /// Does this once at that step; several of them one after another.
    pub fn once(&self, step: Step, act: Act) {
        look(&self.state).next.entry(step).or_default().push(act);
    }

    /// From now on does this when this recipient is named.
    pub fn recipient(&self, address: &str, act: Act) {
        look(&self.state).recipients.insert(address.to_owned(), act);
    }

    /// From now on lets only this one log in.
    pub fn login(&self, user: &str, password: &str) {
        look(&self.state).login = Some((user.to_owned(), password.to_owned()));
    }

    /// From now on does as it should.
    pub fn behave(&self) {
        let mut state = look(&self.state);
        state.always.clear();
        state.next.clear();
        state.recipients.clear();
    }

    /// What it has taken.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        look(&self.state).received.clone()
    }

    /// How many it has taken.
    #[must_use]
    pub fn count(&self) -> usize {
        look(&self.state).received.len()
    }

    /// How many connections were made to it.
    #[must_use]
    pub fn connections(&self) -> usize {
        look(&self.state).connections
    }

    /// How many connections are open.
    #[must_use]
    pub fn open(&self) -> usize {
        look(&self.state).open
    }

    /// The verbs that it was told, in order; what follows AUTH is left out.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        look(&self.state).commands.clone()
    }

    /// Waits until it has taken so many.
    pub async fn wait_for(&self, count: usize) {
        let what = format!("{count} mails at the sink");
        wait_until(Duration::from_secs(20), what, async || self.count() >= count).await;
    }
}

fn look(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
