//! `credits.reset`: fills every active user's credit up to what a day of the plan grants, once a UTC day.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

/// What a plan without a limit grants: the column is a number.
const UNLIMITED: i32 = 999_999;

/// Fills credit up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreditsReset {}

impl Job for CreditsReset {
    const KIND: &'static str = "credits.reset";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3600);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            (
                "app_users",
                &["id", "subscription_tier", "subscription_status", "credits_remaining", "credits_reset_at"],
            ),
            ("subscription_plans", &["tier", "credits_per_day"]),
            (
                "credit_transactions",
                &["user_id", "type", "amount", "balance_before", "balance_after", "reason"],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, reset(upkeep, attempt)).await
    }
}

async fn reset(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let (mut users, mut granted) = (0_i64, 0_i64);
    loop {
        check_stop(attempt)?;
        // One statement: a user's credit, the day it was filled on and the entry in the books change together or not at all. Credit that
        // was bought is never taken away: a balance above the plan's is left as it is.
        let (reset, credits): (i64, i64) = sqlx::query_as(
            "WITH due AS (SELECT u.id, COALESCE(u.credits_remaining, 0) AS before, \
                     GREATEST(COALESCE(u.credits_remaining, 0), CASE WHEN p.credits_per_day < 0 THEN $2 ELSE p.credits_per_day END) AS after \
                 FROM app_users u JOIN subscription_plans p ON p.tier::text = u.subscription_tier::text \
                 WHERE u.subscription_status = 'active' \
                     AND (u.credits_reset_at IS NULL OR u.credits_reset_at < date_trunc('day', now(), 'UTC')) \
                 LIMIT $1 FOR UPDATE OF u SKIP LOCKED), \
             filled AS (UPDATE app_users u SET credits_remaining = due.after, credits_reset_at = now() \
                 FROM due WHERE u.id = due.id RETURNING u.id, due.before, due.after), \
             booked AS (INSERT INTO credit_transactions (user_id, type, amount, balance_before, balance_after, reason) \
                 SELECT id, 'daily_reset', after - before, before, after, 'Daily reset' FROM filled WHERE after <> before \
                 RETURNING amount) \
             SELECT (SELECT count(*) FROM filled), (SELECT COALESCE(sum(amount), 0)::bigint FROM booked)",
        )
        .bind(upkeep.batch().min(1_000))
        .bind(UNLIMITED)
        .fetch_one(&upkeep.pool)
        .await
        .map_err(PlatformError::database("fill up the users' credit"))?;
        users += reset;
        granted += credits;
        if reset == 0 {
            break;
        }
    }
    // A user whose tier is no plan would be passed over in silence for ever.
    let unknown: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT COALESCE(u.subscription_tier::text, '(none)') FROM app_users u WHERE u.subscription_status = 'active' \
             AND NOT EXISTS (SELECT FROM subscription_plans p WHERE p.tier::text = u.subscription_tier::text) ORDER BY 1 LIMIT 20",
    )
    .fetch_all(&upkeep.pool)
    .await
    .map_err(PlatformError::database("look for tiers that are no plan"))?;
    if !unknown.is_empty() {
        tracing::warn!(
            tiers = unknown.join(","),
            "users of these tiers got no credit: subscription_plans has no such row"
        );
    }
    Ok(json!({ "users": users, "credits_granted": granted, "tiers_without_plan": unknown }))
}
