//! `llm.alerts`: tells when language models cost more than was planned.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection, Row as _};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::escalation::addresses;
use crate::llm_costs::USAGE;
use crate::period::{Period, month_start, week_start};
use crate::tables::{Needs, instant};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, begin, check_stop, enqueue, notice};

const LIMIT: Duration = Duration::from_secs(300);

/// Looks at every active alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmAlerts {}

impl Job for LlmAlerts {
    const KIND: &'static str = "llm.alerts";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1_800);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            USAGE,
            (
                "llm_budget_alerts",
                &[
                    "id",
                    "organization_id",
                    "name",
                    "alert_type",
                    "threshold_cents",
                    "threshold_requests",
                    "spike_percent",
                    "notification_emails",
                    "notification_frequency",
                    "is_active",
                    "last_triggered_at",
                    "last_value_cents",
                    "trigger_count",
                ],
            ),
            (
                "llm_alert_history",
                &[
                    "alert_id",
                    "triggered_at",
                    "trigger_value_cents",
                    "threshold_cents",
                    "period_start",
                    "period_end",
                    "notification_sent",
                ],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, look(upkeep, attempt)).await
    }
}

/// What an alert watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// Since the begin of a UTC day, week or month.
    Since(Timestamp),
    /// The last whole hour against the mean of the 24 before it.
    Spike(Timestamp),
}

