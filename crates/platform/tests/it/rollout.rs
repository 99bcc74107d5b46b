use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use voiceai_platform::rollout::{RolloutContext, RolloutSettings, RolloutStep};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{AssertSqlSafe, query_as, query_scalar, raw_sql};
use voiceai_runtime::Secret;
use voiceai_webhook::Keys;

use crate::duty::{Receiver, run};
use crate::escalation::outgoing;
use crate::stage;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub(crate) fn context(pool: &PgPool, url: Option<String>) -> RolloutContext {
    RolloutContext {
        pool: pool.clone(),
        outgoing: outgoing(false),
        settings: RolloutSettings {
            url: url.map(Secret::new),
            keys: Some(Keys::new(vec![Secret::new(SECRET)]).unwrap()),
            interval: Duration::from_secs(10),
            report_timeout: Duration::from_secs(3_600),
        },
    }
}

async fn set(pool: &PgPool, sql: &str) {
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn campaign(pool: &PgPool, strategy: &str, rate: i32, threshold: f64, targets: i32) {
    set(
        pool,
        &format!(
            "INSERT INTO firmware_versions (id, tenant_id, version, file_url, checksum_sha256) VALUES (1, 't1', '2.0', 'https://x.org/fw', 'abc');
             INSERT INTO ota_campaigns (id, tenant_id, name, firmware_version_id, rollout_strategy, rollout_rate, abort_threshold, status)
                 VALUES (7, 't1', 'spring', 1, '{strategy}', {rate}, {threshold}, 'RUNNING');
             INSERT INTO ota_device_status (tenant_id, campaign_id, device_id) SELECT 't1', 7, 'd' || n FROM generate_series(1, {targets}) n;"
        ),
    )
    .await;
}

async fn step(context: &RolloutContext) -> Value {
    run(&RolloutStep { once: true }, context).await.unwrap()
}

/// How many targets are in each state.
async fn states(pool: &PgPool) -> Value {
    query_scalar("SELECT COALESCE(jsonb_object_agg(status, n), '{}') FROM (SELECT status, count(*) AS n FROM ota_device_status GROUP BY 1) s")
        .fetch_one(pool)
        .await
        .unwrap()
}

async fn status(pool: &PgPool) -> String {
    query_scalar("SELECT status FROM ota_campaigns WHERE id = 7").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_linear_rollout_goes_by_its_rate_to_its_end() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 202).await;
    campaign(&pool, "linear", 2, 0.5, 3).await;
    let context = context(&pool, Some(format!("{}/orders/{{tenant}}/{{device}}", receiver.url())));
    let first = step(&context).await;
    assert_eq!((&first["ordered"], &first["running"]), (&json!(2), &json!(1)), "{first}");
    assert_eq!(states(&pool).await, json!({ "PENDING": 1, "DOWNLOADING": 2 }));
    let mut received = receiver.received();
    received.sort_by(|a, b| a.target.cmp(&b.target));
    assert_eq!(received[0].target, "/orders/t1/d1");
    assert_eq!(received[0].header("webhook-id"), "rollout:7:d1");
    assert!(received[0].header("webhook-signature").starts_with("v1,"));
    let data = &received[0].json()["data"];
    assert_eq!(
        (&data["version"], &data["firmware_url"], &data["action"]),
        (&json!("2.0"), &json!("https://x.org/fw"), &json!("update"))
    );
    step(&context).await;
    assert_eq!(states(&pool).await, json!({ "DOWNLOADING": 3 }));
    assert_eq!(step(&context).await["ordered"], 0, "each once");
    set(&pool, "UPDATE ota_device_status SET status = 'SUCCESS'").await;
    let last = step(&context).await;
    assert_eq!(last["ended"], json!([{ "campaign": 7, "status": "COMPLETED" }]), "{last}");
    let (total, succeeded, failed): (i32, i32, i32) =
        query_as("SELECT total_devices, succeeded, failed FROM ota_campaigns")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((total, succeeded, failed, receiver.received().len()), (3, 3, 0, 3));
    let notice: Value =
        query_scalar("SELECT payload::jsonb FROM ops.outbox WHERE id = 'rollout:7:completed'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(notice["event"], "rollout_completed");
    let event: String = query_scalar("SELECT type FROM ops.webhook_events").fetch_one(&pool).await.unwrap();
    assert_eq!(event, "rollout.completed");
    assert_eq!(step(&context).await["running"], 0);
}

#[tokio::test]
async fn too_many_failures_stop_it_and_a_canary_waits_for_its_first() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 200).await;
    campaign(&pool, "canary", 2, 0.4, 10).await;
    let context = context(&pool, Some(receiver.url()));
    step(&context).await;
    step(&context).await;
    assert_eq!(states(&pool).await, json!({ "PENDING": 8, "DOWNLOADING": 2 }), "the others wait");
    set(&pool, "UPDATE ota_device_status SET status = 'SUCCESS' WHERE device_id IN ('d1', 'd2')").await;
    step(&context).await;
    assert_eq!(states(&pool).await, json!({ "PENDING": 6, "DOWNLOADING": 2, "SUCCESS": 2 }));
    set(&pool, "UPDATE ota_device_status SET status = 'FAILED' WHERE status = 'DOWNLOADING'").await;
    let last = step(&context).await;
    assert_eq!(last["ended"], json!([{ "campaign": 7, "status": "ABORTED" }]), "{last}");
    assert_eq!(states(&pool).await, json!({ "SKIPPED": 6, "FAILED": 2, "SUCCESS": 2 }));
    assert_eq!((status(&pool).await.as_str(), receiver.received().len()), ("ABORTED", 4));
}

