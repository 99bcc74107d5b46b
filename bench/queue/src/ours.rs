//! Our side of each measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;
use voiceai_queue::{
    Attempt, Client, HistoryMode, HistorySink, Job, JobError, NewJob, Outcome, QueueSettings, Registry, Worker,
    WorkerSettings,
};
use voiceai_redis::{Redis, RedisSettings, Value};
use voiceai_runtime::{Shutdown, Vitals};

/// Exports metrics to nobody.
struct Nowhere;

impl PushMetricExporter for Nowhere {
    async fn export(&self, _metrics: &ResourceMetrics) -> OTelSdkResult {
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

const QUEUE: &str = "bench";

/// 200 bytes of JSON.
#[derive(Serialize, Deserialize)]
struct Noop {
    filler: String,
}

fn filler() -> String {
    "x".repeat(200 - r#"{"filler":""}"#.len())
}

#[derive(Clone)]
struct Tally(Arc<Counts>);

struct Counts {
    left: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    done: Notify,
    sleep: Duration,
    /// Start of each job after the bench's own zero, µs.
    started_us: AtomicU64,
    zero: Instant,
}

impl Tally {
    fn new(jobs: usize, sleep: Duration) -> Self {
        Self(Arc::new(Counts {
            left: AtomicUsize::new(jobs),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            done: Notify::new(),
            sleep,
            started_us: AtomicU64::new(0),
            zero: Instant::now(),
        }))
    }

    async fn ran(&self) -> Outcome {
        let c = &self.0;
        c.started_us.store(u64::try_from(c.zero.elapsed().as_micros()).unwrap_or(0), Ordering::Relaxed);
        if !c.sleep.is_zero() {
            let now = c.running.fetch_add(1, Ordering::Relaxed) + 1;
            c.most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(c.sleep).await;
            c.running.fetch_sub(1, Ordering::Relaxed);
        }
        if c.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            c.done.notify_one();
        }
        Outcome::Done
    }
}

impl Job for Noop {
    const KIND: &'static str = "noop";
    const QUEUE: &'static str = QUEUE;
    const HISTORY: HistoryMode = HistoryMode::Failures;
    type Context = Tally;

    async fn run(&self, tally: &Tally, _attempt: &Attempt) -> Result<Outcome, JobError> {
        Ok(tally.ran().await)
    }
}

/// The same job with a history of every end.
#[derive(Serialize, Deserialize)]
struct Told(Noop);

impl Job for Told {
    const KIND: &'static str = "noop";
    const QUEUE: &'static str = QUEUE;
    const HISTORY: HistoryMode = HistoryMode::All;
    type Context = Tally;

    async fn run(&self, tally: &Tally, _attempt: &Attempt) -> Result<Outcome, JobError> {
        Ok(tally.ran().await)
    }
}

fn job() -> NewJob {
    NewJob::of(&Noop { filler: filler() }).unwrap_or_else(|_| NewJob::raw("noop", Default::default()))
}

async fn client(url: &str) -> anyhow::Result<Client> {
    let redis = Redis::connect(&RedisSettings::from_url(url)?).await?;
    Ok(Client::connect(redis).await?)
}

/// User and system time of this process, seconds, and its resident memory, MB.
fn usage() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1));
    let mb = peak.and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0;
    ((ticks(11) + ticks(12)) / 100.0, mb)
}

pub async fn run(url: &str, args: &[String]) -> anyhow::Result<()> {
    // Metrics on: recorded and aggregated, though nobody collects them here.
    let provider = SdkMeterProvider::builder().with_periodic_exporter(Nowhere).build();
    opentelemetry::global::set_meter_provider(provider.clone());
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<usize>().ok()).context("a number is missing");
    let report = match args.first().map(String::as_str) {
        Some("load") => load(url, number(1)?, 1_000).await?,
        Some("single") => single(url, number(1)?, number(2)?).await?,
        Some("delayed") => delayed(url, number(1)?).await?,
        Some("drain") => drain(url, number(1)?, number(2)?, Duration::ZERO, false).await?,
        Some("drain-told") => drain(url, number(1)?, number(2)?, Duration::ZERO, true).await?,
        Some("slow") => drain(url, number(1)?, number(2)?, Duration::from_millis(50), false).await?,
        Some("pickup") => pickup(url, number(1)?).await?,
        Some("hold") => hold(url, number(1)?).await?,
        Some("bare") => bare(url, number(1)?).await?,
        _ => bail!("unknown work"),
    };
    let (cpu, memory) = usage();
    let mut report = report;
    report["cpu_seconds"] = json!(cpu);
    report["memory_mb"] = json!(memory);
    println!("{report}");
    let _ = provider.shutdown();
    Ok(())
}

async fn load(url: &str, jobs: usize, bulk: usize) -> anyhow::Result<serde_json::Value> {
    let client = client(url).await?;
    let began = Instant::now();
    let mut left = jobs;
    while left > 0 {
        let n = left.min(bulk);
        client.enqueue_bulk((0..n).map(|_| job()).collect()).await?;
        left -= n;
    }
    Ok(json!({ "seconds": began.elapsed().as_secs_f64(), "jobs": jobs }))
}

async fn delayed(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let client = client(url).await?;
    let began = Instant::now();
    for _ in 0..jobs / 1_000 {
        client.enqueue_bulk((0..1_000).map(|_| job().delay(Duration::from_secs(86_400))).collect()).await?;
    }
    Ok(json!({ "seconds": began.elapsed().as_secs_f64(), "jobs": jobs }))
}

