//! `notification.post`: a mail's worth of notices, posted to `ALERT_WEBHOOK_URL` or to a channel of a tenant.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use voiceai_platform::escalation::DUTY_QUEUE;
use voiceai_platform::escalation::channel::{Delivery, Message, delivery};
use voiceai_platform::outgoing::{Outgoing, Verdict, judge};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_queue::{Attempt, Job, JobError, Outcome, RetryPolicy};
use voiceai_webhook::Request;

use super::store::{self, Told};
use crate::settings::NoticeSettings;

const POST_MAX: Duration = Duration::from_secs(10);
const AWAY: Duration = Duration::from_secs(5);
/// Waits between attempts.
const LADDER: &[Duration] = &[
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(300),
    Duration::from_secs(1_800),
    Duration::from_secs(7_200),
];

/// What the handler works with.
#[derive(Clone, Debug)]
pub struct PostContext {
    /// Where the notices are.
    pub pool: PgPool,
    /// The ways out.
    pub outgoing: Outgoing,
    /// `ALERT_WEBHOOK_URL` and its secret.
    pub settings: NoticeSettings,
    /// `ENVIRONMENT`.
    pub environment: String,
}

/// Which notices, and where to. Addresses and secrets stay where they are: in the settings and in the channel's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoticePost {
    /// What the notices share.
    pub mail: String,
    /// A channel of the platform; else `ALERT_WEBHOOK_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<i64>,
}

impl Job for NoticePost {
    const KIND: &'static str = "notification.post";
    const QUEUE: &'static str = DUTY_QUEUE;
    const RETRY: RetryPolicy = RetryPolicy::ladder(LADDER);
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
    type Context = PostContext;

    async fn run(&self, context: &PostContext, _attempt: &Attempt) -> Result<Outcome, JobError> {
        match self.post(context).await {
            Ok(result) => Ok(Outcome::DoneWith(result)),
            Err(End::Store(error)) if voiceai_postgres::is_unavailable(&error) => {
                tracing::warn!(%error, "NotificationService: a post waits for PostgreSQL");
                Ok(Outcome::Snooze(AWAY))
            }
            Err(End::Store(error)) if voiceai_postgres::is_refused(&error) => Err(JobError::discard(error)),
            Err(End::Store(error)) => Err(JobError::retry(error)),
            Err(End::Again(error)) => Err(JobError::retry(error)),
            Err(End::Never(error)) => Err(JobError::discard(error)),
        }
    }
}

enum End {
    Store(sqlx::Error),
    Again(String),
    Never(String),
}

impl From<sqlx::Error> for End {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error)
    }
}

impl NoticePost {
    async fn post(&self, context: &PostContext) -> Result<Value, End> {
        let pool = &context.pool;
        let notices = store::of_mail(pool, &self.mail).await?;
        let Some(first) = notices.first() else {
            return Ok(json!({ "skipped": true, "reason": "the notices are gone" }));
        };
        let message = message(&context.environment, &self.mail, first, &notices);
        let (client, delivery) = match self.channel {
            None => {
                let Some(url) = &context.settings.webhook_url else {
                    return Ok(json!({ "skipped": true, "reason": "ALERT_WEBHOOK_URL is not set" }));
                };
                let url = Url::parse(url.expose())
                    .map_err(|_| End::Never("ALERT_WEBHOOK_URL is no URL".to_owned()))?;
                let body = json!({ "type": message.event, "timestamp": message.at, "data": message.data });
                let keys = context.settings.webhook_keys.clone();
                (&context.outgoing.trusted, Ok(Delivery::Post { url, body, keys }))
            }
            Some(channel) => {
                let found: Option<(String, Value)> = sqlx::query_as(
                    "SELECT channel_type::text, config FROM notification_channels WHERE channel_id = $1::bigint AND is_enabled",
                )
                .bind(channel)
                .fetch_optional(pool)
                .await?;
                let Some((kind, config)) = found else {
                    return Ok(json!({ "skipped": true, "reason": "the channel is gone or disabled" }));
                };
                (&context.outgoing.guarded, delivery(&kind, &config, &message))
            }
        };
        let (url, body, keys) = match delivery {
            Ok(Delivery::Post { url, body, keys }) => (url, body, keys),
            Ok(Delivery::Mail(_)) => return Err(End::Never("the channel is one of mail now".to_owned())),
            Err(reason) => return Err(self.failed(pool, End::Never(reason)).await),
        };
        let request =
            Request { url, id: self.mail.clone(), body: body.to_string().into(), keys, timeout: POST_MAX };
        match judge(&client.post(&request).await) {
            Verdict::Taken => {
                store::posted(pool, &self.mail, self.channel, None).await?;
                Ok(json!({ "posted": true, "notices": notices.len() }))
            }
            Verdict::Again(error, _) => Err(self.failed(pool, End::Again(error)).await),
            Verdict::Never(error) => Err(self.failed(pool, End::Never(error)).await),
        }
    }

    /// Writes the error down beside the notices. That it cannot be written changes nothing about it.
    async fn failed(&self, pool: &PgPool, end: End) -> End {
        if let End::Again(error) | End::Never(error) = &end
            && let Err(error) = store::posted(pool, &self.mail, self.channel, Some(error)).await
        {
            tracing::warn!(%error, "the error of a post cannot be written down");
        }
        end
    }
}

fn message(environment: &str, mail: &str, first: &Told, notices: &[Told]) -> Message {
    let event = first.event.replace('_', " ");
    let about = if first.subject.is_empty() { String::new() } else { format!(": {}", first.subject) };
    let title = match notices.len() {
        1 => format!("[{environment}] {event}{about}"),
        many => format!("[{environment}] {event}{about} ({many} notices)"),
    };
    let line = |notice: &Told| {
        let server = notice.line.server.as_deref().map_or_else(String::new, |server| format!("{server}: "));
        format!("{server}{}", notice.line.reason)
    };
    let text = notices.iter().take(20).map(line).collect::<Vec<_>>().join("\n");
    let data = json!({
        "environment": environment,
        "event": first.event,
        "subject": first.subject,
        "tenant": first.tenant,
        "text": format!("{title}\n{text}"),
        "notices": notices.iter().map(|notice| json!({
            "id": notice.id, "at": notice.line.at, "server": notice.line.server, "reason": notice.line.reason,
            "severity": notice.severity,
        })).collect::<Vec<_>>(),
    });
    Message {
        event: "notice".to_owned(),
        title,
        text,
        severity: notices.iter().filter_map(|notice| notice.severity).max().map(i64::from),
        source: first.line.server.clone().unwrap_or_else(|| first.subject.clone()),
        thing: format!("notice:{mail}"),
        is_over: false,
        at: first.line.at,
        data,
    }
}
