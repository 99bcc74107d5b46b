use std::io;

use voiceai_egress::EgressError;

use super::wire::{Seen, look};
use crate::transport::{Phase, Reason, Reply};

/// Why an attempt came no further.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) phase: Phase,
    pub(super) kind: Kind,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Kind {
    /// The server refused.
    Reply(Reply),
    /// Nothing came within the phase's limit.
    TimedOut(String),
    /// The way to the server, or what it must offer, is at fault: no mail would fare better.
    Way(Reason, String),
    /// The connection broke in the middle of a mail.
    Broken(String),
    /// This mail cannot go to this server.
    Mail(Reason, String),
    /// The caller withdrew it.
    Withdrawn(String),
}

impl Fault {
    pub(super) fn way(phase: Phase, reason: Reason, text: impl Into<String>) -> Self {
        Self { phase, kind: Kind::Way(reason, text.into()) }
    }

    pub(super) fn timed_out(phase: Phase, text: impl Into<String>) -> Self {
        Self { phase, kind: Kind::TimedOut(text.into()) }
    }

    /// A connection that could not be made.
    pub(super) fn dialled(error: &EgressError) -> Self {
        let phase = Phase::Connect;
        match error {
            EgressError::TimedOut { .. } => Self::timed_out(phase, error.to_string()),
            EgressError::Direct { source, .. } if is_lookup(source) => {
                Self::way(phase, Reason::Dns, whole(error))
            }
            EgressError::Direct { .. } => Self::way(phase, Reason::Network, whole(error)),
            EgressError::Refused { status: 407, .. } => Self::way(
                phase,
                Reason::Proxy,
                format!("{error}; put user and password into HTTPS_PROXY (or HTTP_PROXY)"),
            ),
            EgressError::Refused { .. } => Self::way(
                phase,
                Reason::Proxy,
                format!(
                    "{error}; allow CONNECT to this host and port in the proxy's ACL, or name the host in NO_PROXY"
                ),
            ),
            EgressError::Proxy { .. } => Self::way(phase, Reason::Proxy, whole(error)),
        }
    }

    /// What the library's error means, by what was seen on the connection.
    pub(super) fn spoken(
        phase: Phase,
        error: &lettre::transport::smtp::Error,
        seen: &std::sync::Mutex<Seen>,
    ) -> Self {
        let seen = look(seen);
        if let Some(reply) = seen.reply().filter(|reply| reply.code >= 400) {
            return Self { phase, kind: Kind::Reply(reply) };
        }
        let text = if seen.ended {
            "the server closed the connection".to_owned()
        } else if error.is_response() {
            let lines: Vec<&str> = seen.lines().collect();
            return Self::broken(
                phase,
                Reason::Protocol,
                format!("the reply cannot be read: {error}; it said: {}", lines.join(" ")),
            );
        } else {
            format!("the connection broke: {error}")
        };
        Self::broken(phase, Reason::Network, text)
    }

    /// A connection that broke: before a mail was begun it is the way's fault, afterwards the mail's own attempt failed.
    pub(super) fn broken(phase: Phase, reason: Reason, text: String) -> Self {
        if phase <= Phase::Auth || reason == Reason::Protocol {
            Self::way(phase, reason, text)
        } else {
            Self { phase, kind: Kind::Broken(text) }
        }
    }

    /// True when a connection that was open for a while turned out to be closed: a fresh one may be tried at once.
    pub(super) fn is_stale(&self) -> bool {
        let closed = match &self.kind {
            Kind::Reply(reply) => reply.code == 421,
            Kind::Broken(_) => true,
            _ => false,
        };
        closed && self.phase == Phase::Mail
    }
}

fn is_lookup(error: &io::Error) -> bool {
    let text = error.to_string();
    text.contains("lookup") || text.contains("resolve") || text.contains("Name or service not known")
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
