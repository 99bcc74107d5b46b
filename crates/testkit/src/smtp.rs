//! A mail server that does as it is told: what it offers, and at which step it refuses, hangs or hangs up.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certificate::Certificate;
use crate::wait::wait_until;

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

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Line = BufReader<Box<dyn Io>>;

/// One conversation; `None` ends it.
struct Talk {
    state: Arc<Mutex<State>>,
    options: Arc<SinkOptions>,
    number: usize,
    secured: bool,
    user: Option<String>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        look(&self.state).open -= 1;
    }
}

impl Talk {
    async fn run(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let _ = self.talk(stream).await;
    }

    async fn talk(&mut self, stream: TcpStream) -> Option<()> {
        let stream: Box<dyn Io> = match &self.options.tls {
            SinkTls::Implicit(certificate) => {
                let certificate = certificate.clone();
                self.secure(Box::new(stream), &certificate).await?
            }
            SinkTls::Off | SinkTls::Starttls(_) => Box::new(stream),
        };
        let mut line: Line = BufReader::new(stream);
        if !self.act(Step::Greeting, &mut line).await? {
            say(&mut line, "220 sink.test ESMTP").await?;
        }
        let (mut from, mut parameters, mut to) = (String::new(), String::new(), Vec::new());
        loop {
            let command = read_line(&mut line).await?;
            let verb = command.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            look(&self.state).commands.push(verb.clone());
            match verb.as_str() {
                "EHLO" | "HELO" => self.ehlo(&mut line).await?,
                "STARTTLS" => {
                    let SinkTls::Starttls(certificate) = self.options.tls.clone() else {
                        say(&mut line, "502 5.5.1 not offered").await?;
                        continue;
                    };
                    if self.act(Step::Starttls, &mut line).await? {
                        // An answer that says yes is followed by a handshake all the same.
                        continue;
                    }
                    say(&mut line, "220 2.0.0 go ahead").await?;
                    line = BufReader::new(self.secure(line.into_inner(), &certificate).await?);
                }
                "AUTH" => self.auth(&command, &mut line).await?,
                "MAIL" => {
                    if self.act(Step::Mail, &mut line).await? {
                        continue;
                    }
                    if look(&self.state).login.is_some() && self.user.is_none() {
                        say(&mut line, "530 5.7.0 authentication required").await?;
                        continue;
                    }
                    (from, parameters) = bracketed(&command);
                    to.clear();
                    say(&mut line, "250 2.1.0 ok").await?;
                }
                "RCPT" => {
                    let (address, _) = bracketed(&command);
                    let own = look(&self.state).recipients.get(&address).cloned();
                    let done = match own {
                        Some(act) => perform(act, &mut line).await?,
                        None => self.act(Step::Rcpt, &mut line).await?,
                    };
                    if !done {
                        to.push(address);
                        say(&mut line, "250 2.1.5 ok").await?;
                    }
                }
                "DATA" => {
                    if self.act(Step::Data, &mut line).await? {
                        continue;
                    }
                    say(&mut line, "354 go on").await?;
                    let content = self.content(&mut line).await?;
                    let received = Received {
                        from: from.clone(),
                        to: std::mem::take(&mut to),
                        parameters: parameters.clone(),
                        content,
                        secured: self.secured,
                        user: self.user.clone(),
                        connection: self.number,
                    };
                    if !self.act_and_take(received, &mut line).await? {
                        say(&mut line, "250 2.0.0 Ok: queued as SINK0001").await?;
                    }
                }
                "RSET" | "NOOP" => say(&mut line, "250 2.0.0 ok").await?,
                "QUIT" => {
                    say(&mut line, "221 2.0.0 bye").await?;
                    return None;
                }
                _ => say(&mut line, "500 5.5.2 what?").await?,
            }
        }
    }

    async fn ehlo(&self, line: &mut Line) -> Option<()> {
        if self.act(Step::Ehlo, line).await? {
            return Some(());
        }
        let mut lines = vec!["sink.test".to_owned()];
        lines.extend(self.options.offers.iter().cloned());
        if matches!(self.options.tls, SinkTls::Starttls(_)) && !self.secured {
            lines.push("STARTTLS".to_owned());
        }
        if look(&self.state).login.is_some() {
            lines.push(format!("AUTH {}", self.options.mechanisms.join(" ")));
        }
        let last = lines.pop()?;
        let mut text: String = lines.iter().map(|line| format!("250-{line}\r\n")).collect();
        text.push_str(&format!("250 {last}"));
        say(line, &text).await
    }

