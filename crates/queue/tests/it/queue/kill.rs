//! Workers that die for real: this test binary starts itself again as a worker process.

use std::time::Duration;

use voiceai_queue::probe::{EFFECTS_KEY, Probe};
use voiceai_queue::{
    Client, DeadReason, ListFilter, NewJob, QueueSettings, Registry, State, Worker, WorkerSettings,
};
use voiceai_redis::{Redis, RedisSettings, Value};
use voiceai_runtime::{Shutdown, Vitals};
use voiceai_testkit::{Process, Program, wait_until};

use super::{Setup, check};

const URL: &str = "VOICEAI_TEST_WORKER_REDIS";
const EFFECTS: &str = "VOICEAI_TEST_WORKER_EFFECTS";
const SLOTS: &str = "VOICEAI_TEST_WORKER_SLOTS";

/// Not a test: the worker process of the tests below. Without the variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_process() {
    let Ok(url) = std::env::var(URL) else { return };
    let slots = std::env::var(SLOTS).unwrap().parse().unwrap();
    let redis = Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap();
    let client = Client::connect(redis.clone()).await.unwrap();
    let settings = WorkerSettings {
        lease: Duration::from_secs(2),
        ..WorkerSettings::new(vec![QueueSettings::new("default", slots)])
    };
    let shutdown = Shutdown::on_signals().unwrap();
    let file = std::env::var_os(EFFECTS).map(std::path::PathBuf::from);
    let registry = Registry::new().register::<Probe>(redis).register::<super::loss::Mark>(file);
    Worker::new(client, registry, settings).run(&shutdown, &Vitals::new()).await;
}

/// Starts a worker process on `url`.
pub(super) fn worker(url: &str, slots: u32) -> Process {
    worker_wrapped(url, slots, &[])
}

/// The same behind another program, such as `faketime`.
pub(super) fn worker_wrapped(url: &str, slots: u32, wrapper: &[&str]) -> Process {
    let program = Program::new(std::env::current_exe().unwrap());
    let program = if wrapper.is_empty() { program } else { program.wrapped_in(wrapper) };
    program
        .args(["queue::kill::worker_process", "--exact", "--nocapture"])
        .env(URL, url)
        .env(SLOTS, slots.to_string())
        .start()
}

/// One whose `mark` jobs write to `file`.
pub(super) fn marking_worker(url: &str, slots: u32, file: &std::path::Path) -> Process {
    Program::new(std::env::current_exe().unwrap())
        .args(["queue::kill::worker_process", "--exact", "--nocapture"])
        .env(URL, url)
        .env(SLOTS, slots.to_string())
        .env(EFFECTS, file)
        .start()
}

fn probe(probe: Probe) -> NewJob {
    NewJob::of(&probe).unwrap()
}

pub(super) async fn effects(s: &Setup) -> Vec<(String, u64)> {
    let flat: Vec<String> =
        s.client.redis().command::<Value>("HGETALL", vec![EFFECTS_KEY]).await.unwrap().convert().unwrap();
    flat.chunks_exact(2).map(|p| (p[0].clone(), p[1].parse().unwrap())).collect()
}

#[tokio::test]
async fn one_culprit_among_five_hundred_is_parked_and_the_others_finish() {
    let s = Setup::new().await;
    let url = s.db.as_ref().unwrap().url.clone();
    let effect = |i: usize| Probe { effect: Some(format!("e{i}")), ..Probe::default() };
    let mut jobs: Vec<NewJob> =
        (0..499).map(|i| probe(Probe { sleep_ms: if i < 497 { 5 } else { 300 }, ..effect(i) })).collect();
    // In the middle, so that it neither runs first nor alone; it waits until all the others run too.
    jobs.insert(250, probe(Probe { abort: true, ..Probe::default() }));
    s.client.pause(&s.queue).await.unwrap();
    s.client.enqueue_bulk(jobs).await.unwrap();
    let mut process = worker(&url, 500);
    s.client.resume(&s.queue).await.unwrap();
    let mut deaths = 0;
    wait_until(Duration::from_secs(90), "one is parked and the others are done", async || {
        if process.exit().is_some() {
            deaths += 1;
            process = worker(&url, 500);
        }
        let stats = s.stats().await;
        stats.dead == 1 && stats.completed == 499
    })
    .await;
    assert_eq!(deaths, 3, "the third death of its worker parks the culprit");
    let dead = s.client.list(&s.queue, &ListFilter::of(State::Dead)).await.unwrap();
    assert_eq!(dead.jobs[0].dead_reason, Some(DeadReason::Poison));
    assert!(dead.jobs[0].payload.as_ref().unwrap().get().contains("\"abort\":true"));
    assert_eq!(effects(&s).await.len(), 499);
    check(&s.client, &s.queue).await;
    process.terminate();
    process.wait_exit(Duration::from_secs(15)).await;
    check(&s.client, &s.queue).await;
}

#[tokio::test]
async fn killed_and_paused_workers_lose_nothing() {
    let s = Setup::new().await;
    let url = s.db.as_ref().unwrap().url.clone();
    let jobs =
        (0..2_000).map(|i| probe(Probe { sleep_ms: 5, effect: Some(format!("e{i}")), ..Probe::default() }));
    s.client.enqueue_bulk(jobs.collect()).await.unwrap();
    let mut victims = vec![worker(&url, 20), worker(&url, 20)];
    let survivor = worker(&url, 20);
    for round in 0..4 {
        let before = s.stats().await.completed;
        wait_until(Duration::from_secs(30), "progress", async || {
            let s = s.stats().await;
            s.completed > before + 50 || s.waiting + s.active == 0
        })
        .await;
        let victim = victims.remove(0);
        if round % 2 == 0 {
            victim.kill9();
            victims.push(worker(&url, 20));
        } else {
            victim.pause();
            victims.push(victim);
        }
    }
    s.wait_empty(Duration::from_secs(60)).await;
    for victim in &victims {
        victim.resume();
    }
    // The paused ones wake up with handlers that are no longer theirs: every effect is there, and the books balance.
    wait_until(Duration::from_secs(20), "all effects", async || effects(&s).await.len() == 2_000).await;
    let stats = s.stats().await;
    assert_eq!((stats.completed, stats.dead), (2_000, 0));
    check(&s.client, &s.queue).await;
    let repeated = effects(&s).await.iter().filter(|(_, n)| *n > 1).count();
    assert!(repeated <= 100, "{repeated} effects were repeated by 4 faults at concurrency 20");
    drop(survivor);
}
