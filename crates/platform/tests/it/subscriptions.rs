//! `subscriptions.maintain` and `billing.pause`, with a Stripe that answers as it is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use voiceai_queue::{DeadReason, Inline};

use crate::upkeep::House;

/// A request as the double saw it.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: HashMap<String, String>,
    body: String,
}

/// Stripe's double: answers by path, else 200 with an empty list.
#[derive(Clone)]
struct Stripe {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    answers: Arc<Mutex<HashMap<String, (u16, String)>>>,
}

impl Stripe {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let double = Self { url, seen: Arc::default(), answers: Arc::default() };
        let shared = double.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while shared.one(&mut stream).await.is_some() {}
                });
            }
        });
        double
    }

    async fn one(&self, stream: &mut BufReader<tokio::net::TcpStream>) -> Option<()> {
        let mut first = String::new();
        stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let line = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        let (status, answer) =
            self.answers.lock().unwrap().get(&line).cloned().unwrap_or((200, "{\"data\":[]}".to_owned()));
        self.seen.lock().unwrap().push(Seen { line, headers, body: String::from_utf8(body).unwrap() });
        let text = format!("HTTP/1.1 {status} Double\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        stream.get_mut().write_all(text.as_bytes()).await.ok()
    }

    fn answer(&self, line: &str, status: u16, body: &Value) {
        self.answers.lock().unwrap().insert(line.to_owned(), (status, body.to_string()));
    }

    fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }

    async fn house(&self, more: &[(&str, &str)]) -> House {
        let mut settings =
            vec![("STRIPE_SECRET_KEY", "sk_test_secret"), ("STRIPE_API_URL", self.url.as_str())];
        settings.extend(more);
        let house = House::with(&settings).await;
        house.execute(TENANT).await;
        house
    }
}

const PROBE: &str = "GET /v1/subscriptions?limit=1";

const TENANT: &str = "INSERT INTO tenants (tenant_id, name, contact_email) VALUES ('t', 'Tenant', 'owner@example.com'), ('silent', 'Silent', NULL);
    INSERT INTO ops.webhook_endpoints (id, tenant, url, events) VALUES (gen_random_uuid(), 't', 'https://hooks.example.com/', '{subscription.*}');";

/// A subscription of tenant `t`.
async fn subscription(house: &House, id: &str, status: &str, term: &str, grace: &str, stripe: &str) {
    house
        .execute(&format!(
            "INSERT INTO subscriptions (subscription_id, tenant_id, term_start, status, term_end, grace_end, stripe_subscription_id, plan_id)
             VALUES ('{id}', 't', now() - interval '1 year', '{status}', {term}, {grace}, {stripe}, 'business')"
        ))
        .await;
}

async fn states(house: &House) -> String {
    house.value("SELECT string_agg(subscription_id || '=' || status, ' ' ORDER BY subscription_id) FROM subscriptions").await
}