    async fn auth(&mut self, command: &str, line: &mut Line) -> Option<()> {
        let mut words = command.split_whitespace().skip(1);
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        let given = if mechanism == "PLAIN" {
            let answer = words.next().map(ToOwned::to_owned);
            let answer = STANDARD.decode(answer?).ok()?;
            let parts: Vec<String> = answer
                .split(|byte| *byte == 0)
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect();
            (parts.get(1).cloned().unwrap_or_default(), parts.get(2).cloned().unwrap_or_default())
        } else {
            say(line, "334 VXNlcm5hbWU6").await?;
            let user = STANDARD.decode(read_line(line).await?).ok()?;
            say(line, "334 UGFzc3dvcmQ6").await?;
            let password = STANDARD.decode(read_line(line).await?).ok()?;
            (String::from_utf8_lossy(&user).into_owned(), String::from_utf8_lossy(&password).into_owned())
        };
        if self.act(Step::Auth, line).await? {
            return Some(());
        }
        if look(&self.state).login.as_ref() == Some(&given) {
            self.user = Some(given.0);
            say(line, "235 2.7.0 welcome").await
        } else {
            say(line, "535 5.7.8 authentication credentials invalid").await
        }
    }

    async fn content(&self, line: &mut Line) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let mut asked = false;
        loop {
            let start = content.len();
            let read = line.read_until(b'\n', &mut content).await.ok()?;
            let ended = &content[start..] == b".\r\n" && (start == 0 || content[..start].ends_with(b"\r\n"));
            if !asked && (content.len() > 64 * 1024 || ended) {
                asked = true;
                self.act(Step::Content, line).await?;
            }
            if read == 0 {
                return None;
            }
            if ended {
                content.truncate(start);
                return Some(content);
            }
            if content[start..].starts_with(b"..") {
                content.remove(start);
            }
        }
    }

    /// A mail counts as taken when the answer is yes, or when nobody can know it: the server had all of it.
    async fn act_and_take(&self, received: Received, line: &mut Line) -> Option<bool> {
        let act = self.chosen(Step::Dot);
        let refused =
            matches!(&act, Some(Act::Reply(text) | Act::ReplyAndDrop(text)) if text.starts_with(['4', '5']));
        if !refused {
            look(&self.state).received.push(received);
        }
        match act {
            Some(act) => perform(act, line).await,
            None => Some(false),
        }
    }

    async fn secure(&mut self, stream: Box<dyn Io>, certificate: &Certificate) -> Option<Box<dyn Io>> {
        match self.chosen(Step::Handshake) {
            Some(Act::Hang) => return hang().await,
            Some(Act::Drop) => return None,
            _ => {}
        }
        let acceptor = TlsAcceptor::from(certificate.server());
        let stream = acceptor.accept(stream).await.ok()?;
        self.secured = true;
        Some(Box::new(stream))
    }

    fn chosen(&self, step: Step) -> Option<Act> {
        let mut state = look(&self.state);
        let once = state.next.get_mut(&step).filter(|acts| !acts.is_empty()).map(|acts| acts.remove(0));
        once.or_else(|| state.always.get(&step).cloned())
    }

    /// True when the step was answered otherwise than it should be.
    async fn act(&self, step: Step, line: &mut Line) -> Option<bool> {
        match self.chosen(step) {
            Some(act) => perform(act, line).await,
            None => Some(false),
        }
    }
}

async fn perform(act: Act, line: &mut Line) -> Option<bool> {
    match act {
        Act::Reply(text) => say(line, &text.replace('\n', "\r\n")).await.map(|()| true),
        Act::ReplyAndDrop(text) => {
            say(line, &text.replace('\n', "\r\n")).await?;
            let _ = line.shutdown().await;
            // What is still coming is read, or the answer would be lost with the connection.
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(2), line.read_to_end(&mut rest)).await;
            None
        }
        Act::Bytes(bytes) => {
            line.get_mut().write_all(&bytes).await.ok()?;
            line.get_mut().flush().await.ok()?;
            Some(true)
        }
        Act::Drop => None,
        Act::Hang => hang().await,
        Act::Late(delay) => {
            tokio::time::sleep(delay).await;
            Some(false)
        }
    }
}

async fn hang<T>() -> Option<T> {
    std::future::pending().await
}

async fn say(line: &mut Line, text: &str) -> Option<()> {
    let stream = line.get_mut();
    stream.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    stream.flush().await.ok()
}

async fn read_line(line: &mut Line) -> Option<String> {
    let mut bytes = Vec::new();
    let read = line.read_until(b'\n', &mut bytes).await.ok()?;
    (read > 0).then(|| String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// What stands between the angle brackets, and what follows them.
fn bracketed(command: &str) -> (String, String) {
    let inside = command.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map(|(address, rest)| (address.to_owned(), rest.trim().to_owned())).unwrap_or_default()
}
