//! Who may ask, and what an answer looks like.

use std::net::TcpListener;
use std::time::Duration;

use serde::Deserialize;
use voiceai_listener::axum::Router;
use voiceai_listener::axum::routing::{get, post as posting};
use voiceai_listener::{Limits, ListenError, Listener, ListenerSettings, Problem, StrictJson, StrictQuery};

use crate::client::{Client, TOKEN, ask, post, run, serve, settings, with_token};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    left: u32,
    right: u32,
}

fn routes() -> Router {
    Router::new()
        .route("/hello/{name}", get(|| async { "hello" }))
        .route(
            "/sum",
            posting(|StrictJson(sum): StrictJson<Sum>| async move { (sum.left + sum.right).to_string() })
                .get(|StrictQuery(sum): StrictQuery<Sum>| async move { (sum.left + sum.right).to_string() }),
        )
        .route("/panic", posting(panicking))
        .route("/away", get(|| async { Problem::unavailable("redis_unreachable", "Redis is away") }))
}

async fn panicking(body: String) -> String {
    assert!(body.is_empty(), "the body was {body}");
    body
}

#[tokio::test]
async fn nobody_gets_in_without_the_token_and_a_path_that_is_not_there_is_404() {
    let served = serve(routes(), Limits::default());
    let bare = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = ask(served.address, &bare("/hello/you")).await;
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (401, Some("unauthorized")));
    assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"voiceai-tasker\""));
    let wrong = with_token("GET", "/hello/you").replace(TOKEN, &TOKEN.replace('0', "1"));
    assert_eq!(ask(served.address, &wrong).await.status, 401);
    let right = ask(served.address, &with_token("GET", "/hello/you")).await;
    assert_eq!(
        (right.status, right.body.as_str(), right.field("cache-control")),
        (200, "hello", Some("no-store"))
    );
    for path in ["/healthz", "/readyz", "/livez", "/health", "/", "/hello", "/metrics"] {
        let answer = ask(served.address, &bare(path)).await;
        assert_eq!(
            (answer.status, answer.problem()["code"].as_str()),
            (404, Some("route_not_found")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_public_listener_asks_for_no_token() {
    let listener = Listener::public(&settings(Limits::default())).unwrap().unwrap();
    let served = run(listener.mount(routes()), Duration::from_secs(5));
    let answer = ask(served.address, "GET /hello/you HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_each_has_its_id() {
    let served = serve(routes(), Limits::default());
    let mut client = Client::connect(served.address).await;
    let named = with_token("GET", "/hello/you").replace("Host: x", "Host: x\r\nX-Request-Id: my-request-7");
    client.say(&named).await;
    assert_eq!(client.hear().await.unwrap().field("x-request-id"), Some("my-request-7"));
    // Two at once, one behind the other.
    client.say(&with_token("GET", "/hello/you").repeat(2)).await;
    let (first, second) = (client.hear().await.unwrap(), client.hear().await.unwrap());
    assert_eq!((first.status, second.status), (200, 200));
    assert_ne!(first.field("x-request-id"), second.field("x-request-id"));
}

#[tokio::test]
async fn every_error_is_a_problem() {
    let served = serve(routes(), Limits::default());
    let of = async |request: String| {
        let answer = ask(served.address, &request).await;
        let code = answer.problem()["code"].as_str().unwrap().to_owned();
        (answer.status, code, answer)
    };
    let (status, code, answer) = of(with_token("DELETE", "/sum")).await;
    assert_eq!((status, code.as_str()), (405, "method_not_allowed"));
    assert_eq!(answer.field("allow"), Some("POST,GET,HEAD"));
    let (status, code, _) = of(post("/sum", "text/plain", "{}")).await;
    assert_eq!((status, code.as_str()), (415, "unsupported_media_type"));
    let (status, code, answer) = of(post("/sum", "application/json", r#"{"left":1,"right":"x"}"#)).await;
    assert_eq!(
        (status, code.as_str(), answer.problem()["field"].as_str()),
        (400, "invalid_body", Some("right"))
    );
    let (status, code, _) = of(post("/sum", "application/json", r#"{"left":1,"right":2}{}"#)).await;
    assert_eq!((status, code.as_str()), (400, "invalid_json"));
    let (status, code, _) = of(with_token("GET", "/sum?left=1&right=2&more=3")).await;
    assert_eq!((status, code.as_str()), (400, "invalid_query"));
    let (status, code, answer) = of(with_token("GET", "/away")).await;
    assert_eq!((status, code.as_str(), answer.field("retry-after")), (503, "redis_unreachable", Some("5")));
    let fine = ask(served.address, &post("/sum", "application/json", r#"{"left":1,"right":2}"#)).await;
    assert_eq!((fine.status, fine.body.as_str()), (200, "3"));
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_next_request_is_served() {
    let served = serve(routes(), Limits::default());
    let mut client = Client::connect(served.address).await;
    client.say(&post("/panic", "text/plain", "canary-in-the-body")).await;
    let answer = client.hear().await.unwrap();
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (500, Some("internal_error")));
    assert!(!answer.body.contains("canary"), "{answer:?}");
    client.say(&with_token("GET", "/hello/you")).await;
    assert_eq!(client.hear().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_taken_port_is_refused_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let settings = ListenerSettings { internal: Some(address), ..settings(Limits::default()) };
    let error = Listener::internal(&settings).unwrap_err();
    assert!(matches!(error, ListenError::Taken { .. }), "{error:?}");
    let expected = format!("MAIL_INTERNAL_HTTP_ADDR: port {} of 127.0.0.1 is taken", address.port());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(error.remedy().contains("ss -ltnp"), "{}", error.remedy());
    // 192.0.2.0/24 is for documentation: no host has it.
    let settings = ListenerSettings { public: Some("192.0.2.1:8080".parse().unwrap()), ..settings };
    assert!(matches!(Listener::public(&settings).unwrap_err(), ListenError::NotOurs { .. }));
}
