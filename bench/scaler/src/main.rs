//! The scaler's benches: how long one evaluation takes, of fleets of several sizes, by the real service on real stores; how
//! many round trips it makes; how soon a successor has made its first one; and what a decision alone costs.
//!
//! Needs REDIS_URL (a database that may be emptied), DATABASE_URL (likewise), SCALER_BINARY and BENCH_DIR. BENCH_ROUNDS: 3.

mod decision;
mod service;
mod world;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What was measured of one kind of work.
pub struct Row {
    work: String,
    unit: &'static str,
    /// One value a round.
    rounds: Vec<f64>,
    /// What it may be at most.
    limit: Option<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        let ours = self.median();
        let best = self.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let worst = self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        json!({
            "work": self.work, "unit": self.unit, "ours": ours, "peer": self.limit,
            "peer_name": if self.limit.is_some() { "limit" } else { "" },
            "ratio": self.limit.map(|limit| limit / ours), "rounds": self.rounds.len(), "min": best, "max": worst,
        })
    }
}

fn main() -> Result<()> {
    let rounds: usize = std::env::var("BENCH_ROUNDS").ok().map_or(Ok(3), |text| text.parse())?;
    let folder = PathBuf::from(std::env::var("BENCH_DIR").context("BENCH_DIR")?);
    let world = world::World::from_environment()?;
    let mut rows = vec![decision::per_group(rounds)];
    let mut per_server = Vec::new();
    // BENCH_GROUPS: only the fleet of so many groups.
    let only: Option<u32> = std::env::var("BENCH_GROUPS").ok().and_then(|text| text.parse().ok());
    for (groups, servers) in [(10, 5), (200, 50), (500, 50), (1_000, 50)] {
        if only.is_some_and(|only| only != groups) {
            continue;
        }
        let big = groups == 1_000;
        eprintln!("{groups} groups x {servers} servers");
        world.fill(groups, servers)?;
        let seen = service::measure(&world, rounds, groups * servers)?;
        let fleet = format!("{groups} groups x {servers} servers");
        eprintln!("{:?} ms: {:?}, of a first one {:?}", service::PARTS, seen.parts[0], seen.parts[1]);
        if servers == 50 {
            per_server.push(median(&seen.evaluations) * 1_000.0 / f64::from(groups * servers));
        }
        rows.push(Row {
            work: format!("one evaluation, {fleet}"),
            unit: "ms",
            rounds: seen.evaluations,
            limit: big.then_some(1_000.0),
        });
        rows.push(Row {
            work: format!("elected to first evaluation made, {fleet}"),
            unit: "ms",
            rounds: seen.takeovers,
            limit: big.then_some(1_000.0),
        });
        rows.push(Row {
            work: format!("Redis commands an evaluation, {fleet}"),
            unit: "commands",
            rounds: vec![seen.redis_commands],
            limit: None,
        });
        rows.push(Row {
            work: format!("SQL transactions an evaluation, start included, {fleet}"),
            unit: "transactions",
            rounds: vec![seen.statements],
            limit: None,
        });
    }
    for row in &rows {
        let limit = row.limit.map(|limit| format!(" (limit {limit})")).unwrap_or_default();
        println!("{:<70} {:>12.2} {}{limit}", row.work, row.median(), row.unit);
    }
    println!("microseconds a server, by growing fleet: {per_server:.2?}");
    let machine = json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "at": jiff::Timestamp::now().to_string(),
    });
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    let file = folder.join("scaler.json");
    std::fs::write(&file, serde_json::to_string_pretty(&json!({"machine": machine, "rows": rows}))?)?;
    eprintln!("written to {}", file.display());
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
