//! Backups and exports by the real service: how long they take, and by how much its memory grows meanwhile.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;

use crate::{Peer, Row, median, number, text};

/// What the service's own memory may grow by, in MB.
const MEMORY_MB: f64 = 64.0;
/// How often an end is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// What is written down of backups and, where not only they are asked for, of exports.
pub async fn measure(pool: &PgPool, rounds: usize, backups_alone: bool) -> anyhow::Result<Vec<Row>> {
    let count = number("BENCH_ROWS", 1_000_000);
    fill(pool, count).await?;
    let mut rows = if backups_alone { Vec::new() } else { exports(pool, rounds, count).await? };
    rows.extend(backups(pool, rounds).await?);
    Ok(rows)
}

/// A table as a platform has one: short columns, times, a little JSON; about 250 bytes a row.
async fn fill(pool: &PgPool, count: usize) -> anyhow::Result<()> {
    for statement in [
        "CREATE TABLE IF NOT EXISTS public.devices (device_id text PRIMARY KEY, tenant_id text, status text, site_id text, \
             firmware text, calls bigint, load float8, seen_at timestamptz, settings jsonb, note text)",
        "TRUNCATE public.devices",
    ] {
        sqlx::query(statement).execute(pool).await?;
    }
    sqlx::query(
        "INSERT INTO public.devices SELECT 'device-' || n, 'tenant-' || n % 100, CASE WHEN n % 3 = 0 THEN 'ONLINE' ELSE 'STALE' END, \
             'site-' || n % 1000, '1.' || n % 20, n * 7, n / 3.0, timestamptz '2026-01-01 00:00Z' + n * interval '1 second', \
             jsonb_build_object('codec', 'opus', 'jitter_ms', n % 50), md5(n::text) || md5((n + 1)::text) || md5((n + 2)::text) \
         FROM generate_series(1, $1) n",
    )
    .bind(i32::try_from(count)?)
    .execute(pool)
    .await?;
    sqlx::query("VACUUM ANALYZE public.devices").execute(pool).await?;
    Ok(())
}

async fn exports(pool: &PgPool, rounds: usize, count: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let speed = |took: Duration| count as f64 / took.as_secs_f64();
    let mut peer = Vec::new();
    for format in ["csv", "ndjson", "parquet"] {
        let (mut ours, mut grown) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            // A service of its own each time: memory that an earlier one got is not this one's growth.
            let tasker = Tasker::start()?;
            let took = export(pool, format, count).await?;
            let grew = tasker.grown_mb()?;
            drop(tasker);
            let psql = if format == "csv" { Some(psql()?) } else { None };
            // The first round warms up.
            if round > 0 {
                ours.push(speed(took));
                grown.push(grew);
                peer.extend(psql.map(speed));
            }
        }
        rows.push(Row {
            work: format!("export of {count} rows to {format}, stored in the bucket"),
            unit: "rows/s",
            ours,
            peer: Some(Peer { name: "psql COPY TO STDOUT, piped", value: median(&peer), more: true }),
        });
        rows.push(memory(format!("memory grown by meanwhile, {format}"), grown));
    }
    Ok(rows)
}

fn memory(work: String, grown: Vec<f64>) -> Row {
    Row { work, unit: "MB", ours: grown, peer: Some(Peer { name: "limit", value: MEMORY_MB, more: false }) }
}

/// From the order to the row that says it is stored.
async fn export(pool: &PgPool, format: &str, count: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let order = "INSERT INTO ops.export_jobs (export_type, format, created_by) VALUES ('devices', $1, 'bench') RETURNING id::text";
    let id: String = sqlx::query_scalar(order).bind(format).fetch_one(pool).await?;
    loop {
        let look = "SELECT status, row_count, error FROM ops.export_jobs WHERE id = $1::uuid";
        let (status, rows, error): (String, Option<i64>, Option<String>) =
            sqlx::query_as(look).bind(&id).fetch_one(pool).await?;
        match status.as_str() {
            "COMPLETED" => {
                ensure!(rows == Some(i64::try_from(count)?), "{rows:?} rows");
                return Ok(begun.elapsed());
            }
            "FAILED" => bail!("the export failed: {error:?}"),
            _ => tokio::time::sleep(LOOK).await,
        }
        ensure!(begun.elapsed() < Duration::from_secs(1_800), "no export within half an hour: {error:?}");
    }
}

