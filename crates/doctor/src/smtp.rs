//! The mail server: greets, offers STARTTLS with a certificate that holds, and takes the login. No mail is sent.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_config::catalogue::transport::{
    EMAIL_TRANSPORT, EmailTransport, MAIL_SMTP_INSECURE_SKIP_VERIFY, SMTP_CA_FILE, SMTP_HOST, SMTP_PASS,
    SMTP_PORT, SMTP_TLS, SMTP_USER, SmtpTls,
};
use voiceai_config::{HostName, Reader};
use voiceai_egress::{Purpose, Rule, connect};
use voiceai_runtime::Secret;

use crate::BOUND;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Of the whole conversation: within a check's bound, so that what was learned until then is still told.
const ALL_WITHIN: Duration = Duration::from_secs(9);
/// More than any server says in one reply.
const REPLY_LONGEST: usize = 16 * 1024;

/// The mail server and how it is spoken to.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    host: String,
    port: u16,
    tls: SmtpTls,
    ca_file: Option<PathBuf>,
    skip_verify: bool,
    login: Option<(String, Secret)>,
    way: Rule,
}

/// Why there is none to look at.
pub(crate) type Absent = &'static str;

impl Server {
    pub(crate) fn read(reader: &Reader<'_>) -> Result<Self, Absent> {
        if reader.get(&EMAIL_TRANSPORT) != EmailTransport::Smtp {
            return Err("EMAIL_TRANSPORT is not smtp");
        }
        let host = reader.optional(&SMTP_HOST).ok_or("SMTP_HOST is not set")?;
        let port = reader.get(&SMTP_PORT);
        let usual = if port == 465 { SmtpTls::Implicit } else { SmtpTls::Starttls };
        let login = reader.optional(&SMTP_USER).zip(reader.optional(&SMTP_PASS));
        Ok(Self {
            host,
            port,
            tls: reader.optional(&SMTP_TLS).unwrap_or(usual),
            ca_file: reader.optional(&SMTP_CA_FILE),
            skip_verify: reader.get(&MAIL_SMTP_INSECURE_SKIP_VERIFY),
            login,
            way: Rule::read(reader),
        })
    }
}

/// What one conversation showed; each part is there once it was reached.
#[derive(Debug, Clone)]
struct Seen {
    greeting: Finding,
    tls: Finding,
    login: Finding,
}

pub(crate) fn add(doctor: &mut Doctor, server: Result<Server, Absent>) {
    let asked: Arc<OnceCell<Seen>> = Arc::default();
    for (name, part) in [
        ("smtp.greeting", (|seen| &seen.greeting) as fn(&Seen) -> &Finding),
        ("smtp.starttls", |seen| &seen.tls),
        ("smtp.auth", |seen| &seen.login),
    ] {
        let (server, asked) = (server.clone(), Arc::clone(&asked));
        doctor.check(name, BOUND, async move {
            match server {
                Err(why) => Finding::skipped(why),
                // One conversation for the three: a server counts connections.
                Ok(server) => part(asked.get_or_init(|| talk(&server)).await).clone(),
            }
        });
    }
}

async fn talk(server: &Server) -> Seen {
    let unseen = |why: &str| Finding::skipped(why);
    let mut seen = Seen {
        greeting: Finding::failed(
            format!("{}:{} accepts the connection and says nothing in time", server.host, server.port),
            "Look at the mail server, and whether SMTP_TLS fits the port: one that speaks TLS first stays silent.",
        ),
        tls: unseen("the server did not greet"),
        login: unseen("no secured connection"),
    };
    let _ = tokio::time::timeout(ALL_WITHIN, converse(server, &mut seen)).await;
    seen
}

async fn converse(server: &Server, seen: &mut Seen) {
    let connected = connect(&server.way, Purpose::Tunnel, &server.host, server.port, CONNECT_WITHIN).await;
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            let why =
                std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
            let remedy = "Check SMTP_HOST and SMTP_PORT, the proxy's access list, and the network.";
            seen.greeting = Finding::failed(format!("{error}{why}"), remedy);
            return;
        }
    };
    if server.tls == SmtpTls::Implicit {
        match secure(server, stream).await {
            Ok(stream) => {
                seen.tls = Finding::ok(format!("TLS from the first byte, {}", certificate(server)));
                let mut session = Session::new(stream);
                if greet(&mut session, server, seen).await.is_some() {
                    log_in(&mut session, server, seen).await;
                }
            }
            Err(finding) => seen.tls = finding,
        }
        return;
    }
    let mut session = Session::new(stream);
    let Some(offers) = greet(&mut session, server, seen).await else { return };
    if server.tls == SmtpTls::Off {
        seen.tls = Finding::skipped("SMTP_TLS is off");
        log_in(&mut session, server, seen).await;
        return;
    }
    if !offers.iter().any(|offer| offer.eq_ignore_ascii_case("STARTTLS")) {
        seen.tls = Finding::failed(
            "the server does not offer STARTTLS, so nothing is sent and no password shown",
            "Turn TLS on at the server; or use port 465 with SMTP_TLS=implicit. If it does offer it, something on the way strips it.",
        );
        return;
    }
    match session.say("STARTTLS").await {
        Ok((220, _)) => {}
        other => {
            seen.tls =
                Finding::failed(format!("STARTTLS: {}", shown(&other)), "Look at the mail server's log.");
            return;
        }
    }
    match secure(server, session.stream.into_inner()).await {
        Ok(stream) => {
            seen.tls = Finding::ok(format!("STARTTLS, {}", certificate(server)));
            let mut session = Session::new(stream);
            log_in(&mut session, server, seen).await;
        }
        Err(finding) => seen.tls = finding,
    }
}

