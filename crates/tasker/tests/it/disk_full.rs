//! PostgreSQL's disk full under the whole service: what was told before comes through once there is room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_testkit::{Exit, PostgresServer, Process, Program, wait_for, wait_until};

use crate::small_disk::{SmallDisk, fill, prepare_filler};
use crate::stage::{PATIENCE, Stage, answer};

/// As PostgreSQL says it.
const NO_SPACE: &str = "No space left on device";
/// Longer than any claim of a webhook lasts.
const RECOVERY: Duration = Duration::from_secs(80);

/// A database that lies on a small disk with everything in it, its catalogue too.
struct Crowded {
    stage: Stage,
    pool: PgPool,
    url: String,
    _server: PostgresServer,
    disk: SmallDisk,
}

impl Crowded {
    async fn new() -> Option<Self> {
        let disk = SmallDisk::mount(96)?;
        // Nothing makes room in secret.
        let server = PostgresServer::start_with(&["autovacuum=off"]).await;
        let first = PgPool::connect(&server.url()).await.unwrap();
        disk.tablespace(&first).await;
        sqlx::query("CREATE DATABASE crowded TABLESPACE small").execute(&first).await.unwrap();
        let url = format!("{}/crowded", server.url().trim_end_matches("/voiceai"));
        let pool = PgPool::connect(&url).await.unwrap();
        voiceai_postgres::migrate(&pool, voiceai_postgres::ALL).await.unwrap();
        prepare_filler(&pool).await;
        Some(Self { stage: Stage::new().await, pool, url, _server: server, disk })
    }

