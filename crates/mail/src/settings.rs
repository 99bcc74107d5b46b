//! The settings of intake, attempts and retention.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_config::catalogue::mail as names;
use voiceai_config::catalogue::mail::OnUnknown;
use voiceai_config::catalogue::transport::{EMAIL_TRANSPORT, EmailTransport, SMTP_HOST};
use voiceai_config::{Rate, Reader, parse_duration};
use voiceai_runtime::Secret;

use crate::Class;
use crate::delivery::Policy;

/// How large what is accepted may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `MAIL_RECIPIENTS_MAX`. To, cc and bcc together.
    pub recipients: usize,
    /// `MAIL_MESSAGE_BYTES_MAX`. Of the message as it goes over the wire.
    pub message_bytes: usize,
    /// `MAIL_ATTACHMENTS_MAX`.
    pub attachments: usize,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// `MAIL_BODY_RETENTION`. Content of finished deliveries.
    pub bodies: Duration,
    /// `MAIL_DELIVERY_RETENTION`. Finished deliveries.
    pub deliveries: Duration,
    /// `MAIL_MALFORMED_COMMAND_RETENTION`.
    pub malformed: Duration,
    /// `MAIL_CLEANUP_INTERVAL`.
    pub every: Duration,
}

/// Who mail comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderSettings {
    /// `EMAIL_SENDER_ADDRESS`.
    pub address: String,
    /// `EMAIL_SENDER_NAME`.
    pub name: String,
}

/// The settings of mail, its transports' own apart.
#[derive(Debug, Clone)]
pub struct MailSettings {
    /// `EMAIL_TRANSPORT`; `None` where it is `smtp` by default and there is no `SMTP_HOST`: mail is accepted and waits.
    pub transport: Option<EmailTransport>,
    /// Who mail comes from.
    pub sender: SenderSettings,
    /// `MAIL_REDIS_COMMAND_STREAM`.
    pub stream: String,
    /// `MAIL_ATTEMPT_WORKER_CONCURRENCY`.
    pub concurrency: usize,
    /// `MAIL_SEND_RATE`. Over all processes.
    pub rate: Rate,
    /// When a mail is tried again.
    pub policy: Policy,
    /// How large what is accepted may be.
    pub limits: Limits,
    /// How long things are kept.
    pub keep: Keep,
    /// `MAIL_TEMPLATE_DIR`; `None`: the templates that come with the service.
    pub template_dir: Option<PathBuf>,
    /// `MAIL_DEFAULT_LOCALE`.
    pub default_locale: String,
    /// `MAIL_PUBLIC_URL` and `MAIL_UNSUBSCRIBE_SECRET`.
    pub unsubscribe: Option<(Url, Secret)>,
}

/// Stands in where mail goes to this host alone and nobody said who it is from.
const LOCAL_SENDER: &str = "noreply@localhost";

impl MailSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let has_host = reader.optional(&SMTP_HOST).is_some();
        let transport = match reader.get(&EMAIL_TRANSPORT) {
            EmailTransport::Smtp if !has_host => {
                if reader.is_given(&EMAIL_TRANSPORT) {
                    reader.violation(
                        &SMTP_HOST,
                        "a value, because EMAIL_TRANSPORT is smtp",
                        "Set SMTP_HOST and SMTP_PORT, or EMAIL_TRANSPORT to ses or stub.",
                    );
                }
                None
            }
            transport => Some(transport),
        };
        let public_url = reader.optional(&names::MAIL_PUBLIC_URL);
        let secret = reader.optional(&names::MAIL_UNSUBSCRIBE_SECRET);
        let count = |setting| usize::try_from(reader.get(setting)).unwrap_or(usize::MAX);
        Self {
            transport,
            sender: sender(reader, transport),
            stream: reader.get(&names::MAIL_REDIS_COMMAND_STREAM),
            concurrency: count(&names::MAIL_ATTEMPT_WORKER_CONCURRENCY),
            rate: reader.get(&names::MAIL_SEND_RATE),
            policy: policy(reader),
            limits: Limits {
                recipients: count(&names::MAIL_RECIPIENTS_MAX),
                message_bytes: count(&names::MAIL_MESSAGE_BYTES_MAX),
                attachments: count(&names::MAIL_ATTACHMENTS_MAX),
            },
            keep: Keep {
                bodies: reader.get(&names::MAIL_BODY_RETENTION),
                deliveries: reader.get(&names::MAIL_DELIVERY_RETENTION),
                malformed: reader.get(&names::MAIL_MALFORMED_COMMAND_RETENTION),
                every: reader.get(&names::MAIL_CLEANUP_INTERVAL),
            },
            template_dir: reader.optional(&names::MAIL_TEMPLATE_DIR),
            default_locale: reader.get(&names::MAIL_DEFAULT_LOCALE),
            unsubscribe: public_url.zip(secret),
        }
    }
}

