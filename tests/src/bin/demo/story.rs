//! The story itself, chapter by chapter.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use voiceai_e2e::{Group, Platform};
use voiceai_testkit::Process;

use crate::timeline::Timeline;
use crate::world::{Leader, Operation, World};

const SCALER: &str = "voiceai-scaler";
const TASKER: &str = "voiceai-tasker";
const SCALER_KEY: &str = "voiceai:scaler:leader";
const TASKER_KEY: &str = "voiceai:tasker:leader";
const GROUP: Group<'_> =
    Group { name: "eu-voice", min: 1, max: 3, capacity: 10, cooldown_seconds: 2, boot_delay_ms: 1_500 };
const LOCK_TTL: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(30);
/// Longer than the scaler needs to take a server without calls away.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Two instances of one service.
struct Pair {
    a: (String, Process),
    b: (String, Process),
}

impl Pair {
    fn start(platform: &Platform, binary: &str) -> Self {
        let short = binary.trim_start_matches("voiceai-");
        let one = |letter: &str| {
            let name = format!("{short}-{letter}");
            let process = platform.start(binary, &name);
            (name, process)
        };
        Self { a: one("a"), b: one("b") }
    }

    fn named(&self, instance: &str) -> Result<&Process> {
        [&self.a, &self.b]
            .into_iter()
            .find(|(name, _)| name == instance)
            .map(|(_, process)| process)
            .with_context(|| format!("{instance} is none of ours"))
    }
}

/// Tells the whole story.
pub(crate) async fn tell(timeline: &Timeline, platform: &Platform) -> Result<()> {
    timeline.chapter("Two scalers and two taskers start");
    let scalers = Pair::start(platform, SCALER);
    let taskers = Pair::start(platform, TASKER);
    let mut world = timeline.until(SOON, "the stores answer", async || World::look(platform).await).await?;
    let scaler = led(timeline, &world, SCALER_KEY).await?;
    let tasker = led(timeline, &world, TASKER_KEY).await?;
    timeline
        .saw(format!("{} leads the scalers (term {}), the other stands by", scaler.instance, scaler.term));
    timeline
        .saw(format!("{} leads the taskers (term {}), the other stands by", tasker.instance, tasker.term));
    schedule_backup(timeline, platform).await?;

    timeline.chapter("A group of one to three voice servers is written into \"ServerGroup\"");
    platform.put_group(&world.pool, &GROUP).await?;
    watch_entry(timeline, &world, platform, 1).await?;

    timeline.chapter("Load rises: 8 calls, then 16, then 24, on servers that carry 10 each");
    for (servers, calls) in [(2, 8), (3, 16)] {
        world.callers.dial_up_to(calls).await?;
        timeline.did(format!("{calls} calls are running: {}", spread(&world)));
        watch_entry(timeline, &world, platform, servers).await?;
    }
    world.callers.dial_up_to(24).await?;
    world.callers.check_none_was_cut().await?;
    timeline.saw(format!("24 calls are running and heard: {}", spread(&world)));

    timeline.chapter("Load falls: all but three callers hang up");
    shrink(timeline, &mut world, platform).await?;

    timeline.chapter("The leading scaler is killed with -9 in the middle of an operation");
    kill_the_leader(timeline, &mut world, platform, &scalers).await?;

    timeline.chapter("The scheduled backup");
    prove_backup(timeline, platform).await?;

    timeline.chapter("Everything stops in order");
    world.callers.check_none_was_cut().await?;
    timeline.saw(format!(
        "no call was cut in the whole story; {} ended, {} are running",
        world.callers.ended(),
        world.callers.running()
    ));
    stop(timeline, &world, [&scalers.a, &scalers.b, &taskers.a, &taskers.b]).await
}

async fn led(timeline: &Timeline, world: &World, key: &str) -> Result<Leader> {
    timeline.until(SOON, format!("a leader under {key}"), async || world.leader(key).await).await
}

fn spread(world: &World) -> String {
    let counts = world.callers.by_server();
    counts.iter().map(|(server, calls)| format!("{server} {calls}")).collect::<Vec<_>>().join(", ")
}

