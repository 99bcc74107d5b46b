//! What is claimed beyond an endpoint's limit, and what becomes of it.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, query_scalar};
use voiceai_postgres::{PgPool, Tenure, Term};
use voiceai_runtime::{Vitals, boot_now};
use voiceai_testkit::wait_until;
use voiceai_webhook::{Retention, endpoints};

use crate::receiver::{Act, Receiver};
use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_secs(20);
const ACTIVE: &str = "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'active'";

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    query_scalar(sql).fetch_one(pool).await.unwrap()
}

fn ok() -> Act {
    Act::Answer(200, Vec::new())
}

/// Two processes, one tenant with three endpoints at one receiver.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_what_is_posted_however_much_is_claimed() {
    let stage = Stage::new(&[
        ("WEBHOOK_TIMEOUT", "20s"),
        ("WEBHOOK_TENANT_CONCURRENCY", "6"),
        ("WEBHOOK_ENDPOINT_CONCURRENCY", "4"),
    ])
    .await;
    let may = CancellationToken::new();
    let held = may.clone();
    let receiver =
        Receiver::script(move |n, _| if n < 400 { ok() } else { Act::Once(200, held.clone()) }).await;
    for n in 0..3 {
        stage.endpoint("t", &receiver.url(&format!("/{n}")), &[]).await;
    }
    for n in 0..300 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    stage.work();
    wait_until(PATIENCE, "more to be claimed than may be posted", async || {
        receiver.got().len() >= 400 && number(&stage.pool, ACTIVE).await > 12
    })
    .await;
    may.cancel();
    wait_until(PATIENCE, "all to be delivered", async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_ended WHERE state = 'delivered'").await == 900
    })
    .await;
    assert!(receiver.most_at_once() <= 6, "{} at once", receiver.most_at_once());
    let mut got: Vec<_> =
        receiver.got().iter().map(|got| (got.target.clone(), got.header("webhook-id").to_owned())).collect();
    got.sort();
    got.dedup();
    assert_eq!((got.len(), receiver.got().len()), (900, 900), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_begins_to_fail_gives_back_what_was_claimed_ahead() {
    let stage = Stage::new(&[("WEBHOOK_RETRY_LADDER", "0s,1h")]).await;
    let receiver = Receiver::script(|n, _| if n < 200 { ok() } else { Act::Answer(500, Vec::new()) }).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..400 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    wait_until(PATIENCE, "the circuit to open", async || stage.state(endpoint).await.resting_until.is_some())
        .await;
    wait_until(PATIENCE, "nothing to be claimed any more", async || number(&stage.pool, ACTIVE).await == 0)
        .await;
    let posts = receiver.got().len();
    assert!((205..240).contains(&posts), "{posts} posts: five failures open the circuit");
    let tried = number(&stage.pool, "SELECT count(*) FROM ops.webhook_failures").await;
    assert_eq!(tried, i64::try_from(posts).unwrap() - 200, "what was given back was not tried");
    let waiting = "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'waiting' AND attempts = 0";
    assert_eq!(number(&stage.pool, waiting).await, 200 - tried);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_to_a_disabled_endpoint_dies_with_the_rest() {
    let stage = Stage::new(&[]).await;
    let endpoint = stage.endpoint("t", "http://127.0.0.1:1/", &[]).await;
    for n in 0..3 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.held_by_another(2, 3_600).await;
    assert_eq!(
        endpoints::disable(&stage.pool, endpoint, "kim", "asked to").await.unwrap(),
        1,
        "two are claimed"
    );
    sqlx::raw_sql("DELETE FROM ops.webhook_claims").execute(&stage.pool).await.unwrap();
    keep_for(&stage, Duration::from_secs(86_400), async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_ended WHERE dead_reason = 'endpoint_disabled'")
            .await
            == 3
    })
    .await;
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_open").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_long_enough_is_deleted_and_what_may_be_replayed_keeps_its_event() {
    let stage = Stage::new(&[("WEBHOOK_RETRY_LADDER", "0s")]).await;
    let receiver = Receiver::script(|_, got| {
        let event = got.header("webhook-id");
        if event.starts_with("dead") { Act::Answer(500, Vec::new()) } else { ok() }
    })
    .await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for event in ["old", "young", "dead-old", "dead-young"] {
        stage.emit("t", event).await;
    }
    stage.work();
    wait_until(PATIENCE, "all to end", async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_ended").await == 4
    })
    .await;
    sqlx::raw_sql(
        "UPDATE ops.webhook_ended SET ended_at = now() - interval '9 d' WHERE event_id LIKE '%old'; \
         UPDATE ops.webhook_events SET created_at = now() - interval '9 d'",
    )
    .execute(&stage.pool)
    .await
    .unwrap();
    keep_for(&stage, Duration::from_secs(8 * 86_400), async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_events").await == 1
    })
    .await;
    let left: Vec<_> = stage.deliveries(endpoint).await.into_iter().map(|one| one.event_id).collect();
    assert_eq!(left, ["dead-young", "young"]);
    let of: Vec<String> =
        query_scalar("SELECT id FROM ops.webhook_events").fetch_all(&stage.pool).await.unwrap();
    assert_eq!(of, ["dead-young"]);
    assert_eq!(number(&stage.pool, "SELECT count(*) FROM ops.webhook_attempts").await, 2);
}