fn psql() -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let line = "psql -Xq \"$DATABASE_URL\" -c 'COPY (SELECT * FROM public.devices) TO STDOUT WITH (FORMAT csv, HEADER true)' | cat >/dev/null";
    ensure!(Command::new("bash").args(["-o", "pipefail", "-c", line]).status()?.success(), "psql failed");
    Ok(begun.elapsed())
}

async fn backups(pool: &PgPool, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut grown, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    let client = std::env::var("AWS_CLI").ok().filter(|client| !client.is_empty());
    for _ in 0..rounds {
        let tasker = Tasker::start()?;
        ours.push(backup(pool).await?.as_secs_f64());
        grown.push(tasker.grown_mb()?);
        drop(tasker);
        if client.is_some() {
            peer.push(dump()?.as_secs_f64());
        }
    }
    let by_hand = Peer { name: "pg_dump -Fc | aws s3 cp", value: median(&peer), more: false };
    Ok(vec![
        Row {
            work: "backup of the same database, manifest included".to_owned(),
            unit: "s",
            ours,
            peer: client.is_some().then_some(by_hand),
        },
        memory("memory grown by meanwhile, backup".to_owned(), grown),
    ])
}

/// From the job to the row that says it is stored.
async fn backup(pool: &PgPool) -> anyhow::Result<Duration> {
    let stored = async || {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM ops.backups WHERE state = 'stored'").fetch_one(pool).await?;
        anyhow::Ok(count)
    };
    let before = stored().await?;
    let begun = Instant::now();
    sqlx::query("INSERT INTO ops.outbox (kind) VALUES ('backup.database')").execute(pool).await?;
    while stored().await? == before {
        ensure!(begun.elapsed() < Duration::from_secs(1_800), "no backup within half an hour");
        tokio::time::sleep(LOOK).await;
    }
    Ok(begun.elapsed())
}

/// What a script would do.
fn dump() -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let line = "pg_dump -Fc \"$DATABASE_URL\" | \"$AWS_CLI\" --endpoint-url \"$S3_ENDPOINT\" s3 cp --quiet - \"s3://$S3_BUCKET/bench.dump\"";
    let ran = Command::new("bash")
        .args(["-o", "pipefail", "-c", line])
        .env("AWS_ACCESS_KEY_ID", text("S3_ACCESS_KEY")?)
        .env("AWS_SECRET_ACCESS_KEY", text("S3_SECRET_KEY")?)
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .status()?;
    ensure!(ran.success(), "pg_dump or the store's client failed");
    Ok(begun.elapsed())
}

/// The service, ready.
struct Tasker {
    child: Child,
    /// Its memory when it was ready, in kB.
    at_rest: u64,
}

impl Tasker {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(text("TASKER_BINARY")?)
            .arg("run")
            .env("RUNTIME_DIR", text("BENCH_DIR")?)
            .env("INSTANCE_ID", "bench")
            .env("LEADER_LOCK_TTL_MS", "1000")
            .env("LEADER_HEARTBEAT_INTERVAL_MS", "200")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start TASKER_BINARY")?;
        let mut lines = BufReader::new(child.stderr.take().context("its log")?).lines();
        let mut last = String::new();
        for line in lines.by_ref() {
            last = line?;
            if last.contains("service ready") {
                std::thread::spawn(move || lines.for_each(drop));
                // The first looks of its loops belong to the start.
                std::thread::sleep(Duration::from_secs(2));
                let at_rest = memory_kb(child.id(), "VmRSS")?;
                return Ok(Self { child, at_rest });
            }
        }
        bail!("the tasker ended: {last}")
    }

    /// By how much its memory has grown at most.
    fn grown_mb(&self) -> anyhow::Result<f64> {
        let most = memory_kb(self.child.id(), "VmHWM")?;
        Ok(most.saturating_sub(self.at_rest) as f64 / 1_024.0)
    }
}

impl Drop for Tasker {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn memory_kb(pid: u32, what: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    Ok(line.context("its memory")?.trim().trim_end_matches(" kB").parse()?)
}