fn watched(alert_type: &str, now: Timestamp) -> Option<Watched> {
    match alert_type {
        "daily_limit" => Some(Watched::Since(Period::Day.floor(now))),
        "weekly_limit" => Some(Watched::Since(week_start(now))),
        "monthly_limit" => Some(Watched::Since(month_start(now))),
        // A plain threshold is of the last 24 hours, counted by whole hours.
        "threshold" => Some(Watched::Since(Period::Hour.floor(now) - SignedDuration::from_hours(23))),
        "spike" => Some(Watched::Spike(Period::Hour.floor(now) - SignedDuration::from_hours(1))),
        _ => None,
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    cents: i64,
    requests: i64,
    /// Mean cents of the hours before, for a spike; none where there were no such hours.
    before: Option<f64>,
}

/// Limits of an alert.
#[derive(Debug, Clone, Copy)]
struct Limits {
    cents: i64,
    requests: Option<i64>,
    spike_percent: i64,
}

/// Whether it is too much, and why.
fn exceeded(watched: Watched, limits: Limits, measured: Measured) -> Option<String> {
    let Measured { cents, requests, before } = measured;
    match watched {
        Watched::Since(since) => {
            if limits.cents > 0 && cents >= limits.cents {
                return Some(format!("{} since {since}; the limit is {}", money(cents), money(limits.cents)));
            }
            let limit = limits.requests.filter(|limit| *limit > 0 && requests >= *limit)?;
            Some(format!("{requests} requests since {since}; the limit is {limit}"))
        }
        // Without hours before it nothing is a spike: the first hour of a platform is none.
        Watched::Spike(hour) => {
            let before = before.filter(|mean| *mean > 0.0)?;
            #[expect(clippy::cast_precision_loss, reason = "cents stay far below 2^53")]
            let (value, percent) = (cents as f64, limits.spike_percent as f64);
            let over = cents >= limits.cents && value >= before * (1.0 + percent / 100.0);
            #[expect(clippy::cast_possible_truncation, reason = "a mean of figures that are i64")]
            let mean = before.round() as i64;
            over.then(|| {
                format!(
                    "{} in the hour from {hour}, {}% above the usual {}",
                    money(cents),
                    percent_above(value, before),
                    money(mean)
                )
            })
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and is read by people")]
fn percent_above(value: f64, mean: f64) -> i64 {
    ((value / mean - 1.0) * 100.0).round() as i64
}

fn money(cents: i64) -> String {
    format!("${}.{:02}", cents / 100, (cents % 100).abs())
}

/// Whether an alert that is over its limit is told again now.
fn is_told_again(frequency: &str, last: Option<Timestamp>, watched: Watched, now: Timestamp) -> bool {
    let Some(last) = last else { return true };
    match frequency {
        "hourly" => now.duration_since(last) >= SignedDuration::from_mins(59),
        "daily" => now.duration_since(last) >= SignedDuration::from_hours(23),
        // Once a day, week, month or spike. A sliding window has no begin: a day has to pass.
        _ => match watched {
            Watched::Since(since) => last < since,
            Watched::Spike(hour) => last < hour + SignedDuration::from_hours(1),
        },
    }
}

async fn look(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id::text FROM llm_budget_alerts WHERE is_active ORDER BY id")
            .fetch_all(&mut session)
            .await
            .map_err(PlatformError::database("read the alerts of costs"))?;
    let (mut triggered, mut unknown, mut failed) = (0, Vec::new(), Vec::new());
    for id in &ids {
        check_stop(attempt)?;
        match alert(&mut session, id, Timestamp::now()).await {
            Ok(Looked::Triggered) => triggered += 1,
            Ok(Looked::Unknown(alert_type)) => unknown.push(json!({ "id": id, "alert_type": alert_type })),
            Ok(Looked::Quiet) => {}
            // One alert that cannot be looked at keeps no other from being told.
            Err(error) if error.is_final() => failed.push(format!("{id}: {}", crate::text(&error))),
            Err(error) => return Err(error),
        }
    }
    match failed.first() {
        None => Ok(json!({ "alerts": ids.len(), "triggered": triggered, "unknown": unknown })),
        Some(first) => {
            let reason =
                format!("{} of {} could not be looked at, among them {first}", failed.len(), ids.len());
            Err(PlatformError::invalid("llm_budget_alerts", reason))
        }
    }
}

enum Looked {
    Triggered,
    Quiet,
    Unknown(String),
}

/// One alert, under its row's lock: what is told, the history and the row change together.
async fn alert(session: &mut PgConnection, id: &str, now: Timestamp) -> Result<Looked, PlatformError> {
    let tried = "look at an alert of costs";
    let mut transaction = begin(session, tried).await?;
    let sql = format!(
        "SELECT organization_id::text, COALESCE(name::text, id::text), COALESCE(alert_type::text, ''), \
             COALESCE(threshold_cents, 0)::bigint, threshold_requests::bigint, \
             COALESCE(spike_percent, 200)::bigint, array_remove(COALESCE(notification_emails, '{{}}')::text[], NULL), \
             COALESCE(notification_frequency::text, 'once'), {} \
         FROM llm_budget_alerts WHERE id::text = $1 AND is_active FOR UPDATE SKIP LOCKED",
        instant("last_triggered_at")
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(PlatformError::database(tried))?;
    let Some(row) = row else { return Ok(Looked::Quiet) };
    let wrong = |error| PlatformError::database(tried)(error);
    let organization: Option<String> = row.try_get(0).map_err(wrong)?;
    let (name, alert_type): (String, String) =
        (row.try_get(1).map_err(wrong)?, row.try_get(2).map_err(wrong)?);
    let limits = Limits {
        cents: row.try_get(3).map_err(wrong)?,
        requests: row.try_get(4).map_err(wrong)?,
        spike_percent: row.try_get(5).map_err(wrong)?,
    };
    // One that is written wrongly would keep the mail from all of them.
    let emails = addresses(&row.try_get::<Vec<String>, _>(6).map_err(wrong)?.join(","));
    let frequency: String = row.try_get(7).map_err(wrong)?;
    let last: Option<jiff_sqlx::Timestamp> = row.try_get(8).map_err(wrong)?;
    let Some(watched) = watched(&alert_type, now) else {
        tracing::warn!(alert = %id, alert_type, "an alert of costs has a type that nobody knows");
        return Ok(Looked::Unknown(alert_type));
    };
    let measured = measure(&mut transaction, watched, organization.as_deref()).await?;
    let Some(reason) = exceeded(watched, limits, measured) else { return Ok(Looked::Quiet) };
    if !is_told_again(&frequency, last.map(jiff_sqlx::Timestamp::to_jiff), watched, now) {
        return Ok(Looked::Quiet);
    }
    let (begin_at, end_at) = match watched {
        Watched::Since(since) => (since, now),
        Watched::Spike(hour) => (hour, hour + SignedDuration::from_hours(1)),
    };
    sqlx::query(
        "WITH alert AS (UPDATE llm_budget_alerts SET last_triggered_at = $2::timestamptz, last_value_cents = $3::bigint, \
             trigger_count = COALESCE(trigger_count, 0) + 1 WHERE id::text = $1 RETURNING id) \
         INSERT INTO llm_alert_history (alert_id, triggered_at, trigger_value_cents, threshold_cents, period_start, period_end, \
             notification_sent) \
         SELECT id, $2::timestamptz, $3::bigint, $4::bigint, $5::timestamptz, $6::timestamptz, true FROM alert",
    )
    .bind(id)
    .bind(now.to_sqlx())
    .bind(measured.cents)
    .bind(limits.cents)
    .bind(begin_at.to_sqlx())
    .bind(end_at.to_sqlx())
    .execute(&mut *transaction)
    .await
    .map_err(wrong)?;
    let reason = format!("{name}: {reason}");
    notice(&mut transaction, "llm_cost", organization.as_deref().unwrap_or("all"), &reason, now).await?;
    if !emails.is_empty() {
        let subject = format!("Language models cost more than planned: {name}");
        let mail = json!({ "to": emails, "subject": subject, "text_body": format!("{reason}\n") });
        enqueue(&mut transaction, "email-queue", "send-email", &mail).await?;
    }
    transaction.commit().await.map_err(PlatformError::database(tried))?;
    Ok(Looked::Triggered)
}

async fn measure(
    session: &mut PgConnection,
    watched: Watched,
    organization: Option<&str>,
) -> Result<Measured, PlatformError> {
    let (since, until, before) = match watched {
        Watched::Since(since) => (since, None, since),
        Watched::Spike(hour) => {
            (hour, Some(hour + SignedDuration::from_hours(1)), hour - SignedDuration::from_hours(24))
        }
    };
    let (cents, requests, earlier): (i64, i64, i64) = sqlx::query_as(
        "SELECT COALESCE(sum(estimated_cost_cents) FILTER (WHERE created_at >= $1), 0)::bigint, \
             count(*) FILTER (WHERE created_at >= $1), \
             COALESCE(sum(estimated_cost_cents) FILTER (WHERE created_at < $1), 0)::bigint \
         FROM llm_usage_log WHERE created_at >= $3 AND ($2::timestamptz IS NULL OR created_at < $2) \
             AND ($4::text IS NULL OR organization_id::text = $4)",
    )
    .bind(since.to_sqlx())
    .bind(until.map(Timestamp::to_sqlx))
    .bind(before.to_sqlx())
    .bind(organization)
    .fetch_one(session)
    .await
    .map_err(PlatformError::database("measure the costs of language models"))?;
    #[expect(clippy::cast_precision_loss, reason = "cents stay far below 2^53")]
    let before = matches!(watched, Watched::Spike(_)).then_some(earlier as f64 / 24.0);
    Ok(Measured { cents, requests, before })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn limits_are_reached_at_their_edge() {
        let since = Watched::Since(at("2026-11-22T00:00:00Z"));
        let limits = Limits { cents: 1_000, requests: Some(50), spike_percent: 200 };
        let measured = |cents, requests, before| Measured { cents, requests, before };
        assert_eq!(exceeded(since, limits, measured(999, 49, None)), None);
        assert!(exceeded(since, limits, measured(1_000, 0, None)).unwrap().contains("$10.00"));
        assert!(exceeded(since, limits, measured(0, 50, None)).unwrap().contains("50 requests"));
        let no_limit = Limits { cents: 0, requests: None, ..limits };
        assert_eq!(exceeded(since, no_limit, measured(5, 5, None)), None, "0 is no limit");
        let spike = Watched::Spike(at("2026-11-22T09:00:00Z"));
        let limits = Limits { cents: 0, ..limits };
        assert_eq!(exceeded(spike, limits, measured(299, 1, Some(100.0))), None);
        assert!(
            exceeded(spike, limits, measured(300, 1, Some(100.0)))
                .unwrap()
                .contains("200% above the usual $1.00")
        );
        assert_eq!(exceeded(spike, limits, measured(300, 1, Some(0.0))), None, "nothing to compare with");
        let floor = Limits { cents: 500, ..limits };
        assert_eq!(exceeded(spike, floor, measured(300, 1, Some(100.0))), None, "too little to matter");
    }

    #[test]
    fn an_alert_is_told_once_a_period_unless_it_asks_for_more() {
        let now = at("2026-11-22T10:20:00Z");
        let day = watched("daily_limit", now).unwrap();
        let told = |frequency, last: &str| is_told_again(frequency, Some(at(last)), day, now);
        assert!(is_told_again("once", None, day, now) && told("once", "2026-11-21T23:59:59Z"));
        assert!(!told("once", "2026-11-22T00:00:00Z"));
        assert!(told("hourly", "2026-11-22T09:20:00Z") && !told("hourly", "2026-11-22T09:40:00Z"));
        assert!(!told("daily", "2026-11-22T00:10:00Z"));
        let spike = watched("spike", now).unwrap();
        assert_eq!(spike, Watched::Spike(at("2026-11-22T09:00:00Z")));
        assert!(!is_told_again("once", Some(at("2026-11-22T10:10:00Z")), spike, now));
        assert!(is_told_again("once", Some(at("2026-11-22T09:59:00Z")), spike, now));
        assert_eq!(watched("weekly_limit", now), Some(Watched::Since(at("2026-11-16T00:00:00Z"))));
        assert_eq!(watched("yearly_limit", now), None);
    }
}
