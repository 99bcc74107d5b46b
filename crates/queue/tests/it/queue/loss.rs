//! The loss test: unique effects, while workers and Redis are killed and paused at random. The long form is
//! `make test-long`, with a power cut of Redis on top.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use voiceai_queue::{Attempt, Job, JobError, NewJob, Outcome};
use voiceai_testkit::{Process, RedisOptions, RedisServer};

use super::{Setup, check, kill};

/// Appends its number to a file outside of Redis: the effect.
#[derive(Serialize, Deserialize)]
pub(super) struct Mark {
    n: u64,
}

impl Job for Mark {
    const KIND: &'static str = "mark";
    type Context = Option<PathBuf>;

    async fn run(&self, file: &Option<PathBuf>, _attempt: &Attempt) -> Result<Outcome, JobError> {
        use std::io::Write;
        let file = file.as_deref().ok_or("no file")?;
        // One write call, so that lines of several processes do not mix.
        let line = format!("{}\n", self.n);
        std::fs::OpenOptions::new().append(true).create(true).open(file)?.write_all(line.as_bytes())?;
        // Time to be killed in between effect and acknowledgement.
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(Outcome::Done)
    }
}

/// What the checker found.
#[derive(Debug, Default)]
struct Count {
    acked: usize,
    unknown: usize,
    lost: usize,
    repeated: usize,
    unexpected: usize,
    refused_acks: u64,
}

fn effects(file: &Path) -> BTreeMap<u64, u32> {
    let mut seen = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        *seen.entry(line.parse().unwrap()).or_default() += 1;
    }
    seen
}

