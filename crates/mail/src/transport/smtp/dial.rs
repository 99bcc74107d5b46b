use std::sync::Arc;
use std::time::Duration;

use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::extension::ClientId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use voiceai_egress::{Purpose, Rule};

use super::fault::{Fault, Kind};
use super::session::{Offers, Session};
use super::tls;
use super::wire::{Stream, Wire, look};
use crate::transport::settings::{Credentials, TlsMode};
use crate::transport::{Phase, Reason};

/// How connections are made; the same for all of a transport.
#[derive(Debug)]
pub(super) struct Dialler {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) mode: TlsMode,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) rule: Rule,
    pub(super) hello: ClientId,
    pub(super) limit: Duration,
}

impl Dialler {
    /// `host:port`, as records show it.
    pub(super) fn target(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// A connection that is secured, greeted and logged in.
    pub(super) async fn dial(&self, credentials: Option<&Credentials>) -> Result<Session, Fault> {
        let deadline = Instant::now() + self.limit;
        let stream = voiceai_egress::connect(&self.rule, Purpose::Tunnel, &self.host, self.port, self.limit)
            .await
            .map_err(|error| Fault::dialled(&error))?;
        // The library writes the final dot by itself; it must not wait for the content's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            return Err(Fault::way(
                Phase::Connect,
                Reason::Network,
                format!("the connection broke: {error}"),
            ));
        }
        let (wire, tls) = match self.mode {
            TlsMode::Off => (Wire::new(Stream::Plain(stream)), None),
            TlsMode::Implicit => {
                let stream = self.secure(stream).await?;
                let tls = tls::describe(&stream);
                (Wire::new(Stream::Tls(Box::new(stream))), Some(tls))
            }
            TlsMode::Starttls => {
                let stream = self.ask_for_tls(stream, deadline).await?;
                let stream = self.secure(stream).await?;
                let tls = tls::describe(&stream);
                (Wire::greeted(Stream::Tls(Box::new(stream))), Some(tls))
            }
        };
        // With STARTTLS the greeting came before; what is left of the phase is the EHLO behind it.
        let (phase, deadline) = match self.mode {
            TlsMode::Off => (Phase::Connect, deadline),
            TlsMode::Implicit => (Phase::Connect, Instant::now() + self.limit),
            TlsMode::Starttls => (Phase::Starttls, Instant::now() + self.limit),
        };
        let seen = wire.seen();
        let greeted = AsyncSmtpConnection::connect_with_transport(Box::new(wire), &self.hello);
        let connection = match timeout_at(deadline, greeted).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(Fault::spoken(phase, &error, &seen)),
            Err(_) => {
                return Err(Fault::timed_out(
                    phase,
                    format!("no greeting, or no answer to EHLO, within {:?}", self.limit),
                ));
            }
        };
        let offers = Offers::read(look(&seen).lines());
        look(&seen).first_refusal_ends = false;
        let mut session = Session::new(connection, seen, offers, tls.unwrap_or_else(|| "none".to_owned()));
        if let Some(credentials) = credentials {
            session.log_in(credentials, self.limit).await?;
        }
        Ok(session)
    }

    /// Speaks as much in clear as it takes to begin TLS.
    ///
    /// The library would keep what came in the same packet as the answer and take it for answers of the secured connection,
    /// where anybody on the way can put it. Here such a connection is dropped.
    async fn ask_for_tls(&self, stream: TcpStream, deadline: Instant) -> Result<TcpStream, Fault> {
        let mut reader = BufReader::new(Wire::new(Stream::Plain(stream)));
        let wait = format!("no greeting, or no answer to EHLO, within {:?}", self.limit);
        let late = |phase, text: &str| Fault::timed_out(phase, text);
        let hello = format!("EHLO {}\r\n", self.hello);
        timeout_at(deadline, expect(&mut reader, None, Phase::Connect, 220))
            .await
            .map_err(|_| late(Phase::Connect, &wait))??;
        let offers = timeout_at(deadline, expect(&mut reader, Some(&hello), Phase::Connect, 250))
            .await
            .map_err(|_| late(Phase::Connect, &wait))??;
        if !offers.starttls {
            let text = "the server does not offer STARTTLS, or somebody on the way took the offer out; for a server on port 465 set SMTP_TLS=implicit";
            return Err(Fault::way(Phase::Starttls, Reason::Tls, text));
        }
        let asked = expect(&mut reader, Some("STARTTLS\r\n"), Phase::Starttls, 220);
        let wait = format!("no answer to STARTTLS within {:?}", self.limit);
        timeout_at(Instant::now() + self.limit, asked).await.map_err(|_| late(Phase::Starttls, &wait))??;
        let nothing_kept = reader.buffer().is_empty();
        let stream = reader.into_inner().into_stream().filter(|_| nothing_kept);
        match stream {
            Some(Stream::Plain(stream)) => Ok(stream),
            _ => Err(Fault::way(
                Phase::Starttls,
                Reason::Tls,
                "something was said in clear after the answer to STARTTLS: somebody on the way may have put it there",
            )),
        }
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Fault> {
        let failed = |text: String| Fault::way(Phase::Starttls, Reason::Tls, text);
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| failed(format!("{} is no name that a certificate could be for", self.host)))?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        match tokio::time::timeout(self.limit, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failed(explain(&error, &self.host))),
            Err(_) => Err(Fault::timed_out(
                Phase::Starttls,
                format!("the TLS handshake did not end within {:?}", self.limit),
            )),
        }
    }
}

