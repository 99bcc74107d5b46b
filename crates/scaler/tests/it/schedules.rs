//! Random schedules of kills and pauses: two scalers, one of which leads, are killed or stopped at random points of random
//! operations while the group grows and shrinks. However it goes, each operation makes one server or none, and in the end there
//! is what was asked for, routed once, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use voiceai_postgres::sqlx;
use voiceai_scaler_core::State;
use voiceai_testkit::{Process, wait_for};

use crate::crash::Stub;

/// A busy machine may take its time for a take-over or two.
const SETTLES: Duration = Duration::from_secs(60);
/// Most servers at a time.
const SERVERS_MAX: u64 = 3;

/// Splitmix64: the seed is printed with a failure, and repeats it.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// A point of an operation at which a leader ends, or stands still.
    fn failpoint(&mut self) -> String {
        let state = State::ALL[usize::try_from(self.roll(State::ALL.len() as u64)).expect("small")];
        let side = if self.roll(2) == 0 { "before" } else { "after" };
        let action = if self.roll(4) == 0 { "stop" } else { "abort" };
        format!("op.{}.{side}={action}@{}", state.as_str(), 1 + self.roll(2))
    }
}

struct Schedule {
    stub: Stub,
    dice: Dice,
    seed: u64,
    scalers: Vec<Process>,
    started: u32,
    log: Vec<String>,
}

impl Schedule {
    async fn new(seed: u64) -> Self {
        let stub = Stub::new().await;
        Self { stub, dice: Dice(seed), seed, scalers: Vec::new(), started: 0, log: Vec::new() }
    }

    fn start(&mut self, doomed: bool) {
        self.started += 1;
        let name = format!("s{}", self.started);
        let process = if doomed {
            let point = self.dice.failpoint();
            self.log.push(format!("{name} starts with {point}"));
            self.stub.stack.scaler_with_failpoint(&name, &point)
        } else {
            self.stub.stack.scaler(&name)
        };
        self.scalers.push(process);
    }

    /// Two of them, each doomed at some point or not.
    fn man(&mut self) {
        self.scalers.retain(|one| one.exit().is_none());
        while self.scalers.len() < 2 {
            let doomed = self.dice.roll(3) > 0;
            self.start(doomed);
        }
    }

    /// One round: a new size, and faults while it is reached.
    async fn round(&mut self, number: usize) {
        let size = 1 + self.dice.roll(SERVERS_MAX);
        self.log.push(format!("round {number}: {size} servers"));
        self.man();
        let servers = i32::try_from(size).expect("small");
        // One after the other, as a person would: a drain of the last one would be refused.
        self.stub
            .group(servers, servers, json!({"maxSurge": 3, "maxDrain": 3, "maxCreatesPerHour": 1000}))
            .await;
        for _ in 0..self.dice.roll(4) {
            tokio::time::sleep(Duration::from_millis(self.dice.roll(700))).await;
            let which = usize::try_from(self.dice.roll(self.scalers.len() as u64)).expect("small");
            let one = &self.scalers[which];
            match self.dice.roll(3) {
                0 => {
                    self.log.push(format!("kill {}", one.pid()));
                    one.kill9();
                }
                1 => {
                    // For longer than its lease lasts, so that another one leads meanwhile.
                    self.log.push(format!("pause {}", one.pid()));
                    one.pause();
                    let pause = 400 + self.dice.roll(900);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    one.resume();
                }
                _ => self.log.push("nothing".to_owned()),
            }
            self.man();
        }
        // From here on nobody is doomed; who stands still at a point goes on.
        for one in &self.scalers {
            one.resume();
        }
        self.start(false);
        self.settle(size).await;
        self.check().await;
        // Names need not rest, so that their heartbeats and records of before are met again.
        self.stub
            .stack
            .database
            .execute("UPDATE ops.servers SET gone_at = gone_at - interval '1 hour' WHERE gone_at IS NOT NULL")
            .await;
        // The one that was started last stays, with one beside it.
        let last = self.scalers.pop().expect("it was started");
        for one in self.scalers.drain(..) {
            one.kill9();
        }
        self.scalers.push(last);
    }

    async fn settle(&self, size: u64) {
        let what = format!("seed {}: {size} servers in service; {:#?}", self.seed, self.log);
        let stack = &self.stub.stack;
        wait_for(SETTLES, what, async || {
            // Standing still at a point of its own, it would only be fenced; it holds nothing up.
            for one in &self.scalers {
                one.resume();
            }
            let servers = stack.servers().await;
            let active: BTreeSet<&str> = servers
                .iter()
                .filter(|(_, status)| status == "active")
                .map(|(name, _)| name.as_str())
                .collect();
            let records = stack.records().await;
            let routed: BTreeSet<&str> =
                records.iter().filter(|(_, flags)| flags == "8").map(|(name, _)| name.as_str()).collect();
            let open = self.stub.open().await;
            let there = self.stub.there();
            let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
            let whole = active.len() as u64 == size
                && servers.len() == active.len()
                && records.len() == routed.len()
                && active == routed
                && active == there
                && open == 0;
            if whole { Ok(()) } else { Err(format!("{servers:?} {records:?} {open} open, there: {there:?}")) }
        })
        .await;
    }

    async fn check(&self) {
        let told = || format!("seed {}: {:#?}", self.seed, self.log);
        // One server an operation, whoever asked for it how often.
        let mut made: BTreeMap<String, u32> = BTreeMap::new();
        for operation in self.stub.made_by() {
            *made.entry(operation).or_default() += 1;
        }
        assert!(made.values().all(|times| *times == 1), "{made:?} {}", told());
        let stack = &self.stub.stack;
        let known: Vec<(String,)> = sqlx::query_as("SELECT made_by::text FROM ops.servers")
            .fetch_all(&stack.pool)
            .await
            .expect("rows");
        let known: BTreeSet<&str> = known.iter().map(|(id,)| id.as_str()).collect();
        assert!(made.keys().all(|operation| known.contains(operation.as_str())), "{made:?} {}", told());
        // A row is written by the newest leader or not at all: terms never fall.
        for table in ["operation_steps", "decisions"] {
            let (fell,): (i64,) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "SELECT count(*) FROM (SELECT term, max(term) OVER (ORDER BY id) AS newest FROM ops.{table} \
                 WHERE term IS NOT NULL) t WHERE term < newest"
            )))
            .fetch_one(&stack.pool)
            .await
            .expect("a number");
            assert_eq!(fell, 0, "ops.{table} {}", told());
        }
        let failed = stack
            .number("SELECT count(*) FROM ops.operations WHERE state IN ('failed', 'failed_clean')")
            .await;
        assert_eq!(failed, 0, "nothing went wrong but the leaders {}", told());
    }
}

async fn run(seed: u64, rounds: usize) {
    let mut schedule = Schedule::new(seed).await;
    for number in 0..rounds {
        schedule.round(number).await;
    }
    assert!(schedule.started as usize > rounds, "leaders were replaced");
}

#[tokio::test]
async fn any_kill_and_any_pause_leaves_one_server_an_operation() {
    run(1, 8).await;
}

#[tokio::test]
async fn any_other_kill_and_pause_does_so_too() {
    run(2, 8).await;
}

#[tokio::test]
async fn and_so_does_any_third_series() {
    run(3, 8).await;
}

#[tokio::test]
#[ignore = "long"]
async fn hundreds_of_schedules_of_kills_and_pauses() {
    let base: u64 =
        std::env::var("VOICEAI_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1000);
    tokio::join!(run(base, 75), run(base + 1, 75), run(base + 2, 75), run(base + 3, 75));
}
