//! The bench of the health monitor: rounds over 1,000 watched services on a local receiver, states written to PostgreSQL, against a
//! bare client that asks the same services in the same run and writes nothing.
//!
//! Needs a private, empty PostgreSQL (DATABASE_URL); writes BENCH_DIR/monitor.json. BENCH_ROUNDS (3) and BENCH_SERVICES (1000) make it
//! shorter. Ends with an error when a round takes longer than the shortest interval that the settings allow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use voiceai_egress::{Rule, http_client};
use voiceai_monitor::{Monitor, MonitorSettings, Policy, Prober, Service, nobody};
use voiceai_postgres::sqlx::postgres::PgPoolOptions;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_postgres::term::{Candidate, issue};
use voiceai_postgres::{COMMON, TASKER, Tenure};
use voiceai_runtime::{Vitals, boot_now};

/// The floor of HEALTH_CHECK_INTERVAL: every figure has to lie below it.
const INTERVAL: Duration = Duration::from_secs(5);
/// The default of HEALTH_CHECK_CONCURRENCY.
const CONCURRENCY: usize = 256;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Answers each path at once, but those below /hangs, which it never answers.
async fn receiver() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 2_048];
                let Ok(read) = stream.read(&mut head).await else { return };
                if head[..read].starts_with(b"GET /hangs") {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                let body = r#"{"status":"ok","counters":{"messages_received":1,"messages_written":1}}"#;
                let text = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    Ok(format!("http://{address}"))
}

struct Bench {
    pool: PgPool,
    tenure: Tenure,
    url: String,
    services: usize,
}

impl Bench {
    async fn new() -> anyhow::Result<Self> {
        let url = std::env::var("DATABASE_URL").context("DATABASE_URL names the private PostgreSQL to measure on")?;
        let pool = PgPoolOptions::new().max_connections(10).connect(&url).await?;
        voiceai_postgres::migrate(&pool, &[COMMON, TASKER]).await?;
        let candidate = Candidate { name: "bench", service: "bench", holder: "bench", host: "here", pid: 1 };
        let issued = issue(&pool, &candidate, 0).await?;
        let tenure = Tenure::new(issued.term, boot_now().saturating_add(Duration::from_secs(3_600)), false);
        Ok(Self { pool, tenure, url: receiver().await?, services: number("BENCH_SERVICES", 1_000) })
    }

    /// `hanging` of the services never answer.
    fn all(&self, hanging: usize) -> Vec<Service> {
        let url = |n| if n < hanging { format!("{}/hangs/{n}", self.url) } else { format!("{}/s/{n}", self.url) };
        (0..self.services).filter_map(|n| Service::new(format!("service-{n:05}"), &url(n))).collect()
    }

    /// One round, in milliseconds, and how long the last of the healthy services waited for its row.
    async fn ours(&self, hanging: usize, limit: Duration) -> anyhow::Result<(f64, f64)> {
        let settings = MonitorSettings {
            services: self.all(hanging),
            interval: INTERVAL,
            timeout: limit,
            concurrency: CONCURRENCY,
            policy: Policy { alert_after: 1_000_000, recover_after: 1, alerts: true },
        };
        let monitor = Monitor::new(self.pool.clone(), Prober::new(&Rule::default(), limit)?, settings, nobody());
        let pulse = Vitals::new().register("bench", Duration::from_secs(3_600));
        let began: f64 = self.clock().await?;
        let round = monitor.round(&self.tenure, &pulse).await?;
        ensure!(round.asked == self.services, "{} of {} were asked", round.asked, self.services);
        let last: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM max(checked_at))::float8 FROM ops.service_health WHERE status = 'healthy'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((round.took.as_secs_f64() * 1_000.0, (last - began) * 1_000.0))
    }

    async fn clock(&self) -> anyhow::Result<f64> {
        Ok(sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8").fetch_one(&self.pool).await?)
    }

    /// The same requests by a bare client.
    async fn bare(&self) -> anyhow::Result<f64> {
        let client = http_client(&Rule::default()).pool_max_idle_per_host(0).build()?;
        let began = Instant::now();
        let well = stream::iter(self.all(0))
            .map(|service| {
                let client = client.clone();
                async move { client.get(service.url().expose()).send().await?.bytes().await }
            })
            .buffer_unordered(CONCURRENCY)
            .filter(|answer| std::future::ready(answer.is_ok()))
            .count()
            .await;
        ensure!(well == self.services, "the bare client got {well} answers");
        Ok(began.elapsed().as_secs_f64() * 1_000.0)
    }
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `ratio` above 1: ours is better.
fn row(work: &str, ours: &[f64], peer: Option<(&str, f64)>) -> Value {
    let low = ours.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ours.iter().copied().fold(0.0, f64::max);
    let ratio = peer.map(|(_, value)| value / median(ours));
    println!("{work:<72} {:>9.1} ms  peer {peer:?} ratio {ratio:?}", median(ours));
    json!({
        "work": work, "unit": "ms", "ours": median(ours), "peer": peer.map(|(_, value)| value),
        "peer_name": peer.map(|(name, _)| name), "ratio": ratio, "rounds": ours.len(), "min": low, "max": high,
    })
}

fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1)).map(|m| m.trim().to_owned());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map(usize::from).unwrap_or(0);
    json!({ "cpu": model, "cores": cores, "load_average": load.split_whitespace().next() })
}

async fn run() -> anyhow::Result<()> {
    let rounds = number("BENCH_ROUNDS", 3);
    let bench = Bench::new().await?;
    let limit = Duration::from_secs(2);
    let hanging = bench.services / 10;
    // A warm-up of both sides.
    bench.ours(0, limit).await?;
    bench.bare().await?;
    let (mut ours, mut bare, mut slow, mut healthy) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        ours.push(bench.ours(0, limit).await?.0);
        bare.push(bench.bare().await?);
        let (took, last) = bench.ours(hanging, limit).await?;
        slow.push(took);
        healthy.push(last);
    }
    let services = bench.services;
    let rows = vec![
        row(
            &format!("round over {services} watched services, states written"),
            &ours,
            Some(("bare client, nothing written", median(&bare))),
        ),
        row(&format!("the same with {hanging} that hang, time limit 2 s"), &slow, None),
        row("of it, until the last healthy one was asked", &healthy, None),
    ];
    let folder = std::env::var("BENCH_DIR").unwrap_or_else(|_| "target/bench".to_owned());
    std::fs::create_dir_all(&folder)?;
    let document = json!({ "machine": machine(), "rows": rows });
    std::fs::write(format!("{folder}/monitor.json"), serde_json::to_string_pretty(&document)?)?;
    let longest = ours.iter().chain(&slow).copied().fold(0.0, f64::max);
    ensure!(longest < INTERVAL.as_secs_f64() * 1_000.0, "a round took {longest:.0} ms, which is more than the interval");
    Ok(())
}
