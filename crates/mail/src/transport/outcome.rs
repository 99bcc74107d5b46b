use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far an attempt came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Name, proxy, connection, greeting, EHLO; for an API the connection to it.
    Connect,
    /// The TLS handshake, implicit or by STARTTLS.
    Starttls,
    /// AUTH; for an API its credentials.
    Auth,
    /// The sender.
    Mail,
    /// The recipient.
    Rcpt,
    /// The content, its last byte not included.
    Data,
    /// The reply to the final dot; for an API the reply to the request.
    Final,
}

impl Phase {
    /// The name in rows, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Starttls => "starttls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Final => "final",
        }
    }
}

/// What was found at fault, besides whose it is: few values, fit for a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing: it was accepted.
    None,
    /// The mailbox or its domain does not exist, or never takes mail.
    Mailbox,
    /// The mailbox cannot take it now: full, greylisted, busy.
    MailboxBusy,
    /// Larger than the server takes.
    TooLarge,
    /// Content or form was refused.
    Content,
    /// The mail cannot be sent as it is, and was not: checked here before the first byte.
    Malformed,
    /// The sender's address or domain may not send.
    Sender,
    /// The peer's policy against us: reputation, relaying, block lists.
    Policy,
    /// User, password, credentials or permission.
    Authentication,
    /// Too fast.
    RateLimited,
    /// The allowance of a day or a month is used up.
    Quota,
    /// The name does not resolve.
    Dns,
    /// The connection was refused, reset or not answered.
    Network,
    /// The proxy did not let us through.
    Proxy,
    /// Certificate, handshake, or TLS that is not offered.
    Tls,
    /// The peer does not speak the protocol as it must.
    Protocol,
    /// The peer is there and says that it cannot work now.
    Unavailable,
    /// No answer within the phase's limit.
    TimedOut,
    /// The caller asked that nothing be sent.
    Withdrawn,
    /// The transport sends nothing on purpose.
    Stub,
}

impl Reason {
    /// The name in rows, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mailbox => "mailbox",
            Self::MailboxBusy => "mailbox_busy",
            Self::TooLarge => "too_large",
            Self::Content => "content",
            Self::Malformed => "malformed",
            Self::Sender => "sender",
            Self::Policy => "policy",
            Self::Authentication => "authentication",
            Self::RateLimited => "rate_limited",
            Self::Quota => "quota",
            Self::Dns => "dns",
            Self::Network => "network",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Withdrawn => "withdrawn",
            Self::Stub => "stub",
        }
    }
}

/// Whose fault a refusal is, when it is not the provider's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The address: counts against it.
    Recipient,
    /// The mail: its size, form or content. Says nothing about the address.
    Message,
}

/// What the peer said and where, for the attempt's row. Holds neither a secret nor an address of ours that the peer did not
/// repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How far it came.
    pub phase: Phase,
    /// What was at fault.
    pub reason: Reason,
    /// The reply's three digits; an API's HTTP status.
    pub code: Option<u16>,
    /// The reply's enhanced status code (RFC 3463), such as `5.1.1`; an API's error code.
    pub enhanced: Option<String>,
    /// The reply or the error, one line, at most [`Summary::TEXT_LONGEST`] bytes, without control characters.
    pub text: String,
    /// `host:port` of the peer; empty when nobody was asked.
    pub host: String,
    /// Version and cipher of the connection, `none` where it is not encrypted.
    pub tls: Option<String>,
    /// How long the attempt took.
    pub duration_ms: u64,
}

impl Summary {
    /// The most bytes of [`Self::text`].
    pub const TEXT_LONGEST: usize = 2048;

    /// `text` on one line, without control characters, cut at [`Self::TEXT_LONGEST`].
    #[must_use]
    pub fn line(text: &str) -> String {
        let mut line = String::with_capacity(text.len().min(Self::TEXT_LONGEST));
        let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
        for word in words {
            let gap = usize::from(!line.is_empty());
            let left = Self::TEXT_LONGEST - line.len();
            if gap + word.len() > left {
                if left > gap {
                    line.push_str(if gap == 1 { " " } else { "" });
                    line.push_str(&word[..floor(word, left - gap)]);
                }
                break;
            }
            line.push_str(if gap == 1 { " " } else { "" });
            line.push_str(word);
        }
        line
    }
}

/// The largest char boundary of `text` that is not above `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider has taken the mail over.
    Accepted {
        /// The provider's own id of it, where it names one.
        provider_id: Option<String>,
        /// What it said.
        summary: Summary,
    },
    /// Nothing was sent, on purpose: by the stub, or because the provider keeps the address off its lists.
    Suppressed {
        /// Why.
        summary: Summary,
    },
    /// Refused for good.
    Refused {
        /// Whose fault it is.
        axis: Axis,
        /// What was said.
        summary: Summary,
    },
    /// Refused for now: the next rung of the ladder.
    Deferred {
        /// Whose fault it is.
        axis: Axis,
        /// How long the peer asked to wait. Not clamped: the caller's ladder knows what is sensible.
        retry_after: Option<Duration>,
        /// What was said.
        summary: Summary,
    },
    /// The provider, or the way to it, is at fault; another mail would fare no better. It is paused and no attempt is burned.
    ProviderFault {
        /// How long the peer asked to wait.
        retry_after: Option<Duration>,
        /// What was said.
        summary: Summary,
    },
    /// No answer within the limit of a phase before the final dot: the mail was not taken over.
    TimedOut {
        /// Which phase.
        summary: Summary,
    },
    /// The content went out whole, or may have, and no answer came: it may have been taken over.
    Unknown {
        /// What was seen last.
        summary: Summary,
    },
    /// The caller's [`Stage`](super::Stage) refused: no content went out.
    Withdrawn {
        /// Its reason.
        summary: Summary,
    },
}

impl Outcome {
    /// What was said, whatever became of it.
    #[must_use]
    pub const fn summary(&self) -> &Summary {
        match self {
            Self::Accepted { summary, .. }
            | Self::Suppressed { summary }
            | Self::Refused { summary, .. }
            | Self::Deferred { summary, .. }
            | Self::ProviderFault { summary, .. }
            | Self::TimedOut { summary }
            | Self::Unknown { summary }
            | Self::Withdrawn { summary } => summary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line_of_bounded_length() {
        assert_eq!(Summary::line("550 5.1.1\r\n no\0such\tuser \n"), "550 5.1.1 no such user");
        assert_eq!(Summary::line(""), "");
        let long = Summary::line(&"é".repeat(2000));
        assert!(long.len() <= Summary::TEXT_LONGEST && long.len() >= Summary::TEXT_LONGEST - 1);
        let words = Summary::line(&"ab ".repeat(2000));
        assert!(words.len() <= Summary::TEXT_LONGEST && words.starts_with("ab ab"));
    }
}
