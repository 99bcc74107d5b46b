//! Squid from Debian: it allows, refuses, hangs, and cannot resolve.

use std::error::Error as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use voiceai_egress::{EgressError, Purpose, Rule, connect, http_client};
use voiceai_testkit::{Squid, SquidOptions};

use crate::{LIMIT, rule};

/// A server that answers every connection with one HTTP answer, and its port.
async fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nserver";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    port
}

async fn get(rule: &Rule, url: &str) -> Result<(u16, String), reqwest::Error> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = http_client(rule).timeout(LIMIT).build().unwrap();
    let answer = client.get(url).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

#[tokio::test]
async fn what_squid_allows_is_reached_through_it_and_what_no_proxy_names_without_it() {
    let port = server().await;
    let squid = Squid::start(SquidOptions { ports: vec![port], login: Some(("ops", "pw-canary")) }).await;
    let through = rule(&[("HTTP_PROXY", &squid.url())]);
    let mut stream = connect(&through, Purpose::Tunnel, "localhost", port, LIMIT).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("server"), "{answer}");
    squid.wait_for_log(&format!("CONNECT localhost:{port} ops")).await;

    let url = format!("http://127.0.0.1:{port}/through");
    assert_eq!(get(&through, &url).await.unwrap(), (200, "server".to_owned()));
    squid.wait_for_log(&format!("GET {url} ops")).await;

    let url = format!("http://127.0.0.1:{port}/direct");
    let direct = rule(&[("HTTP_PROXY", &squid.url()), ("NO_PROXY", "127.0.0.0/8")]);
    assert_eq!(get(&direct, &url).await.unwrap(), (200, "server".to_owned()));
    // The same rule as a script's curl has it, which asks the proxy of its own accord.
    for (rule, path, is_proxied) in [(&through, "curl-through", true), (&direct, "curl-direct", false)] {
        let url = format!("http://127.0.0.1:{port}/{path}");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", &url]).env_clear().env("PATH", "/usr/bin:/bin");
        let given = rule.environment(&["127.0.0.1"]);
        curl.envs(given.iter().map(|(name, value)| (name, value.expose())));
        let output = curl.stdin(Stdio::null()).output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "server", "{output:?}");
        if is_proxied {
            squid.wait_for_log(&format!("GET {url}")).await;
        }
    }
    assert!(!squid.log().contains("direct"), "{}", squid.log());
}

#[tokio::test]
async fn what_squid_refuses_names_the_proxy_and_its_answer() {
    let (port, allowed) = (server().await, server().await);
    let squid = Squid::start(SquidOptions { ports: vec![allowed], login: None }).await;
    let through = rule(&[("HTTP_PROXY", &squid.url()), ("HTTPS_PROXY", &squid.url())]);
    let error = connect(&through, Purpose::Tunnel, "127.0.0.1", port, LIMIT).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { status: 403, .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", squid.port())), "{error}");
    squid.wait_for_log("TCP_DENIED/403").await;
    assert_eq!(get(&through, &format!("http://127.0.0.1:{port}/")).await.unwrap().0, 403);
    let error = get(&through, &format!("https://127.0.0.1:{port}/")).await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");

    let closed = Squid::start(SquidOptions { ports: vec![], login: Some(("ops", "right")) }).await;
    let wrong = closed.url().replace("right", "wrong");
    let error = connect(&rule(&[("HTTPS_PROXY", &wrong)]), Purpose::Https, "127.0.0.1", port, LIMIT).await;
    let error = error.unwrap_err();
    assert!(matches!(error, EgressError::Refused { status: 407, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
}

#[tokio::test]
async fn a_squid_that_hangs_and_one_that_cannot_resolve_end_in_time() {
    let squid = Squid::start(SquidOptions::default()).await;
    let through = rule(&[("HTTPS_PROXY", &squid.url())]);
    let error = connect(&through, Purpose::Tunnel, "absent.invalid", 587, LIMIT).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { status: 503 | 502 | 500, .. }), "{error:?}");

    let nowhere = rule(&[("HTTPS_PROXY", "http://squid.invalid:3128")]);
    let error = connect(&nowhere, Purpose::Tunnel, "127.0.0.1", 587, LIMIT).await.unwrap_err();
    assert!(matches!(error, EgressError::Proxy { .. }), "{error:?}");
    assert!(error.source().is_some() && error.to_string().contains("squid.invalid:3128"), "{error}");

    squid.pause();
    let (start, limit) = (Instant::now(), Duration::from_millis(500));
    let error = connect(&through, Purpose::Tunnel, "127.0.0.1", 587, limit).await.unwrap_err();
    assert!(matches!(error, EgressError::TimedOut { proxy: Some(_), .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(3));
    squid.resume();
}