/// Watches until `count` servers take calls, and sees that each new one entered the dispatcher set only after its heartbeat.
async fn watch_entry(timeline: &Timeline, world: &World, platform: &Platform, count: usize) -> Result<()> {
    let before: BTreeSet<String> = world.callers.destinations().await?.into_iter().map(|d| d.name).collect();
    let mut reported = before.clone();
    let settled = timeline.until(SOON, format!("{count} servers in service"), async || {
        for record in world.callers.destinations().await? {
            if record.takes_calls() && !reported.contains(&record.name) {
                // The record was read first: were there no heartbeat now, there was none when the record was written.
                let beat = world.heartbeat(&record.name).await?;
                if beat.is_none() {
                    // Not a matter of waiting: it has been seen.
                    return Ok(Err(record.name));
                }
                timeline
                    .saw(format!("{} beat first, and then took calls at {}", record.name, record.address));
                reported.insert(record.name);
            }
        }
        world.settled(platform, count).await.map(Ok)
    });
    match settled.await? {
        Ok(names) => {
            timeline.saw(format!("{count} in service: {}", names.join(", ")));
            Ok(())
        }
        Err(name) => bail!("{name} took calls before its first heartbeat"),
    }
}

async fn shrink(timeline: &Timeline, world: &mut World, platform: &Platform) -> Result<()> {
    world.callers.hang_up_to(1).await;
    timeline.did(format!("one call goes on at each server: {}", spread(world)));
    for _ in 0..2 {
        let name = timeline
            .until(SOON, "a server drains", async || {
                let records = world.callers.destinations().await?;
                let taken_out = records.into_iter().find(|record| !record.takes_calls());
                Ok(taken_out.context("every server takes new calls")?.name)
            })
            .await?;
        timeline.saw(format!("{name} drains: it takes no new calls, and its running call goes on"));
        let begun = Instant::now();
        while begun.elapsed() < LAST_WORDS {
            world.callers.check_none_was_cut().await?;
            let status = world.servers().await?.get(&name).cloned();
            ensure!(status.as_deref() == Some("draining"), "{name} carries a call and is {status:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        timeline
            .saw(format!("after {} s its call still runs; now the caller hangs up", LAST_WORDS.as_secs()));
        world.callers.hang_up_on(&name).await;
        timeline
            .until(SOON, format!("{name} is deleted"), async || {
                ensure!(!world.servers().await?.contains_key(&name), "{name} is in the table");
                ensure!(!world.processes(platform)?.contains(&name), "{name} still runs");
                let records = world.callers.destinations().await?;
                ensure!(records.iter().all(|record| record.name != name), "{name} is in the dispatcher set");
                ensure!(world.heartbeat(&name).await?.is_none(), "{name} left its heartbeat key behind");
                Ok(())
            })
            .await?;
        timeline.saw(format!("{name} is deleted, and nothing of it is left"));
    }
    let left = timeline.until(SOON, "the minimum", async || world.settled(platform, 1).await).await?;
    world.callers.check_none_was_cut().await?;
    timeline.saw(format!("the group is at its minimum: {}; no running call was cut", left.join(", ")));
    Ok(())
}

/// An operation that makes a server and is far from its end.
fn under_way(operations: &[Operation], known: &BTreeSet<String>) -> Option<Operation> {
    operations
        .iter()
        .find(|o| {
            o.kind == "up"
                && !o.finished
                && !known.contains(&o.id)
                && ["created", "running"].contains(&&*o.state)
        })
        .cloned()
}

async fn kill_the_leader(
    timeline: &Timeline,
    world: &mut World,
    platform: &Platform,
    scalers: &Pair,
) -> Result<()> {
    let known: BTreeSet<String> = world.operations().await?.into_iter().map(|o| o.id).collect();
    world.callers.dial_up_to(8).await?;
    timeline.did("8 calls are running again: a second server is needed");
    let operation = timeline
        .until(SOON, "an operation under way", async || {
            under_way(&world.operations().await?, &known).context("no server is being made")
        })
        .await?;
    let old = world.leader(SCALER_KEY).await?;
    scalers.named(&old.instance)?.kill9();
    let killed = Instant::now();
    timeline.did(format!("kill -9 {}, while {} is `{}`", old.instance, operation.server, operation.state));
    let limit = LOCK_TTL + HEARTBEAT + Duration::from_secs(1);
    let new = timeline
        .until(limit, "the other scaler leads", async || {
            let now = world.leader(SCALER_KEY).await?;
            ensure!(now.instance != old.instance, "{} still holds the lease", old.instance);
            Ok(now)
        })
        .await?;
    ensure!(new.term > old.term, "the term did not rise: {} after {}", new.term, old.term);
    timeline.saw(format!(
        "{} took over after {:.1} s (limit {:.0} s), term {} after {}",
        new.instance,
        killed.elapsed().as_secs_f64(),
        limit.as_secs_f64(),
        new.term,
        old.term
    ));
    let done = timeline
        .until(SOON, "that very operation is finished", async || {
            let all = world.operations().await?;
            let same =
                all.into_iter().find(|o| o.id == operation.id).context("the operation's row is gone")?;
            ensure!(same.finished, "it is `{}`", same.state);
            Ok(same)
        })
        .await?;
    ensure!(done.state == "done", "the operation ended as `{}`", done.state);
    let terms: BTreeSet<i64> =
        world.steps(&operation.id).await?.into_iter().filter_map(|(_, term)| term).collect();
    ensure!(
        terms == BTreeSet::from([old.term, new.term]),
        "steps of that operation should bear both terms, they bear {terms:?}"
    );
    timeline.until(SOON, "two servers in service", async || world.settled(platform, 2).await).await?;
    let made: Vec<String> = world
        .operations()
        .await?
        .into_iter()
        .filter(|o| o.kind == "up" && !known.contains(&o.id))
        .map(|o| o.server)
        .collect();
    ensure!(made == [operation.server.clone()], "one server was needed, these were made: {made:?}");
    timeline.saw(format!("it finished {}'s own operation; no second server was made", operation.server));
    world.callers.check_none_was_cut().await
}

async fn tasker(platform: &Platform, args: &[&str]) -> Result<serde_json::Value> {
    let output = platform.command(TASKER, args).await?;
    ensure!(
        output.code == 0,
        "`{TASKER} {}` ended with {}: {}{}",
        args.join(" "),
        output.code,
        output.stdout,
        output.stderr
    );
    output.json()
}

const SCHEDULE: &str = "database-backup";

async fn schedule_backup(timeline: &Timeline, platform: &Platform) -> Result<()> {
    timeline
        .until(SOON, "the backup's schedule", async || {
            tasker(
                platform,
                &[
                    "cron",
                    "set",
                    SCHEDULE,
                    "--cron",
                    "* * * * *",
                    "--enabled",
                    "true",
                    "--yes",
                    "--reason",
                    "demo",
                    "--json",
                ],
            )
            .await
        })
        .await?;
    timeline.did("the backup is scheduled for every full minute");
    Ok(())
}

async fn prove_backup(timeline: &Timeline, platform: &Platform) -> Result<()> {
    let id = timeline
        .until(Duration::from_secs(75), "a backup in the bucket", async || {
            let listed = tasker(platform, &["backup", "list", "--json"]).await?;
            let newest = listed["backups"].get(0).context("the bucket holds no finished backup yet")?;
            Ok(newest["id"].as_str().context("a backup without an id")?.to_owned())
        })
        .await?;
    timeline.saw(format!("the schedule fired and backup {id} is in the bucket"));
    // Otherwise the next minute's backup would run beside the proof.
    tasker(platform, &["cron", "pause", SCHEDULE, "--yes", "--reason", "demo", "--json"]).await?;
    let proof = tasker(platform, &["backup", "verify", &id, "--json"]).await?;
    ensure!(proof["proved"].as_bool() == Some(true), "the restore proved nothing: {proof}");
    timeline.saw(format!(
        "it was restored into a scratch database: {} tables, {} rows, all counts equal",
        proof["tables"], proof["rows"]
    ));
    Ok(())
}

async fn stop(timeline: &Timeline, world: &World, processes: [&(String, Process); 4]) -> Result<()> {
    let running: Vec<_> = processes.into_iter().filter(|(_, process)| process.exit().is_none()).collect();
    ensure!(running.len() == 3, "three of four processes should be running, {} are", running.len());
    for (_, process) in &running {
        process.terminate();
    }
    for (name, process) in &running {
        let exit = timeline
            .until(SOON, format!("{name} ends"), async || process.exit().context("it still runs"))
            .await?;
        ensure!(exit == voiceai_testkit::Exit::Code(0), "{name} ended with {exit:?}");
    }
    for key in [SCALER_KEY, TASKER_KEY] {
        ensure!(world.redis.get(key).await?.is_none(), "{key} was not given up");
    }
    timeline.saw("SIGTERM: all ended with 0 and gave up their leases");
    Ok(())
}
