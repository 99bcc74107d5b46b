//! Leaders that stand still and go on, not knowing that time has passed.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::fleet::{Fleet, SOON, TAKEOVER, TTL, p50_max};

async fn pause_rounds(count: usize) -> (Vec<Duration>, usize, i64) {
    let fleet = Fleet::start(2).await;
    let mut leader = fleet.effect_above(0, SOON).await;
    let mut takeovers = Vec::new();
    for _ in 0..count {
        let paused = Instant::now();
        fleet.member(&leader.holder).pause();
        let (next, took) = fleet.takeover(leader.term, paused, TAKEOVER * 3).await;
        takeovers.push(took);
        assert_ne!(next.holder, leader.holder);
        fleet.member(&leader.holder).resume();
        // Back among the followers: what it was about to do has been done or refused.
        let lost = format!("leader lost election=\"voiceai:test:leader\" term={}", leader.term);
        fleet.member(&leader.holder).wait_for_line(SOON, &lost).await;
        leader = next;
    }
    let verdict = fleet.judge(true).await;
    (takeovers, verdict.effects, verdict.refusals)
}

/// Five lanes of `count` rounds each.
async fn leaders_are_paused(count: usize) {
    let (mut takeovers, mut effects, mut refusals) = (Vec::new(), 0, 0);
    for (lane_takeovers, lane_effects, lane_refusals) in join_all((0..5).map(|_| pause_rounds(count))).await {
        takeovers.extend(lane_takeovers);
        effects += lane_effects;
        refusals += lane_refusals;
    }
    let count = takeovers.len();
    let (p50, max) = p50_max(takeovers);
    eprintln!(
        "SIGSTOP, {count} rounds: takeover p50 {p50} ms, max {max} ms; {effects} effects, 0 stale, {refusals} refused"
    );
    assert!(max <= TAKEOVER.as_millis(), "takeover took {max} ms, more than {TAKEOVER:?}");
    assert!(refusals >= 1, "no pause fell between a check and its effect: the fence was not tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_paused_past_its_lease_commits_nothing_more_and_its_attempts_are_counted() {
    leaders_are_paused(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 300 rounds"]
async fn three_hundred_leaders_paused_past_their_lease_commit_nothing_more() {
    leaders_are_paused(60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_paused_inside_a_transaction_neither_blocks_its_successor_nor_commits() {
    let mut fleet = Fleet::start(0).await;
    let first = fleet.join_as(|program| program.env("STOP_IN_TRANSACTION", "1"));
    fleet.member(&first).wait_for_line(SOON, "stops inside a transaction").await;
    let stopped = Instant::now();
    let leader = fleet.newest().await;
    assert_eq!(leader.holder, first);
    let second = fleet.join();
    let (next, took) = fleet.takeover(leader.term, stopped, SOON).await;
    eprintln!("paused inside a transaction: successor after {} ms", took.as_millis());
    assert_eq!(next.holder, second);
    assert!(took <= TTL * 2 + Duration::from_secs(1), "the successor was blocked for {took:?}");
    fleet.member(&first).resume();
    fleet.member(&first).wait_for_line(SOON, "commit after the stop: failed").await;
    fleet.member(&first).wait_for_line(SOON, "leader lost").await;
    fleet.judge(true).await;
}