#[tokio::test]
async fn an_order_that_a_killed_process_had_claimed_is_given_again_under_its_id() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 200).await;
    campaign(&pool, "linear", 5, 0.5, 1).await;
    // As after a kill between claim and post.
    set(
        &pool,
        "UPDATE ota_device_status SET status = 'DOWNLOADING', started_at = now();
         INSERT INTO ops.rollout_orders (tenant, campaign, target, state, attempts, claim_expires_at)
         VALUES ('t1', '7', 'd1', 'claimed', 1, now() + interval '30 seconds');",
    )
    .await;
    let context = context(&pool, Some(receiver.url()));
    assert_eq!(step(&context).await["ordered"], 0, "its process may still be at it");
    set(&pool, "UPDATE ops.rollout_orders SET claim_expires_at = now()").await;
    assert_eq!(step(&context).await["ordered"], 1);
    assert_eq!(receiver.received()[0].header("webhook-id"), "rollout:7:d1");
    let (state, attempts): (String, i32) =
        query_as("SELECT state, attempts FROM ops.rollout_orders").fetch_one(&pool).await.unwrap();
    assert_eq!((state.as_str(), attempts), ("sent", 2));
}

#[tokio::test]
async fn a_gateway_that_is_down_is_tried_again_and_silence_is_a_failure() {
    let pool = stage::platform().await.pool().await;
    let answer = Arc::new(AtomicU16::new(503));
    let answers = answer.clone();
    let receiver = Receiver::start(move |_| answers.load(Ordering::SeqCst)).await;
    campaign(&pool, "linear", 5, 1.0, 2).await;
    let context = context(&pool, Some(receiver.url()));
    let first = step(&context).await;
    assert_eq!((&first["ordered"], &first["refused"]), (&json!(0), &json!(2)), "{first}");
    assert_eq!(states(&pool).await, json!({ "DOWNLOADING": 2 }), "not failed yet");
    set(&pool, "UPDATE ops.rollout_orders SET claim_expires_at = now()").await;
    answer.store(404, Ordering::SeqCst);
    step(&context).await;
    let error: String =
        query_scalar("SELECT DISTINCT error_message FROM ota_device_status WHERE status = 'FAILED'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((error.as_str(), states(&pool).await), ("http_404", json!({ "FAILED": 2 })));
    set(&pool, "UPDATE ota_device_status SET status = 'PENDING', started_at = NULL, completed_at = NULL")
        .await;
    answer.store(200, Ordering::SeqCst);
    assert_eq!(step(&context).await["ordered"], 2);
    set(&pool, "UPDATE ops.rollout_orders SET sent_at = now() - interval '2 hours' WHERE target = 'd1'; UPDATE ota_device_status SET status = 'INSTALLING' WHERE device_id = 'd2'").await;
    step(&context).await;
    assert_eq!(states(&pool).await, json!({ "FAILED": 1, "INSTALLING": 1 }));
}

#[tokio::test]
async fn without_an_address_nothing_is_ordered_and_a_private_one_of_a_campaign_is_refused() {
    let pool = stage::platform().await.pool().await;
    let receiver = Receiver::start(|_| 200).await;
    campaign(&pool, "linear", 5, 1.0, 1).await;
    let result = step(&context(&pool, None)).await;
    assert_eq!(
        (&result["stuck"][0]["campaign"], states(&pool).await),
        (&json!(7), json!({ "PENDING": 1 })),
        "{result}"
    );
    set(
        &pool,
        &format!(
            "ALTER TABLE ota_campaigns ADD dispatch_url text; UPDATE ota_campaigns SET dispatch_url = '{}'",
            receiver.url()
        ),
    )
    .await;
    step(&context(&pool, None)).await;
    let error: String =
        query_scalar("SELECT error_message FROM ota_device_status").fetch_one(&pool).await.unwrap();
    assert!(error.contains("not a public address") && receiver.received().is_empty(), "{error}");
    set(&pool, "UPDATE ota_campaigns SET status = 'PAUSED'; UPDATE ota_device_status SET status = 'PENDING'")
        .await;
    assert_eq!(step(&context(&pool, Some(receiver.url()))).await["running"], 0);
    assert!(receiver.received().is_empty(), "a paused rollout orders nothing");
}

#[tokio::test]
async fn a_running_rollout_is_looked_at_again_and_without_tables_it_is_skipped() {
    let pool = stage::platform().await.pool().await;
    campaign(&pool, "linear", 0, 0.5, 1).await;
    let waits = run(&RolloutStep::default(), &context(&pool, None)).await.unwrap_err();
    assert_eq!(waits, "snooze 10s");
    let pool = stage::bare().await.pool().await;
    let result = run(&RolloutStep::default(), &context(&pool, None)).await.unwrap();
    assert_eq!((&result["skipped"], &result["table"]), (&json!(true), &json!("ota_campaigns")));
}
