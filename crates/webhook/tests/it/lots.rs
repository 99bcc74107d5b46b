//! What is claimed and written together, when a part of it goes wrong.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, query_scalar};
use voiceai_postgres::{PgPool, TASKER};
use voiceai_testkit::{PostgresServer, wait_until};
use voiceai_webhook::deliveries::show;
use voiceai_webhook::endpoints;

use crate::receiver::{Act, Receiver};
use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_secs(20);

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_end_that_cannot_be_written_does_not_keep_the_others() {
    let stage =
        Stage::new(&[("WEBHOOK_ENDPOINT_CONCURRENCY", "50"), ("WEBHOOK_TENANT_CONCURRENCY", "50")]).await;
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..40 {
        stage.emit("t", &format!("e{n}")).await;
    }
    sqlx::raw_sql("ALTER TABLE ops.webhook_ended ADD CONSTRAINT refused CHECK (event_id <> 'e7')")
        .execute(&stage.pool)
        .await
        .unwrap();
    stage.work();
    wait_until(PATIENCE, "all others to be written", async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_ended WHERE state = 'delivered'").await == 39
    })
    .await;
    let left: Vec<_> = stage
        .deliveries(endpoint)
        .await
        .into_iter()
        .filter(|delivery| delivery.state != "delivered")
        .collect();
    assert_eq!((left.len(), left[0].event_id.as_str(), left[0].state.as_str()), (1, "e7", "active"));
    let (_, attempts) = show(&stage.pool, left[0].id).await.unwrap();
    assert_eq!(
        (attempts.len(), attempts[0].outcome.as_deref()),
        (1, None),
        "its attempt is shown as under way"
    );
    // Its claim runs out, and it is told once more.
    sqlx::raw_sql(
        "ALTER TABLE ops.webhook_ended DROP CONSTRAINT refused; UPDATE ops.webhook_claims SET expires_at = now() - interval '1 second'",
    )
    .execute(&stage.pool)
    .await
    .unwrap();
    stage.until(endpoint, "delivered").await;
    let (_, attempts) = show(&stage.pool, left[0].id).await.unwrap();
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.as_deref().unwrap()).collect();
    assert_eq!(outcomes, ["lost", "delivered"]);
    assert_eq!(receiver.got().len(), 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn lots_leave_nothing_behind() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..30 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    stage.until(endpoint, "delivered").await;
    wait_until(PATIENCE, "the lots to be deleted", async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_claims").await == 0
    })
    .await;
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_open").await, 0);
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_attempts").await, 30);
    endpoints::remove(&stage.pool, endpoint).await.unwrap();
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_deliveries").await, 0);
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_attempts").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lot_of_another_process_counts_against_the_limits_until_it_expires() {
    let stage = Stage::new(&[("WEBHOOK_ENDPOINT_CONCURRENCY", "3")]).await;
    let receiver = Receiver::always(Act::Hang).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..10 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.held_by_another(2, 3_600).await;
    stage.work();
    wait_until(PATIENCE, "the third one", async || receiver.got().len() == 1).await;
    let active = "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'active'";
    let claimed = number(&stage.pool, active).await;
    assert_eq!(claimed, 3, "two of the other and one of ours");
    assert_eq!(stage.state(endpoint).await.waiting, 10);
}

