use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::delivery::{PayloadMode, words};

words! {
    /// Who asks for a mail.
    Source {
        /// The session service: login codes.
        Authsession = "authsession",
        /// The notification service, by the stream.
        Notification = "notification",
        /// A job on the email queue.
        EmailQueue = "email_queue",
        /// This platform itself.
        Platform = "platform",
        /// An operator who sends an old delivery again.
        OperatorResend = "operator_resend",
    }
}

/// A file that goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Its name at the recipient.
    pub filename: String,
    /// Its MIME type.
    pub content_type: String,
    /// Its bytes in standard base64.
    pub content_base64: String,
}

/// What a mail says: made already, or to be made from a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// As it is sent.
    Rendered {
        /// Subject line.
        subject: String,
        /// Plain text.
        text_body: String,
        /// HTML; empty for none.
        html_body: String,
    },
    /// From a template.
    Template {
        /// Which one.
        template_id: String,
        /// In which language, such as `fr-FR`.
        locale: String,
        /// What it is filled with.
        variables: Map<String, Value>,
    },
}

impl Content {
    /// How it was brought.
    #[must_use]
    pub const fn mode(&self) -> PayloadMode {
        match self {
            Self::Rendered { .. } => PayloadMode::Rendered,
            Self::Template { .. } => PayloadMode::Template,
        }
    }
}

/// A mail that somebody wants sent: what every way of intake makes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The caller's id of it; unique for ever.
    pub delivery_id: String,
    /// Who asks.
    pub source: Source,
    /// The same key from the same source is the same mail.
    pub idempotency_key: String,
    /// Recipients.
    pub to: Vec<String>,
    /// Recipients that everybody sees.
    #[serde(default)]
    pub cc: Vec<String>,
    /// Recipients that nobody sees.
    #[serde(default)]
    pub bcc: Vec<String>,
    /// Where answers go.
    #[serde(default)]
    pub reply_to: Vec<String>,
    /// What it says.
    #[serde(flatten)]
    pub content: Content,
    /// What goes along.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// On whose behalf.
    #[serde(default)]
    pub tenant: Option<String>,
    /// 0 to 10, higher first; by the mail's class where absent.
    #[serde(default)]
    pub priority: Option<u8>,
    /// The caller's id of its own request.
    #[serde(default)]
    pub request_id: Option<String>,
    /// The caller's trace.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// When the caller asked, in Unix milliseconds.
    #[serde(default)]
    pub requested_at_ms: Option<i64>,
}

/// Addresses, codes and texts are nobody's business in a log.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("delivery_id", &self.delivery_id)
            .field("source", &self.source)
            .field("mode", &self.content.mode())
            .finish_non_exhaustive()
    }
}
