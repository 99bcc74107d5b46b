//! `mail …`

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use voiceai_cli::{Mutation, duration_arg};

use super::common::{Page, PerSecond, When};

/// `mail …`
#[derive(Debug, Subcommand)]
pub enum Mail {
    /// Deliveries, newest first
    List(ListMail),
    /// One delivery: its recipients, every attempt, what was said
    Show {
        /// Its id
        id: String,
    },
    /// Send a delivery again, as a new one that names it; to whom it did not reach, or to all when it reached all
    Resend {
        /// Its id
        id: String,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Send dead letters back; shows a plan unless --execute is given
    Replay(ReplayMail),
    /// Render a template's sample, by the very code that sends
    Preview(Preview),
    /// Templates with their class, locales and variables
    Templates,
    /// Stream commands that no delivery could be made of, newest first
    Malformed {
        /// Which part of the list.
        #[command(flatten)]
        page: Page,
    },
    /// Who must not be written to
    #[command(subcommand)]
    Suppressions(Suppressions),
    /// Send nothing through a provider, to a domain or for a tenant, for a while; without a subject: show what is paused
    Pause(PauseMail),
    /// End a pause; what it kept is sent at once
    Resume {
        /// What.
        #[command(flatten)]
        subject: Subject,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
}

/// `mail list`
#[derive(Debug, Args)]
pub struct ListMail {
    /// Only deliveries that stand here
    #[arg(long, value_enum)]
    pub status: Option<MailStatus>,
    /// Only from here: authsession, notification, email_queue, platform, operator_resend
    #[arg(long, value_name = "S")]
    pub source: Option<voiceai_mail::intake::Source>,
    /// Only this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only from this template
    #[arg(long, value_name = "ID")]
    pub template: Option<String>,
    /// Only to this address
    #[arg(long, value_name = "ADDRESS")]
    pub recipient: Option<String>,
    /// Only accepted since then: a time or how long ago
    #[arg(long, value_name = "T")]
    pub since: Option<When>,
    /// Only where what was said last holds this text
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
    /// Which part of the list.
    #[command(flatten)]
    pub page: Page,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum MailStatus {
    /// Accepted with its content, to be sent
    Queued,
    /// Accepted and made from its template, to be sent
    Rendered,
    /// An attempt is under way
    Sending,
    /// The provider has it
    Sent,
    /// Not sent, on purpose
    Suppressed,
    /// Refused for good
    Failed,
    /// Given up
    DeadLetter,
    /// Perhaps sent; held for a person
    Unknown,
}

impl From<MailStatus> for voiceai_mail::delivery::DeliveryStatus {
    fn from(status: MailStatus) -> Self {
        match status {
            MailStatus::Queued => Self::Queued,
            MailStatus::Rendered => Self::Rendered,
            MailStatus::Sending => Self::Sending,
            MailStatus::Sent => Self::Sent,
            MailStatus::Suppressed => Self::Suppressed,
            MailStatus::Failed => Self::Failed,
            MailStatus::DeadLetter => Self::DeadLetter,
            MailStatus::Unknown => Self::Unknown,
        }
    }
}

/// `mail replay`
#[derive(Debug, Args)]
pub struct ReplayMail {
    /// Ids of deliveries
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Only this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
    /// Only from this template
    #[arg(long, value_name = "ID")]
    pub template: Option<String>,
    /// Only where what was said last holds this text
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
    /// Only given up since then: a time or how long ago
    #[arg(long, value_name = "T")]
    pub since: Option<When>,
    /// Only given up for this reason: exhausted, expired or, only by name, poison
    #[arg(long, value_name = "REASON")]
    pub reason_is: Option<voiceai_mail::delivery::DeadReason>,
    /// Most deliveries; more than 10 need a small batch first of which every one was sent
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub limit: u32,
    /// Most deliveries in a period
    #[arg(long, value_name = "N/s", default_value = "5/s")]
    pub rate: PerSecond,
    /// Really do it
    #[arg(long)]
    pub execute: bool,
    /// Go on with a replay that stopped or was interrupted
    #[arg(long, value_name = "REPLAY", conflicts_with_all = ["ids", "tenant", "template", "error_contains", "since", "reason_is", "limit"])]
    pub resume: Option<uuid::Uuid>,
    /// How long to watch what becomes of the mail once all of it is on its way
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration_arg)]
    pub wait: Duration,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}

/// `mail preview`
#[derive(Debug, Args)]
pub struct Preview {
    /// The template
    #[arg(value_name = "TEMPLATE")]
    pub id: String,
    /// The locale
    #[arg(long, value_name = "TAG", default_value = "en")]
    pub locale: String,
    /// Which part
    #[arg(long, value_enum, default_value_t = Part::All)]
    pub part: Part,
    /// What it is filled with, as JSON or @FILE; else the template's own sample
    #[arg(long, value_name = "JSON|@FILE")]
    pub variables: Option<String>,
}

/// A part of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Subject and text
    All,
    /// The subject line
    Subject,
    /// The text
    Text,
    /// The HTML
    Html,
}

/// `mail suppressions …`
#[derive(Debug, Subcommand)]
pub enum Suppressions {
    /// Newest first
    List {
        /// Only this address
        #[arg(long, value_name = "ADDRESS")]
        address: Option<String>,
        /// Which part of the list.
        #[command(flatten)]
        page: Page,
    },
    /// Write to an address no more
    Add {
        /// The address
        address: String,
        /// Only mail of this tenant
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// Only mail of this class
        #[arg(long, value_name = "C")]
        class: Option<voiceai_mail::Class>,
        /// Only for this long
        #[arg(long = "for", value_name = "D", value_parser = duration_arg)]
        length: Option<Duration>,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
    /// Write to an address again, whatever it was on the list for
    Remove {
        /// The address
        address: String,
        /// Whether, why and by whom.
        #[command(flatten)]
        mutation: Mutation,
    },
}

/// What is paused.
#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub struct Subject {
    /// Everything that goes through smtp or ses
    #[arg(long, value_name = "P", value_parser = ["smtp", "ses"])]
    pub provider: Option<String>,
    /// Recipients at this domain
    #[arg(long, value_name = "D")]
    pub domain: Option<String>,
    /// Mail of this tenant
    #[arg(long, value_name = "T")]
    pub tenant: Option<String>,
}

/// `mail pause`
#[derive(Debug, Args)]
pub struct PauseMail {
    /// What.
    #[command(flatten)]
    pub subject: Subject,
    /// How long
    #[arg(long = "for", value_name = "D", default_value = "30m", value_parser = duration_arg)]
    pub length: Duration,
    /// Whether, why and by whom.
    #[command(flatten)]
    pub mutation: Mutation,
}
