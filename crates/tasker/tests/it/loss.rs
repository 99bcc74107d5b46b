//! Nothing that was accepted is lost while the leader, other taskers and Redis are killed and paused.

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_testkit::{Process, RedisOptions, RedisServer, wait_for};

use crate::stage::{Answer, PATIENCE, Stage, answer};

/// Three taskers on a Redis of their own.
struct House {
    stage: Stage,
    redis: RedisServer,
    taskers: Vec<Process>,
}

impl House {
    async fn start() -> Self {
        let stage = Stage::new().await;
        let redis = RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await;
        let mut house = Self { stage, redis, taskers: Vec::new() };
        for n in 0..3 {
            let tasker = house.tasker(n);
            tasker.wait_for_line(PATIENCE, "service ready").await;
            house.taskers.push(tasker);
        }
        house
    }

    fn tasker(&self, n: usize) -> Process {
        let instance = format!("tasker-{n}");
        let program = self.stage.program().env("REDIS_URL", self.redis.url()).env("INSTANCE_ID", instance);
        program.env("WORKER_CONCURRENCY", "20").arg("run").start()
    }

    async fn ask(&self, arguments: &[&str]) -> Answer {
        answer(self.stage.program().env("REDIS_URL", self.redis.url()).args(arguments)).await
    }

    /// Which of them leads.
    async fn leader(&self) -> usize {
        wait_for(PATIENCE, "a leader among the living", async || {
            let text = self.redis.cli(&["GET", "voiceai:tasker:leader"]).await;
            let pid = serde_json::from_str::<Value>(&text).ok().and_then(|holder| holder["pid"].as_i64());
            let found = self.taskers.iter().position(|tasker| Some(i64::from(tasker.pid())) == pid);
            found.ok_or(text)
        })
        .await
    }
}

async fn rounds(jobs: usize, faults: usize) {
    let mut house = House::start().await;
    let lines: String = (0..jobs)
        .map(|n| {
            format!(
                "{{\"kind\":\"diagnostic.probe\",\"payload\":{{\"sleep_ms\":20,\"effect\":\"e{n}\"}},\"id\":\"j{n}\"}}\n"
            )
        })
        .collect();
    let file = house.stage.file("jobs.ndjson", &lines);
    house.ask(&["jobs", "enqueue", "--file", &file]).await.text(0);
    for fault in 0..faults {
        // The leader, then another; each killed, paused beyond its lease, or left without its Redis.
        let leader = house.leader().await;
        let victim = if fault % 2 == 0 { leader } else { (leader + 1) % 3 };
        match fault % 3 {
            0 => {
                house.taskers[victim].kill9();
                house.taskers[victim] = house.tasker(victim);
            }
            1 => {
                house.taskers[victim].pause();
                tokio::time::sleep(Duration::from_secs(12)).await;
                house.taskers[victim].resume();
            }
            _ => {
                house.redis.kill9().await;
                house.redis.restart(false).await;
            }
        }
    }
    let stats = wait_for(Duration::from_secs(120), "all is worked off", async || {
        let stats = house.ask(&["jobs", "stats", "--queue", "default", "--json"]).await;
        let stats: Value = serde_json::from_str(&stats.stdout).unwrap_or_default();
        let open = ["waiting", "delayed", "active"].iter().all(|state| stats[state] == 0);
        if open { Ok(stats) } else { Err(stats.to_string()) }
    })
    .await;
    assert_eq!((&stats["completed"], &stats["dead"]), (&json!(jobs), &json!(0)), "{stats}");
    assert_eq!(stats["queues"][0]["balances"], true);
    let flat = house.redis.cli(&["HVALS", "voiceai:diagnostic:effects"]).await;
    let counts: Vec<u32> = flat.lines().map(|count| count.parse().unwrap()).collect();
    let repeated = counts.iter().filter(|count| **count > 1).count();
    println!("{jobs} jobs, {faults} faults: {} lost, {repeated} repeated", jobs - counts.len());
    assert_eq!(counts.len(), jobs, "none is lost");
    // One pool's worth at most of each fault.
    assert!(repeated <= faults * 20, "{repeated}");
    assert!(house.taskers.iter().all(|tasker| tasker.exit().is_none()), "losing Redis ends none");
}

#[tokio::test]
async fn no_job_is_lost_with_the_leader_its_followers_or_redis() {
    rounds(2_000, 3).await;
}

#[tokio::test]
#[ignore = "the long form: minutes"]
async fn no_job_is_lost_in_thirty_faults_of_the_leader_its_followers_and_redis() {
    rounds(40_000, 30).await;
}