/// A process that is stopped between its claim and its commit keeps everybody from claiming, until PostgreSQL ends its session.
#[tokio::test(flavor = "multi_thread")]
async fn while_another_holds_the_gate_it_is_looked_again_and_again() {
    let first = Stage::new(&[]).await.pool.clone();
    let hurry = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = ''50ms''', current_database()); END $$";
    sqlx::raw_sql(hurry).execute(&first).await.unwrap();
    let pool = PgPool::connect_with((*first.connect_options()).clone()).await.unwrap();
    let stage = Stage::on(pool, &[]);
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    let mut holder = first.begin().await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_xact_lock(8603390863846894451)").execute(&mut *holder).await.unwrap();
    stage.work();
    let waits = "SELECT query_start::text FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()";
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    wait_until(PATIENCE, "several looks", async || {
        let now: Vec<String> = query_scalar(waits).fetch_all(&first).await.unwrap();
        let mut seen = seen.lock().unwrap();
        seen.extend(now);
        seen.len() >= 3
    })
    .await;
    assert!(receiver.got().is_empty());
    holder.rollback().await.unwrap();
    stage.until(endpoint, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_signs_the_very_next_delivery() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.work();
    stage.emit("t", "before").await;
    stage.until(endpoint, "delivered").await;
    endpoints::rotate(&stage.pool, endpoint, Duration::from_secs(3600)).await.unwrap();
    stage.emit("t", "after").await;
    stage.until(endpoint, "delivered").await;
    let signed: Vec<_> =
        receiver.got().iter().map(|got| got.header("webhook-signature").split(' ').count()).collect();
    assert_eq!(signed, [1, 2], "an endpoint that is kept is read again once it was changed");
}

/// PostgreSQL goes away while answers are on their way: nothing is lost, and what was posted is written once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn ends_wait_for_postgresql_and_nothing_is_lost_with_it() {
    let mut server = PostgresServer::start().await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    voiceai_postgres::migrate(&pool, &[voiceai_postgres::COMMON, TASKER]).await.unwrap();
    let stage = Stage::on(pool, &[("WEBHOOK_TIMEOUT", "20s")]);
    let may = CancellationToken::new();
    let receiver = Receiver::always(Act::Once(200, may.clone())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..6 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    wait_until(PATIENCE, "four posts under way", async || receiver.got().len() == 4).await;
    server.kill9().await;
    may.cancel();
    server.restart(false).await;
    wait_until(Duration::from_secs(40), "all delivered", async || {
        let delivered = "SELECT count(*) FROM ops.webhook_ended WHERE state = 'delivered'";
        query_scalar::<_, i64>(delivered).fetch_one(&stage.pool).await.is_ok_and(|count| count == 6)
    })
    .await;
    let mut ids: Vec<_> = receiver.got().iter().map(|got| got.header("webhook-id").to_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6, "each arrived");
    assert_eq!(stage.deliveries(endpoint).await.iter().filter(|one| one.state == "delivered").count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_dies_with_the_endpoint_that_its_own_failure_disables() {
    let stage =
        Stage::new(&[("WEBHOOK_DISABLE_AFTER", "1s"), ("WEBHOOK_RETRY_LADDER", "0s,1100ms,1h")]).await;
    let receiver = Receiver::always(Act::Answer(500, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (delivery, attempts) = stage.until(endpoint, "dead").await;
    assert_eq!((delivery.dead_reason.as_deref(), attempts.len()), (Some("endpoint_disabled"), 2));
    assert_eq!(delivery.last_error.as_deref(), Some("answered 500"));
    assert_eq!(stage.state(endpoint).await.disabled_reason.as_deref(), Some("failing"));
}

/// Ids tell when a delivery was written, so that lists need no other order.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_goes_on_from_its_cursor_newest_first() {
    use voiceai_webhook::deliveries::{Filter, list};
    let stage = Stage::new(&[]).await;
    stage.endpoint("t", "http://127.0.0.1:1/", &[]).await;
    let begun = jiff::Timestamp::now();
    for n in 0..5 {
        stage.emit("t", &format!("e{n}")).await;
        let told = jiff::Timestamp::now().as_millisecond();
        wait_until(PATIENCE, "the next millisecond", async || jiff::Timestamp::now().as_millisecond() > told)
            .await;
    }
    let all = Filter { since: Some(begun - Duration::from_secs(1)), ..Filter::default() };
    let first = list(&stage.pool, &all, None, 3).await.unwrap();
    let cursor = first[2].cursor().to_string().parse().unwrap();
    let rest = list(&stage.pool, &all, Some(&cursor), 3).await.unwrap();
    let ids: Vec<_> = first.iter().chain(&rest).map(|one| one.event_id.as_str()).collect();
    assert_eq!(ids, ["e4", "e3", "e2", "e1", "e0"]);
    let none = Filter { since: Some(begun + Duration::from_secs(60)), ..Filter::default() };
    assert!(list(&stage.pool, &none, None, 3).await.unwrap().is_empty());
    assert!("nonsense".parse::<voiceai_webhook::deliveries::Cursor>().is_err());
    assert!(json!(first[0].id).as_str().unwrap().parse::<Uuid>().unwrap().get_version_num() == 7);
}
