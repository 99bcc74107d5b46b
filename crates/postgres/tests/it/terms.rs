use std::time::Duration;

use sqlx::Row;
use voiceai_postgres::{COMMON, term};

const CANDIDATE: term::Candidate<'_> =
    term::Candidate { name: "voiceai:test:leader", service: "voiceai-test", holder: "a", host: "h", pid: 7 };

#[tokio::test]
async fn terms_rise_by_one_and_never_repeat_under_contention() {
    let database = voiceai_testkit::postgres(&[COMMON]).await;
    let pool = database.pool().await;
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let pool = pool.clone();
        asks.spawn(async move { term::issue(&pool, &CANDIDATE, 0).await.unwrap().term.number });
    }
    let mut numbers = asks.join_all().await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_database_older_than_a_mirror_issues_a_higher_term_and_is_held() {
    let database = voiceai_testkit::postgres(&[COMMON]).await;
    let pool = database.pool().await;
    let first = term::issue(&pool, &CANDIDATE, 0).await.unwrap();
    assert_eq!((first.term.number, first.regressed, first.held_reason), (1, false, None));
    let ahead = term::issue(&pool, &CANDIDATE, 41).await.unwrap();
    assert_eq!((ahead.term.number, ahead.regressed), (42, true));
    assert!(ahead.held_reason.unwrap().contains("term regressed"));
    let noted = voiceai_postgres::audit::list(&pool, None, None, 10).await.unwrap();
    assert_eq!(noted.len(), 1);
    assert_eq!((&*noted[0].action, &*noted[0].subject), ("leader.term_regressed", CANDIDATE.name));
    assert_eq!(noted[0].details, serde_json::json!({"term": 42, "highest_copy": 41, "database": 1}));
    // The next leader stays held until a person says otherwise.
    let next = term::issue(&pool, &CANDIDATE, 42).await.unwrap();
    assert_eq!((next.term.number, next.regressed), (43, false));
    assert!(next.held_reason.is_some());
    assert!(term::release(&pool, CANDIDATE.name).await.unwrap());
    assert!(!term::release(&pool, CANDIDATE.name).await.unwrap());
    assert_eq!(term::held_reason(&pool, CANDIDATE.name).await.unwrap(), None);
}

#[tokio::test]
async fn an_empty_database_beside_a_used_redis_is_held_too() {
    let database = voiceai_testkit::postgres(&[COMMON]).await;
    let issued = term::issue(&database.pool().await, &CANDIDATE, 9).await.unwrap();
    assert_eq!((issued.term.number, issued.regressed), (10, true));
}

#[tokio::test]
async fn a_fenced_statement_waits_for_an_election_in_progress_and_then_does_nothing() {
    let database = voiceai_testkit::postgres(&[COMMON]).await;
    let pool = database.pool().await;
    let old = term::issue(&pool, &CANDIDATE, 0).await.unwrap().term;
    database.execute("CREATE TABLE effects (term bigint)").await;
    const EFFECT: &str = "WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE) \
                          INSERT INTO effects SELECT $2 FROM leader";
    let effect = |term: i64| sqlx::query(EFFECT).bind(CANDIDATE.name).bind(term).execute(&pool);
    assert_eq!(effect(old.number).await.unwrap().rows_affected(), 1);
    // An election whose statement is done but not committed.
    let mut election = pool.begin().await.unwrap();
    sqlx::query("UPDATE ops.leader_terms SET term = term + 1 WHERE name = $1")
        .bind(CANDIDATE.name)
        .execute(&mut *election)
        .await
        .unwrap();
    let late = tokio::spawn({
        let pool = pool.clone();
        async move { sqlx::query(EFFECT).bind(CANDIDATE.name).bind(old.number).execute(&pool).await.unwrap() }
    });
    voiceai_testkit::wait_until(Duration::from_secs(5), "the late effect waits for the election", async || {
        let row = sqlx::query("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
            .fetch_one(&pool)
            .await
            .unwrap();
        row.get::<i64, _>(0) == 1
    })
    .await;
    election.commit().await.unwrap();
    assert_eq!(late.await.unwrap().rows_affected(), 0, "the stale term wrote nothing");
}