#[tokio::test]
async fn each_step_is_taken_once_and_told_in_every_way() {
    let house = House::new().await;
    house.execute(TENANT).await;
    for (id, status, term, grace) in [
        ("far", "ACTIVE", "now() + interval '200 days'", "NULL"),
        ("soon", "ACTIVE", "now() + interval '20 days'", "NULL"),
        ("over", "ACTIVE", "now() - interval '1 hour'", "NULL"),
        ("grace", "GRACE", "now() - interval '9 days'", "now() + interval '5 days'"),
        ("ended", "GRACE", "now() - interval '15 days'", "now() - interval '1 second'"),
        ("trial", "TRIAL", "now() - interval '1 second'", "NULL"),
    ] {
        subscription(&house, id, status, term, grace, "NULL").await;
    }
    house
        .execute(
            "INSERT INTO subscriptions (subscription_id, tenant_id, subscription_type, parent_subscription_id, term_start, term_end)
                 VALUES ('addon', 't', 'ADDON', 'soon', now(), now() + interval '20 days');
             INSERT INTO subscriptions (subscription_id, tenant_id, term_start, term_end) VALUES ('quiet', 'silent', now(), now() + interval '6 days');",
        )
        .await;
    let result = house.run("subscriptions.maintain", json!({})).await;
    let wanted = json!({"reminded": 2, "grace": 1, "suspended": 1, "expired": 1, "renewed": 0, "refused": 0, "waiting": 0});
    assert_eq!(result, wanted);
    assert_eq!(
        states(&house).await,
        "addon=ACTIVE ended=SUSPENDED far=ACTIVE grace=GRACE over=GRACE quiet=ACTIVE soon=ACTIVE trial=EXPIRED"
    );
    let grace = "SELECT grace_end BETWEEN now() + interval '335 hours' AND now() + interval '336 hours' FROM subscriptions WHERE subscription_id = 'over'";
    assert_eq!(house.value(grace).await, "true");

    let told = "SELECT string_agg(tenant_id || ':' || notification_type || ':' || status, ' ' ORDER BY tenant_id, notification_type) FROM subscription_notifications";
    assert_eq!(
        house.value(told).await,
        "silent:RENEWAL_7:FAILED t:EXPIRED:SENT t:GRACE:SENT t:RENEWAL_30:SENT t:SUSPENDED:SENT"
    );
    let mails = house.rows("SELECT payload #>> '{variables,state}' AS state, payload #>> '{variables,days}' AS days FROM ops.outbox WHERE kind = 'send-email' ORDER BY 1").await;
    assert_eq!(
        mails,
        json!([{"state": "expired", "days": null}, {"state": "grace", "days": null}, {"state": "renewal_due", "days": "20"}, {"state": "suspended", "days": null}])
    );
    let events = "SELECT string_agg(type, ' ' ORDER BY type) FROM ops.webhook_events WHERE tenant = 't'";
    assert_eq!(
        house.value(events).await,
        "subscription.expired subscription.grace subscription.renewal_due subscription.suspended"
    );
    assert_eq!(house.value("SELECT count(*) FROM ops.webhook_deliveries").await, "4");
    assert_eq!(
        house.value("SELECT payload ->> 'event' FROM ops.outbox WHERE kind = 'notification.send'").await,
        "subscription_suspended"
    );
    let trail = house.rows("SELECT previous_state ->> 'status' AS a, new_state ->> 'status' AS b FROM subscription_audit ORDER BY 1, 2").await;
    assert_eq!(
        trail,
        json!([{"a": "ACTIVE", "b": "GRACE"}, {"a": "GRACE", "b": "SUSPENDED"}, {"a": "TRIAL", "b": "EXPIRED"}])
    );

    let again = house.run("subscriptions.maintain", json!({})).await;
    assert!(again.as_object().unwrap().values().all(|count| count == 0), "{again}");
    // The next reminder of the same term, and the same reminder of another term.
    house
        .execute(
            "UPDATE subscriptions SET term_end = now() + interval '13 days' WHERE subscription_id = 'soon'",
        )
        .await;
    assert_eq!(house.run("subscriptions.maintain", json!({})).await["reminded"], 1);
}

