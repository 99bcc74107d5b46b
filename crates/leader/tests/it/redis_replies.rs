//! Renewals that fail, hang or come late, seen from inside the process.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use voiceai_leader::{Election, LeaderSettings, Role};
use voiceai_postgres::term;
use voiceai_runtime::Vitals;
use voiceai_testkit::{RedisOptions, RedisServer, TcpProxy, wait_until};

use crate::fleet::{HEARTBEAT, SOON, TTL};
use crate::lone::{Lone, connect, settings};
use crate::subject::KEY;

#[tokio::test]
async fn a_lost_reply_suspends_effects_and_keeps_the_tenure() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&proxy.url(&server.url()), &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    // The renewal is done, its answer swallowed and the connection lost.
    proxy.drop_every_nth_reply(1);
    wait_until(SOON, "an answer is swallowed", async || proxy.dropped() > 0).await;
    proxy.drop_every_nth_reply(0);
    proxy.cut();
    lone.becomes(Role::Suspended, TTL).await;
    assert!(tenure.check().is_err(), "no effects while the outcome is unknown");
    lone.becomes(Role::Leader, TTL).await;
    assert!(tenure.check().is_ok(), "the same tenure goes on");
    assert_eq!(lone.election.status().term, Some(tenure.term().number));
}

#[tokio::test]
async fn every_refused_renewal_stops_effects_at_once_and_one_that_works_lets_them_go_on() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&server.url(), &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    let faults: [(&str, &[&str], &[&str]); 3] = [
        ("NOPERM", &["ACL", "SETUSER", "default", "-evalsha"], &["ACL", "SETUSER", "default", "+evalsha"]),
        (
            "NOREPLICAS",
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        ("READONLY", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ];
    for (name, inject, lift) in faults {
        assert_eq!(server.cli(inject).await, "OK");
        lone.becomes(Role::Suspended, HEARTBEAT * 2).await;
        assert!(tenure.check().is_err(), "{name}");
        assert_eq!(server.cli(lift).await, "OK");
        lone.becomes(Role::Leader, TTL).await;
        assert!(tenure.check().is_ok(), "{name}: the same tenure goes on");
    }
}

#[tokio::test]
async fn a_fault_that_outlasts_the_lease_ends_the_tenure_for_ever() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&server.url(), &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    let injected = Instant::now();
    server.cli(&["ACL", "SETUSER", "default", "-evalsha"]).await;
    lone.watch.clone().wait_for(Option::is_none).await.unwrap();
    assert!(injected.elapsed() <= TTL, "the tenure ended only after {:?}", injected.elapsed());
    server.cli(&["ACL", "SETUSER", "default", "+evalsha"]).await;
    let next = lone.tenure_above(tenure.term().number).await;
    assert!(next.is_trusted() && !tenure.is_trusted());
}

#[tokio::test]
async fn a_black_hole_silences_the_leader_before_its_successor_begins() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let cut_off = Lone::join(&proxy.url(&server.url()), &pool, "cut off").await;
    let old = cut_off.tenure_above(0).await;
    let other = Lone::join(&server.url(), &pool, "other").await;
    proxy.pause();
    let paused = Instant::now();
    // Watched all the time: at no moment are both trusted.
    let mut silent_after = None;
    let next = loop {
        if let Some(next) = other.watch.borrow().clone() {
            break next;
        }
        if silent_after.is_none() && !old.is_trusted() {
            silent_after = Some(paused.elapsed());
        }
        assert!(paused.elapsed() < SOON, "no successor");
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let took = paused.elapsed();
    let silent_after = silent_after.expect("the old leader was silent first");
    eprintln!(
        "black hole: old leader silent after {} ms, successor after {} ms",
        silent_after.as_millis(),
        took.as_millis()
    );
    assert!(next.term().number > old.term().number);
    assert!(!old.is_trusted());
    // The lease, one poll, and a second for the machine.
    assert!(took <= TTL + HEARTBEAT + Duration::from_secs(1), "took {took:?}");
    cut_off.becomes(Role::Follower, SOON).await;
    proxy.resume();
    wait_until(SOON, "it follows its successor", async || cut_off.election.status().reason.contains("other"))
        .await;
}

