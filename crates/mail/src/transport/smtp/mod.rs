//! Mail by SMTP: lettre speaks the protocol, over connections that are made, secured, bounded and kept here.

mod dial;
mod fault;
mod pool;
mod session;
mod tls;
mod wire;

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use lettre::transport::smtp::extension::ClientId;
use tokio::time::Instant;
use voiceai_egress::{Purpose, Rule};

pub(super) use session::CONTENT_PHASES;
pub use tls::TlsError;

use super::classify::{Rules, RulesError, Verdict};
use super::settings::{Credentials, SmtpSettings, TlsMode};
use super::{Axis, Outcome, Outgoing, Phase, Reason, Reply, Stage, Summary, Transport};
use crate::Address;
use dial::Dialler;
use fault::{Fault, Kind};
use pool::Pool;
use session::Session;

/// Gives the credentials as they stand now; asked before each connection is opened or used again, so that a password which
/// rotates is used from the next mail on.
pub type CredentialSource = Arc<dyn Fn() -> Option<Credentials> + Send + Sync>;

/// Told when a login was refused: reads the credentials anew, where they come from a place that can be asked. Waited for no
/// longer than a phase.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// The transport cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SmtpSetupError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of reply rules cannot be read.
    #[error("read MAIL_REPLY_RULES_FILE {}", .path.display())]
    RulesFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of reply rules is broken.
    #[error("MAIL_REPLY_RULES_FILE {}: {source}", .path.display())]
    Rules {
        /// Which file.
        path: PathBuf,
        /// What is wrong in it.
        source: RulesError,
    },
}

/// Mail by SMTP.
#[derive(Clone)]
pub struct SmtpTransport {
    inner: Arc<Inner>,
}

struct Inner {
    dialler: Dialler,
    pool: Pool,
    rules: Rules,
    credentials: CredentialSource,
    refresh: Option<Refresh>,
    phase_limit: Duration,
    final_limit: Duration,
}

impl SmtpTransport {
    /// Sets the transport up; nothing is connected yet. `rule` is the way out, `credentials` gives the login as it stands.
    ///
    /// # Errors
    /// [`SmtpSetupError`]: a file that cannot be used.
    pub fn new(
        settings: &SmtpSettings,
        rule: Rule,
        credentials: CredentialSource,
    ) -> Result<Self, SmtpSetupError> {
        let rules = rules(settings)?;
        let host = settings.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let dialler = Dialler {
            mode: settings.tls,
            tls: tls::config(settings.ca_file.as_deref(), settings.skip_verify)?,
            hello: hello(settings.helo.as_deref()),
            limit: settings.phase_limit,
            port: settings.port,
            host,
            rule,
        };
        if settings.skip_verify && settings.tls != TlsMode::Off {
            tracing::warn!(
                "MAIL_SMTP_INSECURE_SKIP_VERIFY is set: anybody on the way can read mail and its password; unset it outside development"
            );
        }
        let proxy = dialler.rule.proxy_for(Purpose::Tunnel, &dialler.host).map(ToString::to_string);
        tracing::info!(
            transport = "smtp",
            host = dialler.target(),
            tls = ?settings.tls,
            proxy = proxy.as_deref().unwrap_or("none"),
            "NotificationService: mail leaves by SMTP"
        );
        let pool = Pool::new(settings.connections_max, settings.idle, settings.messages_max);
        let (phase_limit, final_limit) = (settings.phase_limit, settings.final_limit);
        Ok(Self {
            inner: Arc::new(Inner {
                dialler,
                pool,
                rules,
                credentials,
                refresh: None,
                phase_limit,
                final_limit,
            }),
        })
    }

