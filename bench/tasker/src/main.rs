//! The benches of the tasker's own work: backups and exports by the real service, webhooks by the code that posts them.
//!
//! Needs a private PostgreSQL (DATABASE_URL, filled by this bench), REDIS_URL, S3_BUCKET with S3_ENDPOINT, S3_ACCESS_KEY and
//! S3_SECRET_KEY, TASKER_BINARY, AWS_CLI (the store's own client; without it the backup has no peer) and BENCH_DIR. Writes
//! BENCH_DIR/tasker.json. BENCH_ROUNDS (3), BENCH_ROWS (1000000) and BENCH_EVENTS (20000) make it shorter; BENCH_ONLY=webhooks,
//! =service or =backup leaves the rest out.

mod receiver;
mod service;
mod webhooks;

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::postgres::PgPoolOptions;

/// What was measured of one kind of work.
pub struct Row {
    work: String,
    unit: &'static str,
    ours: Vec<f64>,
    peer: Option<Peer>,
}

/// What it is compared with.
pub struct Peer {
    name: &'static str,
    value: f64,
    /// Whether more is better.
    more: bool,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let ours = median(&self.ours);
        self.peer.as_ref().map(|peer| if peer.more { ours / peer.value } else { peer.value / ours })
    }

    fn json(&self) -> Value {
        let low = self.ours.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.ours.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        json!({
            "work": self.work, "unit": self.unit, "ours": median(&self.ours),
            "peer": self.peer.as_ref().map(|peer| peer.value), "peer_name": self.peer.as_ref().map(|peer| peer.name),
            "ratio": self.ratio(), "rounds": self.ours.len(), "min": low, "max": high,
        })
    }

    fn show(&self) {
        let peer = self.peer.as_ref().map(|peer| format!("{} {:.1}", peer.name, peer.value)).unwrap_or_default();
        let ratio = self.ratio().map(|ratio| format!("ratio {ratio:.2}")).unwrap_or_default();
        println!("{:<72} {:>10.1} {:<9} {peer:<40} {ratio}", self.work, median(&self.ours), self.unit);
    }
}

/// The middle of the values; not a number where there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A number of the environment.
pub fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A text of the environment.
pub fn text(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is needed"))
}

fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1)).map(|m| m.trim().to_owned());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map(usize::from).unwrap_or(0);
    json!({ "cpu": model, "cores": cores, "load_average": load.split_whitespace().next() })
}

async fn pool(url: &str) -> anyhow::Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(20).connect(url).await?)
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let folder = PathBuf::from(text("BENCH_DIR")?);
    std::fs::create_dir_all(&folder)?;
    let rounds = number("BENCH_ROUNDS", 3);
    let pool = pool(&text("DATABASE_URL")?).await?;
    voiceai_postgres::migrate(&pool, &[voiceai_postgres::COMMON, voiceai_postgres::TASKER]).await?;
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let machine = machine();
    let mut rows = Vec::new();
    if !matches!(only.as_str(), "service" | "backup") {
        rows.extend(webhooks::measure(&pool, rounds).await?);
    }
    if only != "webhooks" {
        rows.extend(service::measure(&pool, rounds, only == "backup").await?);
    }
    for row in &rows {
        row.show();
    }
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    let document = json!({ "machine": machine, "rows": rows });
    std::fs::write(folder.join("tasker.json"), serde_json::to_string_pretty(&document)?)?;
    Ok(())
}
