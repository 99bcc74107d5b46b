use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use voiceai_config::Reader;
use voiceai_config::catalogue::mail::MAIL_ATTEMPT_WORKER_CONCURRENCY;
use voiceai_config::catalogue::transport as names;
use voiceai_config::catalogue::transport::SmtpTls;
use voiceai_runtime::Secret;

/// How a connection to the mail server is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// TLS from the first byte.
    Implicit,
    /// STARTTLS, without which nothing is sent.
    Starttls,
    /// None; to a loopback address only.
    Off,
}

/// User and password at the mail server.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// `SMTP_USER`.
    pub user: String,
    /// `SMTP_PASS`.
    pub password: Secret,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && self.password.expose() == other.password.expose()
    }
}

/// The mail server and how it is spoken to.
#[derive(Debug, Clone)]
pub struct SmtpSettings {
    /// `SMTP_HOST`.
    pub host: String,
    /// `SMTP_PORT`.
    pub port: u16,
    /// `SMTP_TLS`, else by the port.
    pub tls: TlsMode,
    /// `SMTP_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// `MAIL_SMTP_INSECURE_SKIP_VERIFY`.
    pub skip_verify: bool,
    /// `SMTP_USER` and `SMTP_PASS` as they stood at the start.
    pub credentials: Option<Credentials>,
    /// `SMTP_HELO_NAME`.
    pub helo: Option<String>,
    /// `MAIL_SMTP_TIMEOUT`: the limit of each phase before the final dot.
    pub phase_limit: Duration,
    /// `SMTP_FINAL_REPLY_TIMEOUT`: the limit of the reply to it.
    pub final_limit: Duration,
    /// `SMTP_POOL_MAX`.
    pub connections_max: usize,
    /// `SMTP_POOL_IDLE`.
    pub idle: Duration,
    /// `SMTP_CONNECTION_MESSAGES_MAX`.
    pub messages_max: u32,
    /// `MAIL_REPLY_RULES_FILE`.
    pub rules_file: Option<PathBuf>,
}

impl SmtpSettings {
    /// Reads the settings; nothing when `SMTP_HOST` is unset. Rules that are broken are reported to the reader.
    pub fn read(reader: &Reader<'_>) -> Option<Self> {
        let user = reader.optional(&names::SMTP_USER);
        let password = reader.optional(&names::SMTP_PASS);
        let host = reader.optional(&names::SMTP_HOST)?;
        let port = reader.get(&names::SMTP_PORT);
        let tls = match reader.optional(&names::SMTP_TLS) {
            Some(SmtpTls::Implicit) => TlsMode::Implicit,
            Some(SmtpTls::Starttls) => TlsMode::Starttls,
            Some(SmtpTls::Off) => TlsMode::Off,
            None if port == 465 => TlsMode::Implicit,
            None => TlsMode::Starttls,
        };
        if tls == TlsMode::Off && !is_loopback(&host) {
            reader.violation(
                &names::SMTP_TLS,
                format!("implicit or starttls, because {host} is not this host"),
                "Unset SMTP_TLS; mail and its password would cross the network in clear.",
            );
        }
        let helo = reader.optional(&names::SMTP_HELO_NAME);
        if helo.as_deref().is_some_and(|name| !is_helo(name)) {
            reader.violation(&names::SMTP_HELO_NAME, "a host name", "Give a name such as mail.example.com.");
        }
        let concurrency = reader.get(&MAIL_ATTEMPT_WORKER_CONCURRENCY);
        let connections = reader.optional(&names::SMTP_POOL_MAX).unwrap_or(concurrency);
        Some(Self {
            host,
            port,
            tls,
            ca_file: reader.optional(&names::SMTP_CA_FILE),
            skip_verify: reader.get(&names::MAIL_SMTP_INSECURE_SKIP_VERIFY),
            credentials: user.zip(password).map(|(user, password)| Credentials { user, password }),
            helo,
            phase_limit: reader.get(&names::MAIL_SMTP_TIMEOUT),
            final_limit: reader.get(&names::SMTP_FINAL_REPLY_TIMEOUT),
            connections_max: usize::try_from(connections).unwrap_or(1).max(1),
            idle: reader.get(&names::SMTP_POOL_IDLE),
            messages_max: reader.get(&names::SMTP_CONNECTION_MESSAGES_MAX),
            rules_file: reader.optional(&names::MAIL_REPLY_RULES_FILE),
        })
    }

    /// The longest that one attempt takes: a kept connection that proves dead (2 phases), a fresh one, made again where a
    /// password has just changed (6 each), and the mail (4 and its content).
    #[must_use]
    pub fn attempt_limit(&self) -> Duration {
        self.phase_limit * (18 + super::smtp::CONTENT_PHASES) + self.final_limit
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let named = bare.trim_end_matches('.').to_ascii_lowercase();
    named == "localhost"
        || named.ends_with(".localhost")
        || IpAddr::from_str(bare).is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_helo(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Option<SmtpSettings>, Vec<String>> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        let read = resolved.read(SmtpSettings::read).map(|loaded| loaded.settings);
        read.map_err(|report| report.violations.into_iter().map(|violation| violation.name).collect())
    }

    #[test]
    fn the_port_decides_how_a_connection_is_secured() {
        let mode = |pairs| read(pairs).expect("sound").expect("a host").tls;
        assert_eq!(mode(&[("SMTP_HOST", "mail.example.com")]), TlsMode::Starttls);
        assert_eq!(mode(&[("SMTP_HOST", "mail.example.com"), ("SMTP_PORT", "465")]), TlsMode::Implicit);
        assert_eq!(mode(&[("SMTP_HOST", "mail.example.com"), ("SMTP_PORT", "25")]), TlsMode::Starttls);
        assert_eq!(mode(&[("SMTP_HOST", "127.0.0.1"), ("SMTP_TLS", "off")]), TlsMode::Off);
        assert_eq!(mode(&[("SMTP_HOST", "localhost"), ("SMTP_TLS", "off")]), TlsMode::Off);
        assert!(read(&[]).expect("sound").is_none());
    }

    #[test]
    fn mail_does_not_leave_this_host_in_clear() {
        for host in ["mail.example.com", "10.0.0.1", "localhost.example.com"] {
            let pairs: Vec<(&'static str, &'static str)> = vec![("SMTP_HOST", host), ("SMTP_TLS", "off")];
            assert_eq!(read(&pairs).map(|_| ()).expect_err("refused"), ["SMTP_TLS"], "{host}");
        }
    }
}
