//! One conversation of the sink with a client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Act, Received, SinkOptions, SinkTls, State, Step, look};
use crate::certificate::Certificate;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type Line = BufReader<Box<dyn Io>>;

/// One conversation; `None` ends it.
pub(super) struct Talk {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) options: Arc<SinkOptions>,
    pub(super) number: usize,
    pub(super) secured: bool,
    pub(super) user: Option<String>,
}

impl Drop for Talk {
    fn drop(&mut self) {
        look(&self.state).open -= 1;
    }
}

impl Talk {
    pub(super) async fn run(mut self, stream: TcpStream) {
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
