//! `newsletter.sync`: brings the list of subscribers in line with what the rest of the database knows of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::{Needs, missing};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

const LIMIT: Duration = Duration::from_secs(600);

/// Takes the tier from the user's account, the status from the list of addresses that are not to be written to, and the engagement from
/// what was opened and clicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewsletterSync {}

const SUBSCRIBERS: Needs = Needs(&[(
    "newsletter_subscribers",
    &["id", "email", "user_id", "status", "subscription_tier", "unsubscribed_at", "updated_at"],
)]);

/// A part of the work, with the tables that it alone needs.
struct Part {
    name: &'static str,
    needs: Needs,
    statement: &'static str,
}

const PARTS: [Part; 3] = [
    Part {
        name: "tiers",
        needs: Needs(&[("app_users", &["id", "email", "subscription_tier"])]),
        statement: "UPDATE newsletter_subscribers s SET user_id = u.id, subscription_tier = u.subscription_tier, updated_at = now() \
             FROM app_users u \
             WHERE (u.id = s.user_id OR (s.user_id IS NULL AND lower(u.email) = lower(s.email))) \
                 AND (s.user_id, s.subscription_tier) IS DISTINCT FROM (u.id, u.subscription_tier)",
    },
    // Only a subscriber who is active is taken off: what was decided before stays. A soft bounce is nobody's last word.
    Part {
        name: "statuses",
        needs: Needs(&[("email_bounce_list", &["email", "bounce_type", "expires_at"])]),
        statement: "UPDATE newsletter_subscribers s SET updated_at = now(), \
                 status = (jsonb_populate_record(NULL::newsletter_subscribers, jsonb_build_object('status', \
                     CASE b.bounce_type WHEN 'complaint' THEN 'complained' WHEN 'unsubscribe' THEN 'unsubscribed' \
                     ELSE 'bounced' END))).status, \
                 unsubscribed_at = CASE WHEN b.bounce_type = 'unsubscribe' THEN COALESCE(s.unsubscribed_at, now()) \
                     ELSE s.unsubscribed_at END \
             FROM email_bounce_list b \
             WHERE lower(b.email) = lower(s.email) AND s.status = 'active' AND b.bounce_type <> 'soft' \
                 AND (b.expires_at IS NULL OR b.expires_at > now())",
    },
    // Half for what was opened of what arrived, half for what was clicked of what was opened.
    Part {
        name: "engagement",
        needs: Needs(&[
            ("email_events", &["subscriber_id", "event_type", "occurred_at"]),
            (
                "newsletter_subscribers",
                &[
                    "emails_received",
                    "emails_opened",
                    "emails_clicked",
                    "engagement_score",
                    "last_email_at",
                    "last_opened_at",
                    "last_clicked_at",
                ],
            ),
        ]),
        statement: "WITH counted AS (SELECT subscriber_id AS id, \
                 count(*) FILTER (WHERE event_type = 'delivered')::integer AS received, \
                 count(*) FILTER (WHERE event_type = 'opened')::integer AS opened, \
                 count(*) FILTER (WHERE event_type = 'clicked')::integer AS clicked, \
                 max(occurred_at) FILTER (WHERE event_type = 'delivered') AS received_at, \
                 max(occurred_at) FILTER (WHERE event_type = 'opened') AS opened_at, \
                 max(occurred_at) FILTER (WHERE event_type = 'clicked') AS clicked_at \
                 FROM email_events WHERE subscriber_id IS NOT NULL GROUP BY subscriber_id), \
             scored AS (SELECT *, LEAST(100, round(COALESCE(LEAST(opened::numeric / NULLIF(received, 0), 1), 0) * 50 \
                 + COALESCE(LEAST(clicked::numeric / NULLIF(opened, 0), 1), 0) * 50, 2)) AS score FROM counted) \
             UPDATE newsletter_subscribers s SET emails_received = c.received, emails_opened = c.opened, \
                 emails_clicked = c.clicked, last_email_at = c.received_at, last_opened_at = c.opened_at, \
                 last_clicked_at = c.clicked_at, engagement_score = c.score, updated_at = now() \
             FROM scored c WHERE c.id = s.id AND (s.emails_received, s.emails_opened, s.emails_clicked, s.engagement_score) \
                 IS DISTINCT FROM (c.received, c.opened, c.clicked, c.score)",
    },
];

impl Job for NewsletterSync {
    const KIND: &'static str = "newsletter.sync";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        upkeep.finish(Self::KIND, SUBSCRIBERS, sync(upkeep, attempt)).await
    }
}

async fn sync(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let mut result = serde_json::Map::new();
    for part in PARTS {
        check_stop(attempt)?;
        if let Some(missing) = missing(&upkeep.pool, part.needs).await? {
            tracing::info!(kind = NewsletterSync::KIND, part = part.name, %missing, "table absent, skipped");
            result.insert(part.name.to_owned(), missing.result());
            continue;
        }
        let done = sqlx::query(part.statement)
            .execute(&mut session)
            .await
            .map_err(PlatformError::database("bring the list of subscribers in line"))?;
        result.insert(part.name.to_owned(), json!({ "rows": done.rows_affected() }));
    }
    Ok(Value::Object(result))
}
