//! `analytics.cohorts`: what those who began in the same day, week or month did in the periods after.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

const LIMIT: Duration = Duration::from_secs(1_200);
/// Cohorts that are computed where the row names no first day: the last so many.
const COHORTS: i32 = 26;

/// Computes every published cohort table anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cohorts {}

impl Job for Cohorts {
    const KIND: &'static str = "analytics.cohorts";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("app_users", &["id", "created_at", "subscription_started_at"]),
            ("analytics_events", &["event_type", "user_id", "timestamp"]),
            ("invoice_cache", &["user_id", "status", "amount_cents", "paid_at"]),
            (
                "analytics_cohorts",
                &[
                    "id",
                    "slug",
                    "status",
                    "cohort_type",
                    "granularity",
                    "metric",
                    "start_date",
                    "end_date",
                    "cohort_data",
                    "last_computed_at",
                ],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, compute(upkeep, attempt)).await
    }
}

async fn compute(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let rows: Vec<(String, String, String, String, String)> = sqlx::query_as(
        "SELECT id::text, COALESCE(slug::text, id::text), COALESCE(cohort_type::text, ''), COALESCE(granularity::text, ''), \
             COALESCE(metric::text, '') FROM analytics_cohorts \
         WHERE status = 'published' ORDER BY slug",
    )
    .fetch_all(&mut session)
    .await
    .map_err(PlatformError::database("read the cohorts"))?;
    let (mut computed, mut refused) = (0, Vec::new());
    for (id, slug, begins, granularity, metric) in rows {
        check_stop(attempt)?;
        let done = match statement(&begins, &granularity, &metric) {
            Ok(sql) => match cohort(&mut session, &id, sql).await {
                Err(error) if error.is_final() => Err(crate::text(&error)),
                done => Ok(done?),
            },
            Err(reason) => Err(reason),
        };
        match done {
            Ok(()) => computed += 1,
            // One bad row keeps none of the others from being computed.
            Err(reason) => {
                tracing::warn!(cohort = slug, reason, "a cohort cannot be computed");
                refused.push(json!({ "slug": slug, "reason": reason }));
            }
        }
    }
    Ok(json!({ "computed": computed, "refused": refused }))
}

