//! What goes well: fan-out, once by id, filters, transactions, order of ends, replay.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use voiceai_replay::{Begin, Candidate, Pace, Plan, Stopped, Store, run};
use voiceai_testkit::wait_until;
use voiceai_webhook::endpoints::{self, NewEndpoint};
use voiceai_webhook::replay::{DeadReplay, PLACE, check_dead};
use voiceai_webhook::{NewEvent, emit, emit_within};

use crate::receiver::{Act, Receiver};
use crate::stage::Stage;

fn ok() -> Act {
    Act::Answer(200, Vec::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_reaches_every_endpoint_that_wants_it_once() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(ok()).await;
    let all = stage.endpoint("t1", &receiver.url("/all"), &[]).await;
    let calls = stage.endpoint("t1", &receiver.url("/calls?x=1"), &["call.*"]).await;
    stage.endpoint("t1", &receiver.url("/mail"), &["mail.*", "callxended"]).await;
    stage.endpoint("t2", &receiver.url("/other"), &["*"]).await;
    stage.work();

    let data = json!({ "seconds": 12 });
    let first = emit(&stage.pool, "t1", "call.ended", "evt_1", &data).await.unwrap();
    assert_eq!((first.deliveries, first.known), (2, false));
    let again = emit(&stage.pool, "t1", "call.ended", "evt_1", &data).await.unwrap();
    assert_eq!((again.deliveries, again.known), (0, true));

    let (delivery, attempts) = stage.until(all, "delivered").await;
    stage.until(calls, "delivered").await;
    assert_eq!((delivery.attempts, delivery.last_status, delivery.last_error), (1, Some(200), None));
    assert_eq!(attempts[0].outcome.as_deref(), Some("delivered"));
    assert_eq!(attempts[0].response.as_deref(), Some("hello"));
    assert_eq!(attempts[0].address.as_deref(), Some(receiver.address.to_string().as_str()));
    let mut targets: Vec<_> = receiver.got().into_iter().map(|got| got.target).collect();
    targets.sort();
    assert_eq!(targets, ["/all", "/calls?x=1"]);
    let got = &receiver.got()[0];
    assert_eq!(got.header("webhook-id"), "evt_1");
    assert_eq!(got.header("content-type"), "application/json");
    let body: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!((body["type"].as_str(), &body["data"]), (Some("call.ended"), &data));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_transaction_exists_only_once_that_is_committed() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(ok()).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.work();
    let data = json!({});
    for (id, commit) in [("rolled_back", false), ("committed", true)] {
        let mut transaction = stage.pool.begin().await.unwrap();
        let event = NewEvent { tenant: "t", event_type: "a.b", id, data: &data, at: jiff::Timestamp::now() };
        assert_eq!(emit_within(&mut *transaction, &event, 1_000).await.unwrap().deliveries, 1);
        if commit { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
    }
    stage.until(endpoint, "delivered").await;
    let ids: Vec<_> = receiver.got().iter().map(|got| got.header("webhook-id").to_owned()).collect();
    assert_eq!(ids, ["committed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_work_and_keep_an_endpoints_limit() {
    let stage = Stage::new(&[("WEBHOOK_ENDPOINT_CONCURRENCY", "2")]).await;
    let receiver = Receiver::always(ok()).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..60 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    stage.work();
    stage.until(endpoint, "delivered").await;
    let mut ids: Vec<_> = receiver.got().iter().map(|got| got.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 60, "each once");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 60);
    assert!(receiver.most_at_once() <= 4, "{} at once", receiver.most_at_once());
    let connections = receiver.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(connections < 30, "connections are used again: {connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_replayed_once_their_endpoint_is_mended() {
    let stage = Stage::new(&[("WEBHOOK_RETRY_LADDER", "0s"), ("WEBHOOK_CIRCUIT_PAUSE", "10ms")]).await;
    let receiver =
        Receiver::script(
            |n, _| if n < 3 { Act::Answer(500, Vec::new()) } else { Act::Answer(204, Vec::new()) },
        )
        .await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.work();
    for n in 0..3 {
        stage.emit("t", &format!("e{n}")).await;
    }
    let (dead, _) = stage.until(endpoint, "dead").await;
    assert_eq!(dead.dead_reason.as_deref(), Some("exhausted"));
    assert_eq!(dead.last_error.as_deref(), Some("answered 500"));

    let store = Store::new(stage.pool.clone(), "test");
    let items = stage.deliveries(endpoint).await;
    let candidates = items.iter().map(|delivery| Candidate {
        place: PLACE.to_owned(),
        id: delivery.id.to_string(),
        content: None,
        shown: json!({}),
        refused: None,
    });
    let plan = Plan::of(candidates.collect(), 3, 10);
    let filter = voiceai_replay::Filter::new();
    let begin = Begin {
        subject: "webhooks",
        filter: &filter,
        version: "1",
        actor: "ann",
        reason: "mended",
        limit: 10,
        per_second: 100.0,
        plan: &plan,
    };
    let id = store.begin(&begin).await.unwrap();
    let pace =
        Pace { per_second: 100.0, look_every: Duration::from_millis(20), follow: Duration::from_secs(20) };
    let ended = run(&store, &DeadReplay(&stage.pool), id, "r", pace, &CancellationToken::new()).await;
    assert_eq!(ended.unwrap(), Stopped::Settled);
    assert_eq!(store.get(id).await.unwrap().counts.completed, 3);
    let (delivery, attempts) = stage.until(endpoint, "delivered").await;
    assert_eq!((delivery.replays, attempts.len()), (1, 2), "attempts before stay readable");
    assert_eq!(stage.state(endpoint).await.failures, 0, "a success closes the circuit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_disabled_endpoint_waits_for_is_dead_and_told_so() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(ok()).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e1").await;
    assert_eq!(endpoints::disable(&stage.pool, endpoint, "ann", "wrong URL").await.unwrap(), 1);
    assert_eq!(stage.emit("t", "e2").await, 0, "nothing new is written for it");
    stage.work();
    let (delivery, _) = stage.until(endpoint, "dead").await;
    assert_eq!(delivery.dead_reason.as_deref(), Some("endpoint_disabled"));
    let now = jiff::Timestamp::now();
    let state = stage.state(endpoint).await;
    assert_eq!(check_dead(Some(&state), now).unwrap().code, "endpoint_disabled");
    assert_eq!(check_dead(None, now).unwrap().code, "target_gone");
    endpoints::enable(&stage.pool, endpoint).await.unwrap();
    assert_eq!(check_dead(Some(&stage.state(endpoint).await), now), None);
    assert!(voiceai_webhook::replay::release(&stage.pool, delivery.id).await.unwrap());
    stage.until(endpoint, "delivered").await;
    assert!(!voiceai_webhook::replay::release(&stage.pool, delivery.id).await.unwrap(), "it is not dead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_process_that_is_gone_runs_out_and_is_taken_up_again() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(ok()).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e1").await;
    stage.held_by_another(1, -1).await;
    stage.work();
    let (_, attempts) = stage.until(endpoint, "delivered").await;
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes, ["lost", "delivered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_cannot_be_posted_to_are_not_made() {
    let stage = Stage::new(&[("WEBHOOK_ALLOW_NETWORKS", ""), ("WEBHOOK_ALLOW_HTTP", "false")]).await;
    let made = async |url: &str, events: &[&str]| {
        let new = NewEndpoint {
            tenant: "t".to_owned(),
            url: url.to_owned(),
            events: events.iter().map(|pattern| (*pattern).to_owned()).collect(),
            description: None,
            concurrency: None,
            timeout: None,
            secret: None,
        };
        endpoints::add(&stage.pool, &new, &stage.guard()).await.map(drop).map_err(|error| error.to_string())
    };
    for (url, names) in [
        ("https://169.254.169.254/latest/meta-data", "169.254.169.254"),
        ("http://example.com/", "https"),
        ("https://[fd00:ec2::254]/", "fd00:ec2::254"),
        ("nonsense", "url"),
    ] {
        let error = made(url, &[]).await.unwrap_err();
        assert!(error.contains(names), "{url}: {error}");
    }
    assert!(made("https://example.com/", &["Not A Pattern"]).await.unwrap_err().contains("Not A Pattern"));
    assert!(made("https://example.com/", &["call.*"]).await.is_ok());
    wait_until(Duration::from_secs(5), "one endpoint", async || {
        endpoints::list(&stage.pool, Some("t"), None, 10).await.unwrap().len() == 1
    })
    .await;
}
