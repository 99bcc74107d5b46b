//! `analytics.aggregate`: figures of an hour or a day out of `analytics_events`, one row each.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::period::{Asked, Known, Period, window};
use crate::tables::{Needs, newest, oldest};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep};

const LIMIT: Duration = Duration::from_secs(1_200);

/// Computes figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyticsAggregate {
    /// Of hours or of days.
    pub period: Period,
    /// Begin of the first bucket; else since the newest computed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// End of the last bucket; else that of the last whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

impl Job for AnalyticsAggregate {
    const KIND: &'static str = "analytics.aggregate";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1_800);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, _attempt: &Attempt) -> Result<Outcome, JobError> {
        const EVENTS: (&str, &[&str]) = (
            "analytics_events",
            &["event_type", "user_id", "session_id", "page_url", "properties", "timestamp"],
        );
        const USERS: (&str, &[&str]) = ("app_users", &["created_at"]);
        const CREDIT: (&str, &[&str]) = ("credit_transactions", &["type", "amount", "created_at"]);
        const HOURS: Needs = Needs(&[
            EVENTS,
            USERS,
            CREDIT,
            (
                "analytics_hourly",
                &[
                    "hour",
                    "active_users",
                    "page_views",
                    "api_requests",
                    "generations",
                    "credits_used",
                    "signups",
                    "api_errors",
                    "avg_response_time_ms",
                    "computed_at",
                ],
            ),
        ]);
        const DAYS: Needs = Needs(&[
            EVENTS,
            USERS,
            CREDIT,
            ("invoice_cache", &["status", "amount_cents", "paid_at"]),
            (
                "analytics_daily",
                &[
                    "date",
                    "active_users",
                    "new_users",
                    "generations",
                    "credits_used",
                    "revenue_cents",
                    "unique_visitors",
                    "page_views",
                    "avg_session_duration_seconds",
                    "bounce_rate",
                    "top_events",
                    "top_pages",
                    "computed_at",
                ],
            ),
        ]);
        let needs = match self.period {
            Period::Hour => HOURS,
            Period::Day => DAYS,
        };
        upkeep.finish(Self::KIND, needs, self.aggregate(upkeep)).await
    }
}

/// `$1` begin of the first hour, `$2` end of the last. An hour without events has a row of zeros: it was looked at.
const HOURLY: &str = r#"
INSERT INTO analytics_hourly (hour, active_users, page_views, api_requests, generations, credits_used, signups, api_errors,
                              avg_response_time_ms, computed_at)
SELECT h.at, COALESCE(e.users, 0), COALESCE(e.pages, 0), COALESCE(e.requests, 0), COALESCE(e.generations, 0),
       COALESCE(c.used, 0), COALESCE(u.new, 0), COALESCE(e.errors, 0), e.response_ms, now()
FROM generate_series($1::timestamptz, $2::timestamptz - interval '1 hour', interval '1 hour') AS h (at)
LEFT JOIN (
    SELECT date_trunc('hour', "timestamp", 'UTC') AS at, count(DISTINCT user_id) AS users,
           count(*) FILTER (WHERE event_type = 'page_view') AS pages,
           count(*) FILTER (WHERE event_type = 'api_request') AS requests,
           count(*) FILTER (WHERE event_type = 'generation_completed') AS generations,
           count(*) FILTER (WHERE event_type = 'api_error') AS errors,
           avg(CASE WHEN event_type = 'api_request' AND jsonb_typeof((properties -> 'response_time_ms')::jsonb) = 'number'
                    THEN GREATEST(LEAST((properties ->> 'response_time_ms')::numeric, 2147483647), 0) END)::integer AS response_ms
    FROM analytics_events WHERE "timestamp" >= $1 AND "timestamp" < $2 GROUP BY 1
) e ON e.at = h.at
LEFT JOIN (
    SELECT date_trunc('hour', created_at, 'UTC') AS at, LEAST(COALESCE(sum(-amount), 0), 2147483647)::integer AS used FROM credit_transactions
    WHERE type = 'generation' AND created_at >= $1 AND created_at < $2 GROUP BY 1
) c ON c.at = h.at
LEFT JOIN (
    SELECT date_trunc('hour', created_at, 'UTC') AS at, count(*) AS new FROM app_users
    WHERE created_at >= $1 AND created_at < $2 GROUP BY 1
) u ON u.at = h.at
ON CONFLICT (hour) DO UPDATE SET
    active_users = EXCLUDED.active_users, page_views = EXCLUDED.page_views, api_requests = EXCLUDED.api_requests,
    generations = EXCLUDED.generations, credits_used = EXCLUDED.credits_used, signups = EXCLUDED.signups,
    api_errors = EXCLUDED.api_errors, avg_response_time_ms = EXCLUDED.avg_response_time_ms, computed_at = EXCLUDED.computed_at"#;

