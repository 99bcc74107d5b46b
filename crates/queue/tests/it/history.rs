//! The history on a real PostgreSQL: off the hot path, bounded, and found again.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_queue::cron::{self, Definition};
use voiceai_queue::history::{
    Filter, History, HistorySettings, Retention, RetentionSettings, Writer, list, of_job,
};
use voiceai_queue::{DeadReason, Ending, FinishedJob, HistorySink as _, JobId};
use voiceai_runtime::Vitals;
use voiceai_testkit::{PostgresServer, database, wait_until};

use crate::support::{SOON, lead};

fn finished(id: &str, ending: Ending) -> FinishedJob {
    let now = Timestamp::now();
    FinishedJob {
        id: JobId::chosen(id).unwrap(),
        queue: Arc::from("default"),
        kind: Arc::from("test.kind"),
        tenant: String::new(),
        priority: 0,
        payload: (ending != Ending::Completed)
            .then(|| serde_json::value::to_raw_value(&json!({"a": 1})).unwrap()),
        ending,
        attempt: 1,
        replays: 0,
        enqueued_at: now.checked_sub(SignedDuration::from_secs(5)).unwrap(),
        started_at: now.checked_sub(SignedDuration::from_millis(1500)).ok(),
        finished_at: now,
        error: (ending != Ending::Completed).then(|| "connection refused".to_owned()),
        result: None,
        worker: "host/1".into(),
        trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        unique: None,
    }
}

const DEAD: Ending = Ending::Dead(DeadReason::Exhausted);

async fn rows(pool: &PgPool) -> i64 {
    sqlx::query("SELECT count(*) FROM ops.job_history").fetch_one(pool).await.unwrap().get(0)
}

