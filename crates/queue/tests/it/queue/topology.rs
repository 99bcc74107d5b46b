//! Sentinel, Cluster, skewed clocks, and the commands that are used.

use std::time::Duration;

use voiceai_queue::{QueueLimits, UniqueMode};
use voiceai_testkit::{Cluster, RedisOptions, RedisServer, Sentinel, wait_until};

use super::{SOON, Setup, Work, check, kill, until};

#[tokio::test]
async fn after_a_sentinel_failover_everything_goes_on_by_itself() {
    let mut group = Sentinel::start().await;
    let s = Setup::on(&group.url()).await;
    let worker = s.worker(5);
    for i in 0..20 {
        s.enqueue(&Work { sleep_ms: 50, ..Work::named(format!("before{i}")) }).await;
    }
    until("it works", async || s.diary.runs().len() > 5).await;
    group.kill_primary().await;
    group.wait_for_failover(Duration::from_secs(30)).await;
    wait_until(Duration::from_secs(20), "enqueueing works again", async || {
        s.client.enqueue(Work::named("after").job()).await.is_ok()
    })
    .await;
    wait_until(Duration::from_secs(20), "work goes on", async || s.diary.count("after") >= 1).await;
    // The tail that was not replicated is lost with the primary (documented); the rest is worked off.
    s.wait_empty(Duration::from_secs(30)).await;
    worker.stop().await;
}

#[tokio::test]
async fn every_part_works_on_a_cluster_and_through_its_failover() {
    let cluster = Cluster::start().await;
    let mut s = Setup::on(&cluster.url()).await;
    for queue in ["default", "other-queue"] {
        s.queue = queue.into();
        let worker = s.worker(5);
        let job = |name: &str| Work::named(format!("{queue} {name}")).job().queue(queue.to_owned());
        s.client
            .enqueue_bulk((0..30).map(|i| job(&format!("{i}")).tenant(format!("t{}", i % 3))).collect())
            .await
            .unwrap();
        s.client.enqueue(job("later").delay(Duration::from_millis(100))).await.unwrap();
        s.client.enqueue(job("one").unique("u", UniqueMode::Reject).key("k")).await.unwrap();
        s.client
            .set(queue, &QueueLimits { key_concurrency: Some(Some(1)), ..Default::default() })
            .await
            .unwrap();
        s.wait_empty(SOON).await;
        let stats = s.stats().await;
        assert_eq!((stats.completed, stats.accepted), (32, 32), "{queue}");
        cluster.failover(&s.key("jobs"), Duration::from_secs(20)).await;
        wait_until(Duration::from_secs(20), "enqueueing works again", async || {
            s.client.enqueue(job("after")).await.is_ok()
        })
        .await;
        wait_until(Duration::from_secs(20), "work goes on", async || {
            s.diary.count(&format!("{queue} after")) >= 1
        })
        .await;
        s.wait_empty(SOON).await;
        worker.stop().await;
    }
    let mut queues = s.client.queues().await.unwrap();
    queues.sort();
    assert_eq!(queues, ["default", "other-queue"]);
}

#[tokio::test]
async fn only_commands_of_redis_7_0_are_used() {
    // All of them are in Redis 7.0 and in Valkey 7.2, its fork; whatever is new here has to be looked up there first.
    let known = [
        "auth",
        "client|setname",
        "client|kill",
        "client|id",
        "cluster|slots",
        "config|resetstat",
        "del",
        "exists",
        "fcall",
        "function|list",
        "function|load",
        "hdel",
        "hello",
        "hexists",
        "hget",
        "hgetall",
        "hincrby",
        "hkeys",
        "hlen",
        "hmget",
        "hscan",
        "hset",
        "hsetnx",
        "info",
        "lindex",
        "llen",
        "lpos",
        "lpush",
        "lrange",
        "ltrim",
        "bzpopmin",
        "pexpire",
        "ping",
        "quit",
        "role",
        "rpop",
        "rpush",
        "sadd",
        "scard",
        "script|load",
        "select",
        "set",
        "get",
        "sismember",
        "smembers",
        "smismember",
        "spop",
        "srandmember",
        "srem",
        "time",
        "zadd",
        "zcard",
        "zcount",
        "zincrby",
        "zmscore",
        "zrange",
        "zrangebyscore",
        "zrem",
        "zrevrange",
        "zscan",
        "zscore",
    ];
    let server = RedisServer::start(RedisOptions::default()).await;
    let s = Setup::on(&server.url()).await;
    let worker = s.worker(4);
    s.client
        .set(&s.queue, &QueueLimits { key_concurrency: Some(Some(1)), ..Default::default() })
        .await
        .unwrap();
    s.enqueue(&Work { fail_times: 1, ..Work::named("retried") }).await;
    s.client.enqueue(Work::named("keyed").job().key("k").unique("u", UniqueMode::Latest)).await.unwrap();
    s.enqueue(&Work { result: Some(1.into()), ..Work::named("result") }).await;
    s.wait_empty(SOON).await;
    worker.stop().await;
    let text: String = s.client.redis().command("INFO", vec!["commandstats"]).await.unwrap();
    let used: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("cmdstat_")?.split(':').next()).collect();
    assert!(used.contains(&"fcall") && used.contains(&"hmget"), "{used:?}");
    let unknown: Vec<&&str> = used.iter().filter(|c| !known.contains(*c)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // Nothing looks at the whole keyspace.
    assert!(!used.contains(&"keys") && !used.contains(&"scan"), "{used:?}");
    let failed: Vec<&str> = text
        .lines()
        .filter(|l| {
            l.starts_with("cmdstat_") && !l.contains("failed_calls=0") && !l.starts_with("cmdstat_fcall")
        })
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test]
async fn workers_whose_clocks_are_ten_minutes_off_neither_hurry_nor_lose() {
    if !std::process::Command::new("faketime").arg("--version").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: faketime is not installed");
        return;
    }
    let s = Setup::new().await;
    let url = s.db.as_ref().unwrap().url.clone();
    let early = kill::worker_wrapped(&url, 2, &["faketime", "-f", "-10m"]);
    let late = kill::worker_wrapped(&url, 2, &["faketime", "-f", "+10m"]);
    until("both joined", async || s.stats().await.workers.len() == 2).await;
    let began = tokio::time::Instant::now();
    let probe = |i: usize| {
        let effect = Some(format!("e{i}"));
        voiceai_queue::NewJob::of(&voiceai_queue::probe::Probe { effect, ..Default::default() }).unwrap()
    };
    s.client.enqueue_bulk((0..20).map(|i| probe(i).delay(Duration::from_secs(1))).collect()).await.unwrap();
    s.wait_empty(SOON).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(990) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(s.stats().await.completed, 20);
    assert!(kill::effects(&s).await.iter().all(|(_, n)| *n == 1));
    check(&s.client, &s.queue).await;
    drop((early, late));
}
