//! What a client may cost.

use std::time::{Duration, Instant};

use voiceai_listener::axum::Router;
use voiceai_listener::axum::routing::{get, post as posting};
use voiceai_listener::{Limits, StrictJson};

use crate::client::{Client, TOKEN, ask, post, serve, with_token};

fn routes() -> Router {
    Router::new()
        .route("/quick", get(|| async { "done" }))
        .route("/never", get(std::future::pending::<String>))
        .route("/large", get(|| async { "x".repeat(64 * 1024 * 1024) }))
        .route(
            "/length",
            posting(|StrictJson(text): StrictJson<String>| async move { text.len().to_string() }),
        )
}

/// Limits that a test can wait for, far apart from each other.
fn short() -> Limits {
    Limits {
        read_header: Duration::from_millis(300),
        read: Duration::from_millis(600),
        handle: Duration::from_millis(1_500),
        idle: Duration::from_millis(900),
        send: Duration::from_millis(700),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_cut() {
    let served = serve(routes(), short());
    let mut client = Client::connect(served.address).await;
    let began = Instant::now();
    let trickle = async {
        use tokio::io::AsyncWriteExt as _;
        let mut text = b"GET /quick HTTP/1.1\r\nX: ".to_vec();
        text.extend([b'y'; 10_000]);
        for byte in text {
            if client.stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), trickle).await.expect("the connection is cut");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_and_one_between_requests_is_kept_longer() {
    let served = serve(routes(), short());
    let mut silent = Client::connect(served.address).await;
    let mut polite = Client::connect(served.address).await;
    polite.say(&with_token("GET", "/quick")).await;
    assert_eq!(polite.hear().await.unwrap().status, 200);
    assert!(silent.hear().await.is_none(), "cut");
    // By now longer idle than a head may take.
    polite.say(&with_token("GET", "/quick")).await;
    assert_eq!(polite.hear().await.expect("it was kept").status, 200);
    let began = Instant::now();
    assert!(polite.hear().await.is_none(), "cut once it has been idle for too long");
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered_408() {
    let served = serve(routes(), short());
    let mut client = Client::connect(served.address).await;
    let request = post("/length", "application/json", "\"abcdef\"");
    client.say(&request[..request.len() - 3]).await;
    let answer = client.hear().await.unwrap();
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (408, Some("read_timeout")));
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(client.hear().await.is_none(), "closed");
}

#[tokio::test]
async fn a_handler_that_hangs_is_answered_503() {
    let served = serve(routes(), short());
    let answer = ask(served.address, &with_token("GET", "/never")).await;
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (503, Some("not_in_time")));
    assert!(answer.field("retry-after").is_some(), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_response_is_cut() {
    let served = serve(routes(), short());
    let mut client = Client::connect(served.address).await;
    client.say(&with_token("GET", "/large")).await;
    // What the system's buffers hold arrives; the rest was never sent.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(client.hear().await.is_none(), "the response was cut");
}

#[tokio::test]
async fn head_and_body_are_bounded() {
    let served = serve(routes(), Limits::default());
    let large = "x".repeat(1024 * 1024);
    let answer = ask(served.address, &post("/length", "application/json", &format!("\"{large}\""))).await;
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (413, Some("body_too_large")));
    let fits = "x".repeat(1024 * 1024 - 2);
    assert_eq!(
        ask(served.address, &post("/length", "application/json", &format!("\"{fits}\""))).await.status,
        200
    );
    let long_field = format!("Host: x\r\nX-Long: {}", "y".repeat(16 * 1024));
    let answer = ask(served.address, &with_token("GET", "/quick").replace("Host: x", &long_field)).await;
    assert_eq!((answer.status, answer.problem()["code"].as_str()), (431, Some("head_too_large")));
    let many = (0..100).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let many = with_token("GET", "/quick").replace("Host: x\r\n", &format!("Host: x\r\n{many}"));
    assert_eq!(ask(served.address, &many).await.status, 431);
    // Far beyond: cut off while it is being read.
    let endless = format!("GET /quick HTTP/1.1\r\nX-Long: {}", "y".repeat(100 * 1024));
    assert_eq!(ask(served.address, &endless).await.status, 431);
    let garbage = ask(served.address, "\x16\x03\x01 not http\r\n\r\n").await;
    assert_eq!(garbage.status, 400);
}

#[tokio::test]
async fn more_connections_than_places_wait_and_idle_ones_make_room() {
    let limits = Limits {
        connections: 2,
        read_header: Duration::from_millis(500),
        idle: Duration::from_secs(600),
        ..Limits::default()
    };
    let served = serve(routes(), limits);
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(served.address).await;
        client.say(&with_token("GET", "/quick")).await;
        assert_eq!(client.hear().await.unwrap().status, 200);
        idle.push(client);
    }
    let began = Instant::now();
    let mut third = Client::connect(served.address).await;
    third.say(&with_token("GET", "/quick")).await;
    assert_eq!(third.hear().await.expect("an idle connection made room").status, 200);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_wrong_token_is_told_before_the_body_is_read() {
    let served = serve(routes(), Limits::default());
    let mut client = Client::connect(served.address).await;
    let request = post("/length", "application/json", "\"abcdef\"").replace(TOKEN, "wrong");
    client.say(&request[..request.len() - 3]).await;
    assert_eq!(client.hear().await.unwrap().status, 401);
}