fn sender(reader: &Reader<'_>, transport: Option<EmailTransport>) -> SenderSettings {
    let name = reader.get(&names::EMAIL_SENDER_NAME);
    let given = reader.optional(&names::EMAIL_SENDER_ADDRESS);
    let leaves_the_host = match transport {
        Some(EmailTransport::Ses) => true,
        Some(EmailTransport::Smtp) => !reader.optional(&SMTP_HOST).is_some_and(|host| is_loopback(&host)),
        Some(EmailTransport::Stub) | None => false,
    };
    if given.is_none() && leaves_the_host && !reader.is_given(&names::EMAIL_SENDER_ADDRESS) {
        reader.violation(
            &names::EMAIL_SENDER_ADDRESS,
            "a value, because mail leaves this host",
            "Set EMAIL_SENDER_ADDRESS to an address that may send here (SES: a verified identity).",
        );
    }
    SenderSettings { address: given.unwrap_or_else(|| LOCAL_SENDER.to_owned()), name }
}

/// True for `localhost` and addresses that never leave this host.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn policy(reader: &Reader<'_>) -> Policy {
    let ladder = reader.get(&names::MAIL_RETRY_LADDER);
    let mut by_class: BTreeMap<String, OnUnknown> = reader.each(&names::MAIL_UNKNOWN);
    let hold_unknown = Class::ALL
        .into_iter()
        .filter(|class| {
            // An invoice that comes twice is worse than one that a person looks at first.
            let own = if *class == Class::Billing { OnUnknown::Hold } else { OnUnknown::Retry };
            by_class.remove(&class.as_str().to_ascii_uppercase()).unwrap_or(own) == OnUnknown::Hold
        })
        .collect();
    for name in by_class.keys() {
        let known = Class::ALL.map(|class| class.as_str().to_ascii_uppercase()).join(", ");
        reader.warning(
            &names::MAIL_UNKNOWN,
            format!("MAIL_UNKNOWN_{name} has no effect: the classes of mail are {known}"),
        );
    }
    Policy {
        ladder: ladder.iter().filter_map(|rung| parse_duration(rung).ok()).collect(),
        jitter_percent: reader.get(&names::MAIL_RETRY_JITTER),
        hint_max: reader.get(&names::MAIL_RETRY_HINT_MAX),
        max_age: reader.get(&names::MAIL_MAX_AGE),
        login_code_lifetime: reader.get(&names::MAIL_LOGIN_CODE_LIFETIME),
        provider_pause: reader.get(&names::MAIL_PROVIDER_PAUSE),
        hold_unknown,
        hard_bounce: reader.get(&names::MAIL_HARD_BOUNCE_SUPPRESSION),
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<MailSettings, String> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        resolved.read(MailSettings::read).map(|loaded| loaded.settings).map_err(|report| report.to_string())
    }

    #[test]
    fn without_a_mail_server_mail_waits_unless_somebody_asked_for_one() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.transport, None);
        assert_eq!((settings.concurrency, settings.rate.count), (5, 10));
        assert_eq!(
            settings.policy.ladder.iter().map(Duration::as_secs).collect::<Vec<_>>(),
            [60, 300, 1800, 7200]
        );
        let refused = read(&[("EMAIL_TRANSPORT", "smtp")]).unwrap_err();
        assert!(refused.contains("SMTP_HOST") && refused.contains("stub"), "{refused}");
    }

    #[test]
    fn mail_that_leaves_the_host_needs_a_sender() {
        let local = read(&[("SMTP_HOST", "127.0.0.1"), ("SMTP_TLS", "off")]).unwrap();
        assert_eq!(
            (local.transport, local.sender.address.as_str()),
            (Some(EmailTransport::Smtp), LOCAL_SENDER)
        );
        for pairs in [&[("SMTP_HOST", "mail.example.com")][..], &[("EMAIL_TRANSPORT", "ses")]] {
            let refused = read(pairs).unwrap_err();
            assert!(refused.contains("EMAIL_SENDER_ADDRESS"), "{refused}");
        }
        let named = [("MAIL_SMTP_ADDR", "mail.example.com:25"), ("MAIL_SMTP_FROM_EMAIL", "ops@example.com")];
        assert_eq!(read(&named).unwrap().sender.address, "ops@example.com");
    }

    #[test]
    fn a_class_may_be_held_and_a_class_that_is_none_is_a_warning() {
        let pairs = [("MAIL_UNKNOWN_TRANSACTIONAL", "hold"), ("MAIL_UNKNOWN_INVOICES", "hold")];
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs);
        let loaded = resolved.read(MailSettings::read).unwrap();
        assert_eq!(loaded.settings.policy.hold_unknown, [Class::Transactional, Class::Billing]);
        assert!(loaded.warnings.iter().any(|warning| warning.message.contains("MAIL_UNKNOWN_INVOICES")));
    }
}