/// The statement of one table; `$1` is its row. Answers label, size, index of the period, value. Pure: only what stands here gets
/// into the text.
fn statement(begins: &str, granularity: &str, metric: &str) -> Result<String, String> {
    let members = match begins {
        "signup_date" => "SELECT id AS user_id, created_at AS at FROM app_users",
        "subscription_start" => {
            "SELECT id AS user_id, subscription_started_at AS at FROM app_users WHERE subscription_started_at IS NOT NULL"
        }
        "first_purchase" => {
            "SELECT user_id, min(paid_at) AS at FROM invoice_cache WHERE status = 'paid' AND paid_at IS NOT NULL GROUP BY user_id"
        }
        other => {
            return Err(format!(
                "cohort_type `{other}`: signup_date, subscription_start and first_purchase can be computed"
            ));
        }
    };
    let (did, value) = match metric {
        "retention" => ("analytics_events WHERE user_id IS NOT NULL", "count(DISTINCT a.user_id)"),
        "engagement" => ("analytics_events WHERE user_id IS NOT NULL", "count(a.user_id)"),
        "generations" => (
            "analytics_events WHERE user_id IS NOT NULL AND event_type = 'generation_completed'",
            "count(a.user_id)",
        ),
        "revenue" => (
            "invoice_cache WHERE status = 'paid' AND paid_at IS NOT NULL",
            "COALESCE(sum(a.cents), 0)::bigint",
        ),
        other => {
            return Err(format!(
                "metric `{other}`: retention, engagement, generations and revenue can be computed"
            ));
        }
    };
    let acts = if metric == "revenue" {
        format!("SELECT user_id, paid_at AS at, amount_cents AS cents FROM {did}")
    } else {
        format!("SELECT user_id, \"timestamp\" AS at, 0 AS cents FROM {did}")
    };
    let (unit, label, index) = match granularity {
        "day" => ("day", "YYYY-MM-DD", "(extract(epoch FROM p.at - c.at) / 86400)::integer"),
        "week" => ("week", "IYYY-\"W\"IW", "(extract(epoch FROM p.at - c.at) / 604800)::integer"),
        "month" => (
            "month",
            "YYYY-MM",
            "(extract(year FROM p.at) * 12 + extract(month FROM p.at) - extract(year FROM c.at) * 12 - extract(month FROM c.at))::integer",
        ),
        other => return Err(format!("granularity `{other}`: day, week and month can be computed")),
    };
    // Times are turned into UTC without a zone first, so that a bucket is the calendar's of UTC.
    Ok(format!(
        "WITH spec AS (SELECT COALESCE(start_date::timestamp, date_trunc('{unit}', now() AT TIME ZONE 'UTC') \
                 - ({COHORTS} - 1) * interval '1 {unit}') AS first, \
                 COALESCE(end_date::timestamp, now() AT TIME ZONE 'UTC') AS last FROM analytics_cohorts WHERE id::text = $1), \
             members AS MATERIALIZED (SELECT m.user_id, date_trunc('{unit}', m.at AT TIME ZONE 'UTC') AS at \
                 FROM ({members}) m, spec WHERE isfinite(m.at) AND date_trunc('{unit}', m.at AT TIME ZONE 'UTC') BETWEEN \
                     date_trunc('{unit}', spec.first) AND spec.last), \
             cohorts AS (SELECT at, count(*) AS size FROM members GROUP BY at), \
             acts AS MATERIALIZED (SELECT m.at AS cohort, date_trunc('{unit}', a.at AT TIME ZONE 'UTC') AS at, a.user_id, a.cents \
                 FROM members m JOIN ({acts}) a ON a.user_id = m.user_id AND date_trunc('{unit}', a.at AT TIME ZONE 'UTC') >= m.at), \
             periods AS (SELECT c.at AS cohort, g AS at FROM cohorts c, \
                 generate_series(c.at, date_trunc('{unit}', now() AT TIME ZONE 'UTC'), interval '1 {unit}') g) \
         SELECT to_char(c.at, '{label}'), c.size, {index}, {value} \
         FROM cohorts c JOIN periods p ON p.cohort = c.at \
         LEFT JOIN acts a ON a.cohort = c.at AND a.at = p.at \
         GROUP BY c.at, c.size, p.at ORDER BY c.at, p.at"
    ))
}

async fn cohort(session: &mut PgConnection, id: &str, sql: String) -> Result<(), PlatformError> {
    let rows: Vec<(String, i64, i32, i64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(id)
        .fetch_all(&mut *session)
        .await
        .map_err(PlatformError::database("compute a cohort"))?;
    sqlx::query(
        "UPDATE analytics_cohorts SET cohort_data = $2, last_computed_at = now() WHERE id::text = $1",
    )
    .bind(id)
    .bind(Value::Object(table(&rows)))
    .execute(session)
    .await
    .map_err(PlatformError::database("write a cohort's figures"))?;
    Ok(())
}

/// `{"2026-W46": {"size": 3, "periods": [3, 2]}}`, from rows in order.
fn table(rows: &[(String, i64, i32, i64)]) -> Map<String, Value> {
    let mut table = Map::new();
    for (label, size, _, value) in rows {
        let entry = table.entry(label.clone()).or_insert_with(|| json!({ "size": size, "periods": [] }));
        if let Some(periods) = entry["periods"].as_array_mut() {
            periods.push(json!(value));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_by_name_and_never_put_into_the_statement() {
        assert!(statement("signup_date", "week", "retention").is_ok());
        for (begins, granularity, metric, says) in [
            ("custom", "week", "retention", "cohort_type `custom`"),
            ("signup_date", "year", "retention", "granularity `year`"),
            ("signup_date", "week", "x'; DROP TABLE y", "metric `x'"),
        ] {
            let reason = statement(begins, granularity, metric).unwrap_err();
            assert!(reason.starts_with(says), "{reason}");
        }
    }

    #[test]
    fn rows_become_one_line_a_cohort() {
        let row = |label: &str, size, index, value| (label.to_owned(), size, index, value);
        let made = table(&[row("a", 3, 0, 3), row("a", 3, 1, 1), row("b", 1, 0, 0)]);
        assert_eq!(
            Value::Object(made),
            json!({"a": {"size": 3, "periods": [3, 1]}, "b": {"size": 1, "periods": [0]}})
        );
    }
}