fn start(writer: Writer) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let finish = CancellationToken::new();
    let pulse = Vitals::new().register("history", Duration::from_secs(60));
    (finish.clone(), tokio::spawn(writer.run(finish, pulse)))
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_written_in_batches_and_the_rest_at_the_end() {
    let pool = database().await.pool().await;
    let (history, writer) = History::new(pool.clone(), HistorySettings::default());
    let (finish, task) = start(writer);
    for n in 0..1200 {
        history.record(finished(&format!("job-{n:04}"), Ending::Completed));
    }
    wait_until(SOON, "all are written", async || rows(&pool).await == 1200).await;
    let row = sqlx::query(
        "SELECT count(DISTINCT xmin::text), min(duration_ms), max(trace_id), max(payload::text) FROM ops.job_history",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let statements: i64 = row.get(0);
    assert!((3..=20).contains(&statements), "{statements} statements for 1200 records");
    assert_eq!(
        (row.get::<i64, _>(1), row.get::<String, _>(2).as_str()),
        (1500, "4bf92f3577b34da6a3ce929d0e0e4736")
    );
    assert_eq!(row.get::<Option<String>, _>(3), None);
    for n in 0..700 {
        history.record(finished(&format!("late-{n}"), Ending::Completed));
    }
    finish.cancel();
    task.await.unwrap();
    assert_eq!((rows(&pool).await, history.dropped()), (1900, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_drops_and_counts_and_an_outage_loses_nothing_that_fits() {
    let mut server = PostgresServer::start().await;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(500))
        .connect(&server.url())
        .await
        .unwrap();
    voiceai_postgres::migrate(&pool, voiceai_postgres::ALL).await.unwrap();
    let settings =
        HistorySettings { buffer: 100, limit: Duration::from_secs(1), ..HistorySettings::default() };
    let (history, writer) = History::new(pool.clone(), settings);
    server.kill9().await;
    for n in 0..130 {
        history.record(finished(&format!("job-{n}"), Ending::Completed));
    }
    assert_eq!(history.dropped(), 30);
    let (finish, task) = start(writer);
    // What could not be written at once is written later, and the caller is told.
    wait_until(SOON, "the writer has made room", async || {
        let before = history.dropped();
        let refused = history.record_now(vec![finished("dead", DEAD)]).await;
        assert!(refused.is_err(), "the database is away");
        history.dropped() == before
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.restart(false).await;
    let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
    wait_until(SOON, "what was kept is written", async || rows(&pool).await == 101).await;
    assert_eq!(of_job(&pool, None, "dead").await.unwrap().len(), 1);
    finish.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_that_the_database_refuses_does_not_cost_the_others() {
    let pool = database().await.pool().await;
    let (history, writer) = History::new(pool.clone(), HistorySettings::default());
    let (finish, task) = start(writer);
    for n in 0..10 {
        history.record(finished(&format!("good-{n}"), Ending::Completed));
    }
    // NUL is legal in Rust and in JSON, not in PostgreSQL's text.
    let mut hostile = finished("hostile", DEAD);
    hostile.error = Some(format!("a\0b{}", "x".repeat(100_000)));
    hostile.result = Some(json!("\0"));
    hostile.tenant = "t\0".into();
    history.record(hostile);
    // A time before the earliest that PostgreSQL can hold.
    let mut ancient = finished("ancient", Ending::Completed);
    ancient.finished_at = Timestamp::MIN;
    history.record(ancient);
    wait_until(SOON, "the good ones are written", async || rows(&pool).await >= 11).await;
    finish.cancel();
    task.await.unwrap();
    let row = &of_job(&pool, None, "hostile").await.unwrap()[0];
    assert!(
        row.error.as_ref().unwrap().starts_with("a\u{fffd}bxxx") && row.error.as_ref().unwrap().len() < 5000
    );
    assert_eq!(rows(&pool).await + i64::try_from(history.dropped()).unwrap(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_stable_while_rows_are_added_and_filters_hold() {
    let pool = database().await.pool().await;
    let (history, _writer) = History::new(pool.clone(), HistorySettings::default());
    let mut jobs: Vec<_> = (0..25).map(|n| finished(&format!("c-{n:02}"), Ending::Completed)).collect();
    // Several with the very same instant: the cursor must tell them apart.
    let same = Timestamp::now();
    for job in &mut jobs[..12] {
        job.finished_at = same;
    }
    jobs.extend((0..5).map(|n| FinishedJob { tenant: "acme".into(), ..finished(&format!("d-{n}"), DEAD) }));
    jobs.push(finished("x", Ending::Cancelled));
    history.record_now(jobs).await.unwrap();

    let filter = Filter { outcome: Some("completed".into()), ..Filter::default() };
    let mut cursor = None;
    let mut seen = vec![];
    loop {
        let page = list(&pool, &filter, cursor.as_deref(), 10).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.id.clone()));
        history.record_now(vec![finished("new", Ending::Completed)]).await.unwrap();
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!((seen.len(), unique.len()), (25, 25), "{seen:?}");

    let found = async |filter: Filter| list(&pool, &filter, None, 100).await.unwrap().rows.len();
    assert_eq!(
        found(Filter { reason: Some("exhausted".into()), tenant: Some("acme".into()), ..Filter::default() })
            .await,
        5
    );
    assert_eq!(
        found(Filter { error_contains: Some("Connection REFUSED".into()), ..Filter::default() }).await,
        6
    );
    assert_eq!(found(Filter { error_contains: Some("100%".into()), ..Filter::default() }).await, 0);
    assert_eq!(
        found(Filter { job_id: Some("x".into()), kind: Some("test.kind".into()), ..Filter::default() }).await,
        1
    );
    assert_eq!(
        found(Filter {
            before: Timestamp::now().checked_sub(SignedDuration::from_hours(1)).ok(),
            ..Filter::default()
        })
        .await,
        0
    );
    let error = list(&pool, &filter, Some("nonsense"), 10).await.unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
    let dead = &of_job(&pool, Some("default"), "d-0").await.unwrap()[0];
    assert_eq!(dead.payload.as_ref().unwrap().get(), "{\"a\":1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_settles_the_critical_row_and_the_schedules_record() {
    let pool = database().await.pool().await;
    cron::set(&pool, &Definition::new("nightly", "test.kind", "0 3 * * *")).await.unwrap();
    let id = cron::run_now(&pool, "nightly").await.unwrap();
    let (history, _writer) = History::new(pool.clone(), HistorySettings::default());
    let settled = async || -> bool {
        let row = sqlx::query("SELECT settled_at IS NOT NULL FROM ops.outbox WHERE id = $1").bind(&id);
        row.fetch_one(&pool).await.unwrap().get(0)
    };
    let record = async || cron::get(&pool, "nightly").await.unwrap().record;

    history.record_now(vec![finished(&id, Ending::Failed)]).await.unwrap();
    assert!(!settled().await, "it will be tried again");
    history.record_now(vec![finished(&id, DEAD), finished(&id, DEAD)]).await.unwrap();
    assert!(settled().await);
    let after = record().await;
    assert_eq!((after.consecutive_failures, after.last_error.as_deref()), (2, Some("connection refused")));
    history.record_now(vec![finished(&id, Ending::Replayed)]).await.unwrap();
    assert!(!settled().await, "it lives again");
    history.record_now(vec![finished(&id, Ending::Completed)]).await.unwrap();
    assert!(settled().await);
    let after = record().await;
    assert_eq!(after.consecutive_failures, 0);
    assert!(after.last_success_at.is_some() && after.last_failure_at.is_some());
    let page = list(&pool, &Filter { schedule: Some("nightly".into()), ..Filter::default() }, None, 10)
        .await
        .unwrap();
    assert_eq!(page.rows.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_history_is_deleted_by_the_leader_alone() {
    let pool = database().await.pool().await;
    sqlx::query(
        "INSERT INTO ops.job_history (job_id, queue, kind, outcome, finished_at) \
         SELECT outcome || n, 'default', 'k', outcome, now() - age * interval '1 day' \
         FROM (VALUES ('completed', 8), ('completed', 6), ('dead', 8), ('dead', 31)) AS v (outcome, age), \
              generate_series(1, 1500) AS n",
    )
    .execute(&pool)
    .await
    .unwrap();
    let tenure = watch::Sender::new(None);
    let stopping = CancellationToken::new();
    let pulse = Vitals::new().register("retention", Duration::from_secs(60));
    let settings = RetentionSettings { every: Duration::from_millis(50), ..RetentionSettings::default() };
    let retention = Retention::new(pool.clone(), settings);
    let task = tokio::spawn(retention.run(tenure.subscribe(), stopping.clone(), pulse));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rows(&pool).await, 6000, "a follower deletes nothing");
    tenure.send_replace(Some(lead(&pool).await));
    wait_until(SOON, "old rows are deleted", async || rows(&pool).await == 3000).await;
    let kept = sqlx::query(
        "SELECT min(finished_at) FILTER (WHERE outcome = 'dead') < now() - interval '7 days', \
                                   min(finished_at) FILTER (WHERE outcome = 'completed') > now() - interval '7 days' \
                            FROM ops.job_history",
    );
    let kept = kept.fetch_one(&pool).await.unwrap();
    assert_eq!((kept.get::<bool, _>(0), kept.get::<bool, _>(1)), (true, true));
    stopping.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn an_end_that_is_written_twice_stands_there_once() {
    let database = voiceai_testkit::database().await;
    let pool = database.pool().await;
    let (history, _writer) = History::new(pool.clone(), HistorySettings::default());
    let end = finished("twice", Ending::Cancelled);
    let other = finished("twice", Ending::Discarded);
    for _ in 0..2 {
        history.write(vec![end.clone(), other.clone()]).await.unwrap();
    }
    assert_eq!(of_job(&pool, None, "twice").await.unwrap().len(), 2, "one of each");
    // Another end of the same job, later, is another row.
    let later = end.finished_at.checked_add(jiff::SignedDuration::from_millis(1)).unwrap();
    history.write(vec![FinishedJob { finished_at: later, ..end }]).await.unwrap();
    assert_eq!(of_job(&pool, None, "twice").await.unwrap().len(), 3);
}
