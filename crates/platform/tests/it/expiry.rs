//! `commands.expire`, `executions.expire`, `credits.reset`, `subscriptions.expire`: rows before and after.

use serde_json::json;
use voiceai_queue::{DeadReason, Inline};

use crate::upkeep::House;

#[tokio::test]
async fn commands_end_as_missed_or_as_expired() {
    let house = House::with(&[("HOUSEKEEPING_BATCH_SIZE", "2")]).await;
    house
        .execute(
            "INSERT INTO device_commands (tenant_id, device_id, command_id, command_type, status, published_at, expires_at)
             SELECT 't', 'd', 'never' || n, 'x', 'queued', NULL::timestamptz, now() - interval '1 s' FROM generate_series(1, 3) n
             UNION ALL VALUES ('t', 'd', 'published', 'x', 'queued', now(), now() - interval '1 s'),
                 ('t', 'd', 'delivered', 'x', 'delivered', now(), now() - interval '1 s'),
                 ('t', 'd', 'later', 'x', 'queued', NULL, now() + interval '1 hour')",
        )
        .await;
    assert_eq!(house.run("commands.expire", json!({})).await, json!({"missed": 1, "expired": 3}));
    let states =
        "SELECT string_agg(command_id || '=' || status, ' ' ORDER BY command_id) FROM device_commands";
    assert_eq!(
        house.value(states).await,
        "delivered=delivered later=queued never1=expired never2=expired never3=expired published=missed"
    );
    assert_eq!(house.run("commands.expire", json!({})).await, json!({"missed": 0, "expired": 0}));
}

#[tokio::test]
async fn executions_time_out_and_jobs_end_when_nothing_is_left() {
    let house = House::new().await;
    house
        .execute(
            "INSERT INTO jobs (tenant_id, job_id, document_type, status, expires_at) VALUES
                 ('t', 'over', 'x', 'IN_PROGRESS', now() - interval '1 s'), ('t', 'half', 'x', 'IN_PROGRESS', now() - interval '1 s'),
                 ('t', 'empty', 'x', 'IN_PROGRESS', now() - interval '1 s'), ('t', 'new', 'x', 'IN_PROGRESS', now() + interval '1 h'),
                 ('t', 'done', 'x', 'IN_PROGRESS', NULL), ('t', 'canceled', 'x', 'CANCELED', now() - interval '1 s');
             INSERT INTO job_executions (tenant_id, job_id, device_id, status, status_details) VALUES
                 ('t', 'over', 'a', 'QUEUED', '{\"step\": 1}'), ('t', 'over', 'b', 'SUCCEEDED', NULL),
                 ('t', 'half', 'a', 'QUEUED', NULL), ('t', 'half', 'b', 'IN_PROGRESS', NULL),
                 ('t', 'done', 'a', 'FAILED', NULL), ('t', 'done', 'b', 'REJECTED', NULL),
                 ('t', 'canceled', 'a', 'QUEUED', NULL);",
        )
        .await;
    assert_eq!(house.run("executions.expire", json!({})).await, json!({"timed_out": 2, "completed": 3}));
    let jobs = house.value("SELECT string_agg(job_id || '=' || status, ' ' ORDER BY job_id) FROM jobs").await;
    assert_eq!(
        jobs,
        "canceled=CANCELED done=COMPLETED empty=COMPLETED half=IN_PROGRESS new=IN_PROGRESS over=COMPLETED"
    );
    let over = house
        .rows("SELECT status, status_details FROM job_executions WHERE job_id = 'over' AND device_id = 'a'")
        .await;
    assert_eq!(
        over,
        json!([{"status": "TIMED_OUT", "status_details": {"step": 1, "reason": "job_expired"}}])
    );
    let half = "SELECT string_agg(status, ' ' ORDER BY device_id) FROM job_executions WHERE job_id = 'half'";
    assert_eq!(house.value(half).await, "TIMED_OUT IN_PROGRESS", "a device that has begun ends by itself");
    assert_eq!(house.value("SELECT status FROM job_executions WHERE job_id = 'canceled'").await, "QUEUED");
    assert_eq!(house.run("executions.expire", json!({})).await, json!({"timed_out": 0, "completed": 0}));
}