/// Sends a command, if any, and reads the reply to it, in clear.
async fn expect(
    reader: &mut BufReader<Wire>,
    command: Option<&str>,
    phase: Phase,
    code: u16,
) -> Result<Offers, Fault> {
    let seen = reader.get_ref().seen();
    let broken = |text: String| Fault::way(phase, Reason::Network, text);
    if let Some(command) = command {
        look(&seen).ask();
        let written = reader.get_mut().write_all(command.as_bytes()).await;
        written.map_err(|error| broken(format!("the connection broke: {error}")))?;
    }
    let mut line = String::new();
    while look(&seen).reply().is_none() {
        line.clear();
        match reader.read_line(&mut line).await {
            Ok(0) => return Err(broken("the server closed the connection".to_owned())),
            Ok(_) if line.len() >= 3 && line.as_bytes()[..3].iter().all(u8::is_ascii_digit) => {}
            Ok(_) => {
                let text = format!("the server does not speak SMTP; it said: {}", line.trim_end());
                return Err(Fault::way(phase, Reason::Protocol, text));
            }
            Err(error) => return Err(broken(format!("the connection broke: {error}"))),
        }
    }
    let seen = look(&seen);
    match seen.reply() {
        Some(reply) if reply.code == code => Ok(Offers::read(seen.lines())),
        Some(reply) if reply.code >= 400 => Err(Fault { phase, kind: Kind::Reply(reply) }),
        reply => {
            let text = format!(
                "the server was expected to answer {code} and answered {}",
                reply.map_or(0, |reply| reply.code)
            );
            Err(Fault::way(phase, Reason::Protocol, text))
        }
    }
}

/// A handshake's failure with what to do about it.
fn explain(error: &std::io::Error, host: &str) -> String {
    let text = error.to_string();
    let remedy = if text.contains("Expired") || text.contains("expired") {
        "; renew the server's certificate, and look at this host's clock"
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        "; set SMTP_HOST to a name that the server's certificate is for"
    } else if text.contains("UnknownIssuer") {
        "; set SMTP_CA_FILE to the certificate of the authority that issued it"
    } else if text.contains("corrupt message") || text.contains("InvalidContentType") {
        "; the server does not begin with TLS: set SMTP_TLS=starttls, or SMTP_PORT to the port for implicit TLS"
    } else {
        ""
    };
    format!("TLS with {host} failed: {text}{remedy}")
}
