//! `subscriptions.expire`: users whose cancelled subscription has ended fall back to the free tier.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::{Needs, typed};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, check_stop};

/// Ends what was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionsExpire {}

impl Job for SubscriptionsExpire {
    const KIND: &'static str = "subscriptions.expire";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1_800);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            (
                "app_users",
                &[
                    "id",
                    "subscription_tier",
                    "subscription_status",
                    "subscription_id",
                    "subscription_ends_at",
                    "credits_remaining",
                ],
            ),
            ("subscription_plans", &["tier", "credits_per_day"]),
            ("subscription_history", &["user_id", "action", "from_tier", "to_tier", "reason"]),
        ]);
        upkeep.finish(Self::KIND, NEEDS, expire(upkeep, attempt)).await
    }
}

async fn expire(upkeep: &Upkeep, attempt: &Attempt) -> Result<Value, PlatformError> {
    let tier = &upkeep.settings.free_tier;
    let (is_due, is_known, credits): (bool, bool, Option<i64>) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM app_users WHERE subscription_status = 'canceled' AND subscription_ends_at < now() \
                        AND subscription_tier::text IS DISTINCT FROM $1), \
                EXISTS (SELECT FROM subscription_plans WHERE tier::text = $1), \
                (SELECT credits_per_day::bigint FROM subscription_plans WHERE tier::text = $1 LIMIT 1)",
    )
    .bind(tier)
    .fetch_one(&upkeep.pool)
    .await
    .map_err(PlatformError::database("look for the free tier"))?;
    // Whoever has no users that cancelled need not have a tier for them.
    if !is_due {
        return Ok(json!({ "users": 0 }));
    }
    if !is_known {
        let reason =
            format!("subscription_plans has no row for tier `{tier}`; name the tier that costs nothing");
        return Err(PlatformError::invalid("SUBSCRIPTION_FREE_TIER", reason));
    }
    // A plan without a number grants nothing, and takes nothing away.
    let credits = credits.filter(|credits| *credits >= 0);
    let statement = format!(
        "WITH due AS (SELECT id, subscription_tier FROM app_users \
             WHERE subscription_status = 'canceled' AND subscription_ends_at < now() \
                 AND subscription_tier::text IS DISTINCT FROM $2 LIMIT $1 FOR UPDATE SKIP LOCKED), \
         ended AS (UPDATE app_users u SET subscription_tier = {tier}, subscription_status = 'active', subscription_id = NULL, \
             subscription_ends_at = NULL, \
             credits_remaining = CASE WHEN u.credits_remaining > $3::bigint THEN $3::bigint ELSE u.credits_remaining END \
             FROM due WHERE u.id = due.id RETURNING u.id, due.subscription_tier), \
         noted AS (INSERT INTO subscription_history (user_id, action, from_tier, to_tier, reason) \
             SELECT id, 'expired', {from}, {to}, 'The cancelled subscription has ended' FROM ended RETURNING 1) \
         SELECT count(*) FROM noted",
        tier = typed("app_users", "subscription_tier", "$2::text"),
        from = typed("subscription_history", "from_tier", "subscription_tier::text"),
        to = typed("subscription_history", "to_tier", "$2::text"),
    );
    let mut users = 0_i64;
    loop {
        check_stop(attempt)?;
        let ended: i64 = sqlx::query_scalar(AssertSqlSafe(statement.as_str()))
            .bind(upkeep.batch().min(1_000))
            .bind(tier)
            .bind(credits)
            .fetch_one(&upkeep.pool)
            .await
            .map_err(PlatformError::database("end cancelled subscriptions"))?;
        users += ended;
        if ended == 0 {
            return Ok(json!({ "users": users }));
        }
    }
}
