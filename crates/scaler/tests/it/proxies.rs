//! Proxies that are told by JSON-RPC: verified, bounded when they hang, and asked before a server goes.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use voiceai_testkit::{
    Cluster, Exit, Kamailio, KamailioOptions, RedisOptions, RedisServer, Sipp, SippOptions, wait_for,
    wait_until,
};

use crate::harness::Stack;
use crate::voice::{Kind, Platform, end};

const WITHIN: Duration = Duration::from_secs(60);

impl Platform {
    /// What `status` shows of the proxies.
    async fn shown(&self) -> Vec<Value> {
        let status = self.stack.json(&["status"]).await;
        status["proxies"].as_array().cloned().unwrap_or_default()
    }

    async fn wait_shown(&self, what: &str, mut check: impl FnMut(&[Value]) -> bool) {
        wait_for(WITHIN, format!("status shows {what}"), async || {
            let shown = self.shown().await;
            if check(&shown) { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }

    async fn record(&self, name: &str, fields: &[&str]) {
        let key = format!("dispatcher:entry::{name}");
        let command: Vec<&str> =
            ["-n", "1", "HSET", &key].into_iter().chain(fields.iter().copied()).collect();
        self.records.cli(&command).await;
    }
}

#[tokio::test]
async fn a_change_is_pushed_and_verified() {
    let platform = Platform::new(Kind::Push).await;
    platform.want(1).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(1).await;
    platform.wait_listed(&[(&names[0], "A")]).await;
    let generation = platform.records.cli(&["-n", "1", "GET", "voiceai:dispatcher:generation"]).await;
    let generation: i64 = generation.parse().expect("a number");
    platform
        .wait_shown("a verified proxy", |shown| {
            shown.len() == 1
                && shown[0]["verified"] == true
                && shown[0]["verified_generation"] == generation
                && shown[0]["destinations"] == 1
        })
        .await;
    assert_eq!(platform.shown().await[0]["proxy"], platform.kamailio.rpc_url());
    // Whoever sets a state by hand is corrected by the next change or look, and not only told of.
    let (code, stdout, stderr) = platform.stack.run(&["doctor", "--json"]).await;
    let lines: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {code} {stderr}"));
    let lines = lines["checks"].as_array().cloned().unwrap_or_default();
    let result = |check: &str| {
        let line = lines.iter().find(|line| line["check"] == check);
        line.map_or_else(|| panic!("no check {check}: {lines:?}"), |line| line["result"].clone())
    };
    assert_eq!((result("dispatcher.proxies"), result("dispatcher.records")), (json!("ok"), json!("ok")));
}

#[tokio::test]
async fn a_proxy_that_hangs_or_is_away_holds_nothing_up_and_is_shown() {
    let mut platform = Platform::new(Kind::Push).await;
    // Takes connections and answers nothing; and nobody there at all.
    let hanging = Kamailio::start(KamailioOptions::new(platform.records.port(), 1)).await;
    hanging.pause();
    let urls =
        [platform.kamailio.rpc_url(), hanging.rpc_url(), "http://127.0.0.1:9/RPC".to_owned()].join(",");
    platform.stack.set("KAMAILIO_RPC_URLS", &urls);
    platform.stack.set("KAMAILIO_RPC_TIMEOUT_MS", "500");
    platform.want(2).await;
    let scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(2).await;
    platform.wait_listed(&[(&names[0], "A"), (&names[1], "A")]).await;
    platform
        .wait_shown("one verified, two not", |shown| {
            let verified = |at: usize| shown.get(at).is_some_and(|proxy| proxy["verified"] == true);
            verified(0) && shown.len() == 3 && !verified(1) && !verified(2)
        })
        .await;
    let shown = platform.shown().await;
    assert_eq!(shown[1]["error"], "no answer: time is up");
    assert!(shown[2]["error"].as_str().is_some_and(|error| error.starts_with("no answer: ")), "{shown:?}");
    let calls = platform.call(5);
    let began = Instant::now();
    platform.want(1).await;
    let left = platform.wait_settled(1).await;
    // 5 s to settle, up to 3 s of talk, two heartbeats, three askings of half a second.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    end(&calls, 10).await;
    hanging.resume();
    platform.wait_shown("the second verified", |shown| shown[1]["verified"] == true).await;
    let body = hanging.rpc("dispatcher.list", "[]").await;
    assert!(body.contains(&left[0]), "it has caught up: {body}");
    assert!(scaler.exit().is_none());
}

/// Hangs up towards the server as the caller would, past the proxy, which goes on to count the call.
fn hang_up_past_the_proxy(calls: &Value) {
    let text = |call: &Value, pointer: &str| {
        call.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{pointer}: {call}"))
            .to_owned()
    };
    for call in calls.as_array().expect("calls") {
        let server = text(call, "/callee/contact").trim_start_matches("sip:").to_owned();
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        let own = socket.local_addr().expect("an address");
        let bye = format!(
            "BYE sip:{server} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bKpast{}\r\nMax-Forwards: 9\r\n\
             From: <{}>;tag={}\r\nTo: <{}>;tag={}\r\nCall-ID: {}\r\nCSeq: 9 BYE\r\nContent-Length: 0\r\n\r\n",
            text(call, "/caller/tag"),
            text(call, "/from_uri"),
            text(call, "/caller/tag"),
            text(call, "/to_uri"),
            text(call, "/callee/tag"),
            text(call, "/call-id"),
        );
        socket.send_to(bye.as_bytes(), &server).expect("sent");
        let mut answer = [0; 2048];
        let read = socket.recv(&mut answer).expect("an answer");
        assert!(answer[..read].starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&answer[..read]));
    }
}

/// A call on each of these servers, by Kamailio's and by their own word. Kamailio takes turns, but only among those whose
/// probes it has an answer of: in service by the rows is not enough.
async fn a_call_each(platform: &Platform, servers: &[String], talk: Duration) -> Sipp {
    let wanted: Vec<(&str, &str)> = servers.iter().map(|name| (name.as_str(), "A")).collect();
    platform.wait_listed(&wanted).await;
    let count = u32::try_from(servers.len()).expect("few");
    let calls = Sipp::start(
        platform.kamailio.sip_port(),
        SippOptions { rate: 10, calls: Some(count), talk: (talk, talk + Duration::from_millis(1)) },
    );
    wait_for(WITHIN, "a call on each server", async || {
        let mut said = Vec::new();
        for name in servers {
            let size =
                platform.kamailio.rpc("dlg.profile_get_size", &json!(["voicenode", name]).to_string()).await;
            let size: Value = serde_json::from_str(&size).unwrap_or_default();
            let beat = platform.stack.redis.cli(&["GET", &format!("voiceai:heartbeat:{name}")]).await;
            let beat: Value = serde_json::from_str(&beat).unwrap_or_default();
            said.push((size["result"].clone(), beat["active"].clone()));
        }
        if said.iter().all(|one| *one == (json!(1), json!(1))) { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    calls
}

#[tokio::test]
async fn a_call_that_only_the_proxy_knows_of_holds_a_drain() {
    let platform = Platform::new(Kind::Push).await;
    platform.want(2).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(2).await;
    let calls = a_call_each(&platform, &names, Duration::from_secs(25)).await;
    platform.want(1).await;
    platform.wait_state("down", "draining", 1).await;
    let draining = platform.draining().await;
    let listed = platform.kamailio.rpc("dlg.profile_list", &json!(["voicenode", draining]).to_string()).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["result"].as_array().map(Vec::len), Some(1), "{listed}");
    hang_up_past_the_proxy(&listed["result"]);
    wait_for(WITHIN, "the drain says what it waits for", async || {
        let status = platform.stack.json(&["status"]).await;
        let operation = status["operations"][0].clone();
        let waits =
            operation["error"].as_str().is_some_and(|error| error.ends_with("still counts calls of it"));
        if waits && operation["state"] == "draining" { Ok(()) } else { Err(operation.to_string()) }
    })
    .await;
    let beat = platform.stack.redis.cli(&["GET", &format!("voiceai:heartbeat:{draining}")]).await;
    assert!(beat.contains(r#""active":0"#), "by its heartbeat it is empty: {beat}");
    // Two more rounds of heartbeats change nothing.
    let beats = async || platform.stack.redis.cli(&["GET", &format!("voiceai:heartbeat:{draining}")]).await;
    for _ in 0..5 {
        let before = beats().await;
        wait_until(WITHIN, "another heartbeat", async || beats().await != before).await;
    }
    assert_eq!(platform.draining().await, draining);
    // The callers hang up: the proxy counts nothing any more.
    calls.wait(WITHIN).await;
    platform.wait_settled(1).await;
    assert!(names.contains(&draining));
}

#[tokio::test]
async fn at_its_deadline_a_drain_ends_the_calls_on_both_sides() {
    let platform = Platform::new(Kind::Push).await;
    platform.want(2).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(2).await;
    let calls = a_call_each(&platform, &names, Duration::from_secs(50)).await;
    let mut config = platform.config();
    config["drainTimeoutSeconds"] = json!(1);
    config["drainDeadline"] = json!("end");
    platform.stack.group("eu", 1, 1, &config).await;
    platform.wait_state("down", "forced", 1).await;
    platform.wait_settled(1).await;
    // The caller whose call was ended heard it from the proxy, long before it would have hung up.
    wait_until(Duration::from_secs(10), "one call was ended", async || calls.counts().failed == 1).await;
    assert!(calls.errors().contains("BYE"), "{}", calls.errors());
    assert_eq!(calls.counts().current, 1, "the other one goes on");
}

#[tokio::test]
async fn a_record_that_would_end_kamailio_is_moved_away_before_anybody_loads_it() {
    let platform = Platform::new(Kind::Both).await;
    platform.want(1).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(1).await;
    platform.wait_listed(&[(&names[0], "A")]).await;
    // No destination: Kamailio would end, and not start again. A text, and letters for flags: no load would succeed.
    platform.record("half", &["setid", "1", "flags", "8"]).await;
    platform.records.cli(&["-n", "1", "SET", "dispatcher:entry::text", "nonsense"]).await;
    platform.record("letters", &["setid", "1", "destination", "sip:127.0.0.1:1", "flags", "x"]).await;
    platform.record("trunk", &["setid", "9", "destination", "sip:127.0.0.1:2", "flags", "0"]).await;
    platform.want(2).await;
    let names = platform.wait_settled_with(2, &["trunk"]).await;
    platform.wait_listed(&[("", "A"), (&names[0], "A"), (&names[1], "A")]).await;
    assert!(platform.kamailio.process().exit().is_none(), "Kamailio lives");
    for name in ["half", "text", "letters"] {
        let key = format!("voiceai:dispatcher:set-aside:{name}");
        assert_eq!(platform.records.cli(&["-n", "1", "EXISTS", &key]).await, "1", "{name} was kept");
    }
    let (_, stdout, _) = platform.stack.run(&["doctor", "--json"]).await;
    assert!(stdout.contains("half, letters, text"), "doctor names them: {stdout}");
    // Also when nothing changes, and nobody but Kamailio itself would load it.
    platform.record("half", &["setid", "1", "flags", "8"]).await;
    wait_until(WITHIN, "it is moved away", async || {
        platform.records.cli(&["-n", "1", "EXISTS", "dispatcher:entry::half"]).await == "0"
    })
    .await;
}

#[tokio::test]
async fn a_rolled_back_redis_is_brought_forward_before_it_is_believed() {
    let platform = Platform::new(Kind::Both).await;
    platform.want(1).await;
    let _scaler = platform.stack.scaler("a");
    let names = platform.wait_settled(1).await;
    platform.wait_listed(&[(&names[0], "A")]).await;
    let generation = async || -> i64 {
        let text = platform.records.cli(&["-n", "1", "GET", "voiceai:dispatcher:generation"]).await;
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no generation"))
    };
    let before = generation().await;
    // As from an old snapshot: a server that is long gone, and a number of its time.
    platform.records.cli(&["-n", "1", "FLUSHDB"]).await;
    platform.records.cli(&["-n", "1", "SET", "voiceai:dispatcher:generation", "17"]).await;
    platform.record("test-voice-09", &["setid", "1", "destination", "sip:127.0.0.1:3", "flags", "8"]).await;
    wait_until(WITHIN, "the record is back", async || {
        platform.records().await.contains(&(names[0].clone(), "8".to_owned()))
    })
    .await;
    // The old number may have come between: the record was then written before it.
    wait_until(WITHIN, "a number that nobody has seen", async || generation().await > before).await;
    platform.wait_shown("a verified proxy", |shown| shown[0]["verified"] == true).await;
}

#[tokio::test]
async fn behind_a_redis_cluster_the_dispatcher_has_a_redis_of_its_own() {
    let cluster = Cluster::start().await;
    let mut stack = Stack::new().await;
    stack.set("REDIS_URL", &cluster.url());
    stack.set("DISPATCHER_REDIS_URL", "");
    let (code, stdout, stderr) = stack.run(&["config", "check"]).await;
    assert!(code == 4 && stdout.contains("DISPATCHER_REDIS_URL"), "{code}: {stdout} {stderr}");
    let refused = stack.scaler("a");
    assert_eq!(refused.wait_exit(WITHIN).await, Exit::Code(4), "{}", refused.stderr());

    let records = RedisServer::start(RedisOptions::default()).await;
    stack.set("DISPATCHER_REDIS_URL", &format!("redis://127.0.0.1:{}/1", records.port()));
    let kamailio = Kamailio::start(KamailioOptions::new(records.port(), 1)).await;
    let mut config = stack.config();
    config["redisUrl"] = json!(cluster.url());
    config["routingSettleSeconds"] = json!(3);
    stack.group("eu", 1, 1, &config).await;
    let _scaler = stack.scaler("a");
    wait_for(WITHIN, "a server is in service and called", async || {
        let one = Sipp::start(
            kamailio.sip_port(),
            SippOptions { rate: 1, calls: Some(1), ..SippOptions::default() },
        );
        let counts = one.wait(WITHIN).await;
        if counts.successful == 1 {
            Ok(())
        } else {
            Err(format!("{:?} {}", stack.servers().await, one.errors()))
        }
    })
    .await;
}
