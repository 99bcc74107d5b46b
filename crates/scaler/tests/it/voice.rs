//! Real calls through a real Kamailio: servers come and go, leaders die, Redis is lost, and no caller notices.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use voiceai_testkit::{
    Kamailio, KamailioOptions, Process, RedisOptions, RedisServer, Sipp, SippCounts, SippOptions, wait_for,
    wait_until,
};

use crate::harness::Stack;

/// For one change of the fleet on a busy machine, calls and all.
const WITHIN: Duration = Duration::from_secs(60);

/// A platform with telephones.
pub(crate) struct Platform {
    pub(crate) stack: Stack,
    pub(crate) records: RedisServer,
    pub(crate) kamailio: Kamailio,
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Kamailio looks at the generation; the scaler does not know its address.
    Pull,
    /// The scaler tells Kamailio; it does not look.
    Push,
    /// Both.
    Both,
}

impl Platform {
    pub(crate) async fn new(kind: Kind) -> Self {
        let mut stack = Stack::new().await;
        let records = RedisServer::start(RedisOptions::default()).await;
        stack.set("DISPATCHER_REDIS_URL", &format!("redis://127.0.0.1:{}/1", records.port()));
        let kamailio = Kamailio::start(KamailioOptions {
            pull: matches!(kind, Kind::Pull | Kind::Both),
            push: matches!(kind, Kind::Push | Kind::Both),
            ..KamailioOptions::new(records.port(), 1)
        })
        .await;
        if !matches!(kind, Kind::Pull) {
            stack.set("KAMAILIO_RPC_URLS", &kamailio.rpc_url());
        }
        Self { stack, records, kamailio }
    }

    /// The group's configuration: Kamailio looks every two seconds and probes every second.
    pub(crate) fn config(&self) -> Value {
        let mut config = self.stack.config();
        config["routingSettleSeconds"] = json!(5);
        config["capacity"] = json!(200);
        config["maxDrain"] = json!(2);
        config["maxSurge"] = json!(2);
        config
    }

    /// Wants exactly so many servers.
    pub(crate) async fn want(&self, servers: i32) {
        self.stack.group("eu", servers, servers, &self.config()).await;
    }

    /// Name and flags of each record.
    pub(crate) async fn records(&self) -> Vec<(String, String)> {
        let keys = self.records.cli(&["-n", "1", "KEYS", "dispatcher:entry::*"]).await;
        let mut records = Vec::new();
        for key in keys.lines().filter(|key| !key.is_empty()) {
            let flags = self.records.cli(&["-n", "1", "HGET", key, "flags"]).await;
            records.push((key.trim_start_matches("dispatcher:entry::").to_owned(), flags));
        }
        records.sort();
        records
    }

    /// Waits until so many servers are in service, all of them in routing, and nothing is going on.
    pub(crate) async fn wait_settled(&self, servers: usize) -> Vec<String> {
        self.wait_settled_with(servers, &[]).await
    }

    /// The same beside records of others.
    pub(crate) async fn wait_settled_with(&self, servers: usize, foreign: &[&str]) -> Vec<String> {
        wait_for(WITHIN, format!("{servers} servers in service"), async || {
            let rows = self.stack.servers().await;
            let mut records = self.records().await;
            records.retain(|(name, _)| !foreign.contains(&name.as_str()));
            let open =
                self.stack.number("SELECT count(*) FROM ops.operations WHERE finished_at IS NULL").await;
            let active = rows.iter().all(|(_, status)| status == "active");
            let routed = records.iter().all(|(_, flags)| flags == "8");
            let names: Vec<String> = rows.iter().map(|(name, _)| name.clone()).collect();
            let listed: Vec<String> = records.iter().map(|(name, _)| name.clone()).collect();
            if active && routed && open == 0 && names.len() == servers && names == listed {
                Ok(names)
            } else {
                Err(format!("{rows:?} {records:?} {open} open"))
            }
        })
        .await
    }

