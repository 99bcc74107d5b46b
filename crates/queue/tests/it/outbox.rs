//! The outbox on a real PostgreSQL: each row one job.

use std::time::Duration;

use serde_json::json;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_queue::outbox::{
    self, EnqueueError, FallbackEnqueuer, Inserted, OutboxJob, RelaySettings, Route, Wakeups,
};
use voiceai_queue::{JobId, NewJob, UniqueMode};
use voiceai_testkit::{database, wait_until};

use crate::fake_queue::FakeQueue;
use crate::support::{Loops, SOON, count};

const HOUR: Duration = Duration::from_secs(3600);

fn job(n: usize) -> NewJob {
    NewJob::json("test.kind", &json!({ "n": n })).unwrap()
}

fn row(n: usize) -> OutboxJob {
    OutboxJob::from_job(job(n), false).unwrap()
}

async fn fill(pool: &PgPool, rows: usize) -> Vec<String> {
    let jobs: Vec<_> = (0..rows).map(row).collect();
    for chunk in jobs.chunks(1000) {
        outbox::insert_many(pool, chunk).await.unwrap();
    }
    jobs.into_iter().map(|job| job.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_relays_make_exactly_one_job_of_each_row() {
    let pool = database().await.pool().await;
    let mut ids = fill(&pool, 5000).await;
    let queue = FakeQueue::default();
    let settings =
        RelaySettings { batch: 40, poll_interval: Duration::from_millis(50), ..RelaySettings::default() };
    let relays: Vec<_> = (0..50).map(|_| Loops::new(None).relay_with(&pool, &queue, settings)).collect();
    wait_until(SOON, "all are relayed", async || count(&pool, "relayed_at IS NULL").await == 0).await;
    drop(relays);
    let mut accepted = queue.accepted();
    assert_eq!(queue.state().repeated, 0, "no row was claimed by two");
    accepted.sort();
    ids.sort();
    assert_eq!(accepted, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_stands_and_falls_with_its_transaction_and_wakes_the_relay() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    let loops = Loops::new(None).relay(&pool, &queue, HOUR).listener(&pool);
    let mut rolled_back = pool.begin().await.unwrap();
    outbox::insert(&mut *rolled_back, &row(1)).await.unwrap();
    rolled_back.rollback().await.unwrap();
    let mut committed = pool.begin().await.unwrap();
    let kept = row(2);
    assert_eq!(outbox::insert(&mut *committed, &kept).await.unwrap(), Inserted::New);
    assert_eq!(queue.accepted(), Vec::<String>::new(), "not before the commit");
    committed.commit().await.unwrap();
    wait_until(SOON, "the committed one is queued", async || queue.accepted() == [kept.id.clone()]).await;
    assert_eq!(outbox::insert(&pool, &kept).await.unwrap(), Inserted::Known);
    // As any program writes it.
    sqlx::query(
        "INSERT INTO ops.outbox (kind, payload) VALUES ('recording.process', '{\"b\": 1,  \"a\": 1.0}')",
    )
    .execute(&pool)
    .await
    .unwrap();
    wait_until(SOON, "the plain row is queued", async || queue.accepted().len() == 2).await;
    let last = queue.accepted().pop().unwrap();
    let plain = queue.state().seen[&last].clone();
    assert_eq!((plain.queue.as_str(), plain.kind.as_str()), ("default", "recording.process"));
    assert_eq!(plain.payload.get(), "{\"b\": 1,  \"a\": 1.0}", "the payload arrives as it was written");
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_values_are_refused_by_the_insert() {
    let pool = database().await.pool().await;
    for (column, value) in [
        ("kind", "'a b'"),
        ("kind", "''"),
        ("queue", "'a:b'"),
        ("id", "'a b'"),
        ("id", "repeat('x', 129)"),
        ("priority", "11"),
        ("priority", "-1"),
        ("options", "'{\"unique_mode\": \"sometimes\"}'"),
        ("options", "'{\"uniq\": \"x\"}'"),
        ("options", "'[]'"),
        ("options", "'{\"unique\": 7}'"),
        ("tenant", "''"),
    ] {
        let kind = if column == "kind" { "" } else { ", kind" };
        let value_of_kind = if column == "kind" { "" } else { ", 'k'" };
        let sql = format!("INSERT INTO ops.outbox ({column}{kind}) VALUES ({value}{value_of_kind})");
        let error = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap_err();
        assert!(error.to_string().contains("outbox_"), "{column} = {value}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_option_survives_the_way_through_the_table() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    let given = job(1)
        .queue("email-queue")
        .priority(7)
        .id(JobId::chosen("order/42").unwrap())
        .tenant("acme")
        .key("mailbox-9")
        .unique("order-42", UniqueMode::Throttle(Duration::from_secs(90)))
        .trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .delay(Duration::from_secs(120));
    let given = OutboxJob::from_job(given, true).unwrap();
    outbox::insert(&pool, &given).await.unwrap();
    let loops = Loops::new(None).relay(&pool, &queue, HOUR);
    wait_until(SOON, "it is queued", async || queue.accepted() == ["order/42"]).await;
    let came = queue.state().seen["order/42"].clone();
    assert_eq!(
        (&came.queue, came.priority, &came.tenant, &came.options, &came.traceparent, came.critical),
        (&given.queue, 7, &given.tenant, &given.options, &given.traceparent, true)
    );
    let delay: f64 = sqlx::query("SELECT extract(epoch FROM run_at - created_at)::float8 FROM ops.outbox")
        .fetch_one(&pool)
        .await
        .unwrap()
        .get(0);
    assert!((delay - 120.0).abs() < 0.001, "the delay counts from the row: {delay}");
    // And it is a whole job again.
    let whole = came.to_job().unwrap();
    assert_eq!(
        (whole.kind(), whole.queue_name(), whole.chosen_id().unwrap().as_str()),
        ("test.kind", "email-queue", "order/42")
    );
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_between_adding_and_marking_leaves_one_job() {
    let pool = database().await.pool().await;
    let ids = fill(&pool, 3).await;
    let queue = FakeQueue::default();
    let settings = RelaySettings { claim: Duration::from_millis(300), ..RelaySettings::default() };
    queue.state().mute = true;
    let dying = Loops::new(None).relay_with(&pool, &queue, settings);
    wait_until(SOON, "the jobs are added", async || queue.accepted().len() == 3).await;
    drop(dying);
    assert_eq!(count(&pool, "relayed_at IS NULL").await, 3);
    queue.state().mute = false;
    let settings = RelaySettings { poll_interval: Duration::from_millis(50), ..settings };
    let next = Loops::new(None).relay_with(&pool, &queue, settings);
    wait_until(SOON, "the claim runs out", async || count(&pool, "relayed_at IS NULL").await == 0).await;
    assert_eq!((queue.accepted(), queue.state().repeated), (ids, 3));
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_one_row_or_queue_does_not_hold_up_the_others() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    queue.state().closed.insert("closed".into());
    queue.state().refused_kinds.insert("bad.kind".into());
    for (name, kind) in [("closed", "k"), ("open", "bad.kind"), ("open", "k")] {
        for n in 0..20 {
            let sql = "INSERT INTO ops.outbox (id, queue, kind) VALUES ($1, $2, $3)";
            let id = format!("{name}-{kind}-{n:02}");
            sqlx::query(sql).bind(id).bind(name).bind(kind).execute(&pool).await.unwrap();
        }
    }
    let settings =
        RelaySettings { batch: 7, poll_interval: Duration::from_millis(50), ..RelaySettings::default() };
    let loops = Loops::new(None).relay_with(&pool, &queue, settings);
    wait_until(SOON, "the good ones are queued", async || queue.accepted().len() == 20).await;
    let expected: Vec<_> = (0..20).map(|n| format!("open-k-{n:02}")).collect();
    assert_eq!(queue.accepted(), expected, "in the order of the rows");
    // The marks follow the hand-over.
    wait_until(SOON, "the good ones are marked", async || {
        outbox::waiting(&pool).await.unwrap().iter().all(|q| q.queue != "open" || q.waiting == 0)
    })
    .await;
    let waiting = outbox::waiting(&pool).await.unwrap();
    assert_eq!((waiting[0].queue.as_str(), waiting[0].waiting, waiting[0].refused), ("closed", 20, 0));
    assert!(waiting[0].last_error.as_ref().unwrap().contains("the test closed it"));
    assert_eq!((waiting[1].queue.as_str(), waiting[1].waiting, waiting[1].refused), ("open", 0, 20));
    queue.state().closed.clear();
    wait_until(SOON, "the queue opens", async || queue.accepted().len() == 40).await;
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_rows_wait_and_producers_are_told() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    let loops = Loops::new(None).relay(&pool, &queue, Duration::from_millis(100));
    let enqueuer = FallbackEnqueuer::new(queue.clone(), pool.clone(), loops.wakeups.clone());
    let direct = enqueuer.enqueue(job(1)).await.unwrap();
    assert_eq!((direct.known, direct.route), (false, Route::Queue));

    queue.state().away = true;
    let fallen = enqueuer.enqueue(job(2).id(JobId::chosen("two").unwrap())).await.unwrap();
    assert!(
        matches!(&fallen.route, Route::Outbox { cause } if cause.contains("cannot be reached")),
        "{fallen:?}"
    );
    assert!(!fallen.known);
    assert!(enqueuer.enqueue(job(2).id(JobId::chosen("two").unwrap())).await.unwrap().known);
    assert_eq!(queue.accepted().len(), 1);
    queue.state().away = false;
    wait_until(SOON, "it is relayed", async || queue.accepted().contains(&"two".to_owned())).await;

    // Redis took it and the answer was lost: the row repeats it, and it stays one.
    queue.state().closed.insert("default".into());
    let quieted = enqueuer.enqueue(job(3)).await.unwrap();
    assert!(
        matches!(&quieted.route, Route::Outbox { cause } if cause.contains("no jobs at present")),
        "{quieted:?}"
    );
    queue.state().closed.clear();
    queue.state().refused_kinds.insert("bad.kind".into());
    let refused = enqueuer.enqueue(NewJob::json("bad.kind", &json!({})).unwrap()).await;
    assert!(matches!(refused, Err(EnqueueError::Refused { .. })), "{refused:?}");
    assert_eq!(count(&pool, "kind = 'bad.kind'").await, 0, "what is wrong does not go to the outbox");

    queue.state().away = true;
    loops.stop().await;
    pool.close().await;
    let lost = enqueuer.enqueue(job(4)).await;
    assert!(matches!(lost, Err(EnqueueError::Unavailable { .. })), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_job_is_relayed_again_when_redis_lost_it() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    let enqueuer = FallbackEnqueuer::new(queue.clone(), pool.clone(), Wakeups::new());
    let settings = RelaySettings {
        poll_interval: Duration::from_millis(50),
        upkeep_every: Duration::from_millis(50),
        ..RelaySettings::default()
    };
    let loops = Loops::new(None).relay_with(&pool, &queue, settings);
    let kept = enqueuer.enqueue_critical(job(1)).await.unwrap().id;
    let lost = enqueuer.enqueue_critical(job(2)).await.unwrap().id;
    let plain = row(3);
    outbox::insert(&pool, &plain).await.unwrap();
    wait_until(SOON, "all are queued", async || queue.accepted().len() == 3).await;
    wait_until(SOON, "all are marked", async || count(&pool, "relayed_at IS NULL").await == 0).await;
    queue.lose(&lost);
    queue.lose(&plain.id);
    queue.finish(&kept);
    sqlx::query("UPDATE ops.outbox SET visible_at = now()").execute(&pool).await.unwrap();
    wait_until(SOON, "the lost one is queued again", async || {
        queue.accepted().iter().filter(|id| **id == lost).count() == 2
    })
    .await;
    wait_until(SOON, "the finished one is settled", async || {
        count(&pool, "settled_at IS NOT NULL").await == 1
    })
    .await;
    assert_eq!(queue.accepted().len(), 4, "a plain row is done once it is relayed");
    wait_until(SOON, "it is marked", async || count(&pool, "relayed_at IS NULL").await == 0).await;
    queue.finish(&lost);
    sqlx::query("UPDATE ops.outbox SET visible_at = now()").execute(&pool).await.unwrap();
    wait_until(SOON, "both are settled", async || count(&pool, "settled_at IS NOT NULL").await == 2).await;
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_are_deleted_unless_they_are_still_needed() {
    let pool = database().await.pool().await;
    let queue = FakeQueue::default();
    for (id, columns) in [
        ("old", "relayed_at, critical) VALUES ($1, 'k', now() - interval '2 days', false"),
        ("young", "relayed_at, critical) VALUES ($1, 'k', now() - interval '1 hour', false"),
        (
            "settled",
            "relayed_at, settled_at, critical) VALUES ($1, 'k', now() - interval '2 days', now(), true",
        ),
        ("running", "relayed_at, critical) VALUES ($1, 'k', now() - interval '2 days', true"),
        ("waiting", "created_at, critical) VALUES ($1, 'k', now() - interval '2 days', false"),
    ] {
        let sql = format!("INSERT INTO ops.outbox (id, kind, {columns})");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&pool).await.unwrap();
        queue.state().jobs.insert(id.into(), voiceai_queue::outbox::JobStanding::Unfinished);
    }
    let loops = Loops::new(None).relay(&pool, &queue, HOUR);
    wait_until(SOON, "old ones are deleted", async || count(&pool, "true").await == 3).await;
    assert_eq!(crate::support::outbox_ids(&pool).await, ["running", "waiting", "young"]);
    loops.stop().await;
}
