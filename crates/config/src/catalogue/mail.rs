//! Outgoing mail: intake, attempts, templates, retention.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::{HTTP_ORIGIN, is_http_origin};
use crate::duration::parse_duration;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{choice, duration, integer, list, path, rate, secret, text, url};
use crate::value::{Rate, choices};

/// What becomes of a mail whose sending broke off after its content had begun to go out: nobody can know whether it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// Send the same bytes again, with the same Message-ID: never lost, perhaps doubled.
    Retry,
    /// Leave it for a person: never doubled, perhaps lost.
    Hold,
}

choices!(OnUnknown { Retry = "retry", Hold = "hold" });

settings! {
    "Mail", "Every accepted mail is a row in PostgreSQL before it is sent; see docs/mail.md. `<NAME>` is a template's class in upper case.";

    /// Address that mail comes from. Without it, mail is sent as `noreply@localhost` to a server on this host's loopback address, and to no other.
    EMAIL_SENDER_ADDRESS: String = text().aliases(&["MAIL_SMTP_FROM_EMAIL", "SMTP_FROM_EMAIL"]).only(Binaries::Tasker)
        .check("an address such as noreply@example.com", is_address);
    /// Name beside the sender's address.
    EMAIL_SENDER_NAME: String = text().default("Delphi").aliases(&["SMTP_FROM_NAME"]).only(Binaries::Tasker)
        .check("printable text of at most 128 characters", is_name);
    /// Redis stream of mail commands; the platform writes it, the leader reads it.
    MAIL_REDIS_COMMAND_STREAM: String = text().default("mail:delivery_commands").only(Binaries::Tasker);
    /// Mails that one process sends at a time.
    MAIL_ATTEMPT_WORKER_CONCURRENCY: u32 = integer().default("5").between(1, 500).only(Binaries::Tasker);
    /// Most attempts that start in a period, over all processes.
    MAIL_SEND_RATE: Rate = rate().default("10/s").only(Binaries::Tasker);
    /// Waits before the second, third, … attempt, in order. After the last one a mail becomes a dead letter.
    MAIL_RETRY_LADDER: Vec<String> = list().default("1m,5m,30m,2h").only(Binaries::Tasker)
        .check("durations separated by commas, such as 1m,5m,30m,2h, at most 50, each at most 7d", is_ladder);
    /// Most by which a wait of the ladder is lengthened or shortened at random, in percent.
    MAIL_RETRY_JITTER: u32 = integer().default("10").between(0, 50).only(Binaries::Tasker);
    /// A mail that is older than this is not tried again and becomes a dead letter, whatever the ladder says.
    MAIL_MAX_AGE: Duration = duration().default("24h").between(1_000, 2_592_000_000).only(Binaries::Tasker);
    /// The same for a login code, which nobody can use afterwards.
    MAIL_LOGIN_CODE_LIFETIME: Duration = duration().default("10m").between(1_000, 86_400_000).only(Binaries::Tasker);
    /// Longest delay that a mail server's own hint (`try again in 300 seconds`) is obeyed for.
    MAIL_RETRY_HINT_MAX: Duration = duration().default("4h").between(0, 604_800_000).only(Binaries::Tasker);
    /// How long a fault of the provider as a whole (credentials, quota, nobody answers) stops all sending; it doubles while the fault lasts, up to 32 times.
    MAIL_PROVIDER_PAUSE: Duration = duration().default("30s").between(100, 3_600_000).only(Binaries::Tasker);
    /// How long nobody writes to an address after a mail server said that there is no such mailbox (550 5.1.1, as a bounce of SES does for good); `0s` writes to it again at once.
    MAIL_HARD_BOUNCE_SUPPRESSION: Duration = duration().default("30d").between(0, 315_360_000_000).only(Binaries::Tasker);
    /// What becomes of a class's mail whose sending broke off after its content had begun to go out: `retry` sends it again with the same Message-ID, `hold` leaves it for a person.
    MAIL_UNKNOWN as "MAIL_UNKNOWN_<NAME>": OnUnknown = choice().only(Binaries::Tasker)
        .computed_default("`hold` for the class `billing`, else `retry`");
    /// Most recipients of one mail: to, cc and bcc together.
    MAIL_RECIPIENTS_MAX: u32 = integer().default("50").between(1, 1_000).only(Binaries::Tasker);
    /// Largest mail in bytes, as it goes over the wire with its attachments encoded.
    MAIL_MESSAGE_BYTES_MAX: u32 = integer().default("10485760").between(10_000, 52_428_800).only(Binaries::Tasker);
    /// Most attachments of one mail.
    MAIL_ATTACHMENTS_MAX: u32 = integer().default("10").between(0, 100).only(Binaries::Tasker);
    /// Folder of the templates: one folder each, with `manifest.json` and a folder per locale. Read once, at start; one that is broken stops the start.
    MAIL_TEMPLATE_DIR: PathBuf = path().computed_default("the templates that come with the service").only(Binaries::Tasker);
    /// Locale of a template where it has none that is nearer to the one asked for.
    MAIL_DEFAULT_LOCALE: String = text().default("en").only(Binaries::Tasker)
        .check("a language tag such as en or de-AT", is_locale);
    /// How long the content of a finished mail is kept. What remains then cannot be sent again.
    MAIL_BODY_RETENTION: Duration = duration().default("7d").between(1_000, 315_360_000_000).only(Binaries::Tasker);
    /// How long a finished mail is listed, with its attempts.
    MAIL_DELIVERY_RETENTION: Duration = duration().default("180d").between(1_000, 315_360_000_000).only(Binaries::Tasker);
    /// How long rejected stream commands are kept.
    MAIL_MALFORMED_COMMAND_RETENTION: Duration = duration().default("30d").between(1_000, 315_360_000_000).only(Binaries::Tasker);
    /// How often it is looked for what has been kept long enough.
    MAIL_CLEANUP_INTERVAL: Duration = duration().default("1h").between(100, 86_400_000).only(Binaries::Tasker);
    /// Address at which recipients reach this service, for links that end a subscription: `https://mail.example.com`.
    MAIL_PUBLIC_URL: Url = url().required_with("MAIL_UNSUBSCRIBE_SECRET").only(Binaries::Tasker)
        .check(HTTP_ORIGIN, is_http_origin);
    /// Key of the signature in those links; at least 32 bytes.
    MAIL_UNSUBSCRIBE_SECRET: Secret = secret().required_with("MAIL_PUBLIC_URL").only(Binaries::Tasker)
        .check("at least 32 bytes", |raw| raw.len() >= 32);
}

pub(super) fn is_address(raw: &str) -> bool {
    let printable = raw.bytes().all(|byte| byte.is_ascii_graphic());
    printable
        && raw.len() <= 254
        && raw.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
}

fn is_name(raw: &str) -> bool {
    raw.chars().count() <= 128 && !raw.chars().any(char::is_control)
}

fn is_ladder(raw: &str) -> bool {
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let rungs: Vec<_> = raw.split(',').map(|rung| parse_duration(rung).ok()).collect();
    rungs.len() <= 50 && rungs.iter().all(|rung| rung.is_some_and(|rung| rung <= week))
}

fn is_locale(raw: &str) -> bool {
    let part =
        |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    raw.split(['-', '_']).all(part)
}
