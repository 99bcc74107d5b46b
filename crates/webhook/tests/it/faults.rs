//! Receivers that misbehave, and names that change their mind.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use voiceai_postgres::sqlx;
use voiceai_testkit::{Certificate, wait_until};
use voiceai_webhook::Client;

use crate::receiver::{Act, Receiver};
use crate::stage::{ELECTION, Rebinding, Stage};

const ONE: (&str, &str) = ("WEBHOOK_RETRY_LADDER", "0s");

/// One attempt at a receiver that does this: outcome, and error.
async fn one(act: Act) -> (String, String, Receiver) {
    let stage = Stage::new(&[ONE]).await;
    let receiver = Receiver::always(act).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (_, attempts) = stage.until(endpoint, "dead").await;
    assert_eq!(attempts.len(), 1);
    (attempts[0].outcome.clone().unwrap(), attempts[0].error.clone().unwrap(), receiver)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_or_drips_is_given_up_in_time() {
    for act in [Act::Hang, Act::Drip] {
        let (outcome, error, _) = one(act).await;
        assert_eq!(outcome, "timed_out");
        assert!(error.contains("500ms"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_an_early_end_are_no_answer() {
    for act in [Act::Garbage, Act::Close] {
        assert_eq!(one(act).await.0, "broken_answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let elsewhere = Receiver::always(Act::Answer(200, Vec::new())).await;
    let to = vec![("location", elsewhere.url("/"))];
    let (outcome, error, receiver) = one(Act::Answer(307, to)).await;
    assert_eq!(outcome, "refused");
    assert!(error.contains("307") && error.contains("redirect"), "{error}");
    assert_eq!((receiver.got().len(), elsewhere.connections.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_changes_nothing_and_holds_nothing() {
    let stage = Stage::new(&[ONE]).await;
    let receiver = Receiver::always(Act::HugeBody(200)).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (_, attempts) = stage.until(endpoint, "delivered").await;
    assert_eq!(attempts[0].response.as_ref().unwrap().len(), 1_024);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ladder_ends_and_every_attempt_is_a_row_with_the_same_id_and_body() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(503, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (delivery, attempts) = stage.until(endpoint, "dead").await;
    assert_eq!((attempts.len(), delivery.dead_reason.as_deref()), (3, Some("exhausted")));
    let got = receiver.got();
    assert!(got.iter().all(|one| one.header("webhook-id") == "e" && one.body == got[0].body));
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_disables_the_endpoint_at_once_and_its_owner_is_told() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(410, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/?token=hidden"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (delivery, attempts) = stage.until(endpoint, "dead").await;
    assert_eq!((attempts.len(), delivery.dead_reason.as_deref()), (1, Some("gone")));
    let state = stage.state(endpoint).await;
    assert_eq!((state.state.as_str(), state.disabled_reason.as_deref()), ("disabled", Some("gone")));
    assert_eq!(state.disabled_by.as_deref(), Some("itself"));
    assert_eq!(stage.emit("t", "e2").await, 0);
    let notices = notices(&stage).await;
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!((&notices[0]["event"], &notices[0]["tenant"]), (&json!("webhook.disabled"), &json!("t")));
    assert_eq!(notices[0]["endpoint_id"], json!(endpoint));
    assert_eq!(notices[0]["url"], json!(receiver.url("/")));
    let (reason, since) = (&notices[0]["reason"], &notices[0]["failing_since"]);
    assert!(reason.as_str().unwrap().contains("answered 410"), "{reason}");
    assert!(since.as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{since}");
    assert!(!notices[0].to_string().contains("hidden"), "what follows the path may be a secret: {notices:?}");
    assert!(notices[0]["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{notices:?}");
    // An operator who disables one is not told of it.
    voiceai_webhook::endpoints::enable(&stage.pool, endpoint).await.unwrap();
    voiceai_webhook::endpoints::disable(&stage.pool, endpoint, "ann", "moving").await.unwrap();
    assert_eq!(self::notices(&stage).await.len(), 1);
}

async fn notices(stage: &Stage) -> Vec<Value> {
    let select = "SELECT payload::text FROM ops.outbox WHERE kind = 'notification.send' AND queue = 'email-queue' ORDER BY seq";
    let rows: Vec<String> = sqlx::query_scalar(select).fetch_all(&stage.pool).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_held_holds_what_was_written_before() {
    let stage = Stage::new(&[]).await;
    let receiver = Receiver::always(Act::Answer(200, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "before").await;
    let hold = "INSERT INTO ops.leader_terms (name, term, holder, host, pid, held_since, held_reason)
                VALUES ($1, 1, 'one', 'here', 1, clock_timestamp(), 'term regressed')";
    sqlx::query(hold).bind(ELECTION).execute(&stage.pool).await.unwrap();
    stage.emit("t", "after").await;
    stage.work();
    wait_until(Duration::from_secs(10), "the newer event", async || receiver.got().len() == 1).await;
    let states = async || {
        let mut all: Vec<_> = stage
            .deliveries(endpoint)
            .await
            .into_iter()
            .map(|one| (one.event_id, one.state, one.attempts))
            .collect();
        all.sort();
        all
    };
    wait_until(Duration::from_secs(10), "its end", async || states().await[0].1 == "delivered").await;
    let expected = [("after", "delivered", 1), ("before", "waiting", 0)]
        .map(|(id, state, n)| (id.to_owned(), state.to_owned(), n));
    assert_eq!(states().await, expected);
    voiceai_postgres::term::release(&stage.pool, ELECTION).await.unwrap();
    stage.until(endpoint, "delivered").await;
    assert_eq!(receiver.got().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_the_metadata_of_a_cloud_is_refused_in_every_form() {
    for address in
        ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "169.254.170.2"]
    {
        let mut stage = Stage::new(&[ONE]).await;
        let resolver =
            Rebinding { answers: vec![vec![address.parse().unwrap()]], asked: AtomicUsize::new(0) };
        stage.resolver = Arc::new(resolver);
        let endpoint = stage.endpoint("t", "http://metadata.example/latest/meta-data", &[]).await;
        stage.emit("t", "e").await;
        stage.work();
        let (_, attempts) = stage.until(endpoint, "dead").await;
        assert_eq!(attempts[0].outcome.as_deref(), Some("address_refused"), "{address}");
        assert!(
            attempts[0].error.as_ref().unwrap().contains("not a public address"),
            "{:?}",
            attempts[0].error
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_failure_disables_the_endpoint() {
    let stage = Stage::new(&[
        ("WEBHOOK_DISABLE_AFTER", "1s"),
        ("WEBHOOK_RETRY_LADDER", "0s,400ms,400ms,400ms,400ms,400ms,400ms"),
    ])
    .await;
    let receiver = Receiver::always(Act::Answer(500, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    wait_until(Duration::from_secs(10), "the endpoint to be disabled", async || {
        stage.state(endpoint).await.disabled_reason.as_deref() == Some("failing")
    })
    .await;
    assert!(receiver.got().len() < 7, "before the ladder ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed_in_seconds_and_as_a_date_within_bounds() {
    let soon = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date =
        soon.timestamp_to_rfc9110_string(&(jiff::Timestamp::now() + Duration::from_secs(7_200))).unwrap();
    for (wish, least, most) in
        [("3600".to_owned(), 3_000, 3_601), (date, 6_000, 7_200), ("99999999999".to_owned(), 86_000, 86_400)]
    {
        let stage = Stage::new(&[]).await;
        let receiver = Receiver::always(Act::Answer(429, vec![("retry-after", wish.clone())])).await;
        let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
        stage.emit("t", "e").await;
        stage.work();
        wait_until(Duration::from_secs(10), "the endpoint to rest", async || {
            stage.state(endpoint).await.resting_until.is_some()
        })
        .await;
        let rest = stage.state(endpoint).await.resting_until.unwrap().as_second()
            - jiff::Timestamp::now().as_second();
        assert!((least..=most).contains(&rest), "{wish}: {rest}");
        let due = stage.deliveries(endpoint).await[0].due_at.unwrap().as_second()
            - jiff::Timestamp::now().as_second();
        assert!((least..=most).contains(&due), "{wish}: {due}");
        // The wish holds for the endpoint's other events as well.
        stage.emit("t", "e2").await;
        stage.endpoint("u", &receiver.url("/u"), &[]).await;
        stage.emit("u", "e3").await;
        wait_until(Duration::from_secs(10), "another tenant's event", async || receiver.got().len() == 2)
            .await;
        assert_eq!(receiver.got()[1].target, "/u");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_opens_and_spends_no_attempts() {
    let stage = Stage::new(&[("WEBHOOK_CIRCUIT_FAILURES", "2"), ("WEBHOOK_ENDPOINT_CONCURRENCY", "1")]).await;
    let receiver = Receiver::always(Act::Answer(500, Vec::new())).await;
    let endpoint = stage.endpoint("t", &receiver.url("/"), &[]).await;
    for n in 0..10 {
        stage.emit("t", &format!("e{n}")).await;
    }
    stage.work();
    wait_until(Duration::from_secs(10), "an open circuit", async || {
        stage.state(endpoint).await.resting_until.is_some()
    })
    .await;
    let other = stage.endpoint("u", &receiver.url("/u"), &[]).await;
    stage.emit("u", "after").await;
    wait_until(Duration::from_secs(10), "the other's first attempt", async || {
        stage.deliveries(other).await[0].attempts > 0
    })
    .await;
    let spent: i32 = stage.deliveries(endpoint).await.iter().map(|delivery| delivery.attempts).sum();
    assert_eq!(spent, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_endpoints_delay_nobody_else() {
    let stage = Stage::new(&[
        ("WEBHOOK_TIMEOUT", "10s"),
        ("WEBHOOK_CONCURRENCY", "24"),
        ("WEBHOOK_TENANT_CONCURRENCY", "8"),
    ])
    .await;
    let (hanging, healthy) =
        (Receiver::always(Act::Hang).await, Receiver::always(Act::Answer(200, Vec::new())).await);
    for n in 0..10 {
        stage.endpoint("bad", &hanging.url(&format!("/{n}")), &[]).await;
    }
    let good = stage.endpoint("good", &healthy.url("/"), &[]).await;
    for n in 0..20 {
        stage.emit("bad", &format!("b{n}")).await;
    }
    stage.work();
    wait_until(Duration::from_secs(10), "the tenant's room to be full", async || hanging.got().len() == 8)
        .await;
    let started = Instant::now();
    for n in 0..20 {
        stage.emit("good", &format!("g{n}")).await;
    }
    stage.until(good, "delivered").await;
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    assert_eq!(hanging.got().len(), 8, "a tenant has no more than its room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_vouches_for_is_a_failure_of_tls() {
    for (certificate, trusted) in [
        (Certificate::localhost(), false),
        (Certificate::expired(), true),
        (Certificate::named(&["other.example"]), true),
    ] {
        let mut roots = RootCertStore::empty();
        if trusted {
            roots.add(CertificateDer::from_pem_slice(certificate.authority_pem.as_bytes()).unwrap()).unwrap();
        }
        let (outcome, error) = over_tls(&certificate, roots).await;
        assert_eq!(outcome, "tls", "{error}");
    }
    let certificate = Certificate::localhost();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.authority_pem.as_bytes()).unwrap()).unwrap();
    assert_eq!(over_tls(&certificate, roots).await.0, "delivered");
}

async fn over_tls(certificate: &Certificate, roots: RootCertStore) -> (String, String) {
    let stage = Stage::new(&[ONE, ("WEBHOOK_TIMEOUT", "5s")]).await;
    let acceptor = TlsAcceptor::from(certificate.server());
    let receiver =
        Receiver::start(IpAddr::from([127, 0, 0, 1]), Some(acceptor), |_, _| Act::Answer(200, Vec::new()))
            .await;
    let url = format!("https://localhost:{}/", receiver.address.port());
    let endpoint = stage.endpoint("t", &url, &[]).await;
    stage.emit("t", "e").await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = Arc::new(tls.with_root_certificates(roots).with_no_client_auth());
    let resolver =
        Rebinding { answers: vec![vec![IpAddr::from([127, 0, 0, 1])]], asked: AtomicUsize::new(0) };
    let guard = voiceai_webhook::Guard::new(stage.settings.allowed.clone(), Arc::new(resolver));
    stage.work_with(Client::trusting(&stage.settings, guard, stage.rule.clone(), tls));
    wait_until(Duration::from_secs(20), "an end", async || {
        stage.deliveries(endpoint).await[0].ended_at.is_some()
    })
    .await;
    let id = stage.deliveries(endpoint).await[0].id;
    let attempt = voiceai_webhook::deliveries::show(&stage.pool, id).await.unwrap().1.remove(0);
    (attempt.outcome.unwrap(), attempt.error.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_its_mind_leads_nowhere_else() {
    let (public, private) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let close = Act::Answer(500, vec![("connection", "close".to_owned())]);
    let receiver = Receiver::always(close).await;
    let port = receiver.address.port();
    let secret = tokio::net::TcpListener::bind((private, port)).await.unwrap();
    let mut stage = Stage::new(&[("WEBHOOK_RETRY_LADDER", "0s,10ms,10ms")]).await;
    let resolver = Arc::new(Rebinding {
        // First well, then elsewhere, then both at once.
        answers: vec![vec![public], vec![private], vec![public, private]],
        asked: AtomicUsize::new(0),
    });
    stage.resolver = resolver.clone();
    let endpoint = stage.endpoint("t", &format!("http://rebinding.example:{port}/"), &[]).await;
    stage.emit("t", "e").await;
    stage.work();
    let (_, attempts) = stage.until(endpoint, "dead").await;
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes, ["refused", "address_refused", "address_refused"]);
    assert!(attempts[1].error.as_ref().unwrap().contains("127.0.0.2"), "{:?}", attempts[1].error);
    assert_eq!(resolver.asked.load(Ordering::SeqCst), 3, "each connection looks once");
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 1);
    let nobody = tokio::time::timeout(Duration::from_millis(50), secret.accept()).await;
    assert!(nobody.is_err(), "somebody connected to the private address");
}