    /// The same, and asks `refresh` when a login is refused: a password that was just changed costs no mail its attempt.
    #[must_use]
    pub fn refreshing(mut self, refresh: Refresh) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.refresh = Some(refresh);
        }
        self
    }

    /// Opens a connection as far as the login and takes leave: what a check of the installation wants to know.
    ///
    /// # Errors
    /// What stood in the way, as an attempt would record it.
    pub async fn probe(&self) -> Result<Summary, Outcome> {
        let started = Instant::now();
        let credentials = (self.inner.credentials)();
        match self.inner.dial(credentials).await {
            Ok(session) => {
                let tls = session.tls.clone();
                session.quit().await;
                Ok(self.inner.summary(Phase::Auth, Reason::None, None, "ready", Some(tls), started))
            }
            Err(fault) => Err(self.inner.judge(fault, None, started)),
        }
    }

    /// Connections that lie open and unused.
    #[must_use]
    pub fn idle_connections(&self) -> usize {
        self.inner.pool.idle_count()
    }

    /// Takes leave on every idle connection; within seconds. Mails that are being sent are not touched.
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }
}

impl Transport for SmtpTransport {
    fn name(&self) -> &'static str {
        "smtp"
    }

    fn send<'a>(&'a self, mail: &'a Outgoing, stage: &'a dyn Stage) -> BoxFuture<'a, Outcome> {
        Box::pin(self.inner.send(mail, stage))
    }
}

impl Inner {
    async fn send(&self, mail: &Outgoing, stage: &dyn Stage) -> Outcome {
        let started = Instant::now();
        let (from, to) = match super::fit(mail) {
            Ok(addresses) => addresses,
            Err((axis, phase, text)) => {
                let summary = self.summary(phase, Reason::Malformed, None, &text, None, started);
                return Outcome::Refused { axis, summary };
            }
        };
        let _slot = self.pool.slot().await;
        let credentials = (self.credentials)();
        let mut pooled = self.pool.take(credentials.as_ref(), self.phase_limit).await;
        loop {
            let (mut session, used_before) = match pooled.take() {
                Some(session) => (session, true),
                None => match self.dial(credentials.clone()).await {
                    Ok(session) => (session, false),
                    Err(fault) => return self.judge(fault, None, started),
                },
            };
            let delivered = self.deliver(&mut session, mail, &from, &to, stage).await;
            let tls = session.tls.clone();
            self.pool.put(session);
            match delivered {
                Ok(reply) => return self.accepted(&reply, tls, started),
                // Servers close connections that lie idle. Nothing of this mail was said yet that they heard.
                Err(fault) if used_before && fault.is_stale() => {}
                Err(fault) => return self.judge(fault, Some(tls), started),
            }
        }
    }

    /// A fresh connection. A login that is refused is tried once more where the credentials have changed meanwhile.
    async fn dial(&self, credentials: Option<Credentials>) -> Result<Session, Fault> {
        let fault = match self.dialler.dial(credentials.as_ref()).await {
            Ok(session) => return Ok(session),
            Err(fault) => fault,
        };
        let refused = fault.phase == Phase::Auth && matches!(fault.kind, Kind::Reply(_));
        let Some(refresh) = self.refresh.as_ref().filter(|_| refused) else { return Err(fault) };
        let _ = tokio::time::timeout(self.phase_limit, refresh()).await;
        let now = (self.credentials)();
        if now == credentials { Err(fault) } else { self.dialler.dial(now.as_ref()).await }
    }

    async fn deliver(
        &self,
        session: &mut Session,
        mail: &Outgoing,
        from: &Address,
        to: &Address,
        stage: &dyn Stage,
    ) -> Result<Reply, Fault> {
        session.deliver(mail, from, to, stage, self.phase_limit, self.final_limit).await
    }

    fn accepted(&self, reply: &Reply, tls: String, started: Instant) -> Outcome {
        let summary = self.summary(Phase::Final, Reason::None, Some(reply), &reply.text, Some(tls), started);
        Outcome::Accepted { provider_id: queue_id(&reply.text), summary }
    }

