use std::time::Duration;

use nix::sys::signal::Signal;
use voiceai_testkit::{RedisOptions, RedisServer, wait_until};

#[tokio::test]
async fn a_kept_file_survives_a_kill_and_an_empty_restart_loses_all() {
    let options = RedisOptions { appendonly: true, fsync: Some("always"), ..RedisOptions::default() };
    let mut server = RedisServer::start(options).await;
    let url = server.url();
    assert_eq!(server.cli(&["SET", "key", "kept"]).await, "OK");
    server.kill9().await;
    assert!(server.cli(&["PING"]).await.contains("refused"));
    server.restart(false).await;
    assert_eq!(server.url(), url, "the port stays");
    assert_eq!(server.cli(&["GET", "key"]).await, "kept");
    server.restart(true).await;
    assert_eq!(server.cli(&["GET", "key"]).await, "");
}

#[tokio::test]
async fn options_reach_the_server() {
    let server = RedisServer::start(RedisOptions {
        maxmemory: Some("8mb"),
        policy: Some("allkeys-lru"),
        requirepass: Some("secret word"),
        extra: vec![("hz".to_owned(), "50".to_owned())],
        ..RedisOptions::default()
    })
    .await;
    let setting = async |name| server.cli(&["CONFIG", "GET", name]).await.lines().nth(1).map(str::to_owned);
    assert_eq!(setting("maxmemory").await.as_deref(), Some("8388608"));
    assert_eq!(setting("maxmemory-policy").await.as_deref(), Some("allkeys-lru"));
    assert_eq!(setting("hz").await.as_deref(), Some("50"));
    assert_eq!(setting("requirepass").await.as_deref(), Some("secret word"));
    let arguments =
        std::fs::read_to_string(format!("/proc/{}/cmdline", server.process().unwrap().pid())).unwrap();
    assert!(!arguments.contains("secret"), "{arguments}");
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_nothing() {
    let mut server = RedisServer::start(RedisOptions::default()).await;
    server.pause();
    let address = ("127.0.0.1", server.port());
    let mut connection = tokio::net::TcpStream::connect(address).await.expect("the kernel still accepts");
    tokio::io::AsyncWriteExt::write_all(&mut connection, b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    let read = tokio::io::AsyncReadExt::read_exact(&mut connection, &mut answer);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), read).await.is_err(),
        "it answered while paused"
    );
    server.resume();
    tokio::io::AsyncReadExt::read_exact(&mut connection, &mut answer).await.unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    // Ending a paused server works as well.
    server.pause();
    server.stop().await;
    assert!(server.process().is_none());
}

#[tokio::test]
async fn a_server_ends_on_drop() {
    let server = RedisServer::start(RedisOptions::default()).await;
    let (pid, directory) =
        (nix::unistd::Pid::from_raw(server.process().unwrap().pid()), server.directory().to_owned());
    assert!(nix::sys::signal::kill(pid, None::<Signal>).is_ok());
    drop(server);
    wait_until(Duration::from_secs(5), "the process is gone", async || {
        nix::sys::signal::kill(pid, None).is_err()
    })
    .await;
    assert!(!directory.exists());
}
