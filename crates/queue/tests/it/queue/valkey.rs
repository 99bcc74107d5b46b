//! Valkey is served as Redis is: the library loads, every state is passed through, a restart and a full memory are survived.

use std::path::PathBuf;
use std::time::Duration;

use voiceai_queue::{ChildPolicy, QueueLimits, State, UniqueMode};
use voiceai_testkit::{RedisOptions, RedisServer};

use super::{SOON, Setup, Work, check, until};

/// Valkey's server, installed where it is missing.
fn program() -> PathBuf {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack/tool.sh");
    let found = std::process::Command::new("bash").args([tool, "valkey"]).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap().trim().into()
}

#[tokio::test]
async fn the_queue_works_on_valkey() {
    let options = RedisOptions { appendonly: true, program: Some(program()), ..RedisOptions::default() };
    let mut server = RedisServer::start(options).await;
    assert!(server.cli(&["INFO", "server"]).await.contains("valkey_version:"));
    let s = Setup::on(&server.url()).await;
    let worker = s.worker(4);
    let limits = QueueLimits { key_concurrency: Some(Some(1)), ..QueueLimits::default() };
    s.client.set(&s.queue, &limits).await.unwrap();

    // Every way through: plain, in bulk, by priority and tenant, limited, delayed, unique, failing, with a result.
    let work = |name: &str| Work::named(name);
    s.client
        .enqueue_bulk(
            (0..200).map(|i| work("bulk").job().tenant(format!("t{}", i % 3)).priority(i % 11)).collect(),
        )
        .await
        .unwrap();
    s.client.enqueue_bulk((0..5).map(|_| work("keyed").job().key("k")).collect()).await.unwrap();
    s.client.enqueue(work("later").job().delay(Duration::from_millis(50))).await.unwrap();
    for _ in 0..3 {
        s.client.enqueue(work("latest").job().unique("u", UniqueMode::Latest)).await.unwrap();
    }
    s.enqueue(&Work { fail_times: 2, ..work("retried") }).await;
    s.enqueue(&Work { result: Some(1.into()), ..work("result") }).await;
    s.client.add_flow(work("parent").job(), vec![work("child").job()], ChildPolicy::Wait).await.unwrap();
    let dead = s.enqueue(&Work { discard: true, ..work("dead") }).await;
    s.wait_state(&dead, State::Dead).await;
    s.wait_empty(SOON).await;
    assert_eq!((s.diary.count("bulk"), s.diary.count("keyed"), s.diary.most("k")), (200, 5, 1));
    assert_eq!((s.diary.count("parent"), s.diary.count("retried")), (1, 3));
    check(&s.client, &s.queue).await;

    // Replay, cancel and purge.
    s.client.replay(&s.queue, std::slice::from_ref(&dead), "again").await.unwrap();
    s.wait_state(&dead, State::Dead).await;
    assert_eq!(s.client.discard(&s.queue, &[dead], "no more").await.unwrap(), 1);
    let later = s.client.enqueue(work("never").job().delay(SOON)).await.unwrap().id.to_string();
    s.client.cancel(&s.queue, &[later], "enough").await.unwrap();
    check(&s.client, &s.queue).await;

    // A kill with work running, then a memory that is full: what is there drains, new work is refused.
    let long = s.enqueue(&Work { sleep_ms: 800, ..work("long") }).await;
    s.wait_state(&long, State::Active).await;
    server.kill9().await;
    server.restart(false).await;
    until("the long one is done", async || s.records.of(&long) == ["completed"]).await;
    s.wait_empty(SOON).await;
    s.client.pause(&s.queue).await.unwrap();
    s.client.enqueue_bulk((0..500).map(|_| work("full").job()).collect()).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    assert!(s.client.enqueue(work("refused").job()).await.unwrap_err().to_string().contains("memory"));
    s.client.resume(&s.queue).await.unwrap();
    s.wait_empty(SOON).await;
    assert_eq!(s.diary.count("full"), 500);
    check(&s.client, &s.queue).await;
    worker.stop().await;
}