async fn single(url: &str, jobs: usize, in_flight: usize) -> anyhow::Result<serde_json::Value> {
    let client = client(url).await?;
    client.enqueue(job()).await?;
    let began = Instant::now();
    let each = jobs / in_flight;
    let callers = (0..in_flight).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..each {
                client.enqueue(job()).await?;
            }
            Ok::<_, voiceai_queue::QueueError>(())
        })
    });
    for caller in futures_util::future::join_all(callers).await {
        caller??;
    }
    Ok(json!({ "seconds": began.elapsed().as_secs_f64(), "jobs": each * in_flight }))
}

fn settings(concurrency: usize) -> WorkerSettings {
    let concurrency = u32::try_from(concurrency).unwrap_or(100);
    WorkerSettings::new(vec![QueueSettings::new(QUEUE, concurrency)])
}

/// Takes every record, as the writer's buffer does.
struct Counting(AtomicU64);

impl HistorySink for Counting {
    fn record(&self, _record: voiceai_queue::FinishedJob) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn record_now(
        &self,
        _records: Vec<voiceai_queue::FinishedJob>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), voiceai_queue::HistoryError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

async fn drain(
    url: &str,
    jobs: usize,
    concurrency: usize,
    sleep: Duration,
    told: bool,
) -> anyhow::Result<serde_json::Value> {
    let redis = Redis::connect(&RedisSettings::from_url(url)?).await?;
    let client = Client::with_history(redis, Arc::new(Counting(AtomicU64::new(0)))).await?;
    let tally = Tally::new(jobs, sleep);
    let registry = if told {
        Registry::new().register::<Told>(tally.clone())
    } else {
        Registry::new().register::<Noop>(tally.clone())
    };
    let shutdown = Shutdown::new();
    let worker = Worker::new(client.clone(), registry, settings(concurrency));
    let (cpu_before, _) = usage();
    let began = Instant::now();
    let handle = shutdown.clone();
    let task = tokio::spawn(async move { worker.run(&handle, &Vitals::new()).await });
    tally.0.done.notified().await;
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, _) = usage();
    shutdown.stop();
    task.await?;
    Ok(json!({
        "seconds": seconds,
        "jobs": jobs,
        "work_cpu_seconds": cpu - cpu_before,
        "most_running": tally.0.most.load(Ordering::Relaxed),
    }))
}

/// Enqueue to start on an idle worker, one job at a time.
async fn pickup(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let client = client(url).await?;
    let tally = Tally::new(usize::MAX, Duration::ZERO);
    let shutdown = Shutdown::new();
    let worker = Worker::new(client.clone(), Registry::new().register::<Noop>(tally.clone()), settings(10));
    let handle = shutdown.clone();
    let task = tokio::spawn(async move { worker.run(&handle, &Vitals::new()).await });
    let mut waits = Vec::with_capacity(jobs);
    for i in 0..jobs + 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        tally.0.started_us.store(0, Ordering::Relaxed);
        let sent = u64::try_from(tally.0.zero.elapsed().as_micros()).unwrap_or(0);
        client.enqueue(job()).await?;
        let started = loop {
            match tally.0.started_us.load(Ordering::Relaxed) {
                0 => tokio::time::sleep(Duration::from_micros(100)).await,
                us => break us,
            }
        };
        if i >= 20 {
            waits.push(started.saturating_sub(sent));
        }
    }
    shutdown.stop();
    task.await?;
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() * share / 100).min(waits.len() - 1)];
    Ok(json!({ "p50_us": at(50), "p99_us": at(99), "jobs": jobs }))
}

/// Takes `jobs` jobs and holds them until the parent closes our input.
async fn hold(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let client = client(url).await?;
    let tally = Tally::new(usize::MAX, Duration::from_secs(3_600));
    let shutdown = Shutdown::new();
    let settings = WorkerSettings { drain: Duration::ZERO, ..settings(jobs) };
    let worker = Worker::new(client.clone(), Registry::new().register::<Noop>(tally.clone()), settings);
    let handle = shutdown.clone();
    let task = tokio::spawn(async move { worker.run(&handle, &Vitals::new()).await });
    while tally.0.running.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{}", json!({ "holding": jobs }));
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    shutdown.stop();
    task.await?;
    Ok(json!({ "held": jobs }))
}

/// The same bytes moved by a bare client: pushed in lots, popped in lots, nothing remembered in between.
async fn bare(url: &str, jobs: usize) -> anyhow::Result<serde_json::Value> {
    let redis = Redis::connect(&RedisSettings::from_url(url)?).await?;
    let payload = serde_json::to_string(&Noop { filler: filler() })?;
    let lot = 250;
    let began = Instant::now();
    for _ in 0..jobs / lot {
        let mut args: Vec<Value> = vec!["bench:bare".into()];
        args.extend((0..lot).map(|_| Value::from(payload.as_str())));
        let _: i64 = redis.command("LPUSH", args).await?;
    }
    let push = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for _ in 0..jobs / lot {
        let _: Value = redis.command("RPOP", vec!["bench:bare".to_owned(), lot.to_string()]).await?;
    }
    Ok(json!({ "push_seconds": push, "seconds": began.elapsed().as_secs_f64(), "jobs": jobs }))
}
