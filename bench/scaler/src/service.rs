//! The real service, measured by what it says of itself.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::world::World;

/// Evaluations measured a round, after the first one.
const EVALUATIONS: usize = 8;

/// The parts of an evaluation, in their order.
pub const PARTS: [&str; 4] = ["read", "decide", "write", "route"];

/// What was seen of one fleet.
pub struct Seen {
    /// Milliseconds of one evaluation: the median of each round.
    pub evaluations: Vec<f64>,
    /// Milliseconds from the election to the end of the first evaluation.
    pub takeovers: Vec<f64>,
    /// Milliseconds of each part of the last evaluation, and of the last first one.
    pub parts: [Vec<f64>; 2],
    /// Redis commands an evaluation, leases and all between two of them included.
    pub redis_commands: f64,
    /// SQL transactions likewise, and those of the start.
    pub statements: f64,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the service once a round: the first evaluation is a successor's, who finds everything as its predecessor left it.
pub fn measure(world: &World, rounds: usize, servers: u32) -> Result<Seen> {
    let mut seen = Seen {
        evaluations: Vec::new(),
        takeovers: Vec::new(),
        parts: Default::default(),
        redis_commands: 0.0,
        statements: 0.0,
    };
    // The round before the first one leaves the routing records behind.
    for round in 0..=rounds {
        let mut child = world.scaler(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().context("its output")?).lines();
        let running = Running(child);
        let (mut elected, mut first, mut took) = (None, None, Vec::new());
        let mut commands = 0.0;
        let transactions = world.transactions()?;
        let until = Instant::now() + Duration::from_secs(300);
        for line in lines {
            ensure!(Instant::now() < until, "no evaluations within five minutes");
            let Ok(line) = serde_json::from_str::<Value>(&line?) else { continue };
            let at = || line["timestamp"].as_str().context("a time")?.parse::<Timestamp>().context("a time");
            match line["message"].as_str() {
                Some("leader elected") => elected = Some(at()?),
                Some("evaluation made") => {
                    ensure!(line["servers"].as_u64() == Some(u64::from(servers)), "another fleet: {line}");
                    let parts: Option<Vec<f64>> =
                        PARTS.iter().map(|part| number(&line[format!("{part}_ms")])).collect();
                    seen.parts[usize::from(first.is_none())] = parts.context("its parts")?;
                    if first.is_none() {
                        first = Some(at()?);
                        commands = world.redis_commands()?;
                    } else {
                        took.push(number(&line["took_ms"]).context("took_ms")?);
                    }
                }
                Some("evaluation not made; trying again at the next one") => anyhow::bail!("{line}"),
                _ => {}
            }
            if took.len() == EVALUATIONS {
                break;
            }
        }
        ensure!(took.len() == EVALUATIONS, "the service ended");
        if round > 0 {
            let takeover = first.context("a first")?.duration_since(elected.context("an election")?);
            seen.takeovers.push(takeover.as_secs_f64() * 1_000.0);
            seen.evaluations.push(crate::median(&took));
            seen.redis_commands = (world.redis_commands()? - commands) / EVALUATIONS as f64;
        }
        drop(running);
        // A connection tells what it counted when it ends.
        std::thread::sleep(Duration::from_secs(1));
        seen.statements = (world.transactions()? - transactions) / (EVALUATIONS as f64 + 1.0);
    }
    Ok(seen)
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}
