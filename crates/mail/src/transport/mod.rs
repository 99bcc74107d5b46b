//! Handing one mail for one recipient to a provider, and saying what became of it.
//!
//! A [`Transport`] never retries and never writes anything down: it makes one attempt within its own limits and returns an
//! [`Outcome`]. The outcomes are told apart by whose fault it is ([`Axis`], [`Outcome::ProviderFault`]) and by whether the
//! mail may be on its way although nobody said so ([`Outcome::Unknown`]).

pub mod classify;
mod outcome;
mod reply;
pub mod ses;
mod settings;
pub mod smtp;
mod stub;

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use outcome::{Axis, Outcome, Phase, Reason, Summary};
pub use reply::Reply;
pub use ses::{SesSettings, SesTransport};
pub use settings::{Credentials, SmtpSettings, TlsMode};
pub use smtp::SmtpTransport;
pub use stub::StubTransport;

use crate::message::check;
use crate::{Address, Class};

/// Who a mail is from and for, as the envelope says it; the headers may say something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Address that bounces go to.
    pub from: String,
    /// The one recipient of this attempt.
    pub to: String,
}

/// One mail for one recipient, ready to go.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What stands in the header `Message-ID`, without the angle brackets. The same in every attempt.
    pub message_id: String,
    /// Sender and recipient.
    pub envelope: Envelope,
    /// The whole message as it was committed, lines ended by CRLF.
    pub bytes: Bytes,
    /// What a receiver or a provider that replaces `Message-ID` can tell a duplicate by.
    pub idempotency_key: String,
    /// On whose behalf it is sent, where the provider keeps tenants apart.
    pub tenant: Option<String>,
    /// What it is for.
    pub class: Class,
}

/// The point behind which an attempt's outcome may be unknown.
///
/// A transport awaits this after the provider has agreed to take the mail and before the first byte of its content, so that
/// the caller can write the stage down first.
pub trait Stage: Send + Sync {
    /// Records that content is about to go out.
    ///
    /// # Errors
    /// When it could not be recorded, or the caller has lost the right to send: no content is sent then, and the attempt ends
    /// as [`Outcome::Withdrawn`].
    fn content_begins(&self) -> BoxFuture<'_, Result<(), Withdraw>>;
}

/// The caller's answer that content must not be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdraw(
    /// Why, for the attempt's record.
    pub String,
);

impl fmt::Display for Withdraw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stage that nothing has to be recorded for: tests, and mail that is sent by hand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unrecorded;

impl Stage for Unrecorded {
    fn content_begins(&self) -> BoxFuture<'_, Result<(), Withdraw>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A way to send mail.
///
/// Every call ends within the transport's own limits; a caller that drops the future closes the connection, and must take the
/// attempt's outcome for unknown when its [`Stage`] was reached.
pub trait Transport: Send + Sync {
    /// `smtp`, `ses` or `stub`.
    fn name(&self) -> &'static str;

    /// Makes one attempt.
    fn send<'a>(&'a self, mail: &'a Outgoing, stage: &'a dyn Stage) -> BoxFuture<'a, Outcome>;
}

/// Whether a mail may go out at all, asked before every attempt; the sender's and the recipient's address when it may.
pub(crate) fn fit(mail: &Outgoing) -> Result<(Address, Address), (Axis, Phase, String)> {
    let from = Address::parse(&mail.envelope.from)
        .map_err(|error| (Axis::Message, Phase::Mail, format!("not sent: the sender: {error}")))?;
    let to = Address::parse(&mail.envelope.to)
        .map_err(|error| (Axis::Recipient, Phase::Rcpt, format!("not sent: the recipient: {error}")))?;
    // Headers may name others beside the recipient, so ASCII is asked for only where a server could take nothing else.
    check(&mail.bytes, &mail.message_id, true)
        .map_err(|unfit| (Axis::Message, Phase::Data, format!("not sent: {unfit}")))?;
    Ok((from, to))
}