    fn program(&self) -> Program {
        self.stage.program().envs([
            ("DATABASE_URL", self.url.as_str()),
            ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1"),
            ("WEBHOOK_ALLOW_HTTP", "true"),
            // Posts that are held up for a while have not failed.
            ("WEBHOOK_TIMEOUT", "20s"),
            ("WEBHOOK_CIRCUIT_FAILURES", "1000"),
            ("WEBHOOK_TENANT_CONCURRENCY", "20"),
            ("ALERT_THROTTLE", "0s"),
        ])
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until a line of this part of the service says why it does not go on.
    async fn has_said(tasker: &Process, part: &str) {
        wait_until(PATIENCE, "a line that says what is full", async || {
            tasker.stderr().lines().any(|line| line.contains(part) && line.contains(NO_SPACE))
        })
        .await;
    }

    /// The service lives, leads and takes work: as an operator sees it.
    async fn is_well(&self, tasker: &Process) {
        assert_eq!(tasker.exit(), None, "the process lives on");
        wait_for(PATIENCE, "a healthy service", async || {
            let health = answer(self.program().arg("healthcheck")).await;
            if health.exit == 0 { Ok(()) } else { Err(format!("{health:?}")) }
        })
        .await;
    }
}

/// Counts the posts of each id; answers while `may` holds, and otherwise waits for it.
async fn receiver(may: CancellationToken) -> (String, Arc<Mutex<BTreeMap<String, u32>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let came: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let all = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (all, may) = (Arc::clone(&all), may.clone());
            tokio::spawn(async move {
                let mut read = vec![0; 65_536];
                let length = stream.read(&mut read).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&read[..length]).to_lowercase();
                let Some(id) = text.lines().find_map(|line| line.strip_prefix("webhook-id: ")) else {
                    return;
                };
                *all.lock().unwrap().entry(id.to_owned()).or_default() += 1;
                may.cancelled().await;
                let _ = stream.write_all(b"HTTP/1.1 204 Told\r\nconnection: close\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (url, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_were_told_before_the_disk_was_full_are_delivered_once_there_is_room() {
    let Some(crowded) = Crowded::new().await else { return };
    let may = CancellationToken::new();
    let (url, came) = receiver(may.clone()).await;
    let add = ["webhook", "endpoints", "add", "--tenant", "t", "--url", &url, "--concurrency", "20", "--yes"];
    answer(crowded.program().args(add)).await.text(0);
    let tasker = crowded.program().arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    let tell = async |id: &str| {
        voiceai_webhook::emit(&crowded.pool, "t", "call.ended", id, &json!({ "note": "n".repeat(2_000) }))
            .await
    };
    let mut told = Vec::new();
    for n in 0..60 {
        told.push(format!("before-{n}"));
        tell(&told[n]).await.unwrap();
    }
    wait_until(PATIENCE, "twenty posts under way", async || came.lock().unwrap().len() >= 20).await;
    fill(&crowded.pool).await;
    // Whoever tells now is told that it was not kept, and not later that it was lost.
    let mut refused = None;
    for n in 0..500 {
        let id = format!("late-{n}");
        match tell(&id).await {
            Ok(_) => told.push(id),
            Err(error) => {
                refused = Some((id, error));
                break;
            }
        }
    }
    let (refused, error) = refused.expect("a disk that is full");
    assert!(std::error::Error::source(&error).is_some_and(|source| source.to_string().contains(NO_SPACE)));
    may.cancel();
    Crowded::has_said(&tasker, "voiceai_webhook").await;
    assert_eq!(tasker.exit(), None, "a full disk ends no process");

    crowded.disk.make_room(&crowded.pool).await;
    wait_for(RECOVERY, "all that was told is delivered", async || {
        let open =
            crowded.count("SELECT count(*) FROM ops.webhook_deliveries WHERE state <> 'delivered'").await;
        if open == 0 { Ok(()) } else { Err(format!("{open} are not")) }
    })
    .await;
    let came = came.lock().unwrap().clone();
    for id in &told {
        assert!(came.contains_key(id), "{id} never came: {came:?}");
    }
    assert!(!came.contains_key(&refused), "what was refused was not posted");
    assert_eq!(
        crowded.count("SELECT count(*) FROM ops.webhook_deliveries").await,
        i64::try_from(told.len()).unwrap()
    );
    let ends = "SELECT count(DISTINCT delivery_id) FROM ops.webhook_attempts WHERE outcome = 'delivered'";
    assert_eq!(crowded.count(ends).await, i64::try_from(told.len()).unwrap(), "each has its end written");
    crowded.is_well(&tasker).await;
    tasker.terminate();
    assert_eq!(tasker.wait_exit(PATIENCE).await, Exit::Code(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_that_were_told_before_the_disk_was_full_arrive_once_there_is_room() {
    const TOLD: usize = 12;
    let Some(crowded) = Crowded::new().await else { return };
    let may = CancellationToken::new();
    may.cancel();
    let (url, came) = receiver(may).await;
    let tasker = crowded.program().env("ALERT_WEBHOOK_URL", url).arg("run").start();
    tasker.wait_for_line(PATIENCE, "service ready").await;
    // Stopped, so that none of them is told before the disk is full.
    tasker.pause();
    let notice =
        |n: usize| json!({ "event": "failed", "group": format!("eu-{n}"), "reason": "no stock in fsn1" });
    // Half of them are in the queue already, the others still rows.
    let queued = (0..TOLD / 2).map(|n| {
        let job =
            json!({ "kind": "notification.send", "payload": notice(n), "id": format!("scaler:failed:{n}") });
        format!("{job}\n")
    });
    let file = crowded.stage.file("notices.ndjson", &queued.collect::<String>());
    answer(crowded.program().args(["jobs", "enqueue", "--file", &file])).await.text(0);
    for n in TOLD / 2..TOLD {
        sqlx::query("INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json)")
            .bind(format!("scaler:failed:{n}"))
            .bind(notice(n).to_string())
            .execute(&crowded.pool)
            .await
            .unwrap();
    }
    fill(&crowded.pool).await;
    tasker.resume();
    Crowded::has_said(&tasker, "NotificationService: a notice waits for PostgreSQL").await;
    assert_eq!(tasker.exit(), None, "a full disk ends no process");

    crowded.disk.make_room(&crowded.pool).await;
    wait_for(RECOVERY, "every notice is posted", async || {
        let have = came.lock().unwrap().len();
        if have == TOLD { Ok(()) } else { Err(format!("{have} of {TOLD}")) }
    })
    .await;
    let told = "SELECT count(DISTINCT id) FROM ops.notices WHERE told_at IS NOT NULL";
    wait_for(PATIENCE, "every notice is written down as told", async || {
        let told = crowded.count(told).await;
        if told == TOLD as i64 { Ok(()) } else { Err(told) }
    })
    .await;
    // Waiting for room costs a notice none of its attempts.
    let stats =
        answer(crowded.program().args(["jobs", "stats", "--queue", "email-queue", "--json"])).await.json(0);
    assert_eq!(stats["dead"], 0, "{stats}");
    crowded.is_well(&tasker).await;
}