const USERS: &str = "
    INSERT INTO subscription_plans (tier, name, credits_per_day) VALUES ('free', 'Free', 3), ('pro', 'Pro', 100), ('unlimited', 'U', -1);
    INSERT INTO app_users (email, subscription_tier, subscription_status, credits_remaining, credits_reset_at, subscription_ends_at) VALUES
        ('low', 'pro', 'active', 7, now() - interval '2 days', NULL), ('never', 'free', 'active', 0, NULL, NULL),
        ('rich', 'pro', 'active', 500, now() - interval '2 days', NULL), ('today', 'pro', 'active', 1, now(), NULL),
        ('endless', 'unlimited', 'active', 5, NULL, NULL), ('odd', 'gold', 'active', 5, NULL, NULL),
        ('ended', 'pro', 'canceled', 80, now(), now() - interval '1 hour'), ('ending', 'pro', 'canceled', 80, now(), now() + interval '1 hour');";

#[tokio::test]
async fn credit_is_filled_up_once_a_day_and_booked() {
    let house = House::new().await;
    house.execute(USERS).await;
    let result = house.run("credits.reset", json!({})).await;
    assert_eq!(
        result,
        json!({"users": 4, "credits_granted": 93 + 3 + 999_994, "tiers_without_plan": ["gold"]})
    );
    let balances = "SELECT string_agg(email || '=' || credits_remaining, ' ' ORDER BY email) FROM app_users";
    let after = "ended=80 ending=80 endless=999999 low=100 never=3 odd=5 rich=500 today=1";
    assert_eq!(house.value(balances).await, after, "what was bought is not taken away");
    let booked = house
        .rows("SELECT u.email, t.type, t.amount, t.balance_before, t.balance_after FROM credit_transactions t JOIN app_users u ON u.id = t.user_id WHERE u.email = 'low'")
        .await;
    assert_eq!(
        booked,
        json!([{"email": "low", "type": "daily_reset", "amount": 93, "balance_before": 7, "balance_after": 100}])
    );
    assert_eq!(house.run("credits.reset", json!({})).await["users"], 0, "once a day, however often it runs");
    assert_eq!(house.value("SELECT count(*) FROM credit_transactions").await, "3");
}

#[tokio::test]
async fn two_resets_at_once_grant_once() {
    let house = House::new().await;
    house
        .execute("INSERT INTO subscription_plans (tier, name, credits_per_day) VALUES ('free', 'Free', 3)")
        .await;
    house.execute("INSERT INTO app_users (email) SELECT 'u' || n FROM generate_series(1, 3000) n").await;
    let (a, b) = tokio::join!(house.run("credits.reset", json!({})), house.run("credits.reset", json!({})));
    assert_eq!(a["users"].as_i64().unwrap() + b["users"].as_i64().unwrap(), 3_000);
    assert_eq!(house.value("SELECT count(*) FROM credit_transactions").await, "3000");
}

#[tokio::test]
async fn who_cancelled_falls_back_when_the_term_is_over() {
    let house = House::new().await;
    house.execute(USERS).await;
    assert_eq!(house.run("subscriptions.expire", json!({})).await, json!({"users": 1}));
    let ended = house
        .rows("SELECT subscription_tier AS tier, subscription_status AS status, credits_remaining AS credits, subscription_ends_at AS ends FROM app_users WHERE email = 'ended'")
        .await;
    assert_eq!(ended, json!([{"tier": "free", "status": "active", "credits": 3, "ends": null}]));
    assert_eq!(house.value("SELECT subscription_tier FROM app_users WHERE email = 'ending'").await, "pro");
    let history = house.rows("SELECT action, from_tier, to_tier FROM subscription_history").await;
    assert_eq!(history, json!([{"action": "expired", "from_tier": "pro", "to_tier": "free"}]));
    assert_eq!(house.run("subscriptions.expire", json!({})).await, json!({"users": 0}));

    house
        .execute(
            "DELETE FROM subscription_plans WHERE tier = 'free';
             UPDATE app_users SET subscription_status = 'canceled', subscription_tier = 'pro', subscription_ends_at = now() - interval '1 day'",
        )
        .await;
    let ended = house.end("subscriptions.expire", json!({})).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = ended else { panic!("{ended:?}") };
    assert!(error.contains("SUBSCRIPTION_FREE_TIER") && error.contains("`free`"), "{error}");
}
