//! How mail leaves: SMTP, Amazon SES, or nowhere.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::{HTTP_ORIGIN, is_http_origin};
use crate::setting::{Binaries, Source, settings};
use crate::value::kinds::{address, boolean, choice, duration, integer, list, path, port, secret, text, url};
use crate::value::{Address, choices};

/// What carries mail away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmailTransport {
    /// A mail server.
    Smtp,
    /// Amazon SES.
    Ses,
    /// Nothing: every mail is recorded as suppressed.
    Stub,
}

choices!(EmailTransport { Smtp = "smtp", Ses = "ses", Stub = "stub" });

/// How a connection to a mail server is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// TLS from the first byte.
    Implicit,
    /// TLS by STARTTLS, which the server must offer.
    Starttls,
    /// None; only to a loopback address.
    Off,
}

choices!(SmtpTls { Implicit = "implicit", Starttls = "starttls", Off = "off" });

settings! {
    "Mail transport", "SMTP goes through `HTTPS_PROXY`, else `HTTP_PROXY`, unless `NO_PROXY` names the mail server. SES uses `AWS_REGION` and the standard AWS credential chain.";

    /// What carries mail away. `stub` sends nothing and records every mail as suppressed. With `smtp` and no `SMTP_HOST` mail is accepted and waits.
    EMAIL_TRANSPORT: EmailTransport = choice().default("smtp").aliases(&["MAIL_SMTP_MODE"]).only(Binaries::Tasker);
    /// Host of the mail server.
    SMTP_HOST: String = text().only(Binaries::Tasker)
        .check("a host name or address, without a port", is_host);
    /// Port beside `SMTP_HOST`.
    SMTP_PORT: u16 = port().default("587").only(Binaries::Tasker);
    /// Host and port in one variable, for installations of the mail service: stands for `SMTP_HOST` and `SMTP_PORT`.
    MAIL_SMTP_ADDR: Address = address().splits_into("SMTP_HOST", "SMTP_PORT").only(Binaries::Tasker);
    /// User at the mail server. Unset: no login.
    SMTP_USER: String = text().source(Source::SecretsManager).aliases(&["MAIL_SMTP_USERNAME"])
        .required_with("SMTP_PASS").only(Binaries::Tasker).rotates();
    /// Password beside `SMTP_USER`.
    SMTP_PASS: Secret = secret().aliases(&["MAIL_SMTP_PASSWORD", "SMTP_PASSWORD"])
        .required_with("SMTP_USER").only(Binaries::Tasker).rotates();
    /// Security of the connection; `off` only to a loopback address.
    SMTP_TLS: SmtpTls = choice().computed_default("`implicit` for port 465, else `starttls`").only(Binaries::Tasker);
    /// Certificates of authorities that are trusted beside the public ones, as a PEM file.
    SMTP_CA_FILE: PathBuf = path().only(Binaries::Tasker);
    /// True accepts any certificate: for a mail catcher on a developer's machine, and nothing else.
    MAIL_SMTP_INSECURE_SKIP_VERIFY: bool = boolean().default("false").only(Binaries::Tasker);
    /// Name that this client greets the mail server with.
    SMTP_HELO_NAME: String = text().computed_default("the host's name").only(Binaries::Tasker);
    /// Longest time for each phase before the end of a mail's content: connect, STARTTLS, login, sender, recipient, content.
    MAIL_SMTP_TIMEOUT: Duration = duration().default("15s").between(100, 600_000).only(Binaries::Tasker);
    /// Longest wait for the reply after the end of a mail's content. A shorter one doubles mail at servers that scan slowly.
    SMTP_FINAL_REPLY_TIMEOUT: Duration = duration().default("600s").between(100, 3_600_000).only(Binaries::Tasker);
    /// Most connections to the mail server of one process.
    SMTP_POOL_MAX: u32 = integer().between(1, 500).computed_default("`MAIL_ATTEMPT_WORKER_CONCURRENCY`").only(Binaries::Tasker);
    /// An unused connection is closed after this time.
    SMTP_POOL_IDLE: Duration = duration().default("60s").between(0, 600_000).only(Binaries::Tasker);
    /// Mails that are sent over one connection.
    SMTP_CONNECTION_MESSAGES_MAX: u32 = integer().default("100").between(1, 100_000).only(Binaries::Tasker);
    /// File with rules that say how replies of the mail server are understood, before the built-in ones: see docs/mail.md.
    MAIL_REPLY_RULES_FILE: PathBuf = path().only(Binaries::Tasker);
    /// Address of an SES API other than AWS's own.
    SES_ENDPOINT: Url = url().only(Binaries::Tasker).check(HTTP_ORIGIN, is_http_origin);
    /// Configuration set that mail is sent with.
    SES_CONFIGURATION_SET: String = text().only(Binaries::Tasker);
    /// SES tenant that mail is sent for. `{tenant}` in it stands for the mail's own tenant; mail that has none is then sent for no SES tenant.
    SES_TENANT: String = text().only(Binaries::Tasker);
    /// Topics of Amazon SNS whose feedback is believed.
    SES_FEEDBACK_TOPIC_ARNS: Vec<String> = list().only(Binaries::Tasker)
        .check("ARNs such as arn:aws:sns:eu-central-1:123456789012:mail, separated by commas", is_topics);
}

fn is_host(raw: &str) -> bool {
    let port = raw.matches(':').count() == 1;
    !port && raw.len() <= 255 && !raw.contains(['/', '@', ' ', '[', ']'])
}

fn is_topics(raw: &str) -> bool {
    raw.split(',').map(str::trim).all(|arn| {
        arn.starts_with("arn:") && arn.split(':').nth(2) == Some("sns") && arn.split(':').count() == 6
    })
}
