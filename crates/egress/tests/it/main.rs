//! The way out: the tunnel against proxies that do what proxies do, and everything against a real Squid.

#![allow(clippy::unwrap_used, reason = "helpers of tests assert too")]

mod squid;

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::{EgressError, Purpose, Rule, connect};

const LIMIT: Duration = Duration::from_secs(5);

fn rule(pairs: &[(&str, &str)]) -> Rule {
    let resolved = Resolved::from_pairs(Binary::Scaler, pairs.iter().copied());
    resolved.read(Rule::read).unwrap().settings
}

/// A proxy that reads one request and answers it with `reply`; gives the request.
async fn proxy(reply: Vec<u8>) -> (String, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://ops:pw@{}", listener.local_addr().unwrap());
    let (send, asked) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let _ = send.send(String::from_utf8(request).unwrap());
        let _ = stream.write_all(&reply).await;
        // Stays open, as a proxy does, until the client ends it.
        let _ = stream.read_u8().await;
    });
    (url, asked)
}

#[tokio::test]
async fn a_greeting_in_the_same_packet_is_not_lost() {
    let (url, asked) =
        proxy(b"HTTP/1.1 200 Connection established\r\nVia: squid\r\n\r\n220 mail ready\r\n".to_vec()).await;
    let rule = rule(&[("HTTPS_PROXY", &url)]);
    let mut stream = connect(&rule, Purpose::Tunnel, "smtp.example.com", 587, LIMIT).await.unwrap();
    let mut greeting = [0; 16];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 mail ready\r\n");
    let asked = asked.await.unwrap();
    assert!(
        asked.starts_with("CONNECT smtp.example.com:587 HTTP/1.1\r\nHost: smtp.example.com:587\r\n"),
        "{asked}"
    );
    assert!(asked.contains("\r\nProxy-Authorization: Basic b3BzOnB3\r\n"), "{asked}");
}

#[tokio::test]
async fn a_refusal_names_proxy_target_and_status() {
    for (reply, expected) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", 403),
        ("HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", 407),
        ("SSH-2.0-what\r\n\r\n", 0),
        ("HTTP/1.1 2\u{1b}[31m00\r\n\r\n", 0),
    ] {
        let (url, _asked) = proxy(reply.as_bytes().to_vec()).await;
        let rule = rule(&[("HTTP_PROXY", &url)]);
        let error = connect(&rule, Purpose::Tunnel, "::1", 25, LIMIT).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, EgressError::Refused { status, .. } if status == expected), "{error:?}");
        assert!(
            text.contains("[::1]:25") && text.contains("127.0.0.1:") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert!(!text.contains("pw"), "{text}");
    }
}

#[tokio::test]
async fn a_proxy_that_hangs_or_talks_for_ever_is_bounded() {
    let (url, _asked) = proxy(Vec::new()).await;
    let rule_of = |url: &str| rule(&[("HTTPS_PROXY", url)]);
    let start = Instant::now();
    let limit = Duration::from_millis(200);
    let error = connect(&rule_of(&url), Purpose::Https, "a.example", 443, limit).await.unwrap_err();
    assert!(matches!(error, EgressError::TimedOut { proxy: Some(_), .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
    let (url, _asked) = proxy(vec![b'x'; 64 * 1024]).await;
    let error = connect(&rule_of(&url), Purpose::Https, "a.example", 443, LIMIT).await.unwrap_err();
    assert!(matches!(error, EgressError::Proxy { .. }), "{error:?}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = connect(&rule_of(&format!("http://{gone}")), Purpose::Https, "a.example", 443, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, EgressError::Proxy { .. }), "{error:?}");
}

#[tokio::test]
async fn what_no_proxy_names_is_reached_directly() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    // Nothing listens where the proxy should be: going through it would fail.
    let rule = rule(&[("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "127.0.0.0/8")]);
    let (connected, accepted) =
        tokio::join!(connect(&rule, Purpose::Tunnel, "127.0.0.1", port, LIMIT), server.accept());
    assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    let error = connect(&rule, Purpose::Tunnel, "localhost", port, LIMIT).await.unwrap_err();
    assert!(matches!(error, EgressError::Proxy { .. }), "names are never resolved for the rule: {error:?}");
}
