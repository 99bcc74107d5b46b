use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use voiceai_testkit::{RedisOptions, RedisServer, TcpProxy, wait_until};

const SHORT: Duration = Duration::from_millis(200);

async fn ask(connection: &mut TcpStream) -> Result<(), String> {
    connection.write_all(b"PING\r\n").await.map_err(|error| error.to_string())?;
    answer(connection).await
}

async fn answer(connection: &mut TcpStream) -> Result<(), String> {
    let mut answer = [0; 7];
    match tokio::time::timeout(SHORT, connection.read_exact(&mut answer)).await {
        Ok(Ok(_)) if &answer == b"+PONG\r\n" => Ok(()),
        Ok(Ok(_)) => Err(format!("odd answer {answer:?}")),
        Ok(Err(error)) => Err(error.kind().to_string()),
        Err(_) => Err("silence".to_owned()),
    }
}

async fn server_and_proxy() -> (RedisServer, TcpProxy) {
    let server = RedisServer::start(RedisOptions::default()).await;
    let proxy = TcpProxy::start(server.port()).await;
    (server, proxy)
}

async fn connect(proxy: &TcpProxy) -> TcpStream {
    TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
}

#[tokio::test]
async fn it_passes_on_and_delays() {
    let (server, proxy) = server_and_proxy().await;
    assert_eq!(proxy.url(&server.url()), format!("redis://127.0.0.1:{}/0", proxy.port()));
    let mut connection = connect(&proxy).await;
    ask(&mut connection).await.unwrap();
    proxy.delay(Duration::from_millis(60));
    let began = Instant::now();
    ask(&mut connection).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(120), "held back in both directions");
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_black_hole_is_silent_and_delivers_later() {
    let (_server, proxy) = server_and_proxy().await;
    let mut connection = connect(&proxy).await;
    ask(&mut connection).await.unwrap();
    proxy.pause();
    assert_eq!(ask(&mut connection).await.unwrap_err(), "silence");
    let mut new = connect(&proxy).await;
    assert_eq!(ask(&mut new).await.unwrap_err(), "silence");
    proxy.resume();
    answer(&mut connection).await.unwrap();
    answer(&mut new).await.unwrap();
}

#[tokio::test]
async fn every_second_reply_is_lost_after_the_request_took_effect() {
    let (server, proxy) = server_and_proxy().await;
    let mut connection = connect(&proxy).await;
    proxy.drop_every_nth_reply(2);
    ask(&mut connection).await.unwrap();
    connection.write_all(b"SET taken yes\r\n").await.unwrap();
    wait_until(Duration::from_secs(5), "the reply is dropped", async || proxy.dropped() == 1).await;
    assert_eq!(server.cli(&["GET", "taken"]).await, "yes");
    ask(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_connections_and_refusal_lasts() {
    let (server, proxy) = server_and_proxy().await;
    let mut connection = connect(&proxy).await;
    ask(&mut connection).await.unwrap();
    proxy.cut();
    let mut byte = [0];
    assert_eq!(connection.read(&mut byte).await.unwrap_or(0), 0, "the connection is still open");
    ask(&mut connect(&proxy).await).await.unwrap();

    proxy.refuse();
    assert!(ask(&mut connect(&proxy).await).await.is_err());
    proxy.resume();
    ask(&mut connect(&proxy).await).await.unwrap();

    let other = RedisServer::start(RedisOptions::default()).await;
    other.cli(&["SET", "which", "other"]).await;
    proxy.redirect(other.port());
    let mut connection = connect(&proxy).await;
    connection.write_all(b"GET which\r\n").await.unwrap();
    let mut answer = [0; 11];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"$5\r\nother\r\n");
    drop(server);
}
