//! Leaders that end: killed between two instructions, or told to stop.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{Exit, wait_until};

use crate::fleet::{Fleet, HEARTBEAT, SOON, TAKEOVER, p50_max};
use crate::subject::KEY;

/// Rounds of one lane; lanes run at the same time.
async fn kill_rounds(count: usize) -> Vec<Duration> {
    let mut fleet = Fleet::start(2).await;
    let mut leader = fleet.effect_above(0, SOON).await;
    let mut takeovers = Vec::new();
    for _ in 0..count {
        // Any phase of the leader's heartbeat, so that the rest of the lease differs from round to round.
        tokio::time::sleep(HEARTBEAT.mul_f64(voiceai_runtime::random_unit())).await;
        let before = fleet.newest().await;
        assert_eq!(before.term, leader.term, "the leader changed though nothing happened to it");
        let killed = Instant::now();
        fleet.member(&leader.holder).kill9();
        let (next, took) = fleet.takeover(leader.term, killed, TAKEOVER * 3).await;
        takeovers.push(took);
        fleet.leave(&leader.holder);
        let joined = fleet.join();
        fleet.member(&joined).wait_for_line(SOON, "ready").await;
        leader = next;
    }
    let verdict = fleet.judge(true).await;
    assert_eq!(verdict.terms, count + 1, "{verdict:?}");
    takeovers
}

/// Five lanes of `count` rounds each.
async fn leaders_are_killed(count: usize) {
    let takeovers = join_all((0..5).map(|_| kill_rounds(count))).await.concat();
    let count = takeovers.len();
    let (p50, max) = p50_max(takeovers);
    eprintln!("kill -9, {count} rounds: takeover p50 {p50} ms, max {max} ms (bound {TAKEOVER:?})");
    assert!(max <= TAKEOVER.as_millis(), "takeover took {max} ms, more than {TAKEOVER:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_within_its_lease_and_one_poll() {
    leaders_are_killed(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 300 rounds"]
async fn three_hundred_killed_leaders_are_replaced_within_their_lease_and_one_poll() {
    leaders_are_killed(60).await;
}

async fn leaders_are_told_to_stop(count: usize) {
    let mut fleet = Fleet::start(2).await;
    let mut leader = fleet.effect_above(0, SOON).await;
    let mut takeovers = Vec::new();
    for _ in 0..count {
        let told = Instant::now();
        fleet.member(&leader.holder).terminate();
        let (next, took) = fleet.takeover(leader.term, told, SOON).await;
        takeovers.push(took);
        assert_eq!(fleet.member(&leader.holder).wait_exit(SOON).await, Exit::Code(0));
        assert!(fleet.member(&leader.holder).stderr().contains("leader lost"));
        fleet.leave(&leader.holder);
        let joined = fleet.join();
        fleet.member(&joined).wait_for_line(SOON, "ready").await;
        leader = next;
    }
    let verdict = fleet.judge(true).await;
    assert_eq!(verdict.refusals, 0, "a leader that resigns does nothing afterwards: {verdict:?}");
    let (p50, max) = p50_max(takeovers);
    eprintln!("SIGTERM, {count} rounds: takeover p50 {p50} ms, max {max} ms");
    assert!(max <= (HEARTBEAT + Duration::from_secs(1)).as_millis(), "takeover took {max} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_told_to_stop_is_replaced_within_one_poll() {
    leaders_are_told_to_stop(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 100 rounds"]
async fn a_hundred_leaders_that_are_told_to_stop_are_replaced_within_one_poll() {
    leaders_are_told_to_stop(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_candidates_one_is_elected_and_one_term_is_issued() {
    let shared = voiceai_testkit::redis().await;
    let mut fleet = Fleet::on(&shared.url).await;
    fleet.join_ready(20).await;
    let mut leader = fleet.effect_above(0, SOON).await;
    let redis = Redis::connect(&RedisSettings::from_url(&shared.url).unwrap()).await.unwrap();
    for _ in 0..2 {
        let record = fleet.record(&redis).await.unwrap();
        assert_eq!((record.instance_id.as_str(), record.term), (leader.holder.as_str(), leader.term));
        assert_eq!(i64::from(record.pid), i64::from(fleet.member(&leader.holder).pid()));
        let killed = Instant::now();
        fleet.member(&leader.holder).kill9();
        let (next, took) = fleet.takeover(leader.term, killed, TAKEOVER * 3).await;
        eprintln!("twenty candidates: takeover {} ms", took.as_millis());
        assert_eq!(next.term, leader.term + 1, "one term was issued for one vacancy");
        leader = next;
    }
    let verdict = fleet.judge(true).await;
    assert_eq!(verdict.refusals, 0, "{verdict:?}");
    // The lease of the one that is left is the newest term's.
    wait_until(SOON, "the key names the newest term", async || {
        voiceai_leader::current(&redis, KEY).await.unwrap().is_some_and(|r| r.term == leader.term)
    })
    .await;
}
