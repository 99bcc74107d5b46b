//! The firing statement, step by step against a real PostgreSQL: what two schedulers, a kill or an election in between can do.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_postgres::{Term, term};
use voiceai_testkit::{database, wait_until};

use super::policy::{Dropped, Verdict};
use super::schedule::{Definition, Schedule, slot_job_id};
use super::store::{self, Applied, apply};

async fn elect(pool: &PgPool) -> Term {
    let candidate =
        term::Candidate { name: "tasker", service: "voiceai-tasker", holder: "test", host: "here", pid: 1 };
    term::issue(pool, &candidate, 0).await.unwrap().term
}

/// A schedule and a verdict that fires the minute after its cursor.
async fn due(pool: &PgPool) -> (Schedule, Verdict, String) {
    store::set(pool, &Definition::new("s", "test.kind", "* * * * *")).await.unwrap();
    let schedule = store::get(pool, "s").await.unwrap();
    let slot = schedule.last_slot.checked_add(SignedDuration::from_mins(1)).unwrap();
    let verdict = Verdict { fire: vec![slot], last_slot: slot, dropped: Dropped::default(), rebased: false };
    (schedule, verdict, slot_job_id("s", slot))
}

async fn rows(pool: &PgPool) -> Vec<String> {
    let rows = sqlx::query("SELECT id FROM ops.outbox").fetch_all(pool).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn cursor(pool: &PgPool) -> Timestamp {
    store::get(pool, "s").await.unwrap().last_slot
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_decided_the_same_one_fires() {
    let pool = database().await.pool().await;
    let term = elect(&pool).await;
    let (schedule, verdict, id) = due(&pool).await;
    let all = Arc::new((schedule, verdict.clone(), term));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (pool, all) = (pool.clone(), Arc::clone(&all));
            tokio::spawn(async move { apply(&pool, &all.2, &all.0, &all.1).await.unwrap() })
        })
        .collect();
    let mut fired = 0;
    for task in tasks {
        match task.await.unwrap() {
            Applied::Done(added) => {
                assert_eq!(added, std::slice::from_ref(&id));
                fired += 1;
            }
            other => assert_eq!(other, Applied::Overtaken),
        }
    }
    assert_eq!((fired, rows(&pool).await, cursor(&pool).await), (1, vec![id], verdict.last_slot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_term_and_a_changed_definition_fire_nothing() {
    let pool = database().await.pool().await;
    let old = elect(&pool).await;
    let (schedule, verdict, _) = due(&pool).await;
    let term = elect(&pool).await;
    assert_eq!(apply(&pool, &old, &schedule, &verdict).await.unwrap(), Applied::StaleTerm);
    let other = Term { name: "scaler".into(), number: term.number };
    assert_eq!(apply(&pool, &other, &schedule, &verdict).await.unwrap(), Applied::StaleTerm);
    // Paused, switched off or changed between the look and the act.
    for change in [
        "paused_since = now(), paused_until = now() + interval '1 hour'",
        "enabled = false",
        "payload = '{\"a\": 1}'",
    ] {
        let before = store::get(&pool, "s").await.unwrap();
        let sql = format!("UPDATE ops.schedules SET {change}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        assert_eq!(apply(&pool, &term, &before, &verdict).await.unwrap(), Applied::Overtaken, "{change}");
    }
    assert_eq!((rows(&pool).await, cursor(&pool).await), (vec![], schedule.last_slot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_was_set_back_makes_no_second_job() {
    let pool = database().await.pool().await;
    let term = elect(&pool).await;
    let (schedule, verdict, id) = due(&pool).await;
    assert_eq!(apply(&pool, &term, &schedule, &verdict).await.unwrap(), Applied::Done(vec![id.clone()]));
    sqlx::query("UPDATE ops.schedules SET last_slot = last_slot - interval '1 minute'")
        .execute(&pool)
        .await
        .unwrap();
    let again = store::get(&pool, "s").await.unwrap();
    assert_eq!(apply(&pool, &term, &again, &verdict).await.unwrap(), Applied::Done(vec![]));
    assert_eq!((rows(&pool).await, cursor(&pool).await), (vec![id], verdict.last_slot));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_that_is_being_committed_is_waited_for_and_wins() {
    let pool = database().await.pool().await;
    let old = elect(&pool).await;
    let (schedule, verdict, _) = due(&pool).await;
    let mut election = pool.begin().await.unwrap();
    sqlx::query("UPDATE ops.leader_terms SET term = term + 1").execute(&mut *election).await.unwrap();
    let firing = tokio::spawn({
        let (pool, schedule, verdict) = (pool.clone(), schedule.clone(), verdict.clone());
        async move { apply(&pool, &old, &schedule, &verdict).await.unwrap() }
    });
    wait_until(Duration::from_secs(10), "the statement waits for the election", async || {
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        sqlx::query(waits).fetch_one(&pool).await.unwrap().get(0)
    })
    .await;
    assert!(!firing.is_finished());
    election.commit().await.unwrap();
    assert_eq!(firing.await.unwrap(), Applied::StaleTerm);
    assert_eq!((rows(&pool).await, cursor(&pool).await), (vec![], schedule.last_slot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firing_that_is_killed_halfway_leaves_the_slot_due() {
    let pool = database().await.pool().await;
    let term = elect(&pool).await;
    let (schedule, verdict, id) = due(&pool).await;
    // Something holds the schedule's row, so the statement has begun and cannot end; then its session dies.
    let mut holder = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM ops.schedules FOR UPDATE").execute(&mut *holder).await.unwrap();
    let firing = tokio::spawn({
        let (pool, term, schedule, verdict) = (pool.clone(), term.clone(), schedule.clone(), verdict.clone());
        async move { apply(&pool, &term, &schedule, &verdict).await }
    });
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until(Duration::from_secs(10), "the waiting session is killed", async || {
        sqlx::query(kill).fetch_one(&pool).await.unwrap().get::<i64, _>(0) == 1
    })
    .await;
    assert!(firing.await.unwrap().is_err());
    holder.rollback().await.unwrap();
    assert_eq!((rows(&pool).await, cursor(&pool).await), (vec![], schedule.last_slot));
    assert_eq!(apply(&pool, &term, &schedule, &verdict).await.unwrap(), Applied::Done(vec![id]));
}