/// Runs the worker that deletes until `done`.
async fn keep_for(stage: &Stage, keep: Duration, done: impl AsyncFn() -> bool) {
    let day = Duration::from_secs(86_400);
    let term = Term { name: "t".into(), number: 1 };
    let tenure = Tenure::new(term, boot_now().saturating_add(day), false);
    let (_tenure, watch) = watch::channel(Some(tenure));
    let (stopping, vitals) = (CancellationToken::new(), Vitals::new());
    let pulse = vitals.register("retention", day);
    let worker = tokio::spawn(Retention::new(stage.pool.clone(), keep).run(watch, stopping.clone(), pulse));
    wait_until(PATIENCE, "the worker to have done it", done).await;
    stopping.cancel();
    worker.await.unwrap();
}

/// What a process hands back late meets nobody's ticket any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_draws_another_ticket() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Hang).await;
    stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..25 {
        stage.emit("t", &format!("e{n}")).await;
    }
    // A lot for each, as a process leaves them that claimed little at a time.
    sqlx::raw_sql(
        "INSERT INTO ops.webhook_claims (id, worker, deliveries, tickets, claimed_at, expires_at) \
         SELECT gen_random_uuid(), gen_random_uuid(), ARRAY[id], ARRAY[ticket], now(), now() - interval '1 second' FROM ops.webhook_open; \
         CREATE TABLE before AS SELECT id, ticket FROM ops.webhook_open",
    )
    .execute(&stage.pool)
    .await
    .unwrap();
    stage.work();
    wait_until(PATIENCE, "all of them to be taken back", async || {
        number(&stage.pool, "SELECT count(*) FROM ops.webhook_failures WHERE outcome = 'lost'").await == 25
    })
    .await;
    let same = "SELECT count(*) FROM ops.webhook_open o JOIN before b ON b.id = o.id AND b.ticket = o.ticket";
    assert_eq!(number(&stage.pool, same).await, 0);
    let posts = "SELECT count(*) FROM ops.webhook_failures f JOIN ops.webhook_open o ON o.id = f.delivery_id WHERE o.attempts = 1";
    assert_eq!(number(&stage.pool, posts).await, 25);
}

