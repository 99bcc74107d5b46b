//! PostgreSQL away, back in time, or full of other work; copies of the term that are higher, broken or late.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use voiceai_leader::{Election, LeaderSettings, MirrorError, RedisTerm, Role, TermMirror};
use voiceai_postgres::{Component, PgPool, audit, sqlx, term};
use voiceai_runtime::Vitals;
use voiceai_testkit::{PostgresServer, wait_until};

use crate::fleet::{Fleet, HEARTBEAT, SOON, TTL};
use crate::lone::{Lone, connect, settings};
use crate::subject::KEY;

async fn own_server() -> PostgresServer {
    let server = PostgresServer::start().await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let components: &[Component] = voiceai_postgres::ALL;
    voiceai_postgres::migrate(&pool, components).await.unwrap();
    pool.close().await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgresql_nobody_acts_and_afterwards_one_does() {
    let mut server = own_server().await;
    let redis = voiceai_testkit::redis().await;
    let mut fleet = Fleet::between(&redis.url, &server.url()).await;
    fleet.join_ready(2).await;
    let leader = fleet.effect_above(0, SOON).await;
    server.kill9().await;
    // The leader keeps its lease: nobody else could do more.
    fleet.member(&leader.holder).wait_for_line(SOON, "cannot ask PostgreSQL for the newest term").await;
    let holder = || async { voiceai_leader::current(&connect(&redis.url).await, KEY).await.unwrap() };
    assert_eq!(holder().await.map(|r| r.term), Some(leader.term));
    // Its successor gets no term, and gives the lease back each time.
    fleet.member(&leader.holder).kill9();
    let other = if leader.holder == "member-1" { "member-2" } else { "member-1" };
    let line = fleet.member(other).wait_for_line(SOON, "gives the lease back").await;
    assert!(line.contains("PostgreSQL issued no term"), "{line}");
    wait_until(SOON, "the lease was given back", async || redis.cli(&["EXISTS", KEY]).await == "0").await;
    assert!(!fleet.member(other).stderr().contains("leader elected"), "elected without a term");
    server.restart(false).await;
    let next = fleet.effect_above(leader.term, SOON).await;
    assert_eq!(next.holder, other);
    fleet.judge(true).await;
}

#[tokio::test]
async fn a_candidate_without_a_term_gives_the_lease_back_at_once() {
    let redis = voiceai_testkit::redis().await;
    let absent = format!("{}_absent", voiceai_testkit::database().await.url);
    let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy(&absent).unwrap();
    // The next attempt is a second away, the lease's own end four.
    let slow = LeaderSettings { heartbeat: TTL * 2, lock_ttl: TTL * 4, ..settings("a") };
    let election = Election::start(slow, connect(&redis.url).await, pool, Vec::new(), &Vitals::new());
    wait_until(SOON, "no term is issued", async || election.status().reason.contains("issued no term")).await;
    wait_until(TTL * 7 / 10, "the lease is given back", async || redis.cli(&["EXISTS", KEY]).await == "0")
        .await;
    assert_eq!((election.status().role, election.status().term), (Role::Follower, None));
}

#[tokio::test]
async fn a_database_that_went_back_in_time_is_noticed_while_leading_and_holds_the_leader() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    redis.cli(&["SET", "other:term", "41"]).await;
    let mirror: Arc<dyn TermMirror> = Arc::new(RedisTerm::new(connect(&redis.url).await, "other:term"));
    let lone = Lone::join_with(&redis.url, &pool, "a", vec![mirror]).await;
    // A copy was ahead of an empty database.
    let held = lone.tenure_above(0).await;
    assert_eq!((held.term().number, held.is_held()), (42, true));
    assert!(lone.election.status().held);
    assert_eq!(
        redis.cli(&["GET", "other:term"]).await,
        "42",
        "the copy was raised before the leader was told"
    );
    assert!(term::release(&pool, KEY).await.unwrap());
    let mut watch = lone.watch.clone();
    tokio::time::timeout(SOON, watch.wait_for(|t| t.as_ref().is_some_and(|t| !t.is_held())))
        .await
        .unwrap()
        .unwrap();
    assert!(!held.is_held() && held.is_trusted(), "the same tenure goes on, released");
    assert!(!lone.election.status().held);

    // Restored from a backup of long ago, and then from one without the row.
    for statement in ["UPDATE ops.leader_terms SET term = 7", "DELETE FROM ops.leader_terms"] {
        let before = lone.tenure_above(0).await;
        sqlx::query(statement).execute(&pool).await.unwrap();
        let next = lone.tenure_above(before.term().number).await;
        assert!(next.is_held() && !before.is_trusted(), "{statement}");
        assert_eq!(next.term().number, before.term().number + 1);
    }
    let noted = audit::list(&pool, None, None, 10).await.unwrap();
    assert_eq!(noted.iter().filter(|r| r.action == "leader.term_regressed" && r.actor == "a").count(), 3);
}

