//! `subscriptions.expire`: users whose cancelled subscription has ended fall back to the free tier.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx;
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
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
    let credits: Option<i32> =
        sqlx::query_scalar("SELECT credits_per_day FROM subscription_plans WHERE tier = $1")
            .bind(tier)
            .fetch_optional(&upkeep.pool)
            .await
            .map_err(PlatformError::database("look for the free tier"))?;
    let Some(credits) = credits.map(|credits| if credits < 0 { i32::MAX } else { credits }) else {
        let reason =
            format!("subscription_plans has no row for tier `{tier}`; name the tier that costs nothing");
        return Err(PlatformError::invalid("SUBSCRIPTION_FREE_TIER", reason));
    };
    let mut users = 0_i64;
    loop {
        check_stop(attempt)?;
        let ended: i64 = sqlx::query_scalar(
            "WITH due AS (SELECT id, subscription_tier, subscription_id FROM app_users \
                 WHERE subscription_status = 'canceled' AND subscription_ends_at < now() AND subscription_tier <> $2 \
                 LIMIT $1 FOR UPDATE SKIP LOCKED), \
             ended AS (UPDATE app_users u SET subscription_tier = $2, subscription_status = 'active', subscription_id = NULL, \
                 subscription_ends_at = NULL, credits_remaining = LEAST(u.credits_remaining, $3) \
                 FROM due WHERE u.id = due.id RETURNING u.id, due.subscription_tier), \
             noted AS (INSERT INTO subscription_history (user_id, action, from_tier, to_tier, reason) \
                 SELECT id, 'expired', subscription_tier, $2, 'The cancelled subscription has ended' FROM ended RETURNING 1) \
             SELECT count(*) FROM noted",
        )
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
