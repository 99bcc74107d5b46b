//! The outbox and the scheduler with the real queue: PostgreSQL and Redis together.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use voiceai_queue::cron::{self, Definition};
use voiceai_queue::outbox::{
    self, AddError, Added, Enqueue as _, FallbackEnqueuer, JobStanding, OutboxJob, RelaySettings, Route,
};
use voiceai_queue::{Client, JobId, NewJob, Quiet, UniqueMode};
use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{RedisOptions, RedisServer, database, redis, wait_until};

use crate::support::{Loops, SOON, count, lead, set_cursor};

const HOUR: Duration = Duration::from_secs(3600);

fn job(n: usize) -> NewJob {
    NewJob::json("test.kind", &json!({ "n": n })).unwrap()
}

async fn client(url: &str) -> Client {
    let redis = Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap();
    Client::connect(redis).await.unwrap()
}

fn quick() -> RelaySettings {
    RelaySettings {
        poll_interval: Duration::from_millis(100),
        upkeep_every: Duration::from_millis(100),
        ..RelaySettings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_relays_make_exactly_one_job_of_each_row() {
    let pool = database().await.pool().await;
    let client = client(&redis().await.url).await;
    let rows: Vec<_> = (0..3000)
        .map(|n| {
            OutboxJob::from_job(job(n).queue(if n % 3 == 0 { "email-queue" } else { "default" }), false)
                .unwrap()
        })
        .collect();
    for chunk in rows.chunks(1000) {
        outbox::insert_many(&pool, chunk).await.unwrap();
    }
    let settings = RelaySettings { batch: 40, ..quick() };
    let relays: Vec<_> = (0..50).map(|_| Loops::new(None).relay_with(&pool, &client, settings)).collect();
    wait_until(SOON, "all are relayed", async || count(&pool, "relayed_at IS NULL").await == 0).await;
    drop(relays);
    let (other, email) = (client.stats("default").await.unwrap(), client.stats("email-queue").await.unwrap());
    assert_eq!((other.waiting, email.waiting), (2000, 1000));
    assert_eq!((other.accepted, email.accepted), (2000, 1000));
    let shown = client.show("default", &rows[1].id).await.unwrap().unwrap();
    assert_eq!(shown.kind, "test.kind");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_answers_as_the_outbox_needs_it() {
    let redis = redis().await;
    let client = client(&redis.url).await;
    let row = |id: &str| OutboxJob::from_job(job(1).id(JobId::chosen(id).unwrap()), false).unwrap();
    let held = |id: &str| {
        let job = job(1).id(JobId::chosen(id).unwrap()).unique("key", UniqueMode::Reject);
        OutboxJob::from_job(job, false).unwrap()
    };
    let wrong = OutboxJob { kind: "not a kind".into(), ..row("wrong") };
    let jobs =
        [row("a"), held("b"), wrong, row("a"), held("c"), OutboxJob { queue: "other".into(), ..row("a") }];
    let answers = client.add_all(&jobs).await;
    assert_eq!(
        (&answers[0], &answers[1], &answers[3], &answers[4], &answers[5]),
        (
            &Ok(Added::New),
            &Ok(Added::New),
            &Ok(Added::Known),
            &Ok(Added::Duplicate { holder: "b".into() }),
            &Ok(Added::New)
        )
    );
    assert!(
        matches!(&answers[2], Err(AddError::Refused(reason)) if reason.contains("job kind")),
        "{:?}",
        answers[2]
    );

    let ids = ["a", "b", "c", "nobody"].map(ToOwned::to_owned);
    let standings = client.standings("default", &ids).await.unwrap();
    let (live, none) = (JobStanding::Unfinished, JobStanding::Unknown);
    assert_eq!(standings, [live, live, none, none]);
    client.cancel("default", &ids[..1], "test").await.unwrap();
    assert_eq!(client.standings("default", &ids[..1]).await.unwrap(), [JobStanding::Finished]);

    client.pause_producers("default").await.unwrap();
    let answers = client.add_all(&[row("d")]).await;
    assert!(matches!(&answers[0], Err(AddError::NotNow(_))), "{answers:?}");
    client.resume_only("default", Quiet::ProducersPaused).await.unwrap();
    client.drain("default").await.unwrap();
    let answers = client.add_all(&[row("d")]).await;
    assert!(matches!(&answers[0], Err(AddError::NotNow(_))), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quieted_producers_go_to_the_outbox_and_come_back() {
    let pool = database().await.pool().await;
    let client = client(&redis().await.url).await;
    let loops = Loops::new(None).relay_with(&pool, &client, quick());
    let enqueuer = FallbackEnqueuer::new(client.clone(), pool.clone(), loops.wakeups.clone());
    client.pause_producers("default").await.unwrap();
    let quieted = enqueuer.enqueue(job(1)).await.unwrap();
    assert!(matches!(&quieted.route, Route::Outbox { cause } if cause.contains("paused")), "{quieted:?}");
    assert_eq!(client.stats("default").await.unwrap().accepted, 0);
    client.resume_only("default", Quiet::ProducersPaused).await.unwrap();
    wait_until(SOON, "it is relayed", async || client.stats("default").await.unwrap().waiting == 1).await;
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_schedules_and_critical_ones_survive_an_emptied_redis() {
    let pool = database().await.pool().await;
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let client = client(&server.url()).await;
    let loops = Loops::new(Some(lead(&pool).await))
        .scheduler(&pool, &client, Duration::from_millis(100))
        .relay_with(&pool, &client, quick());
    let enqueuer = FallbackEnqueuer::new(client.clone(), pool.clone(), loops.wakeups.clone());
    cron::set(&pool, &Definition::new("hourly", "test.kind", "0 * * * *")).await.unwrap();
    set_cursor(&pool, "hourly", Timestamp::now().checked_sub(SignedDuration::from_hours(3)).unwrap()).await;
    let critical = enqueuer.enqueue_critical(job(1)).await.unwrap().id;
    let plain = enqueuer.enqueue(job(2)).await.unwrap();
    assert_eq!(plain.route, Route::Queue);
    wait_until(SOON, "three jobs wait", async || client.stats("default").await.is_ok_and(|s| s.waiting == 3))
        .await;
    wait_until(SOON, "both rows are marked", async || count(&pool, "relayed_at IS NULL").await == 0).await;

    // While it is away, producers are told and nothing is lost.
    server.kill9().await;
    let fallen = enqueuer.enqueue(job(3)).await.unwrap();
    assert!(matches!(fallen.route, Route::Outbox { .. }), "{fallen:?}");
    server.restart(true).await;
    // The next look at the critical rows is due in half a minute; the test does not wait for it.
    voiceai_postgres::sqlx::query("UPDATE ops.outbox SET visible_at = now() WHERE relayed_at IS NOT NULL")
        .execute(&pool)
        .await
        .unwrap();
    wait_until(Duration::from_secs(40), "all but the plain one are back", async || {
        client.stats("default").await.is_ok_and(|stats| stats.waiting == 3)
    })
    .await;
    let ids = [critical, fallen.id, plain.id];
    let (live, none) = (JobStanding::Unfinished, JobStanding::Unknown);
    assert_eq!(client.standings("default", &ids).await.unwrap(), [live, live, none]);
    assert_eq!(loops.stuck(), Vec::<String>::new());
    loops.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_sends_producers_to_the_outbox() {
    let pool = database().await.pool().await;
    let server = RedisServer::start(RedisOptions { maxmemory: Some("4mb"), ..RedisOptions::default() }).await;
    let client = client(&server.url()).await;
    let loops = Loops::new(None).relay(&pool, &client, HOUR);
    let enqueuer = FallbackEnqueuer::new(client.clone(), pool.clone(), loops.wakeups.clone());
    let big = |n: usize| {
        let id = JobId::chosen(format!("big-{n}")).unwrap();
        NewJob::json("test.kind", &json!({ "fill": "x".repeat(100_000) })).unwrap().id(id)
    };
    let mut fallen = None;
    for n in 0..100 {
        let enqueued = enqueuer.enqueue(big(n)).await.unwrap();
        if let Route::Outbox { cause } = enqueued.route {
            fallen = Some(cause);
            break;
        }
    }
    assert!(fallen.as_ref().is_some_and(|cause| cause.contains("maxmemory")), "{fallen:?}");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
    wait_until(SOON, "it is relayed", async || {
        loops.wakeups.wake_outbox();
        count(&pool, "relayed_at IS NULL").await == 0
    })
    .await;
    loops.stop().await;
}
