use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::command::{Attachment, Content};
use crate::delivery::PayloadMode;

/// The JSON of a command whose content is made already.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderedPayload {
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
    /// Subject line.
    pub subject: String,
    /// Plain text.
    #[serde(default)]
    pub text_body: String,
    /// HTML.
    #[serde(default)]
    pub html_body: String,
    /// What goes along.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
}

/// The JSON of a command that names a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplatePayload {
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
    /// Which template.
    pub template_id: String,
    /// In which language.
    pub locale: String,
    /// What it is filled with.
    #[serde(default)]
    pub variables: Map<String, Value>,
    /// What goes along.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
}

/// Who and what, in whichever way it came.
#[derive(Debug, Clone)]
pub struct Payload {
    /// To, cc, bcc.
    pub recipients: [Vec<String>; 3],
    /// Where answers go.
    pub reply_to: Vec<String>,
    /// What it says.
    pub content: Content,
    /// What goes along.
    pub attachments: Vec<Attachment>,
}

impl Payload {
    /// Reads the JSON of a command in `mode`. Unknown fields and anything behind the object are refused.
    ///
    /// # Errors
    /// What the parser says, with the place.
    pub fn parse(mode: PayloadMode, json: &str) -> Result<Self, String> {
        let words = |error: serde_json::Error| error.to_string();
        Ok(match mode {
            PayloadMode::Rendered => serde_json::from_str::<RenderedPayload>(json).map_err(words)?.into(),
            PayloadMode::Template => serde_json::from_str::<TemplatePayload>(json).map_err(words)?.into(),
        })
    }
}

impl From<RenderedPayload> for Payload {
    fn from(payload: RenderedPayload) -> Self {
        let RenderedPayload { to, cc, bcc, reply_to, subject, text_body, html_body, attachments } = payload;
        let content = Content::Rendered { subject, text_body, html_body };
        Self { recipients: [to, cc, bcc], reply_to, content, attachments }
    }
}

impl From<TemplatePayload> for Payload {
    fn from(payload: TemplatePayload) -> Self {
        let TemplatePayload { to, cc, bcc, reply_to, template_id, locale, variables, attachments } = payload;
        let content = Content::Template { template_id, locale, variables };
        Self { recipients: [to, cc, bcc], reply_to, content, attachments }
    }
}