/// A backlog as large as an endpoint may leave when it is gone: it is given up in parts, and nobody waits at the gate meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_backlog_is_given_up_in_parts() {
    let stage = Stage::new(&[]).await;
    let endpoint = stage.endpoint("t", "http://127.0.0.1:1/", &[]).await;
    stage.emit("t", "e").await;
    sqlx::raw_sql(
        "INSERT INTO ops.webhook_open (id, endpoint_id, event_seq, tenant, event_id, event_type, bytes, due_at) \
         SELECT gen_random_uuid(), endpoint_id, event_seq, tenant, event_id, event_type, bytes, due_at \
         FROM ops.webhook_open, generate_series(1, 12000)",
    )
    .execute(&stage.pool)
    .await
    .unwrap();
    assert_eq!(endpoints::disable(&stage.pool, endpoint, "kim", "asked to").await.unwrap(), 12_001);
    let parts = "SELECT count(DISTINCT xmin::text) FROM ops.webhook_ended";
    assert_eq!(number(&stage.pool, parts).await, 3);
}

/// Fast at first, then slow but never failing, with large bodies: what was claimed ahead of it takes the memory of nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_becomes_slow_keeps_nobody_from_being_claimed() {
    let own = [
        ("WEBHOOK_TIMEOUT", "60s"),
        ("WEBHOOK_ENDPOINT_CONCURRENCY", "16"),
        ("WEBHOOK_TENANT_CONCURRENCY", "16"),
    ];
    let stage = Stage::new(&own).await;
    let never = CancellationToken::new();
    let slow = Receiver::script(move |n, _| if n < 600 { ok() } else { Act::Once(200, never.clone()) }).await;
    let quick = Receiver::always(ok()).await;
    stage.endpoint("large", &slow.url("/"), &[]).await;
    let other = stage.endpoint("other", &quick.url("/"), &[]).await;
    let large = serde_json::json!({ "text": "x".repeat(250_000) });
    let small = serde_json::json!({});
    for n in 0..760 {
        let data = if n < 600 { &small } else { &large };
        voiceai_webhook::emit(&stage.pool, "large", "call.ended", &format!("l{n}"), data).await.unwrap();
    }
    stage.work();
    // Much of it is claimed, or was, and came back; a machine that is busy may find it slow before.
    let ahead = "SELECT count(*) FROM ops.webhook_open \
                 WHERE ticket > 760 OR ticket IN (SELECT unnest(tickets) FROM ops.webhook_claims)";
    wait_until(PATIENCE, "it to become slow", async || {
        let got = slow.got().len();
        got >= 616 || got > 600 && number(&stage.pool, ahead).await >= 100
    })
    .await;
    stage.emit("other", "o").await;
    let begun = Instant::now();
    stage.until(other, "delivered").await;
    wait_until(PATIENCE, "it to hold no more than its limit", async || {
        number(&stage.pool, ACTIVE).await <= 16
    })
    .await;
    // After 10 s anything is given back.
    assert!(begun.elapsed() < Duration::from_secs(7), "took {:?}", begun.elapsed());
}

/// One tenant: an endpoint with a long backlog has claimed more than the tenant's limit, another one fails and is due.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_endpoint_has_its_turn_beside_a_busy_one_of_its_tenant() {
    let own = [
        ("WEBHOOK_TENANT_CONCURRENCY", "2"),
        ("WEBHOOK_ENDPOINT_CONCURRENCY", "2"),
        ("WEBHOOK_TIMEOUT", "60s"),
        ("WEBHOOK_RETRY_LADDER", "0s,10ms,10ms,10ms"),
    ];
    let stage = Stage::new(&own).await;
    let busy = Receiver::always(ok()).await;
    let failing = Receiver::script(|n, _| if n < 2 { Act::Answer(500, Vec::new()) } else { ok() }).await;
    let long = stage.endpoint("t", &busy.url("/"), &["call.ended"]).await;
    let broken = stage.endpoint("t", &failing.url("/"), &["call.begun"]).await;
    for n in 0..1_500 {
        stage.emit("t", &format!("e{n}")).await;
    }
    voiceai_webhook::emit(&stage.pool, "t", "call.begun", "b", &serde_json::json!({})).await.unwrap();
    stage.work();
    stage.until(broken, "delivered").await;
    assert_eq!(failing.got().len(), 3);
    let left = stage.state(long).await.waiting;
    assert!(left > 0, "the backlog was gone before: this proves nothing");
}