fn certificate(server: &Server) -> String {
    if server.skip_verify {
        "any certificate is accepted: MAIL_SMTP_INSECURE_SKIP_VERIFY is true".to_owned()
    } else {
        format!("a certificate that holds for {}", server.host)
    }
}

/// What the server offers, once it has greeted.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session<S>,
    server: &Server,
    seen: &mut Seen,
) -> Option<Vec<String>> {
    let greeting = session.reply().await;
    let Ok((220, lines)) = &greeting else {
        let remedy = "Look at the mail server: it greets with something else than 220.";
        seen.greeting = Finding::failed(format!("greeting: {}", shown(&greeting)), remedy);
        return None;
    };
    let first = lines.first().cloned().unwrap_or_default();
    let hello = session.hello().await;
    let Ok((250, offers)) = hello else {
        let remedy = "Look at the mail server: it refuses this client's EHLO.";
        seen.greeting = Finding::failed(format!("EHLO: {}", shown(&hello)), remedy);
        return None;
    };
    seen.greeting = Finding::ok(format!("{}:{} says {first:?}", server.host, server.port));
    Some(offers)
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session<S>,
    server: &Server,
    seen: &mut Seen,
) {
    let Some((user, password)) = &server.login else {
        seen.login = Finding::skipped("SMTP_USER is not set");
        return;
    };
    let hello = session.hello().await;
    let Ok((250, offers)) = hello else {
        seen.login = Finding::failed(format!("EHLO: {}", shown(&hello)), "Look at the mail server's log.");
        return;
    };
    let mechanisms: Vec<String> = offers
        .iter()
        .filter_map(|offer| offer.to_ascii_uppercase().strip_prefix("AUTH").map(str::to_owned))
        .flat_map(|rest| rest.replace('=', " ").split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let has = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let answer = if has("PLAIN") {
        let both = Secret::new(STANDARD.encode(format!("\0{user}\0{}", password.expose())));
        session.say(&format!("AUTH PLAIN {}", both.expose())).await
    } else if has("LOGIN") {
        match session.say("AUTH LOGIN").await {
            Ok((334, _)) => match session.say(&STANDARD.encode(user)).await {
                Ok((334, _)) => session.say(&STANDARD.encode(password.expose())).await,
                other => other,
            },
            other => other,
        }
    } else {
        let given = if mechanisms.is_empty() { "none".to_owned() } else { mechanisms.join(", ") };
        seen.login = Finding::failed(
            format!("the server offers {given} for the login, and neither PLAIN nor LOGIN"),
            "Turn one of them on, or unset SMTP_USER and SMTP_PASS if it wants no login.",
        );
        return;
    };
    seen.login = match answer {
        Ok((235, _)) => Finding::ok(format!("{user} is let in")),
        other => Finding::failed(
            format!("{user} is refused: {}", shown(&other)),
            "Correct SMTP_USER and SMTP_PASS where `config print` says that they stand.",
        ),
    };
    let _ = session.say("QUIT").await;
}

type Reply = io::Result<(u16, Vec<String>)>;

/// A reply in one line, without control characters.
fn shown(reply: &Reply) -> String {
    match reply {
        Ok((code, lines)) => {
            let text: String = lines.join(" ").chars().take(200).flat_map(char::escape_default).collect();
            format!("{code} {text}")
        }
        Err(error) => error.to_string(),
    }
}

struct Session<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    async fn hello(&mut self) -> Reply {
        let name: String =
            HostName::read().0.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
        self.say(&format!("EHLO {name}")).await
    }

    async fn say(&mut self, line: &str) -> Reply {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        self.stream.flush().await?;
        self.reply().await
    }

    async fn reply(&mut self) -> Reply {
        let mut lines = Vec::new();
        let mut left = REPLY_LONGEST;
        loop {
            let mut line = Vec::new();
            let read = (&mut self.stream).take(left as u64).read_until(b'\n', &mut line).await?;
            left -= read;
            if read == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the connection"));
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let code: u16 = code.ok_or_else(|| io::Error::other("the server says what is no SMTP"))?;
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, lines));
            }
        }
    }
}

async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    server: &Server,
    stream: S,
) -> Result<tokio_rustls::client::TlsStream<S>, Finding> {
    let failed = |why: String| {
        Finding::failed(
            format!("TLS with {}: {why}", server.host),
            "Give the server a certificate for this name from a known authority, or name its authority in SMTP_CA_FILE.",
        )
    };
    let config = client_config(server).map_err(&failed)?;
    let name = match server.host.parse::<IpAddr>() {
        Ok(address) => ServerName::from(address),
        Err(_) => ServerName::try_from(server.host.clone()).map_err(|error| failed(error.to_string()))?,
    };
    let secured = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    secured.map_err(|error| failed(error.to_string()))
}