/// Asks without the runtime, whose only thread the caller holds up.
fn remaining_ms(port: u16) -> i64 {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(format!("PTTL {KEY}\r\n").as_bytes()).unwrap();
    let mut reply = [0; 32];
    let read = stream.read(&mut reply).unwrap();
    std::str::from_utf8(&reply[..read]).unwrap().trim().trim_start_matches(':').parse().unwrap()
}

#[tokio::test]
async fn trust_counts_from_the_sending_and_ends_a_tenth_before_the_lease() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    // Long spans, so that a busy machine's delays are small beside them.
    let (heartbeat, ttl, way) = (Duration::from_secs(1), Duration::from_secs(5), Duration::from_millis(200));
    let settings = LeaderSettings { heartbeat, lock_ttl: ttl, ..settings("a") };
    let redis = connect(&proxy.url(&server.url())).await;
    let election = Election::start(settings, redis, pool, Vec::new(), &Vitals::new());
    let mut watch = election.watch();
    let tenure = watch.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    proxy.delay(way);
    // The moment at which a renewal, delayed already, reaches the server.
    let mut before = i64::MAX;
    let mut seen = 0;
    wait_until(SOON, "two slow renewals reach the server", async || {
        let now = server.cli(&["PTTL", KEY]).await.parse::<i64>().unwrap();
        seen += usize::from(now > before);
        before = now;
        seen == 2
    })
    .await;
    // Its answer has come, the next request has not been sent: now the whole process stands still, the election's task
    // with it, so that only the clock can end the trust.
    tokio::time::sleep(way + Duration::from_millis(150)).await;
    assert!(tenure.is_trusted());
    while tenure.is_trusted() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    // A tenth of the lease, and the request's way. Counted from the answer it would be the tenth less the answer's way.
    let (left, expected) =
        (remaining_ms(server.port()), i64::try_from((ttl / 10 + way).as_millis()).unwrap());
    eprintln!("at the end of trust the lease had {left} ms left (expected about {expected})");
    assert!((expected - 200..expected + 100).contains(&left), "{left} ms were left");
}

