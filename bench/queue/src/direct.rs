//! The director: sets our side against its peers on the same private Redis, round by round, and writes the table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use voiceai_redis::{Redis, RedisSettings, Value};

/// Whether more or less is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    Bullmq,
    Apalis,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Bullmq => "bullmq",
            Self::Apalis => "apalis-redis",
        }
    }
}

struct Row {
    work: &'static str,
    unit: &'static str,
    better: Better,
    /// Compared with this row's own median instead of a peer's: (work, name in the table).
    against: Option<(&'static str, &'static str)>,
}

const fn row(work: &'static str, unit: &'static str, better: Better) -> Row {
    Row { work, unit, better, against: None }
}

const fn same_as(work: &'static str, unit: &'static str, than: &'static str) -> Row {
    Row { work, unit, better: Better::More, against: Some((than, "ours, 200,000 waiting")) }
}

const DRAIN: &str = "drain 200,000 waiting no-op jobs, concurrency 100";

const ROWS: &[Row] = &[
    row(DRAIN, "jobs/s", Better::More),
    row("drain, history of every end", "jobs/s", Better::More),
    row("Redis CPU per whole job, no AOF", "us", Better::Less),
    row("Redis CPU per whole job, AOF everysec", "us", Better::Less),
    row("enqueue one at a time, 100 in flight", "jobs/s", Better::More),
    row("enqueue in bulks of 1,000", "jobs/s", Better::More),
    row("pick-up by an idle worker, p50", "us", Better::Less),
    row("pick-up by an idle worker, p99", "us", Better::Less),
    row("Redis bytes per waiting job of 200 B", "bytes", Better::Less),
    row("worker CPU per job", "us", Better::Less),
    row("worker memory, peak", "MB", Better::Less),
    row("5,000 handlers of 50 ms, concurrency 500", "jobs/s", Better::More),
    same_as("drain 200,000 beside 1,000,000 delayed, right after loading", "jobs/s", DRAIN),
    same_as("drain 1,000,000 waiting beside 1,000,000 delayed", "jobs/s", DRAIN),
    same_as("drain 200,000 with 10,000 in flight elsewhere", "jobs/s", DRAIN),
    row("bare limit: the same bytes pushed and popped in lots", "jobs/s", Better::More),
];

struct Bench {
    url: String,
    redis: Redis,
    bullmq: Option<PathBuf>,
    apalis: Option<PathBuf>,
    found: BTreeMap<&'static str, BTreeMap<Who, Vec<f64>>>,
}

