//! `alerts.post`: the address of a level is told of an alert.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_queue::{Attempt, Job, JobError, Outcome, RetryPolicy};
use voiceai_webhook::Request;

use super::{EscalationContext, NEEDS};
use crate::outgoing::{Verdict, judge};
use crate::{PlatformError, missing};

/// Longest time to the answer.
const POST_MAX: Duration = Duration::from_secs(5);
/// Waits between attempts.
const LADDER: &[Duration] = &[
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1_800),
];

/// One level of one alert. The address is read from the level's row when it is posted: it may hold a token, and stands in no job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertPost {
    /// The alert.
    pub alert_id: i64,
    /// The row of the level.
    pub level_id: i64,
    /// Its number.
    pub level: i64,
    /// Who is on call.
    #[serde(default)]
    pub on_call: Option<String>,
}

impl Job for AlertPost {
    const KIND: &'static str = "alerts.post";
    const QUEUE: &'static str = super::DUTY_QUEUE;
    const RETRY: RetryPolicy = RetryPolicy::ladder(LADDER);
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
    const PRIORITY: u8 = 8;
    type Context = EscalationContext;

    async fn run(&self, context: &EscalationContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        match missing(&context.pool, NEEDS).await {
            Ok(None) => {}
            Ok(Some(missing)) => return Ok(Outcome::DoneWith(missing.result())),
            Err(error) => return error.into_outcome(Self::KIND),
        }
        let (url, alert) = match self.read(&context.pool).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                return Ok(Outcome::DoneWith(
                    json!({ "skipped": true, "reason": "the alert or the level's address is gone" }),
                ));
            }
            Err(error) => return error.into_outcome(Self::KIND),
        };
        let url = Url::parse(url.trim()).map_err(|error| {
            JobError::discard(format!("notify_webhook of level {} is no URL: {error}", self.level_id))
        })?;
        let body = json!({ "type": "alert.escalated", "timestamp": attempt.enqueued_at(), "data": self.data(&alert) });
        let request = Request {
            url,
            id: format!("alert:{}:{}", self.alert_id, self.level),
            body: body.to_string().into(),
            keys: None,
            timeout: POST_MAX,
        };
        match judge(&context.outgoing.guarded.post(&request).await) {
            Verdict::Taken => Ok(Outcome::DoneWith(json!({ "posted": true }))),
            Verdict::Again(error, _) => Err(JobError::retry(error)),
            Verdict::Never(error) => Err(JobError::discard(error)),
        }
    }
}

impl AlertPost {
    async fn read(&self, pool: &PgPool) -> Result<Option<(String, Value)>, PlatformError> {
        let found: Option<(Option<String>, Value)> = sqlx::query_as(
            "SELECT l.notify_webhook::text, to_jsonb(a) FROM escalation_levels l, fleet_alert a \
             WHERE l.level_id = $1::bigint AND a.id = $2::bigint",
        )
        .bind(self.level_id)
        .bind(self.alert_id)
        .fetch_optional(pool)
        .await
        .map_err(PlatformError::database("read what an alert's post needs"))?;
        Ok(found.and_then(|(url, alert)| Some((url.filter(|url| !url.trim().is_empty())?, alert))))
    }

    fn data(&self, alert: &Value) -> Value {
        let mut data = json!({ "alert_id": self.alert_id, "level": self.level, "on_call": self.on_call });
        for name in [
            "tenant_id",
            "site_id",
            "device_id",
            "alert_type",
            "status",
            "severity",
            "summary",
            "details",
            "created_at",
        ] {
            data[name] = alert[name].clone();
        }
        data
    }
}