#[tokio::test]
async fn a_slow_redis_causes_no_flapping() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let url = proxy.url(&server.url());
    let (a, b) = (Lone::join(&url, &pool, "a").await, Lone::join(&url, &pool, "b").await);
    let issued = async || term::standing(&pool, KEY).await.unwrap().map_or(0, |s| s.term);
    wait_until(SOON, "one leads", async || a.role() == Role::Leader || b.role() == Role::Leader).await;
    let leader = if a.role() == Role::Leader { &a } else { &b };
    let tenure = leader.tenure_above(0).await;
    assert_eq!(issued().await, 1);

    // A tenth of the lease for each answer is nothing to speak of.
    proxy.delay(TTL / 20);
    let until = Instant::now() + TTL * 2;
    while Instant::now() < until {
        assert!(tenure.is_trusted(), "{:?}", leader.election.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(issued().await, 1, "leadership did not change");

    // Four fifths of the lease: no lease can be kept, so nobody leads, and nobody is elected over and over.
    proxy.delay(TTL * 4 / 10);
    wait_until(SOON, "nobody leads", async || a.watch.borrow().is_none() && b.watch.borrow().is_none()).await;
    let until = Instant::now() + TTL * 3;
    while Instant::now() < until {
        assert!(a.watch.borrow().is_none() && b.watch.borrow().is_none(), "elected on a Redis this slow");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(issued().await, 1, "terms were issued though no lease could be kept");

    proxy.delay(Duration::ZERO);
    wait_until(SOON, "one leads again", async || a.role() == Role::Leader || b.role() == Role::Leader).await;
    assert_eq!(issued().await, 2);
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again_unnoticed() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&server.url(), &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    let mut watch = lone.watch.clone();
    watch.mark_unchanged();
    for _ in 0..3 {
        server.cli(&["CONFIG", "RESETSTAT"]).await;
        server.cli(&["SCRIPT", "FLUSH"]).await;
        wait_until(SOON, "a script is loaded again", async || {
            server.cli(&["INFO", "commandstats"]).await.contains("cmdstat_eval:") && tenure.is_trusted()
        })
        .await;
    }
    assert!(!watch.has_changed().unwrap(), "the tenure was neither suspended nor lost");
}

#[tokio::test]
async fn resigning_ends_the_tenure_before_the_lease_and_dropping_resigns_too() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&proxy.url(&server.url()), &pool, "a").await;
    let tenure = lone.tenure_above(0).await;
    // Far enough under the limit of a call, and long enough to look in between.
    proxy.delay(HEARTBEAT / 4);
    let resign = lone.election.resign();
    let look = async {
        wait_until(SOON, "the tenure is over", async || !tenure.is_trusted()).await;
        server.cli(&["EXISTS", KEY]).await
    };
    let ((), existed) = tokio::join!(resign, look);
    assert_eq!(existed, "1", "the lease outlives the tenure");
    assert_eq!(server.cli(&["EXISTS", KEY]).await, "0", "the lease was given back");
    assert!(lone.watch.borrow().is_none());
    assert_eq!(lone.role(), Role::Resigned);

    let next = Lone::join(&server.url(), &pool, "b").await;
    let tenure = next.tenure_above(tenure.term().number).await;
    drop(next.election);
    wait_until(SOON, "the lease is given back", async || server.cli(&["EXISTS", KEY]).await == "0").await;
    assert!(!tenure.is_trusted());
}

#[tokio::test]
async fn the_loop_makes_progress_and_resigns_in_time_while_redis_is_away() {
    let mut server = RedisServer::start(RedisOptions::default()).await;
    let pool = voiceai_testkit::database().await.pool().await;
    let lone = Lone::join(&server.url(), &pool, "a").await;
    lone.tenure_above(0).await;
    server.kill9().await;
    lone.becomes(Role::Follower, SOON).await;
    let progress = || lone.vitals.report("test", "a").loops[0].last_progress_boot_ms;
    for _ in 0..3 {
        let before = progress();
        wait_until(HEARTBEAT * 4, "the loop beats", async || progress() > before).await;
    }
    let asked = Instant::now();
    lone.election.resign().await;
    assert!(asked.elapsed() <= Duration::from_secs(1), "resigning took {:?}", asked.elapsed());
}

#[tokio::test]
async fn the_key_holds_the_documented_record() {
    let redis = voiceai_testkit::redis().await;
    let pool = voiceai_testkit::database().await.pool().await;
    assert_eq!(voiceai_leader::current(&connect(&redis.url).await, KEY).await.unwrap(), None);
    let lone = Lone::join(&redis.url, &pool, "scaler-1").await;
    let term = lone.tenure_above(0).await.term().number;
    let record = voiceai_leader::current(&connect(&redis.url).await, KEY).await.unwrap().unwrap();
    assert_eq!((&*record.instance_id, &*record.host, record.term), ("scaler-1", "test", term));
    assert_eq!(record.pid, std::process::id());
    let age = jiff::Timestamp::now().duration_since(record.elected_at);
    assert!(age.as_secs() < 20 && !age.is_negative(), "{age:?}");
    let left: i64 = redis.cli(&["PTTL", KEY]).await.parse().unwrap();
    assert!((1..=1_000).contains(&left), "{left}");

    lone.election.resign().await;
    redis.cli(&["SET", KEY, "nobody knows"]).await;
    let error = voiceai_leader::current(&connect(&redis.url).await, KEY).await.unwrap_err().to_string();
    assert!(error.contains(KEY) && error.contains(&format!("DEL {KEY}")), "{error}");
}
