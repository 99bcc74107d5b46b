//! apalis-redis's side of each measurement: `bench-queue-apalis load|drain JOBS [CONCURRENCY]`, printed as a line of JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noop {
    filler: String,
}

#[derive(Clone)]
struct Tally {
    left: Arc<AtomicUsize>,
    done: Arc<Notify>,
}

async fn run(_job: Noop, tally: Data<Tally>) -> Result<(), BoxDynError> {
    if tally.left.fetch_sub(1, Ordering::AcqRel) == 1 {
        tally.done.notify_one();
    }
    Ok(())
}

fn usage() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1));
    ((ticks(11) + ticks(12)) / 100.0, peak.and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let jobs: usize = args[1].parse()?;
    let conn = apalis_redis::connect(std::env::var("REDIS_URL")?).await?;
    // What it can do best: lots as large as its concurrency, no stored results, no events.
    let concurrency: usize = args.get(2).map_or(Ok(100), |a| a.parse())?;
    let config = Config::default().batch_size(concurrency).persist_results(false).emit_events(false);
    let mut storage: RedisStorage<Noop> = RedisStorage::new(conn).with_config(config);
    let filler = "x".repeat(200 - r#"{"filler":""}"#.len());
    let (cpu_before, _) = usage();
    let began = Instant::now();
    match args[0].as_str() {
        "load" => {
            let mut left = jobs;
            while left > 0 {
                let n = left.min(1_000);
                let lot = vec![Noop { filler: filler.clone() }; n];
                storage.push_bulk(lot).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
                left -= n;
            }
        }
        "drain" => {
            let tally = Tally { left: Arc::new(AtomicUsize::new(jobs)), done: Arc::new(Notify::new()) };
            let backend = storage.poll_with_interval(Duration::from_millis(100));
            let worker = WorkerBuilder::new("bench").backend(backend).data(tally.clone()).concurrency(concurrency).build(run);
            let task = tokio::spawn(async move {
                if let Err(error) = worker.run().await {
                    eprintln!("the worker ended: {error:?}");
                }
            });
            tally.done.notified().await;
            task.abort();
        }
        other => anyhow::bail!("unknown work {other}"),
    }
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, memory) = usage();
    println!(
        "{}",
        serde_json::json!({ "seconds": seconds, "jobs": jobs, "work_cpu_seconds": cpu - cpu_before,
            "cpu_seconds": cpu, "memory_mb": memory })
    );
    Ok(())
}