    /// The server that is being drained.
    pub(crate) async fn draining(&self) -> String {
        let servers = self.stack.servers().await;
        let draining = servers.iter().find(|(_, status)| status == "draining");
        draining.unwrap_or_else(|| panic!("none drains: {servers:?}")).0.clone()
    }

    /// Waits until Kamailio has these servers, by its own word, with flags that begin with these letters.
    pub(crate) async fn wait_listed(&self, wanted: &[(&str, &str)]) {
        wait_for(WITHIN, format!("Kamailio lists {wanted:?}"), async || {
            let seen = self.listed().await;
            let same = seen.len() == wanted.len()
                && wanted.iter().all(|(name, flags)| {
                    seen.iter().any(|(have, letters)| have == name && letters.starts_with(flags))
                });
            if same { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }

    /// Kamailio's destinations: server and state.
    pub(crate) async fn listed(&self) -> Vec<(String, String)> {
        let body = self.kamailio.rpc("dispatcher.list", "[]").await;
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let sets = answer["result"]["RECORDS"].as_array().cloned().unwrap_or_default();
        let targets =
            sets.iter().flat_map(|set| set["SET"]["TARGETS"].as_array().cloned().unwrap_or_default());
        let mut listed: Vec<(String, String)> = targets
            .map(|target| (text(&target["DEST"]["ATTRS"]["DUID"]), text(&target["DEST"]["FLAGS"])))
            .collect();
        listed.sort();
        listed
    }

    pub(crate) fn call(&self, rate: u32) -> Sipp {
        Sipp::start(self.kamailio.sip_port(), SippOptions { rate, ..SippOptions::default() })
    }

    pub(crate) async fn wait_state(&self, kind: &'static str, state: &'static str, count: i64) {
        let sql = match (kind, state) {
            ("up", "routed") => "SELECT count(*) FROM ops.operations WHERE kind = 'up' AND state = 'routed'",
            ("down", "draining") => {
                "SELECT count(*) FROM ops.operations WHERE kind = 'down' AND state = 'draining'"
            }
            ("down", "forced") => "SELECT count(*) FROM ops.operation_steps WHERE to_state = 'forced'",
            ("down", "done") => "SELECT count(*) FROM ops.operations WHERE kind = 'down' AND state = 'done'",
            _ => unreachable!("{kind} {state}"),
        };
        wait_until(WITHIN, format!("{count} operations {kind} {state}"), async || {
            self.stack.number(sql).await >= count
        })
        .await;
    }
}

pub(crate) async fn end(calls: &Sipp, at_least: u64) -> SippCounts {
    let counts = calls.finish(WITHIN).await;
    assert_eq!(counts.failed, 0, "failed or cut: {counts:?}\n{}", calls.errors());
    assert_eq!(counts.successful, counts.created, "{counts:?}");
    assert!(counts.successful >= at_least, "only {counts:?}");
    counts
}

/// Up, drained and down again under calls that never stop, a leader killed in the middle of each.
async fn cycles(kind: Kind, cycles: u32, rate: u32, at_least: u64) {
    let platform = Platform::new(kind).await;
    platform.want(1).await;
    let mut leaders: Vec<Process> = vec![platform.stack.scaler("a"), platform.stack.scaler("b")];
    platform.wait_settled(1).await;
    let first = platform.listed_first().await;
    let began = Instant::now();
    let calls = platform.call(rate);
    for cycle in 0..cycles {
        platform.want(3).await;
        platform.wait_state("up", "routed", 1).await;
        platform.kill_leader(&mut leaders, &format!("up-{cycle}")).await;
        platform.wait_settled(3).await;
        platform.want(1).await;
        platform.wait_state("down", "draining", 1).await;
        platform.kill_leader(&mut leaders, &format!("down-{cycle}")).await;
        platform.wait_settled(1).await;
        let counts = calls.counts();
        assert_eq!(counts.failed, 0, "cycle {cycle}: {counts:?}\n{}", calls.errors());
    }
    wait_until(WITHIN, "enough calls", async || calls.counts().created >= at_least).await;
    let counts = end(&calls, at_least).await;
    let removed =
        platform.stack.number("SELECT count(*) FROM ops.operations WHERE kind = 'down' AND state = 'done'");
    assert_eq!(removed.await, i64::from(cycles) * 2);
    let forced = platform.stack.number("SELECT count(*) FROM ops.operation_steps WHERE to_state = 'forced'");
    assert_eq!(forced.await, 0, "no call was ended by a deadline");
    assert_eq!(platform.stack.processes(), 1, "nothing is leaked");
    eprintln!(
        "{cycles} cycles in {:.0} s: {} calls, {} failed; {} leaders killed; first server {first}",
        began.elapsed().as_secs_f64(),
        counts.successful,
        counts.failed,
        cycles * 2,
    );
}

impl Platform {
    /// Waits for the first server to be in service by Kamailio's own word, where it can be asked.
    async fn listed_first(&self) -> String {
        let names = self.wait_settled(1).await;
        let sip = self.kamailio.sip_port();
        wait_for(WITHIN, "a first call is answered", async || {
            let one = Sipp::start(
                sip,
                SippOptions {
                    rate: 1,
                    calls: Some(1),
                    talk: (Duration::from_millis(1), Duration::from_millis(2)),
                },
            );
            let counts = one.wait(WITHIN).await;
            if counts.successful == 1 { Ok(()) } else { Err(one.errors()) }
        })
        .await;
        names[0].clone()
    }

    /// SIGKILL to whoever leads; another takes over, and a fresh one stands by.
    async fn kill_leader(&self, leaders: &mut Vec<Process>, next: &str) {
        let holder = async || {
            let lease = self.stack.redis.cli(&["GET", "voiceai:scaler:leader"]).await;
            let lease: Value = serde_json::from_str(&lease).unwrap_or_default();
            lease["pid"].as_i64()
        };
        let place = wait_for(WITHIN, "a leader", async || {
            let pid = holder().await;
            leaders.iter().position(|leader| Some(i64::from(leader.pid())) == pid).ok_or(format!("{pid:?}"))
        })
        .await;
        let killed = leaders.remove(place);
        killed.kill9();
        let pid = i64::from(killed.pid());
        wait_until(WITHIN, "another leads", async || holder().await.is_some_and(|now| now != pid)).await;
        leaders.push(self.stack.scaler(next));
    }
}

#[tokio::test]
async fn no_call_is_lost_while_the_fleet_grows_and_shrinks_and_leaders_die() {
    cycles(Kind::Pull, 1, 10, 100).await;
}

#[tokio::test]
#[ignore = "long"]
async fn no_call_is_lost_in_three_cycles_of_each_kind() {
    cycles(Kind::Pull, 3, 20, 500).await;
    cycles(Kind::Push, 3, 20, 500).await;
    cycles(Kind::Both, 3, 20, 500).await;
}

#[tokio::test]
async fn the_shipped_configurations_are_sound() {
    let repository = crate::harness::repository();
    let shipped = Kamailio::check(&repository.join("deploy/kamailio/site.cfg")).await;
    assert!(shipped.0, "{}", shipped.1);
    for (pull, push) in [(true, false), (false, true), (true, true)] {
        let kamailio = Kamailio::prepare(KamailioOptions { pull, push, ..KamailioOptions::new(6379, 1) });
        let (sound, said) = Kamailio::check(&kamailio.site()).await;
        assert!(sound, "pull {pull}, push {push}: {said}");
        // Kamailio passes over some mistakes with a word.
        assert!(!said.contains("ERROR") && !said.contains("WARNING"), "pull {pull}, push {push}: {said}");
    }
    let broken = Kamailio::prepare(KamailioOptions {
        defines: vec![("DISPATCHER_SET", "nonsense nonsense".to_owned())],
        ..KamailioOptions::new(6379, 1)
    });
    assert!(!Kamailio::check(&broken.site()).await.0, "the check finds what is wrong");
}

#[tokio::test]
async fn a_drain_outlasts_reloads_restarts_and_the_loss_of_redis() {
    let mut platform = Platform::new(Kind::Both).await;
    platform.want(2).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(2).await;
    let (one, two) = (names[0].as_str(), names[1].as_str());
    platform.wait_listed(&[(one, "A"), (two, "A")]).await;
    // A call that lasts keeps the drain open for as long as this needs.
    let held = [platform.stack.call(one), platform.stack.call(two)];
    let calls = platform.call(5);
    platform.want(1).await;
    platform.wait_state("down", "draining", 1).await;
    let draining = platform.draining().await;
    let other = if draining == one { two } else { one };
    platform.wait_listed(&[(&draining, "D"), (other, "A")]).await;

    let reloaded = platform.kamailio.rpc("dispatcher.reload", "[]").await;
    assert!(reloaded.contains("result") || reloaded.contains("Ongoing"), "{reloaded}");
    platform.wait_listed(&[(&draining, "D"), (other, "A")]).await;

    platform.kamailio.restart().await;
    platform.wait_listed(&[(&draining, "D"), (other, "A")]).await;

    platform.records.cli(&["-n", "1", "FLUSHDB"]).await;
    wait_for(WITHIN, "the records are back", async || {
        let records = platform.records().await;
        if records.contains(&(draining.clone(), "12".to_owned())) && records.len() == 2 {
            Ok(())
        } else {
            Err(format!("{records:?}"))
        }
    })
    .await;
    // Nothing but the whole set was ever loaded: Kamailio saw no generation while there was none.
    platform.wait_listed(&[(&draining, "D"), (other, "A")]).await;
    platform.records.restart(true).await;
    platform.wait_listed(&[(&draining, "D"), (other, "A")]).await;
    wait_for(WITHIN, "the records are back again", async || {
        let records = platform.records().await;
        if records.len() == 2 { Ok(()) } else { Err(format!("{records:?}")) }
    })
    .await;
    drop(held);
    platform.wait_settled(1).await;
    end(&calls, 20).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_no_call_and_an_empty_set_is_told_at_once() {
    let platform = Platform::new(Kind::Pull).await;
    let one = SippOptions { rate: 5, calls: Some(1), ..SippOptions::default() };
    let refused = Sipp::start(platform.kamailio.sip_port(), one);
    assert_eq!(refused.wait(WITHIN).await.failed, 1);
    assert!(refused.errors().contains("503 No Voice Server"), "{}", refused.errors());

    platform.want(2).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(2).await;
    let kamailio = &platform.kamailio;
    let called = async |calls: u32| {
        let options = SippOptions { rate: 5, calls: Some(calls), ..SippOptions::default() };
        let calls = Sipp::start(kamailio.sip_port(), options);
        let counts = calls.wait(WITHIN).await;
        assert_eq!(counts.failed, 0, "{}", calls.errors());
        counts.successful
    };
    assert_eq!(called(4).await, 4);
    platform.stack.signal(&names[0], Signal::SIGSTOP);
    // Some are sent there, wait two seconds, and go to the other one; soon the probes have found out.
    assert_eq!(called(10).await, 10);
    platform.stack.signal(&names[0], Signal::SIGCONT);
    assert_eq!(called(10).await, 10);
}

#[tokio::test]
async fn a_server_whose_address_is_lost_keeps_its_record() {
    let stack = Stack::new().await;
    stack.group("eu", 1, 1, &stack.config()).await;
    let _scaler = stack.scaler("a");
    stack.wait_settled(&["test-voice-01"]).await;
    stack.database.execute("UPDATE ops.servers SET ip = NULL, private_ip = NULL").await;
    let decisions = stack.number("SELECT count(*) FROM ops.decisions").await;
    wait_for(WITHIN, "some more evaluations", async || {
        let made = stack.number("SELECT count(*) FROM ops.decisions").await;
        if made > decisions + 5 { Ok(()) } else { Err(format!("{made}")) }
    })
    .await;
    assert_eq!(stack.records().await, [("test-voice-01".to_owned(), "8".to_owned())]);
}