#[tokio::test]
async fn a_term_that_was_issued_elsewhere_ends_the_tenure() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&redis.url, &pool, "a").await;
    let before = lone.tenure_above(0).await;
    // The late statement of a candidate that had given up.
    let late = term::Candidate { name: KEY, service: "test", holder: "late", host: "h", pid: 1 };
    let issued = term::issue(&pool, &late, 0).await.unwrap().term.number;
    let next = lone.tenure_above(issued).await;
    assert!(!before.is_trusted());
    assert_eq!(next.term().number, issued + 1);
}

#[tokio::test]
async fn an_exhausted_pool_keeps_nobody_from_being_elected() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    let mut taken = Vec::new();
    while taken.len() < 5 {
        taken.push(pool.acquire().await.unwrap());
    }
    let lone = Lone::join(&redis.url, &pool, "a").await;
    assert!(lone.tenure_above(0).await.is_trusted());
}

#[tokio::test]
async fn a_copy_beside_the_lease_that_is_no_term_is_replaced() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    let copy = format!("{{{KEY}}}:term");
    let mut last = 0;
    for broken in
        [vec!["SET", &copy, "x"], vec!["SET", &copy, "99999999999999999999"], vec!["LPUSH", &copy, "1"]]
    {
        redis.cli(&["DEL", &copy]).await;
        redis.cli(&broken).await;
        let lone = Lone::join(&redis.url, &pool, "a").await;
        let tenure = lone.tenure_above(last).await;
        last += 1;
        assert_eq!((tenure.term().number, tenure.is_held()), (last, false));
        assert_eq!(redis.cli(&["GET", &copy]).await, last.to_string());
        lone.election.resign().await;
    }
}

/// A copy that cannot be read, hangs, or cannot be raised a few times.
struct Moody {
    highest: Option<i64>,
    refusals: AtomicU32,
    raised: AtomicI64,
}

impl TermMirror for Moody {
    fn name(&self) -> &str {
        "moody"
    }

    fn highest(&self) -> BoxFuture<'_, Result<i64, MirrorError>> {
        match self.highest {
            Some(term) => Box::pin(async move { Ok(term) }),
            None => Box::pin(std::future::pending()),
        }
    }

    fn raise(&self, term: i64) -> BoxFuture<'_, Result<(), MirrorError>> {
        Box::pin(async move {
            if self.refusals.load(Ordering::SeqCst) > 0 {
                self.refusals.fetch_sub(1, Ordering::SeqCst);
                return Err("refused".into());
            }
            // Long enough for a leader that does not wait for it to be seen.
            tokio::time::sleep(HEARTBEAT / 5).await;
            self.raised.store(term, Ordering::SeqCst);
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_copy_that_hangs_or_refuses_delays_nobody_and_is_raised_later() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    let moody = |highest, refusals| {
        Arc::new(Moody { highest, refusals: AtomicU32::new(refusals), raised: AtomicI64::new(0) })
    };
    let (hanging, refusing) = (moody(None, 0), moody(Some(9), 3));
    let lone = Lone::join_with(&redis.url, &pool, "a", vec![hanging.clone(), refusing.clone()]).await;
    let tenure = lone.tenure_above(0).await;
    assert_eq!(tenure.term().number, 10, "what could be read counted");
    assert_eq!(hanging.raised.load(Ordering::SeqCst), 10, "raised before the leader was told");
    assert_eq!(refusing.raised.load(Ordering::SeqCst), 0, "it refused, and the leader acts");
    wait_until(HEARTBEAT * 10, "the copy is raised", async || refusing.raised.load(Ordering::SeqCst) == 10)
        .await;
    assert!(tenure.is_trusted());
}

#[tokio::test]
async fn a_paused_postgresql_delays_no_renewal() {
    let server = own_server().await;
    let redis = voiceai_testkit::redis().await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let lone = Lone::join(&redis.url, &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    server.pause();
    let until = tokio::time::Instant::now() + TTL * 3;
    while tokio::time::Instant::now() < until {
        assert!(tenure.is_trusted(), "{:?}", lone.election.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.resume();
    assert_eq!(lone.role(), Role::Leader);
}