#[tokio::test]
async fn what_stripe_says_is_paid_goes_on_and_what_it_does_not_ends() {
    let stripe = Stripe::start().await;
    let house = stripe.house(&[("STRIPE_ON_SUSPEND", "pause_collection")]).await;
    let later = jiff::Timestamp::now().as_second() + 30 * 86_400;
    stripe.answer(
        "GET /v1/subscriptions/sub_paid",
        200,
        &json!({"status": "active", "items": {"data": [{"current_period_end": later}]}}),
    );
    stripe.answer(
        "GET /v1/subscriptions/sub_due",
        200,
        &json!({"status": "past_due", "current_period_end": later}),
    );
    for (id, stripe) in [("paid", "'sub_paid'"), ("due", "'sub_due'"), ("other", "NULL")] {
        subscription(&house, id, "GRACE", "now() - interval '20 days'", "now() - interval '1 day'", stripe)
            .await;
    }
    let result = house.run("subscriptions.maintain", json!({})).await;
    assert_eq!((&result["renewed"], &result["suspended"]), (&json!(1), &json!(2)));
    assert_eq!(states(&house).await, "due=SUSPENDED other=SUSPENDED paid=ACTIVE");
    assert_eq!(stripe.lines()[0], PROBE, "reachability first");
    let end = house
        .value(
            "SELECT extract(epoch FROM term_end)::bigint FROM subscriptions WHERE subscription_id = 'paid'",
        )
        .await;
    assert_eq!(end, later.to_string());

    // Only the one that Stripe knows is paused there, by a job of its own.
    let jobs = house.rows("SELECT payload FROM ops.outbox WHERE kind = 'billing.pause'").await;
    assert_eq!(jobs.as_array().unwrap().len(), 1);
    let payload = jobs[0]["payload"].clone();
    assert_eq!(payload["stripe_subscription"], "sub_due");
    for _ in 0..2 {
        assert_eq!(house.run("billing.pause", payload.clone()).await["paused"], true);
    }
    let posts: Vec<_> =
        stripe.seen.lock().unwrap().iter().filter(|seen| seen.line.starts_with("POST")).cloned().collect();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].line, "POST /v1/subscriptions/sub_due");
    assert_eq!(posts[0].body, "pause_collection[behavior]=void");
    assert_eq!(posts[0].headers["authorization"], "Bearer sk_test_secret");
    let key = &posts[0].headers["idempotency-key"];
    assert!(
        key.starts_with("voiceai:billing.pause:sub_due:") && posts[1].headers["idempotency-key"] == *key,
        "{key}"
    );
}

#[tokio::test]
async fn while_stripe_is_away_nobody_who_pays_there_is_touched() {
    let stripe = Stripe::start().await;
    let house = stripe.house(&[]).await;
    subscription(
        &house,
        "linked",
        "GRACE",
        "now() - interval '20 days'",
        "now() - interval '1 day'",
        "'sub_1'",
    )
    .await;
    subscription(&house, "plain", "GRACE", "now() - interval '20 days'", "now() - interval '1 day'", "NULL")
        .await;
    stripe.answer(PROBE, 503, &json!({}));
    let ended = house.end("subscriptions.maintain", json!({})).await;
    assert!(
        matches!(&ended, Inline::Retry { error, .. } if error.contains("Stripe is not reachable: HTTP 503")),
        "{ended:?}"
    );
    assert_eq!(states(&house).await, "linked=GRACE plain=SUSPENDED");
    assert_eq!(stripe.lines(), [PROBE], "asked once, not for each");

    stripe.answer(PROBE, 429, &json!({}));
    let ended = house.end("subscriptions.maintain", json!({})).await;
    assert!(matches!(ended, Inline::Snoozed(_)), "{ended:?}");

    stripe.answer(PROBE, 401, &json!({"error": {"message": "Invalid API Key provided: sk_test_secret"}}));
    let ended = house.end("subscriptions.maintain", json!({})).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = ended else { panic!("{ended:?}") };
    assert!(error.contains("STRIPE_SECRET_KEY") && !error.contains("sk_test_secret"), "{error}");

    // Refused connections are "away" too.
    let house = House::with(&[("STRIPE_SECRET_KEY", "sk"), ("STRIPE_API_URL", "http://127.0.0.1:1")]).await;
    house.execute(TENANT).await;
    subscription(&house, "linked", "ACTIVE", "now() - interval '1 day'", "NULL", "'sub_1'").await;
    let ended = house.end("subscriptions.maintain", json!({})).await;
    assert!(matches!(&ended, Inline::Retry { error, .. } if error.contains("no connection")), "{ended:?}");
    let pause =
        json!({"subscription": "s", "stripe_subscription": "sub_1", "term_end": "2026-11-22T00:00:00Z"});
    assert!(matches!(house.end("billing.pause", pause.clone()).await, Inline::Retry { .. }));
    let without = House::new().await;
    let ended = without.end("billing.pause", pause).await;
    assert!(matches!(&ended, Inline::Dead { error, .. } if error.contains("STRIPE_SECRET_KEY")), "{ended:?}");
}

