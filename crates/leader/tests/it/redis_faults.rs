//! Redis loses, forgets or replaces the lease, under two real processes.

use std::time::{Duration, Instant};

use voiceai_redis::{Redis, RedisSettings};
use voiceai_testkit::{Program, RedisOptions, RedisServer, Sentinel, wait_until};

use crate::fleet::{Act, Fleet, HEARTBEAT, SOON, TAKEOVER, TTL};
use crate::subject::KEY;

struct Stage {
    server: RedisServer,
    fleet: Fleet,
    leader: Act,
}

/// Two processes on a Redis of the test's own; one leads.
async fn stage() -> Stage {
    let server = RedisServer::start(RedisOptions::default()).await;
    let mut fleet = Fleet::on(&server.url()).await;
    fleet.join_ready(2).await;
    let leader = fleet.effect_above(0, SOON).await;
    Stage { server, fleet, leader }
}

impl Stage {
    /// Waits until no effect was done for longer than any pause between two.
    async fn wait_for_silence(&self, within: Duration) {
        let begun = Instant::now();
        let (mut count, mut since) = (self.fleet.effects().await, Instant::now());
        while since.elapsed() < HEARTBEAT * 2 {
            assert!(begun.elapsed() < within + HEARTBEAT * 2, "effects went on for {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.fleet.effects().await;
            if now != count {
                (count, since) = (now, Instant::now());
            }
        }
    }

    async fn gone(&self, leader: &Act) {
        let line = format!("leader lost election=\"{KEY}\" term={}", leader.term);
        self.fleet.member(&leader.holder).wait_for_line(SOON, &line).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stopped_then_restarted_empty() {
    let mut stage = stage().await;
    stage.server.stop().await;
    stage.wait_for_silence(TTL).await;
    stage.gone(&stage.leader).await;
    stage.server.restart(true).await;
    let next = stage.fleet.effect_above(stage.leader.term, SOON).await;
    let copy = stage.server.cli(&["GET", &format!("{{{KEY}}}:term")]).await;
    assert_eq!(copy, next.term.to_string(), "the copy was written again");
    // Redis's own log is gone with its data; what it holds since must be in order, too.
    stage.fleet.judge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_deleted_again_and_again() {
    let mut stage = stage().await;
    for _ in 0..5 {
        assert_eq!(stage.server.cli(&["DEL", KEY]).await, "1");
        let deleted = Instant::now();
        let (next, took) = stage.fleet.takeover(stage.leader.term, deleted, SOON).await;
        assert!(took <= HEARTBEAT + Duration::from_secs(1), "a free lease was taken only after {took:?}");
        stage.gone(&stage.leader).await;
        stage.leader = next;
    }
    stage.fleet.judge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_replaced_by_another_holder() {
    let stage = stage().await;
    let intruder =
        r#"{"instanceId":"intruder","host":"x","pid":1,"term":7000,"electedAt":"2026-01-01T00:00:00Z"}"#;
    stage.server.cli(&["SET", KEY, intruder, "PX", "3000"]).await;
    stage.gone(&stage.leader).await;
    let line = stage.fleet.member(&stage.leader.holder).wait_for_line(SOON, "leader lost").await;
    assert!(line.contains("intruder (host x, pid 1) holds the lease"), "{line}");
    stage.wait_for_silence(TTL).await;
    assert_eq!(stage.server.cli(&["GET", KEY]).await, intruder, "another's lease was not touched");
    // Nor does a process that leaves give back what is not its own.
    let left: i64 = stage.server.cli(&["PTTL", KEY]).await.parse().unwrap();
    stage.fleet.member(&stage.leader.holder).terminate();
    stage.fleet.member(&stage.leader.holder).wait_for_line(SOON, "resigned").await;
    assert!(left > 0 && stage.server.cli(&["GET", KEY]).await == intruder, "another's lease was given back");
    stage.fleet.effect_above(stage.leader.term, SOON).await;
    stage.fleet.judge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_becomes_another_type() {
    let stage = stage().await;
    stage
        .server
        .cli(&["EVAL", "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], 'data')", "1", KEY])
        .await;
    stage.gone(&stage.leader).await;
    let line = stage.fleet.member(&stage.leader.holder).wait_for_line(SOON, "nobody can lead").await;
    assert!(line.contains("kind=\"list\"") && line.contains(&format!("DEL {KEY}")), "{line}");
    stage.wait_for_silence(TTL).await;
    assert_eq!(
        stage.server.cli(&["LRANGE", KEY, "0", "-1"]).await,
        "data",
        "somebody's data was not touched"
    );
    stage.server.cli(&["DEL", KEY]).await;
    let lifted = Instant::now();
    let (_, took) = stage.fleet.takeover(stage.leader.term, lifted, SOON).await;
    assert!(took <= HEARTBEAT + Duration::from_secs(1), "took {took:?}");
    stage.fleet.judge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_leader_repairs_its_own_time_limit() {
    let stage = stage().await;
    for command in [vec!["PERSIST", KEY], vec!["PEXPIRE", KEY, "3600000"]] {
        assert_eq!(stage.server.cli(&command).await, "1");
        wait_until(SOON, "the limit is the lease's again", async || {
            let left: i64 = stage.server.cli(&["PTTL", KEY]).await.parse().unwrap();
            (1..=1_000).contains(&left)
        })
        .await;
    }
    assert_eq!(stage.fleet.newest().await.term, stage.leader.term, "leadership did not change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leaders_lease_that_would_never_end_is_mended() {
    // An operator's PERSIST; a wall clock that was set back by an hour; a text that is no record.
    for command in [vec!["PERSIST", KEY], vec!["PEXPIRE", KEY, "3600000"], vec!["SET", KEY, "maintenance"]] {
        let stage = stage().await;
        stage.fleet.member(&stage.leader.holder).kill9();
        let killed = Instant::now();
        stage.server.cli(&command).await;
        let (next, took) = stage.fleet.takeover(stage.leader.term, killed, SOON).await;
        eprintln!("{command:?}: mended and taken after {} ms", took.as_millis());
        stage.fleet.member(&next.holder).wait_for_line(SOON, "a stuck lease was given a time limit").await;
        stage.fleet.judge(true).await;
    }
}

/// What a wall clock that jumps forward does: the leader still trusts its lease when the next one is elected.
async fn leases_end_too_early(count: usize) {
    let mut stage = stage().await;
    for _ in 0..count {
        stage.server.cli(&["PEXPIRE", KEY, "1"]).await;
        stage.leader = stage.fleet.effect_above(stage.leader.term, SOON).await;
    }
    stage.fleet.judge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_redis_ends_too_early_lets_nothing_stale_through() {
    leases_end_too_early(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: 300 rounds"]
async fn three_hundred_leases_that_redis_ends_too_early_let_nothing_stale_through() {
    leases_end_too_early(300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_fails_over_and_the_newest_term_is_lost() {
    let mut sentinel = Sentinel::start().await;
    let mut fleet = Fleet::on(&sentinel.url()).await;
    fleet.join_ready(2).await;
    let replicated = fleet.effect_above(0, SOON).await;
    sentinel.cut_replication().await;
    // One more election, of which the replicas hear nothing: lease, copy and log of the new term die with the primary.
    sentinel.primary().cli(&["DEL", KEY]).await;
    let lost = fleet.effect_above(replicated.term, SOON).await;
    let copy = format!("{{{KEY}}}:term");
    assert_eq!(sentinel.primary().cli(&["GET", &copy]).await, lost.term.to_string());
    sentinel.kill_primary().await;
    let killed = Instant::now();
    sentinel.wait_for_failover(Duration::from_secs(60)).await;
    let next = fleet.effect_above(lost.term, SOON).await;
    eprintln!(
        "failover: terms {} (replicated), {} (lost), {} after {} ms",
        replicated.term,
        lost.term,
        next.term,
        killed.elapsed().as_millis()
    );
    let redis = Redis::connect(&RedisSettings::from_url(sentinel.url()).unwrap()).await.unwrap();
    wait_until(SOON, "the key names a newer term", async || {
        fleet.record(&redis).await.is_some_and(|r| r.term >= next.term)
    })
    .await;
    fleet.judge(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wall_clocks_an_hour_off_change_nothing() {
    let Some(preload) = faketime() else {
        eprintln!("skipped: faketime is not installed, so no process can be given another clock");
        return;
    };
    // Not by the wrapper program, which would be killed in the leader's place.
    let at = |by: &'static str| {
        let preload = preload.clone();
        move |p: Program| p.env("LD_PRELOAD", preload).env("FAKETIME", by).env("DONT_FAKE_MONOTONIC", "1")
    };
    let server = RedisServer::start(RedisOptions::default()).await;
    let redis = Redis::connect(&RedisSettings::from_url(server.url()).unwrap()).await.unwrap();
    let mut fleet = Fleet::on(&server.url()).await;
    let ahead = fleet.join_as(at("+1h"));
    let first = fleet.effect_above(0, SOON).await;
    assert_eq!(first.holder, ahead);
    let elected = fleet.record(&redis).await.unwrap().elected_at;
    assert!(elected.duration_since(jiff::Timestamp::now()).as_mins() >= 58, "the process has no other clock");
    let behind = fleet.join_as(at("-1h"));
    fleet.member(&behind).wait_for_line(SOON, "follows").await;
    let before = fleet.effects().await;
    wait_until(SOON, "the leader works on", async || fleet.effects().await > before + 100).await;
    assert_eq!(fleet.newest().await, first, "leadership did not change");
    let killed = Instant::now();
    fleet.member(&ahead).kill9();
    let (next, took) = fleet.takeover(first.term, killed, TAKEOVER * 3).await;
    assert_eq!(next.holder, behind);
    assert!(took <= TAKEOVER, "took {took:?}");
    fleet.judge(true).await;
}

/// The library that gives a process another clock.
fn faketime() -> Option<String> {
    let shown =
        std::process::Command::new("faketime").args(["-f", "+1h", "printenv", "LD_PRELOAD"]).output().ok()?;
    shown.status.success().then(|| String::from_utf8_lossy(&shown.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_maxmemory_a_lease_is_kept_and_a_new_leader_elected() {
    let stage = stage().await;
    assert_eq!(stage.server.cli(&["CONFIG", "SET", "maxmemory", "1"]).await, "OK");
    assert!(stage.server.cli(&["SET", "x", "y"]).await.contains("OOM"), "the server is full");
    let before = stage.fleet.effects().await;
    wait_until(SOON, "the leader works on", async || stage.fleet.effects().await > before + 100).await;
    wait_until(SOON, "a renewal while full", async || {
        stage.server.cli(&["PTTL", KEY]).await.parse::<i64>().unwrap() > 900
    })
    .await;
    assert_eq!(stage.fleet.newest().await.term, stage.leader.term, "leadership did not change");
    let killed = Instant::now();
    stage.fleet.member(&stage.leader.holder).kill9();
    let (_, took) = stage.fleet.takeover(stage.leader.term, killed, TAKEOVER * 3).await;
    assert!(took <= TAKEOVER, "took {took:?}");
    stage.fleet.judge(false).await;
}
