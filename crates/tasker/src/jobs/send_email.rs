//! `send-email`: mail by the email queue. The job ends when the delivery's row is committed; from there on the mail has its own
//! attempts, so that nothing is retried twice.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use voiceai_mail::intake::{AcceptError, Attachment, Command, Content, Intake, Source};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::settings::EMAIL_QUEUE;

/// How long a job waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);

/// A mail, made already or from a template: `subject` with a body, or `template_id` with `locale` and `variables`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendEmail {
    /// Recipients.
    pub to: Vec<String>,
    /// Recipients that everybody sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<String>,
    /// Recipients that nobody sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<String>,
    /// Where answers go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reply_to: Vec<String>,
    /// Subject line of a mail that is made already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Its plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_body: Option<String>,
    /// Its HTML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html_body: Option<String>,
    /// The template of a mail that is to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// In which language; English where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// What the template is filled with.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub variables: Map<String, Value>,
    /// What goes along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// An id of the caller's own; else the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<String>,
    /// The same key is the same mail; else the delivery's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

impl SendEmail {
    fn content(&self) -> Result<Content, &'static str> {
        match (&self.template_id, &self.subject) {
            (Some(template_id), None) if self.text_body.is_none() && self.html_body.is_none() => {
                Ok(Content::Template {
                    template_id: template_id.clone(),
                    locale: self.locale.clone().unwrap_or_else(|| "en".to_owned()),
                    variables: self.variables.clone(),
                })
            }
            (None, Some(subject)) if self.locale.is_none() && self.variables.is_empty() => {
                Ok(Content::Rendered {
                    subject: subject.clone(),
                    text_body: self.text_body.clone().unwrap_or_default(),
                    html_body: self.html_body.clone().unwrap_or_default(),
                })
            }
            _ => Err(
                "give either subject with text_body or html_body, or template_id with locale and variables",
            ),
        }
    }

    fn command(&self, attempt: &Attempt) -> Result<Command, &'static str> {
        let delivery_id = self.delivery_id.clone().unwrap_or_else(|| attempt.id().to_string());
        let idempotency_key =
            self.idempotency_key.clone().unwrap_or_else(|| format!("email_queue:{delivery_id}"));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Command {
            delivery_id,
            source: Source::EmailQueue,
            idempotency_key,
            to: self.to.clone(),
            cc: self.cc.clone(),
            bcc: self.bcc.clone(),
            reply_to: self.reply_to.clone(),
            content: self.content()?,
            attachments: self.attachments.clone(),
            tenant: some(attempt.tenant()),
            // Without one the mail's class decides.
            priority: Some(attempt.priority()).filter(|priority| *priority > 0),
            request_id: Some(attempt.id().to_string()),
            trace_id: None,
            requested_at_ms: Some(attempt.enqueued_at().as_millisecond()),
        })
    }
}

impl Job for SendEmail {
    const KIND: &'static str = "send-email";
    const QUEUE: &'static str = EMAIL_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = Intake;

    async fn run(&self, intake: &Intake, attempt: &Attempt) -> Result<Outcome, JobError> {
        let command = self.command(attempt).map_err(JobError::discard)?;
        match intake.accept(command).await {
            Ok(accepted) => Ok(Outcome::DoneWith(json!({
                "success": true,
                "deliveryId": accepted.delivery_id,
                "status": accepted.status,
                "known": accepted.known,
            }))),
            Err(error @ (AcceptError::Rejected(_) | AcceptError::Conflict { .. })) => {
                Err(JobError::discard(error))
            }
            Err(AcceptError::Store(error)) if error.is_about_the_data() => Err(JobError::discard(error)),
            Err(AcceptError::Store(error)) if error.is_unavailable() => {
                tracing::warn!(%error, "a mail waits for PostgreSQL");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(AcceptError::Store(error)) => Err(JobError::retry(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> Result<Content, String> {
        let job: SendEmail = serde_json::from_str(json).map_err(|error| error.to_string())?;
        job.content().map_err(str::to_owned)
    }

    #[test]
    fn a_mail_is_made_already_or_to_be_made_and_never_both() {
        assert!(content(r#"{"to":["a@b"],"subject":"s","text_body":"t"}"#).is_ok());
        let template = content(r#"{"to":["a@b"],"template_id":"welcome"}"#).unwrap();
        assert!(matches!(template, Content::Template { locale, .. } if locale == "en"));
        for wrong in [
            r#"{"to":["a@b"]}"#,
            r#"{"to":["a@b"],"subject":"s","template_id":"welcome"}"#,
            r#"{"to":["a@b"],"template_id":"welcome","text_body":"t"}"#,
            r#"{"to":["a@b"],"subject":"s","variables":{"a":1}}"#,
            r#"{"to":["a@b"],"subject":"s","text":"t"}"#,
            r#"{"subject":"s"}"#,
        ] {
            assert!(content(wrong).is_err(), "{wrong}");
        }
    }
}
