//! `notification.send`: one notice, from the scaler, the backups, or any other program that writes to the outbox.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use super::service::{NotificationService, Told};
use crate::settings::EMAIL_QUEUE;

/// How long a notice waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);

/// Something worth a person's attention. What a newer sender adds is kept aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// To these addresses, and to nobody else. One text with commas will do.
    #[serde(
        default,
        alias = "recipients",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "some_addresses"
    )]
    pub to: Vec<String>,
    /// To those of this tenant, by their own preferences; without any to those who run the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// 1 to 5, 5 being the worst: what preferences compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<i32>,
    /// The template of a mail that tells this notice alone; else that of every notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Its variables; `environment` is filled in.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub variables: Map<String, Value>,
    /// The language; else `MAIL_DEFAULT_LOCALE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// How long mail of its kind rests after it, in milliseconds; else `ALERT_THROTTLE`. 0 is told at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_ms: Option<u64>,
    /// Whatever else the sender said.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A list, one text, or nothing.
fn some_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        None(()),
        One(String),
        Many(Vec<String>),
    }
    Ok(match Form::deserialize(deserializer)? {
        Form::None(()) => Vec::new(),
        Form::One(text) => {
            text.split([',', ';']).map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
        }
        Form::Many(all) => all,
    })
}

impl Job for Notice {
    const KIND: &'static str = "notification.send";
    const QUEUE: &'static str = EMAIL_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = NotificationService;

    async fn run(&self, service: &NotificationService, attempt: &Attempt) -> Result<Outcome, JobError> {
        for (field, text) in [("event", &self.event), ("reason", &self.reason)] {
            if text.trim().is_empty() {
                return Err(JobError::discard(format!("{field}: it is empty, so there is nothing to tell")));
            }
        }
        match service.tell(attempt.id().as_str(), self, attempt.enqueued_at()).await {
            Ok(Told::Mailed { delivery_id, notices }) => {
                Ok(Outcome::DoneWith(json!({ "told": true, "deliveryId": delivery_id, "notices": notices })))
            }
            Ok(Told::Before { delivery_id }) => {
                Ok(Outcome::DoneWith(json!({ "told": true, "deliveryId": delivery_id, "known": true })))
            }
            Ok(Told::Held(wait)) => Ok(Outcome::Snooze(wait)),
            Ok(Told::Nobody) => Ok(Outcome::DoneWith(json!({ "told": false }))),
            Ok(Told::Unwanted) => Ok(Outcome::DoneWith(json!({ "told": false, "unwanted": true }))),
            Err(error) if error.is_unavailable() => {
                // With its causes: a full disk and a server that is away want different people.
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(error, "NotificationService: a notice waits for PostgreSQL");
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
        let newer = notice(r#"{"event":"e","reason":"r","severity":5,"colour":"red"}"#).unwrap();
        assert_eq!((newer.at, newer.severity, &newer.more["colour"]), (None, Some(5), &json!("red")));
        assert!(notice(r#"{"event":"e"}"#).is_err() && notice(r#"{"reason":"r"}"#).is_err());
    }

    #[test]
    fn recipients_are_a_list_or_a_text() {
        let to = |json: &str| {
            serde_json::from_str::<Notice>(&format!(r#"{{"event":"e","reason":"r",{json}}}"#)).map(|n| n.to)
        };
        assert_eq!(to(r#""to":["a@x.org"]"#).unwrap(), ["a@x.org"]);
        assert_eq!(to(r#""recipients":"a@x.org, b@x.org""#).unwrap(), ["a@x.org", "b@x.org"]);
        assert!(to(r#""to":null"#).unwrap().is_empty());
        assert!(to(r#""to":7"#).is_err());
    }
}
