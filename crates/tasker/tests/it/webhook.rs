//! `webhook …` through the binary, with a receiver that counts.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::query_scalar;
use voiceai_testkit::{Program, wait_for, wait_until};

use crate::stage::{Answer, PATIENCE, Stage, answer};

/// Answers every request with the status of the moment, and closes.
async fn receiver(status: Arc<AtomicU16>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let status = status.load(Ordering::SeqCst);
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 65_536]).await;
                let answer =
                    format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    url
}

fn program(stage: &Stage) -> Program {
    stage.program().envs([
        ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1"),
        ("WEBHOOK_ALLOW_HTTP", "true"),
        ("WEBHOOK_RETRY_LADDER", "0s,50ms"),
        ("VOICEAI_OPERATOR", "ann"),
    ])
}

async fn ask(stage: &Stage, arguments: &[&str]) -> Answer {
    answer(program(stage).args(arguments)).await
}

async fn until(stage: &Stage, state: &str) -> Value {
    wait_for(PATIENCE, format!("a delivery that is {state}"), async || {
        let found = ask(stage, &["webhook", "deliveries", "--state", state, "--json"]).await;
        let found: Value = serde_json::from_str(&found.stdout).map_err(|_| format!("{found:?}"))?;
        found["deliveries"].as_array().and_then(|rows| rows.first()).cloned().ok_or_else(|| found.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_followed_from_its_job_to_its_death_and_replayed_after_a_probe() {
    let stage = Stage::new().await;
    let status = Arc::new(AtomicU16::new(500));
    let url = receiver(Arc::clone(&status)).await;
    let added =
        ask(&stage, &["webhook", "endpoints", "add", "--tenant", "t1", "--url", &url, "--yes", "--json"])
            .await;
    let added = added.json(0);
    let id = added["endpoint"]["id"].as_str().unwrap().to_owned();
    let secret = added["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_"));

    let tasker = program(&stage).arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    let payload =
        json!({ "tenant": "t1", "type": "call.ended", "id": "evt_1", "data": { "n": 1 } }).to_string();
    ask(&stage, &["jobs", "enqueue", "webhook.event", "--payload", &payload]).await.text(0);
    let dead = until(&stage, "dead").await;
    assert_eq!((dead["event_id"].as_str(), dead["attempts"].as_i64()), (Some("evt_1"), Some(2)));
    let shown = ask(&stage, &["webhook", "deliveries", dead["id"].as_str().unwrap(), "--json"]).await.json(0);
    assert_eq!(shown["attempt_rows"][1]["status"], 500, "{shown}");

    // A receiver that is not mended gets nothing back.
    let probed = ask(&stage, &["webhook", "test", &id, "--resend", "--yes", "--json"]).await;
    assert_eq!(probed.exit, 1, "{probed:?}");
    until(&stage, "dead").await;
    let shown = ask(&stage, &["status", "--json"]).await.json(0);
    let webhooks = &shown["webhooks"];
    assert_eq!(
        (&webhooks["dead"], &webhooks["endpoints"], &webhooks["due"]),
        (&json!(1), &json!(1), &json!(0))
    );
    let doctor = ask(&stage, &["doctor", "--json"]).await.stdout;
    assert!(doctor.contains("webhook.endpoints") && doctor.contains("webhook.backlog"), "{doctor}");
    assert!(doctor.contains("1 given up"), "{doctor}");
    status.store(200, Ordering::SeqCst);
    let plan = ask(&stage, &["webhook", "replay", "--endpoint", &id, "--json"]).await.json(0);
    assert_eq!((plan["executed"].as_bool(), plan["would_replay"].as_u64()), (Some(false), Some(1)));
    let resent = ask(&stage, &["webhook", "test", &id, "--resend", "--yes", "--json"]).await.json(0);
    assert_eq!(resent["taken"], true, "{resent}");
    until(&stage, "delivered").await;

    for arguments in [&["webhook", "endpoints", "--json"][..], &["audit", "list", "--json"]] {
        let listed = ask(&stage, arguments).await;
        assert!(listed.text(0).contains(&id), "{listed:?}");
        assert!(!listed.stdout.contains("whsec_"), "a secret is shown once");
    }
    assert!(!tasker.stderr().contains(&secret));
}

/// Answers the first `quick` posts, and the others once they may. Tells the ids of all that came.
async fn slow(quick: usize, may: CancellationToken) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let came: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (all, may) = (Arc::clone(&all), may.clone());
            tokio::spawn(async move {
                let mut read = vec![0; 65_536];
                let length = stream.read(&mut read).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&read[..length]).to_lowercase();
                let Some(id) = head.lines().find_map(|line| line.strip_prefix("webhook-id: ")) else {
                    return;
                };
                let number = {
                    let mut all = all.lock().unwrap();
                    all.push(id.to_owned());
                    all.len()
                };
                if number > quick {
                    may.cancelled().await;
                }
                let answer = "HTTP/1.1 204 Told\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (url, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_the_middle_of_a_lot_loses_nothing() {
    let stage = Stage::new().await;
    let pool = stage.database.pool().await;
    let may = CancellationToken::new();
    let (url, came) = slow(10, may.clone()).await;
    let add = ["webhook", "endpoints", "add", "--tenant", "t", "--url", &url, "--concurrency", "50", "--yes"];
    ask(&stage, &add).await.text(0);
    for n in 0..30 {
        let told =
            voiceai_webhook::emit(&pool, "t", "call.ended", &format!("e{n}"), &json!({})).await.unwrap();
        assert_eq!(told.deliveries, 1);
    }
    let run = || program(&stage).env("WEBHOOK_TENANT_CONCURRENCY", "50").arg("run").start();
    let count = async |sql: &'static str| query_scalar::<_, i64>(sql).fetch_one(&pool).await.unwrap();
    let delivered = "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'delivered'";

    let first = run();
    wait_until(PATIENCE, "ten that are written while twenty are under way", async || {
        count(delivered).await == 10 && came.lock().unwrap().len() == 30
    })
    .await;
    first.kill9();
    first.wait_exit(PATIENCE).await;
    may.cancel();
    assert_eq!(count("SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'active'").await, 20);

    let _second = run();
    voiceai_postgres::sqlx::query("UPDATE ops.webhook_claims SET expires_at = now() - interval '1 second'")
        .execute(&pool)
        .await
        .unwrap();
    wait_until(PATIENCE, "the twenty to be delivered too", async || count(delivered).await == 30).await;
    assert_eq!(count("SELECT count(*) FROM ops.webhook_attempts WHERE outcome = 'lost'").await, 20);
    assert_eq!(count("SELECT count(*) FROM ops.webhook_attempts WHERE outcome = 'delivered'").await, 30);
    let mut ids = came.lock().unwrap().clone();
    assert_eq!(ids.len(), 50, "what had been written was not posted again");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_posted_to_is_refused_with_a_remedy() {
    let stage = Stage::new().await;
    let add = |url: &'static str| {
        let stage = &stage;
        async move {
            ask(stage, &["webhook", "endpoints", "add", "--tenant", "t", "--url", url, "--yes", "--json"])
                .await
        }
    };
    let refused = add("https://169.254.169.254/latest").await.failure(4);
    assert!(refused["message"].as_str().unwrap().contains("169.254.169.254"), "{refused}");
    let unknown = ["webhook", "test", "0193e7a0-0000-7000-8000-000000000000", "--yes", "--json"];
    ask(&stage, &unknown).await.failure(3);
    let listed = ask(&stage, &["webhook", "endpoints", "--json"]).await.json(0);
    assert_eq!(listed, json!({ "endpoints": [], "next": null }));
}