#[tokio::test]
async fn a_4xx_is_asked_once_told_once_and_holds_up_nobody() {
    let stripe = Stripe::start().await;
    let house = stripe.house(&[]).await;
    let missing =
        json!({"error": {"code": "resource_missing", "message": "No such subscription: 'sub_gone'"}});
    stripe.answer("GET /v1/subscriptions/sub_gone", 404, &missing);
    stripe.answer("GET /v1/subscriptions/sub_due", 200, &json!({"status": "unpaid"}));
    for (id, stripe) in [("gone", "'sub_gone'"), ("unpaid", "'sub_due'")] {
        subscription(&house, id, "GRACE", "now() - interval '20 days'", "now() - interval '1 day'", stripe)
            .await;
    }
    let result = house.run("subscriptions.maintain", json!({})).await;
    assert_eq!((&result["refused"], &result["suspended"]), (&json!(1), &json!(1)));
    assert_eq!(states(&house).await, "gone=GRACE unpaid=SUSPENDED");
    house.run("subscriptions.maintain", json!({})).await;
    let asked = stripe.lines().iter().filter(|line| line.ends_with("sub_gone")).count();
    assert_eq!(asked, 1, "its last word is not asked for again");
    let told =
        house.rows("SELECT payload FROM ops.outbox WHERE payload ->> 'event' = 'billing_refused'").await;
    assert_eq!(told.as_array().unwrap().len(), 1);
    assert!(told[0]["payload"]["reason"].as_str().unwrap().contains("sub_gone"), "{told}");

    // As a job of its own a 4xx is parked at once.
    let pause = json!({"subscription": "gone", "stripe_subscription": "sub_gone", "term_end": "2026-11-22T00:00:00Z"});
    let ended = house.end("billing.pause", pause).await;
    let Inline::Dead { reason: DeadReason::DiscardedByHandler, error } = ended else { panic!("{ended:?}") };
    assert!(error.contains("resource_missing"), "{error}");
}

#[tokio::test]
async fn one_that_stripe_stumbles_over_and_one_that_has_no_real_id_hold_up_nobody() {
    let stripe = Stripe::start().await;
    let house = stripe.house(&[]).await;
    stripe.answer("GET /v1/subscriptions/sub_odd", 200, &json!({"id": "sub_odd", "status": null}));
    stripe.answer("GET /v1/subscriptions/sub_due", 200, &json!({"status": "past_due"}));
    for (id, stripe) in [("1odd", "'sub_odd'"), ("2none", "'../customers'"), ("3due", "'sub_due'")] {
        subscription(&house, id, "GRACE", "now() - interval '20 days'", "now() - interval '1 day'", stripe)
            .await;
    }
    let ended = house.end("subscriptions.maintain", json!({})).await;
    assert!(matches!(&ended, Inline::Retry { error, .. } if error.contains("`status`")), "{ended:?}");
    assert_eq!(states(&house).await, "1odd=GRACE 2none=GRACE 3due=SUSPENDED");
    assert!(stripe.lines().iter().all(|line| !line.contains("customers")), "{:?}", stripe.lines());
    let told = house
        .value("SELECT payload ->> 'reason' FROM ops.outbox WHERE payload ->> 'event' = 'billing_refused'")
        .await;
    assert!(told.contains("2none") && told.contains("no id of Stripe's"), "{told}");
}

#[tokio::test]
async fn what_is_no_id_of_stripe_is_never_posted() {
    let stripe = Stripe::start().await;
    let house = stripe.house(&[]).await;
    for odd in ["", "..", "a\0b", "sub_1?x=y"] {
        let payload =
            json!({"subscription": "s", "stripe_subscription": odd, "term_end": "2026-01-01T00:00:00Z"});
        let ended = house.end("billing.pause", payload).await;
        assert!(
            matches!(&ended, Inline::Dead { error, .. } if error.contains("no id of Stripe's")),
            "{odd:?}: {ended:?}"
        );
    }
    assert!(stripe.lines().iter().all(|line| line == PROBE), "{:?}", stripe.lines());
}
