//! What each kind of answer means.

use std::sync::atomic::Ordering;
use std::time::Duration;

use voiceai_egress::{Proxy, Rule};
use voiceai_monitor::State;
use voiceai_testkit::{Port, wait_until};

use crate::receiver::{Act, Receiver, WELL};
use crate::stage::{Stage, pulse};

#[tokio::test]
async fn every_kind_of_answer_has_its_state() {
    let redirected = Receiver::start(WELL).await;
    let location: &'static str = format!("location: {}/health\r\n", redirected.url()).leak();
    let closed = Port::reserve();
    let mut services = Vec::new();
    for (name, act) in [
        ("well", WELL),
        ("no-json", Act::Answer(200, "", "fine, thank you")),
        ("ill", Act::Answer(503, "", "{}")),
        ("elsewhere", Act::Answer(302, location, "")),
        ("no-content", Act::Answer(204, "", "")),
        ("hangs", Act::Hang),
        ("drips", Act::Drip),
        ("endless", Act::Endless),
        ("garbage", Act::Garbage),
        ("closes", Act::Close),
    ] {
        services.push((name, Receiver::start(act).await.url()));
    }
    services.push(("refused", format!("http://127.0.0.1:{}", closed.number())));
    services.push(("nameless", "http://no-such-host.invalid".to_owned()));
    let named: Vec<_> = services.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let stage = Stage::new(&named).await;
    assert_eq!(stage.round().await.asked, services.len());
    for (name, state, http, note) in [
        ("well", State::Healthy, Some(200), None),
        ("no-json", State::Healthy, Some(200), None),
        ("endless", State::Healthy, Some(200), Some("longer than 65536 bytes")),
        ("ill", State::Degraded, Some(503), Some("answers 503")),
        ("elsewhere", State::Degraded, Some(302), Some("redirects are not followed")),
        ("no-content", State::Degraded, Some(204), Some("answers 204")),
        ("hangs", State::Unknown, None, Some("no whole answer within 500ms")),
        ("drips", State::Unknown, None, Some("no whole answer within 500ms")),
        ("garbage", State::Unknown, None, Some("no answer that can be read")),
        ("closes", State::Unknown, None, Some("no answer that can be read")),
        ("refused", State::Down, None, Some("Connection refused")),
        ("nameless", State::Down, None, Some("")),
    ] {
        let line = stage.line(name).await;
        assert_eq!((line.status, line.http_status), (state, http), "{line:?}");
        match note {
            None => assert_eq!(line.note, None, "{line:?}"),
            Some(part) => assert!(line.note.as_ref().is_some_and(|note| note.contains(part)), "{line:?}"),
        }
        assert_eq!(line.latency_ms.is_some(), http.is_some(), "{line:?}");
    }
    assert_eq!(stage.line("well").await.counters["messages_received"], 3.0);
    assert!(redirected.asked.lock().unwrap().is_empty(), "a redirect was followed");
}

#[tokio::test]
async fn a_service_that_hangs_delays_no_other() {
    let hangs = Receiver::start(Act::Hang).await;
    let well = Receiver::start(WELL).await;
    let names: Vec<String> = (0..20).map(|n| format!("well-{n}")).collect();
    let (slow, quick) = (hangs.url(), well.url());
    let mut services: Vec<_> = names.iter().map(|name| (name.as_str(), quick.as_str())).collect();
    services.push(("slow", &slow));
    let stage = Stage::new(&services).await;
    let monitor = stage.monitor();
    let tenure = stage.tenure.clone();
    let round = tokio::spawn(async move { monitor.round(&tenure, &pulse()).await });
    wait_until(Duration::from_secs(10), "the others are written down", async || {
        let lines = stage.lines().await;
        lines.iter().filter(|line| line.status == State::Healthy).count() == 20
    })
    .await;
    // The limit of the slow one is still running, or has just ended: what counts is that nobody waited for its row.
    let first = stage.line("well-0").await.checked_at.unwrap();
    let round = round.await.unwrap().unwrap();
    let last = stage.line("slow").await.checked_at.unwrap();
    assert_eq!(round.asked, 21);
    assert!(last.duration_since(first).as_millis() >= 300, "{first} {last}");
    // Each time by a connection of its own.
    assert_eq!(well.connections.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn the_way_out_is_the_one_rule() {
    let proxy = Receiver::start(WELL).await;
    let service = Receiver::start(WELL).await;
    let url = service.url();
    let mut stage = Stage::new(&[("a", &url), ("b", "http://b.internal")]).await;
    let way = Proxy::parse(&format!("http://127.0.0.1:{}", proxy.address.port()).parse().unwrap()).unwrap();
    stage.rule = Rule { http: Some(way), ..Rule::default() };
    stage.rule.direct = voiceai_egress::NoProxy::parse(["127.0.0.0/8"]).unwrap();
    stage.round().await;
    assert_eq!(service.asked.lock().unwrap().as_slice(), ["GET /health HTTP/1.1"]);
    assert_eq!(proxy.asked.lock().unwrap().as_slice(), ["GET http://b.internal/health HTTP/1.1"]);

    // A proxy that is away says nothing of the service.
    let closed = Port::reserve();
    let gone = format!("http://127.0.0.1:{}", closed.number()).parse().unwrap();
    stage.rule.http = Some(Proxy::parse(&gone).unwrap());
    stage.round().await;
    let line = stage.line("b").await;
    assert_eq!(line.status, State::Unknown);
    assert!(line.note.as_ref().is_some_and(|note| note.contains("through the proxy 127.0.0.1")), "{line:?}");
    assert_eq!(stage.line("a").await.status, State::Healthy);
}
