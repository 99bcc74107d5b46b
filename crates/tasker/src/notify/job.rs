//! `notification.send`: one notice, from the scaler, the backups, or any other program that writes to the outbox.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::service::{NotificationService, Told};
use crate::settings::EMAIL_QUEUE;

/// How long a notice waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);

/// Something worth a person's attention. What a newer sender adds is left aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What happened, in one word: `scaled`, `failed`, `degraded`, `drain_overdue`, `backup_overdue`, …
    pub event: String,
    /// The server group, database or service it is about.
    #[serde(default, alias = "subject", alias = "service", skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The server, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// In one line.
    pub reason: String,
    /// When; else when the job was enqueued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl Job for Notice {
    const KIND: &'static str = "notification.send";
    const QUEUE: &'static str = EMAIL_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = NotificationService;

    async fn run(&self, service: &NotificationService, attempt: &Attempt) -> Result<Outcome, JobError> {
        match service.tell(attempt.id().as_str(), self, attempt.enqueued_at()).await {
            Ok(Told::Mailed { delivery_id, notices }) => {
                Ok(Outcome::DoneWith(json!({ "told": true, "deliveryId": delivery_id, "notices": notices })))
            }
            Ok(Told::Before { delivery_id }) => {
                Ok(Outcome::DoneWith(json!({ "told": true, "deliveryId": delivery_id, "known": true })))
            }
            Ok(Told::Held(wait)) => Ok(Outcome::Snooze(wait)),
            Ok(Told::Nobody) => Ok(Outcome::DoneWith(json!({ "told": false }))),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, "NotificationService: a notice waits for PostgreSQL");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(error) if error.is_final() => Err(JobError::discard(error)),
            Err(error) => Err(JobError::retry(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sender_of_ours_is_understood_and_so_is_a_newer_one() {
        let notice = |json: &str| serde_json::from_str::<Notice>(json);
        let scaler =
            r#"{"event":"scaled","group":"eu","server":null,"reason":"r","at":"2026-11-22T11:40:00Z"}"#;
        assert_eq!(notice(scaler).unwrap().group.as_deref(), Some("eu"));
        let backup =
            r#"{"event":"backup_overdue","subject":"main","reason":"r","at":"2026-11-22T11:40:00Z"}"#;
        assert_eq!(notice(backup).unwrap().group.as_deref(), Some("main"));
        assert_eq!(notice(r#"{"event":"e","reason":"r","severity":5}"#).unwrap().at, None);
        assert!(notice(r#"{"event":"e"}"#).is_err() && notice(r#"{"reason":"r"}"#).is_err());
    }
}