/// `$1` begin of the first day, `$2` end of the last. A visit is what one session did on one day; it bounced when it saw one page.
const DAILY: &str = r#"
WITH events AS MATERIALIZED (
    SELECT date_trunc('day', "timestamp", 'UTC') AS at, event_type, user_id, session_id, page_url, "timestamp" AS t
    FROM analytics_events WHERE "timestamp" >= $1 AND "timestamp" < $2
), visits AS (
    SELECT at, session_id, extract(epoch FROM max(t) - min(t)) AS seconds,
           count(*) FILTER (WHERE event_type = 'page_view') AS pages
    FROM events WHERE session_id IS NOT NULL GROUP BY 1, 2
), by_event AS (
    SELECT at, event_type, count(*) AS n, row_number() OVER (PARTITION BY at ORDER BY count(*) DESC, event_type) AS place
    FROM events GROUP BY 1, 2
), by_page AS (
    SELECT at, page_url, count(*) AS n, row_number() OVER (PARTITION BY at ORDER BY count(*) DESC, page_url) AS place
    FROM events WHERE event_type = 'page_view' AND page_url IS NOT NULL GROUP BY 1, 2
)
INSERT INTO analytics_daily (date, active_users, new_users, generations, credits_used, revenue_cents, unique_visitors, page_views,
                             avg_session_duration_seconds, bounce_rate, top_events, top_pages, computed_at)
SELECT (d.at AT TIME ZONE 'UTC')::date, COALESCE(e.users, 0), COALESCE(u.new, 0), COALESCE(e.generations, 0),
       COALESCE(c.used, 0), COALESCE(i.cents, 0), COALESCE(e.visitors, 0), COALESCE(e.pages, 0), v.seconds, v.bounced,
       COALESCE((SELECT jsonb_agg(jsonb_build_object('event', event_type, 'count', n) ORDER BY place)
                 FROM by_event b WHERE b.at = d.at AND b.place <= 10), '[]'),
       COALESCE((SELECT jsonb_agg(jsonb_build_object('page', page_url, 'count', n) ORDER BY place)
                 FROM by_page b WHERE b.at = d.at AND b.place <= 10), '[]'),
       now()
FROM generate_series($1::timestamptz, $2::timestamptz - interval '1 day', interval '1 day') AS d (at)
LEFT JOIN (
    SELECT at, count(DISTINCT user_id) AS users, count(DISTINCT COALESCE(user_id::text, session_id)) AS visitors,
           count(*) FILTER (WHERE event_type = 'page_view') AS pages,
           count(*) FILTER (WHERE event_type = 'generation_completed') AS generations
    FROM events GROUP BY 1
) e ON e.at = d.at
LEFT JOIN (
    SELECT at, avg(seconds)::integer AS seconds,
           round(100.0 * count(*) FILTER (WHERE pages = 1) / NULLIF(count(*) FILTER (WHERE pages > 0), 0), 2) AS bounced
    FROM visits GROUP BY 1
) v ON v.at = d.at
LEFT JOIN (
    SELECT date_trunc('day', created_at, 'UTC') AS at, LEAST(COALESCE(sum(-amount), 0), 2147483647)::integer AS used FROM credit_transactions
    WHERE type = 'generation' AND created_at >= $1 AND created_at < $2 GROUP BY 1
) c ON c.at = d.at
LEFT JOIN (
    SELECT date_trunc('day', created_at, 'UTC') AS at, count(*) AS new FROM app_users
    WHERE created_at >= $1 AND created_at < $2 GROUP BY 1
) u ON u.at = d.at
LEFT JOIN (
    SELECT date_trunc('day', paid_at, 'UTC') AS at, sum(amount_cents)::bigint AS cents FROM invoice_cache
    WHERE status = 'paid' AND paid_at >= $1 AND paid_at < $2 GROUP BY 1
) i ON i.at = d.at
ON CONFLICT (date) DO UPDATE SET
    active_users = EXCLUDED.active_users, new_users = EXCLUDED.new_users, generations = EXCLUDED.generations,
    credits_used = EXCLUDED.credits_used, revenue_cents = EXCLUDED.revenue_cents, unique_visitors = EXCLUDED.unique_visitors,
    page_views = EXCLUDED.page_views, avg_session_duration_seconds = EXCLUDED.avg_session_duration_seconds,
    bounce_rate = EXCLUDED.bounce_rate, top_events = EXCLUDED.top_events, top_pages = EXCLUDED.top_pages,
    computed_at = EXCLUDED.computed_at"#;

impl AnalyticsAggregate {
    async fn aggregate(&self, upkeep: &Upkeep) -> Result<Value, PlatformError> {
        let (newest, statement) = match self.period {
            Period::Hour => (newest("analytics_hourly", "hour"), HOURLY),
            Period::Day => (newest("analytics_daily", "date"), DAILY),
        };
        let mut session = upkeep.session(LIMIT).await?;
        let sql = format!("SELECT {newest}, {}", oldest("analytics_events", "\"timestamp\""));
        let (newest, oldest): (Option<jiff_sqlx::Timestamp>, Option<jiff_sqlx::Timestamp>) =
            sqlx::query_as(AssertSqlSafe(sql))
                .fetch_one(&mut session)
                .await
                .map_err(PlatformError::database("look for the newest figures"))?;
        let known = Known {
            now: Timestamp::now(),
            newest: newest.map(jiff_sqlx::Timestamp::to_jiff),
            oldest_row: oldest.map(jiff_sqlx::Timestamp::to_jiff),
            kept: upkeep.kept_events(),
        };
        let Some(window) = window(self.period, Asked { from: self.from, to: self.to }, known)? else {
            return Ok(json!({ "rows": 0 }));
        };
        let done = sqlx::query(statement)
            .bind(window.from.to_sqlx())
            .bind(window.to.to_sqlx())
            .execute(&mut session)
            .await
            .map_err(PlatformError::database("compute figures of analytics"))?;
        Ok(json!({ "rows": done.rows_affected(), "from": window.from, "to": window.to }))
    }
}