/// Everything: a warm-up, then three rounds, each side in turn.
pub async fn run(url: &str) -> anyhow::Result<()> {
    let redis = Redis::connect(&RedisSettings::from_url(url)?).await?;
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut bench = Bench {
        url: url.to_owned(),
        redis,
        bullmq: path("BENCH_BULLMQ"),
        apalis: path("BENCH_APALIS"),
        found: BTreeMap::new(),
    };
    let rounds: usize = std::env::var("BENCH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    bench.guard().await?;
    eprintln!("warm-up");
    bench.drain(Who::Ours, 50_000).await?;
    bench.found.clear();
    for round in 1..=rounds {
        for who in [Who::Ours, Who::Bullmq, Who::Apalis] {
            if bench.has(who) {
                eprintln!("round {round} of {rounds}: {}", who.name());
                bench.round(who).await?;
            }
        }
        eprintln!("round {round} of {rounds}: large cases");
        bench.large().await?;
        // After each round: a run that is cut short leaves what it has.
        bench.write(round).await?;
    }
    bench.flush().await
}

impl Bench {
    fn has(&self, who: Who) -> bool {
        match who {
            Who::Ours => true,
            Who::Bullmq => self.bullmq.is_some(),
            Who::Apalis => self.apalis.is_some(),
        }
    }

    /// Everything is flushed between measurements: never on a Redis that holds anything.
    async fn guard(&self) -> anyhow::Result<()> {
        let keys: i64 = self.redis.command("DBSIZE", Vec::<Value>::new()).await?;
        ensure!(keys == 0, "the Redis of REDIS_URL is not empty: benches need a private one");
        Ok(())
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let _: Value = self.redis.command("FLUSHALL", vec!["SYNC"]).await?;
        Ok(())
    }

    async fn info(&self, field: &str) -> anyhow::Result<f64> {
        let text: String = self.redis.command("INFO", Vec::<Value>::new()).await?;
        let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|v| v.trim().parse().ok()).with_context(|| format!("INFO has no {field}"))
    }

    async fn cpu(&self) -> anyhow::Result<f64> {
        Ok(self.info("used_cpu_user_main_thread").await? + self.info("used_cpu_sys_main_thread").await?)
    }

    fn command(&self, who: Who, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = match (who, &self.bullmq, &self.apalis) {
            (Who::Ours, ..) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("ours");
                command
            }
            (Who::Bullmq, Some(folder), _) => {
                let mut command = Command::new("node");
                command.arg("bench.mjs").current_dir(folder);
                command
            }
            (Who::Apalis, _, Some(binary)) => Command::new(binary),
            _ => bail!("{} is not installed", who.name()),
        };
        command.args(args).env("REDIS_URL", &self.url).kill_on_drop(true);
        Ok(command)
    }

    async fn child(&self, who: Who, args: &[&str]) -> anyhow::Result<Json> {
        let limit = std::time::Duration::from_secs(300);
        let out = tokio::time::timeout(limit, self.command(who, args)?.stderr(Stdio::inherit()).output())
            .await
            .with_context(|| format!("{} {args:?} did not end within {limit:?}", who.name()))??;
        ensure!(out.status.success(), "{} {args:?}: {}", who.name(), out.status);
        let text = String::from_utf8(out.stdout)?;
        let line = text.lines().last().with_context(|| format!("{} {args:?} printed nothing", who.name()))?;
        Ok(serde_json::from_str(line)?)
    }

    fn note(&mut self, work: &'static str, who: Who, value: f64) {
        self.found.entry(work).or_default().entry(who).or_default().push(value);
    }

    /// Load and drain; answers Redis's CPU per whole job in µs.
    async fn drain(&mut self, who: Who, jobs: usize) -> anyhow::Result<f64> {
        self.flush().await?;
        let n = jobs.to_string();
        let count = jobs as f64;
        let (memory, cpu) = (self.info("used_memory").await?, self.cpu().await?);
        let load = self.child(who, &["load", &n]).await?;
        let bytes = (self.info("used_memory").await? - memory) / count;
        let drain = self.child(who, &["drain", &n, "100"]).await?;
        let cpu = (self.cpu().await? - cpu) * 1e6 / count;
        self.note("enqueue in bulks of 1,000", who, count / number(&load, "seconds")?);
        self.note("Redis bytes per waiting job of 200 B", who, bytes);
        self.note(DRAIN, who, count / number(&drain, "seconds")?);
        self.note("worker CPU per job", who, number(&drain, "work_cpu_seconds")? * 1e6 / count);
        self.note("worker memory, peak", who, number(&drain, "memory_mb")?);
        Ok(cpu)
    }

    async fn round(&mut self, who: Who) -> anyhow::Result<()> {
        // apalis-redis fails with "too many results to unpack" when more than about 8,000 jobs wait, so it gets fewer.
        let jobs = if who == Who::Apalis { 5_000 } else { 200_000 };
        let cpu = self.drain(who, jobs).await?;
        self.note("Redis CPU per whole job, no AOF", who, cpu);
        if who == Who::Apalis {
            return Ok(());
        }
        self.flush().await?;
        let single = self.child(who, &["single", "100000", "100"]).await?;
        self.note("enqueue one at a time, 100 in flight", who, 100_000.0 / number(&single, "seconds")?);
        self.flush().await?;
        let pickup = self.child(who, &["pickup", "300"]).await?;
        self.note("pick-up by an idle worker, p50", who, number(&pickup, "p50_us")?);
        self.note("pick-up by an idle worker, p99", who, number(&pickup, "p99_us")?);
        self.flush().await?;
        self.child(who, &["load", "5000"]).await?;
        let slow = self.child(who, &["slow", "5000", "500"]).await?;
        self.note("5,000 handlers of 50 ms, concurrency 500", who, 5_000.0 / number(&slow, "seconds")?);
        self.with_aof(who).await?;
        if who == Who::Ours {
            self.flush().await?;
            self.child(who, &["load", "200000"]).await?;
            let told = self.child(who, &["drain-told", "200000", "100"]).await?;
            self.note("drain, history of every end", who, 200_000.0 / number(&told, "seconds")?);
            self.flush().await?;
            let bare = self.child(who, &["bare", "200000"]).await?;
            let seconds = number(&bare, "seconds")? + number(&bare, "push_seconds")?;
            self.note("bare limit: the same bytes pushed and popped in lots", who, 200_000.0 / seconds);
        }
        Ok(())
    }

    async fn with_aof(&mut self, who: Who) -> anyhow::Result<()> {
        self.flush().await?;
        let _: Value = self.redis.command("CONFIG", vec!["SET", "appendonly", "yes"]).await?;
        while self.info("aof_rewrite_in_progress").await? > 0.0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let before: Vec<_> = self.found.iter().map(|(work, by)| (*work, by.get(&who).map_or(0, Vec::len))).collect();
        let cpu = self.drain(who, 100_000).await;
        // Only the cost is this row's; the rates with AOF would spoil the others.
        for (work, len) in before {
            if let Some(values) = self.found.get_mut(work).and_then(|by| by.get_mut(&who)) {
                values.truncate(len);
            }
        }
        let _: Value = self.redis.command("CONFIG", vec!["SET", "appendonly", "no"]).await?;
        self.note("Redis CPU per whole job, AOF everysec", who, cpu?);
        Ok(())
    }

    /// Our own large cases.
    async fn large(&mut self) -> anyhow::Result<()> {
        let rate = |report: &Json, jobs: f64| Ok::<_, anyhow::Error>(jobs / number(report, "seconds")?);
        self.flush().await?;
        self.child(Who::Ours, &["delayed", "1000000"]).await?;
        self.child(Who::Ours, &["load", "200000"]).await?;
        let fresh = self.child(Who::Ours, &["drain", "200000", "100"]).await?;
        let work = "drain 200,000 beside 1,000,000 delayed, right after loading";
        self.note(work, Who::Ours, rate(&fresh, 200_000.0)?);
        self.child(Who::Ours, &["load", "1000000"]).await?;
        let million = self.child(Who::Ours, &["drain", "1000000", "100"]).await?;
        self.note("drain 1,000,000 waiting beside 1,000,000 delayed", Who::Ours, rate(&million, 1_000_000.0)?);
        self.flush().await?;
        self.child(Who::Ours, &["load", "10000"]).await?;
        let mut holder = self.command(Who::Ours, &["hold", "10000"])?;
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(holder.stdout.take().context("its output")?).lines();
        lines.next_line().await?.context("the holder ended")?;
        self.child(Who::Ours, &["load", "200000"]).await?;
        let busy = self.child(Who::Ours, &["drain", "200000", "100"]).await?;
        self.note("drain 200,000 with 10,000 in flight elsewhere", Who::Ours, rate(&busy, 200_000.0)?);
        if let Some(mut input) = holder.stdin.take() {
            input.write_all(b"\n").await?;
        }
        let _ = tokio::time::timeout(std::time::Duration::from_secs(60), holder.wait()).await;
        // Kept until here: the holder's last line needs a reader.
        drop(lines);
        Ok(())
    }

    async fn write(&self, rounds: usize) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for row in ROWS {
            let Some(by) = self.found.get(row.work) else { continue };
            let Some(ours) = by.get(&Who::Ours) else { continue };
            let (min, max) = (fold(ours, f64::min), fold(ours, f64::max));
            let ours = median(ours);
            let mut peers: Vec<(String, f64)> = [Who::Bullmq, Who::Apalis]
                .into_iter()
                .filter_map(|who| Some((who.name().to_owned(), median(by.get(&who)?))))
                .collect();
            if let Some((than, name)) = row.against
                && let Some(values) = self.found.get(than).and_then(|by| by.get(&Who::Ours))
            {
                peers.push((name.to_owned(), median(values)));
            }
            let plain = json!({ "work": row.work, "unit": row.unit, "ours": round(ours), "rounds": rounds,
                "min": round(min), "max": round(max), "peer": null, "peer_name": null, "ratio": null });
            if peers.is_empty() {
                rows.push(plain);
                continue;
            }
            for (name, peer) in peers {
                let ratio = if row.better == Better::More { ours / peer } else { peer / ours };
                let mut row = plain.clone();
                row["peer"] = json!(round(peer));
                row["peer_name"] = json!(name);
                row["ratio"] = json!(round(ratio));
                rows.push(row);
            }
        }
        let info: String = self.redis.command("INFO", vec!["server"]).await?;
        let version = info.lines().find_map(|l| l.strip_prefix("redis_version:")).unwrap_or("?").to_owned();
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("?");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let report = json!({
            "machine": {
                "cpu": model,
                "cores": std::thread::available_parallelism().map_or(0, usize::from),
                "redis": version,
                "load_average_1m": load.split(' ').next().and_then(|l| l.parse::<f64>().ok()),
                "conditions": "metrics on, attempt limit on, spans unsampled, history of failures, one warm-up",
            },
            "rows": rows,
        });
        let folder = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("queue.json");
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
        print_table(&report);
        eprintln!("written: {}", file.display());
        Ok(())
    }
}

fn number(report: &Json, field: &str) -> anyhow::Result<f64> {
    report[field].as_f64().with_context(|| format!("no {field} in {report}"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn fold(values: &[f64], by: impl Fn(f64, f64) -> f64) -> f64 {
    values.iter().copied().reduce(by).unwrap_or(f64::NAN)
}

fn round(value: f64) -> f64 {
    if value.abs() >= 1_000.0 { value.round() } else { (value * 100.0).round() / 100.0 }
}

fn print_table(report: &Json) {
    println!("{:<62} {:>7} {:>12} {:>12} {:>8}  {}", "work", "unit", "ours", "peer", "ratio", "peer name");
    for row in report["rows"].as_array().into_iter().flatten() {
        let text = |name: &str| match &row[name] {
            Json::Null => "-".to_owned(),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        println!(
            "{:<62} {:>7} {:>12} {:>12} {:>8}  {}",
            text("work"),
            text("unit"),
            text("ours"),
            text("peer"),
            text("ratio"),
            text("peer_name")
        );
    }
}
