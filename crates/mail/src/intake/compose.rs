use bytes::Bytes;
use jiff::Timestamp;

use super::check::RecipientKind;
use super::command::Command;
use crate::{Address, Class};

/// What a mail is made from.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// What was asked for, checked.
    pub command: &'a Command,
    /// To, cc and bcc, each mailbox once.
    pub recipients: &'a [(RecipientKind, Address)],
    /// For the header `Message-ID`, without the angle brackets.
    pub message_id: &'a str,
    /// For the header `Date`.
    pub date: Timestamp,
}

/// A mail, ready to be committed.
#[derive(Debug, Clone)]
pub struct Composed {
    /// What it is for.
    pub class: Class,
    /// Subject line, as people read it.
    pub subject: String,
    /// The locale that was found; `None` for content that came made.
    pub locale: Option<String>,
    /// Names of variables whose values must not be kept.
    pub sensitive: Vec<String>,
    /// The whole message, lines ended by CRLF: one for all recipients, or one for each in their order.
    pub messages: Vec<Bytes>,
}

/// Content that no mail could be made of. Trying again would give the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ComposeError(
    /// What is wrong, and where; for the attempt's record.
    pub String,
);

/// Makes mails from commands: templates and message format behind one door. The same draft gives the same bytes.
pub trait Compose: Send + Sync {
    /// Makes one mail.
    ///
    /// # Errors
    /// When the template is not there, does not fit the variables, or no message can be made of the parts.
    fn compose(&self, draft: &Draft<'_>) -> Result<Composed, ComposeError>;
}