fn client_config(server: &Server) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &server.ca_file {
        let of_file = |error: &dyn std::fmt::Display| format!("SMTP_CA_FILE {}: {error}", file.display());
        let found = CertificateDer::pem_file_iter(file).map_err(|error| of_file(&error))?;
        for certificate in found {
            let certificate = certificate.map_err(|error| of_file(&error))?;
            roots.add(certificate).map_err(|error| of_file(&error))?;
        }
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    if server.skip_verify {
        config.dangerous().set_certificate_verifier(Arc::new(any::AnyCertificate));
    }
    Ok(config)
}

/// What MAIL_SMTP_INSECURE_SKIP_VERIFY asks for: the check must meet the same server as the sending does.
mod any {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub(super) struct AnyCertificate;

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use voiceai_cli::doctor::Verdict;
    use voiceai_config::{Binary, Resolved};

    use super::*;

    /// A server that greets and answers each command by its first word; `None` says nothing at all.
    async fn server(greeting: Option<&'static str>, answers: &'static [(&'static str, &'static str)]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(greeting) = greeting else {
                    std::mem::forget(stream);
                    continue;
                };
                let mut stream = BufReader::new(stream);
                let _ = stream.write_all(greeting.as_bytes()).await;
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let answer = answers.iter().find(|(word, _)| line.starts_with(word));
                    let answer = answer.map_or("500 what?\r\n", |(_, answer)| *answer);
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        port
    }

    async fn look(port: u16, more: &[(&str, &str)]) -> Seen {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let port = port.to_string();
        let pairs = [("SMTP_HOST", "127.0.0.1"), ("SMTP_PORT", port.as_str())];
        let pairs: Vec<_> = pairs.iter().chain(more).copied().collect();
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs);
        talk(&resolved.read(Server::read).unwrap().settings.unwrap()).await
    }

    const LOGIN: [(&str, &str); 3] = [("SMTP_TLS", "off"), ("SMTP_USER", "ops"), ("SMTP_PASS", "pw-canary")];

    #[tokio::test]
    async fn a_login_is_tried_and_what_the_server_says_is_told() {
        static IN: &[(&str, &str)] =
            &[("EHLO", "250-mail.test\r\n250 AUTH PLAIN LOGIN\r\n"), ("AUTH PLAIN", "235 welcome\r\n")];
        let seen = look(server(Some("220-mail.test\r\n220 ready\r\n"), IN).await, &LOGIN).await;
        assert_eq!(seen.greeting.verdict(), Verdict::Ok, "{seen:?}");
        assert!(seen.login.evidence().contains("ops is let in"), "{seen:?}");
        static OUT: &[(&str, &str)] = &[
            ("EHLO", "250 AUTH=LOGIN\r\n"),
            ("AUTH LOGIN", "334 VXNlcg\r\n"),
            ("b3Bz", "334 UGFzcw\r\n"),
            ("cHct", "535 5.7.8 no\r\n"),
        ];
        let seen = look(server(Some("220 ready\r\n"), OUT).await, &LOGIN).await;
        assert!(seen.login.evidence().contains("ops is refused: 535 5.7.8 no"), "{seen:?}");
        assert!(!format!("{seen:?}").contains("canary"), "{seen:?}");
    }

    #[tokio::test]
    async fn a_server_without_starttls_gets_no_password() {
        static BARE: &[(&str, &str)] = &[("EHLO", "250-mail.test\r\n250 AUTH PLAIN\r\n")];
        let seen = look(server(Some("220 ready\r\n"), BARE).await, &LOGIN[1..]).await;
        assert!(seen.tls.evidence().contains("does not offer STARTTLS"), "{seen:?}");
        assert_eq!(seen.login.verdict(), Verdict::Skipped, "{seen:?}");
        static BROKEN: &[(&str, &str)] = &[("EHLO", "250 STARTTLS\r\n"), ("STARTTLS", "220 go\r\n")];
        let seen = look(server(Some("220 ready\r\n"), BROKEN).await, &LOGIN[1..]).await;
        assert!(seen.tls.evidence().contains("TLS with 127.0.0.1"), "{seen:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_away_refuses_or_is_none_is_told_apart() {
        let seen = look(1, &LOGIN).await;
        assert!(seen.greeting.evidence().contains("127.0.0.1:1"), "{seen:?}");
        let seen = look(server(Some("554 not you\r\n"), &[]).await, &LOGIN).await;
        assert!(seen.greeting.evidence().contains("554 not you"), "{seen:?}");
        let seen = look(server(Some("SSH-2.0-x\r\n"), &[]).await, &LOGIN).await;
        assert!(seen.greeting.evidence().contains("no SMTP"), "{seen:?}");
        assert_eq!(seen.login.verdict(), Verdict::Skipped);
        let unset = Resolved::from_pairs(Binary::Tasker, [("LOG_LEVEL", "info")]);
        assert!(unset.read(Server::read).unwrap().settings.is_err());
    }
}