    /// What a fault means for the attempt.
    fn judge(&self, fault: Fault, tls: Option<String>, started: Instant) -> Outcome {
        let Fault { phase, kind } = fault;
        let summary = |reason, reply: Option<&Reply>, text: &str| {
            self.summary(phase, reason, reply, text, tls.clone(), started)
        };
        match kind {
            Kind::Reply(reply) => {
                let (verdict, reason) = self.rules.classify(phase, &reply);
                let summary = summary(reason, Some(&reply), &reply.text);
                let retry_after = reply.retry_after();
                match verdict {
                    Verdict::RecipientPermanent => Outcome::Refused { axis: Axis::Recipient, summary },
                    Verdict::MessagePermanent => Outcome::Refused { axis: Axis::Message, summary },
                    Verdict::RecipientTemporary => {
                        Outcome::Deferred { axis: Axis::Recipient, retry_after, summary }
                    }
                    Verdict::MessageTemporary => {
                        Outcome::Deferred { axis: Axis::Message, retry_after, summary }
                    }
                    Verdict::Provider => Outcome::ProviderFault { retry_after, summary },
                }
            }
            Kind::Way(reason, text) => {
                Outcome::ProviderFault { retry_after: None, summary: summary(reason, None, &text) }
            }
            Kind::Mail(reason, text) => {
                Outcome::Refused { axis: Axis::Message, summary: summary(reason, None, &text) }
            }
            Kind::Withdrawn(text) => Outcome::Withdrawn { summary: summary(Reason::Withdrawn, None, &text) },
            Kind::TimedOut(text) if phase == Phase::Final => {
                Outcome::Unknown { summary: summary(Reason::TimedOut, None, &text) }
            }
            Kind::TimedOut(text) => Outcome::TimedOut { summary: summary(Reason::TimedOut, None, &text) },
            Kind::Broken(text) if phase == Phase::Final => {
                Outcome::Unknown { summary: summary(Reason::Network, None, &text) }
            }
            Kind::Broken(text) => Outcome::Deferred {
                axis: Axis::Message,
                retry_after: None,
                summary: summary(Reason::Network, None, &text),
            },
        }
    }

    fn summary(
        &self,
        phase: Phase,
        reason: Reason,
        reply: Option<&Reply>,
        text: &str,
        tls: Option<String>,
        started: Instant,
    ) -> Summary {
        Summary {
            phase,
            reason,
            code: reply.map(|reply| reply.code),
            enhanced: reply.and_then(|reply| reply.enhanced.clone()),
            text: Summary::line(text),
            host: self.dialler.target(),
            tls,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn rules(settings: &SmtpSettings) -> Result<Rules, SmtpSetupError> {
    let Some(path) = &settings.rules_file else { return Ok(Rules::default()) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| SmtpSetupError::RulesFile { path: path.clone(), source })?;
    Rules::parse(&text).map_err(|source| SmtpSetupError::Rules { path: path.clone(), source })
}

/// How this client greets: by the name that it was given, else the host's.
fn hello(name: Option<&str>) -> ClientId {
    let own = || {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
        is_name.then_some(name)
    };
    let name = name.map(ToOwned::to_owned).or_else(own).unwrap_or_else(|| "localhost".to_owned());
    match IpAddr::from_str(name.trim_start_matches('[').trim_end_matches(']')) {
        Ok(IpAddr::V4(address)) => ClientId::Ipv4(address),
        Ok(IpAddr::V6(address)) => ClientId::Ipv6(address),
        Err(_) => ClientId::Domain(name),
    }
}

/// The server's own name of the mail, where it tells it in a form that is in use: `queued as 4F2A1`, `id=1abc-…`, or the
/// last word of Amazon's `Ok 0102…`.
fn queue_id(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let clean = |word: &str| {
        let word =
            word.trim_matches(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@')));
        (3..=120).contains(&word.len()).then(|| word.to_owned())
    };
    let after = |first: &str, second: &str| {
        words
            .windows(3)
            .find(|w| w[0].eq_ignore_ascii_case(first) && w[1].eq_ignore_ascii_case(second))
            .map(|w| w[2])
    };
    let named = words.iter().find_map(|word| word.strip_prefix("id="));
    let only = (words.len() == 2 && words[0].eq_ignore_ascii_case("ok")).then(|| words[1]);
    after("queued", "as").or(named).or(only).and_then(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_own_id_is_found() {
        for (text, id) in [
            ("Ok: queued as 4F2A1C0D", Some("4F2A1C0D")),
            ("OK id=1rT4x2-000abc-1Q", Some("1rT4x2-000abc-1Q")),
            ("Ok 0102018f-abc-000000", Some("0102018f-abc-000000")),
            ("OK", None),
            ("Message accepted for delivery", None),
        ] {
            assert_eq!(queue_id(text).as_deref(), id, "{text}");
        }
    }
}
