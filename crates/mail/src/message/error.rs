use super::check::Unfit;
use crate::address::AddressError;

/// A mail cannot be composed of what was given. Trying again would end the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// An address is none.
    #[error("{what}: {source}")]
    Address {
        /// Which: `from`, `to[0]`, ….
        what: String,
        /// Why.
        source: AddressError,
    },
    /// A value that becomes a header has a control character, or is too long.
    #[error("{what} {problem}")]
    Header {
        /// Which.
        what: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An attachment's type or name cannot be used.
    #[error("attachment {number}: {problem}")]
    Attachment {
        /// Which, counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The mail has no recipient in its headers.
    #[error("the mail is for nobody: `to`, `cc` and `bcc` are empty")]
    NoRecipient,
    /// The library refused to encode a text.
    #[error("a text cannot be encoded as quoted-printable")]
    Encoding,
    /// A mail of this class cannot be unsubscribed from.
    #[error("a mail of the class `auth` carries no List-Unsubscribe")]
    Unsubscribe,
    /// The library made something of it that must not be sent. A defect; the mail is held back.
    #[error("the composed mail must not be sent: {0}")]
    Unfit(#[from] Unfit),
}
