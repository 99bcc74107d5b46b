//! `analytics.funnels`: how many of those who took a funnel's first step took each of the next ones in time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe, PgConnection};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

const LIMIT: Duration = Duration::from_secs(1_200);
/// Most steps: each is one join.
const STEPS_MAX: usize = 20;

/// Computes every published funnel anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Funnels {}

impl Job for Funnels {
    const KIND: &'static str = "analytics.funnels";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3_600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            ("analytics_events", &["event_type", "user_id", "session_id", "timestamp"]),
            (
                "analytics_funnels",
                &[
                    "id",
                    "slug",
                    "status",
                    "steps",
                    "window_days",
                    "total_entered",
                    "total_completed",
                    "conversion_rate",
                    "avg_time_to_complete",
                    "step_metrics",
                    "last_computed_at",
                ],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, compute(upkeep, attempt)).await
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Step {
    #[serde(default)]
    name: Option<String>,
    event: String,
}

async fn compute(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let mut session = upkeep.session(LIMIT).await?;
    let funnels: Vec<(String, String, Option<Value>, i64)> = sqlx::query_as(
        "SELECT id::text, COALESCE(slug::text, id::text), steps, COALESCE(window_days, 30)::bigint FROM analytics_funnels \
         WHERE status = 'published' ORDER BY slug",
    )
    .fetch_all(&mut session)
    .await
    .map_err(PlatformError::database("read the funnels"))?;
    let (mut computed, mut refused) = (0, Vec::new());
    for (id, slug, steps, days) in funnels {
        check_stop(attempt)?;
        let done = match parse(&steps.unwrap_or_default(), days) {
            Ok((steps, days)) => match funnel(&mut session, &id, &steps, days).await {
                Err(error) if error.is_final() => Err(crate::text(&error)),
                done => Ok(done?),
            },
            Err(reason) => Err(reason),
        };
        match done {
            Ok(()) => computed += 1,
            // One bad row keeps none of the others from being computed.
            Err(reason) => {
                tracing::warn!(funnel = slug, reason, "a funnel cannot be computed");
                refused.push(json!({ "slug": slug, "reason": reason }));
            }
        }
    }
    Ok(json!({ "computed": computed, "refused": refused }))
}

fn parse(steps: &Value, days: i64) -> Result<(Vec<Step>, i32), String> {
    let steps: Vec<Step> = serde_json::from_value(steps.clone())
        .map_err(|error| format!("steps: a list of {{\"name\", \"event\"}} is wanted: {error}"))?;
    if steps.is_empty() || steps.len() > STEPS_MAX {
        return Err(format!("steps: 1 to {STEPS_MAX} are wanted, not {}", steps.len()));
    }
    let window = i32::try_from(days).ok().filter(|days| (1..=730).contains(days));
    let window = window.ok_or_else(|| format!("window_days: 1 to 730 are wanted, not {days}"))?;
    Ok((steps, window))
}

/// One statement for a funnel of `n` steps: `$1` the events' names in order, `$2` the window in days. An actor is a user, or a session
/// nobody signed in to. Each step is the first such event after the step before it, within the window since the first step. Answers a
/// row a step: how many took it, and for the last one the mean seconds from the first.
fn statement(n: usize) -> String {
    let mut sql = String::from(
        "WITH events AS MATERIALIZED (SELECT COALESCE(user_id::text, session_id) AS actor, event_type, \"timestamp\" AS at \
         FROM analytics_events WHERE event_type = ANY($1::text[]) AND \"timestamp\" >= now() - make_interval(days => $2) \
             AND COALESCE(user_id::text, session_id) IS NOT NULL), \
         s1 AS (SELECT actor, min(at) AS entered, min(at) AS at FROM events WHERE event_type = ($1::text[])[1] GROUP BY actor)",
    );
    for step in 2..=n {
        let before = step - 1;
        sql.push_str(&format!(
            ", s{step} AS (SELECT s.actor, s.entered, min(e.at) AS at FROM s{before} s JOIN events e ON e.actor = s.actor \
             AND e.event_type = ($1::text[])[{step}] AND e.at > s.at AND e.at <= s.entered + make_interval(days => $2) \
             GROUP BY s.actor, s.entered)"
        ));
    }
    let rows: Vec<_> = (1..=n)
        .map(|step| {
            format!(
                "SELECT {step} AS step, count(*) AS actors, avg(extract(epoch FROM at - entered))::float8 AS seconds FROM s{step}"
            )
        })
        .collect();
    sql.push_str(&format!(" SELECT actors, seconds FROM ({}) steps ORDER BY step", rows.join(" UNION ALL ")));
    sql
}

/// In percent with two digits; none of nobody.
fn percent(part: i64, of: i64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts of actors stay far below 2^53")]
    (of > 0).then(|| (part as f64 / of as f64 * 10_000.0).round() / 100.0)
}

async fn funnel(
    session: &mut PgConnection,
    id: &str,
    steps: &[Step],
    days: i32,
) -> Result<(), PlatformError> {
    let events: Vec<_> = steps.iter().map(|step| step.event.clone()).collect();
    let counts: Vec<(i64, Option<f64>)> = sqlx::query_as(AssertSqlSafe(statement(steps.len())))
        .bind(events)
        .bind(days)
        .fetch_all(&mut *session)
        .await
        .map_err(PlatformError::database("compute a funnel"))?;
    let entered = counts.first().map_or(0, |(actors, _)| *actors);
    let (completed, seconds) = counts.last().copied().unwrap_or((0, None));
    let metrics: Vec<_> = steps
        .iter()
        .zip(&counts)
        .map(|(step, (actors, _))| {
            json!({
                "name": step.name.as_deref().unwrap_or(&step.event), "event": step.event, "count": actors,
                "rate": percent(*actors, entered),
            })
        })
        .collect();
    sqlx::query(
        "UPDATE analytics_funnels SET total_entered = $2::bigint, total_completed = $3::bigint, conversion_rate = $4::float8, \
             avg_time_to_complete = make_interval(secs => $5), step_metrics = $6, last_computed_at = now() WHERE id::text = $1",
    )
    .bind(id)
    .bind(entered)
    .bind(completed)
    .bind(percent(completed, entered))
    .bind(seconds)
    .bind(Value::Array(metrics))
    .execute(session)
    .await
    .map_err(PlatformError::database("write a funnel's figures"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_funnel_that_cannot_be_computed_says_why() {
        assert!(parse(&json!([{ "name": "a", "event": "x" }]), 30).is_ok());
        assert!(parse(&json!([{ "event": "x", "more": 1 }]), 30).is_ok());
        for (steps, days, says) in [
            (json!([]), 30, "1 to 20"),
            (json!({}), 30, "a list of"),
            (json!([{ "name": "a" }]), 30, "event"),
            (json!([{ "event": "x" }]), 0, "window_days"),
            (Value::Array(vec![json!({ "event": "x" }); 21]), 30, "not 21"),
        ] {
            let reason = parse(&steps, days).unwrap_err();
            assert!(reason.contains(says), "{reason}");
        }
        assert_eq!((percent(1, 3), percent(0, 0), percent(2, 2)), (Some(33.33), None, Some(100.0)));
    }
}