/// Small and seeded: a run that fails can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn rounds(jobs: u64, faults: usize, appendfsync: &'static str, seed: u64) -> Count {
    let options = RedisOptions { appendonly: true, fsync: Some(appendfsync), ..RedisOptions::default() };
    let mut server = RedisServer::start(options).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("effects");
    let url = server.url();
    let s = Setup::on(&url).await;
    let start = || kill::marking_worker(&url, 20, &file);
    let mut workers: Vec<Process> = (0..3).map(|_| start()).collect();

    let client = s.client.clone();
    let producer = tokio::spawn(async move {
        let (mut acked, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for first in (0..jobs).step_by(50) {
            let numbers = first..(first + 50).min(jobs);
            loop {
                let lot = numbers.clone().map(|n| NewJob::of(&Mark { n }).unwrap()).collect();
                match client.enqueue_bulk(lot).await {
                    Ok(_) => {
                        acked.extend(numbers);
                        break;
                    }
                    Err(error) if error.outcome_unknown() => {
                        unknown.extend(numbers);
                        break;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (acked, unknown)
    });

    let mut dice = Dice(seed);
    for _ in 0..faults {
        tokio::time::sleep(Duration::from_millis(200 + dice.roll(400))).await;
        let victim = usize::try_from(dice.roll(3)).unwrap();
        match dice.roll(5) {
            0 | 1 => {
                workers[victim].kill9();
                workers[victim] = start();
            }
            2 => {
                // Longer than its lease of 2 s.
                workers[victim].pause();
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                workers[victim].resume();
            }
            3 => {
                server.kill9().await;
                server.restart(false).await;
            }
            _ => {
                server.pause();
                tokio::time::sleep(Duration::from_millis(500 + dice.roll(1_500))).await;
                server.resume();
            }
        }
    }
    let (acked, unknown) = producer.await.unwrap();
    s.wait_empty(Duration::from_secs(90)).await;
    check(&s.client, &s.queue).await;
    let seen = effects(&file);
    let stats = s.stats().await;
    Count {
        acked: acked.len(),
        unknown: unknown.len(),
        lost: acked.iter().filter(|n| !seen.contains_key(n)).count(),
        repeated: seen.values().filter(|n| **n > 1).count(),
        unexpected: seen.keys().filter(|n| **n >= jobs).count(),
        refused_acks: stats.counters.get("stale").copied().unwrap_or(0),
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_while_workers_and_redis_are_killed_and_paused() {
    let began = Instant::now();
    let count = rounds(5_000, 10, "everysec", 42).await;
    println!("{count:?} in {:?}", began.elapsed());
    assert_eq!((count.lost, count.unexpected), (0, 0), "{count:?}");
    assert_eq!(count.acked + count.unknown, 5_000);
    assert!(count.acked > 2_500, "{count:?}");
    // A fault interrupts at most what three workers of 20 slots run, and what was acknowledged late is refused.
    assert!(count.repeated > 0 && count.repeated <= 10 * 60, "{count:?}");
    assert!(count.refused_acks <= 10 * 60, "{count:?}");
}

#[tokio::test]
#[ignore = "the long form: minutes"]
async fn nothing_acknowledged_is_lost_in_the_long_run() {
    for (fsync, seed) in [("everysec", 1), ("always", 2), ("everysec", 3)] {
        let count = rounds(100_000, 120, fsync, seed).await;
        println!("appendfsync {fsync}, seed {seed}: {count:?}");
        assert_eq!((count.lost, count.unexpected), (0, 0), "{fsync}: {count:?}");
    }
}

fn sh(script: &str) -> bool {
    std::process::Command::new("bash").args(["-euc", script]).status().is_ok_and(|s| s.success())
}

/// Unmounts, also when the test fails.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        sh(&format!("umount {}", self.0));
    }
}

/// Redis on a file system of its own, whose image is copied while the server is stopped: what the kernel had not
/// written by then is not in the copy, as after a power cut.
async fn power_cut(appendfsync: &str) -> Option<(usize, usize, Duration)> {
    let folder = tempfile::tempdir().unwrap();
    let d = folder.path().display().to_string();
    let made = sh(&format!(
        "cd {d}; mkdir m; truncate -s 256M a.img; mkfs.ext4 -q a.img; mount -o loop a.img m 2>/dev/null"
    ));
    if !made {
        return None;
    }
    let _mounted = Mounted(format!("{d}/m"));
    let socket = folder.path().join("redis.sock");
    let start = || {
        voiceai_testkit::Program::new("redis-server")
            .args(["--port", "0", "--unixsocket", &socket.display().to_string(), "--dir", &format!("{d}/m")])
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", appendfsync])
            .start()
    };
    let url = format!("redis+unix://{}", socket.display());
    let server = start();
    voiceai_testkit::wait_until(Duration::from_secs(10), "Redis listens", async || socket.exists()).await;
    let s = Setup::on(&url).await;
    let acked = std::sync::Arc::new(std::sync::Mutex::new(Vec::<(String, Instant)>::new()));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (client, acked) = (s.client.clone(), std::sync::Arc::clone(&acked));
            tokio::spawn(async move {
                while let Ok(added) = client.enqueue(NewJob::of(&Mark { n: 1 }).unwrap()).await {
                    acked.lock().unwrap().push((added.id.to_string(), Instant::now()));
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(3_700)).await;
    server.pause();
    let cut = Instant::now();
    callers.iter().for_each(tokio::task::JoinHandle::abort);
    let copied = sh(&format!("cd {d}; cp --sparse=always a.img b.img"));
    server.kill9();
    server.wait_exit(Duration::from_secs(10)).await;
    let mounted = sh(&format!("cd {d}; umount m && mount -o loop b.img m && rm -f redis.sock"));
    assert!(copied && mounted, "the copy of the image is usable");
    let server = start();
    voiceai_testkit::wait_until(Duration::from_secs(20), "Redis listens", async || socket.exists()).await;
    let s = Setup::on(&url).await;
    assert!(s.stats().await.balances(), "a call is whole or not there");
    let acked: Vec<_> = acked.lock().unwrap().iter().filter(|(_, at)| *at < cut).cloned().collect();
    let mut lost = Vec::new();
    for part in acked.chunks(1_000) {
        let args: Vec<String> =
            std::iter::once(s.key("jobs")).chain(part.iter().map(|(id, _)| id.clone())).collect();
        let kept: Vec<Option<String>> = s.client.redis().command("HMGET", args).await.unwrap();
        lost.extend(part.iter().zip(kept).filter(|(_, kept)| kept.is_none()).map(|((_, at), _)| *at));
    }
    let window = lost.iter().map(|at| cut - *at).max().unwrap_or_default();
    server.kill9();
    server.wait_exit(Duration::from_secs(10)).await;
    Some((acked.len(), lost.len(), window))
}

#[tokio::test]
#[ignore = "the long form: mounts a file system, needs root"]
async fn a_power_cut_of_redis_loses_no_more_than_its_fsync_policy_says() {
    for (policy, window_max) in [("everysec", Duration::from_millis(2_500)), ("always", Duration::ZERO)] {
        let Some((acked, lost, window)) = power_cut(policy).await else {
            eprintln!("skipped: a loop device cannot be mounted here (not root)");
            return;
        };
        println!(
            "power cut, appendfsync {policy}: {acked} acknowledged, {lost} lost, the oldest {window:?} before it"
        );
        assert!(acked > 100, "{acked}");
        assert!(window <= window_max, "{policy}: {lost} of {acked} lost, window {window:?}");
    }
}
