//! Two taskers deliver webhooks, and one of them is killed in the middle of it. Seen from outside: by the receiver, the command line and
//! the view of deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_testkit::{Process, Program, wait_for, wait_until};

use crate::stage::{PATIENCE, Stage, answer};

const TENANTS: usize = 4;
/// More than one process takes for itself, however far ahead of its slots it claims.
const EVENTS: usize = 100;
const ALL: usize = TENANTS * EVENTS;
/// Posts that one process has under way at most.
const EACH: usize = 3;
/// Longest time to an answer; a claim lasts half a minute longer.
const TIMEOUT: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(40);

/// What became of the posts.
#[derive(Default)]
struct Seen {
    /// Posts of each event.
    came: BTreeMap<String, u32>,
    /// Events whose post waits for its answer now.
    held: BTreeSet<String>,
    /// Events whose sender went away while it waited.
    cut: BTreeSet<String>,
}

/// Answers nobody before it may, and says whose sender is gone.
async fn receiver(may: CancellationToken) -> (String, Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let all = Arc::clone(&seen);
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
                let id = id.to_owned();
                {
                    let mut seen = all.lock().unwrap();
                    *seen.came.entry(id.clone()).or_default() += 1;
                    seen.held.insert(id.clone());
                }
                let mut end = [0; 1];
                tokio::select! {
                    () = may.cancelled() => {
                        let answer = b"HTTP/1.1 204 Told\r\nconnection: close\r\n\r\n";
                        let _ = stream.write_all(answer).await;
                        let _ = stream.shutdown().await;
                    }
                    _ = stream.read(&mut end) => {
                        all.lock().unwrap().cut.insert(id.clone());
                    }
                }
                all.lock().unwrap().held.remove(&id);
            });
        }
    });
    (url, seen)
}

fn program(stage: &Stage) -> Program {
    stage.program().envs([
        ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1".to_owned()),
        ("WEBHOOK_ALLOW_HTTP", "true".to_owned()),
        ("WEBHOOK_CONCURRENCY", EACH.to_string()),
        ("WEBHOOK_ENDPOINT_CONCURRENCY", "100".to_owned()),
        ("WEBHOOK_TENANT_CONCURRENCY", "100".to_owned()),
        ("WEBHOOK_TIMEOUT", format!("{}s", TIMEOUT.as_secs())),
        ("WEBHOOK_RETRY_LADDER", "0s,50ms,50ms".to_owned()),
    ])
}

async fn count(pool: &PgPool, sql: &'static str) -> usize {
    let found: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    usize::try_from(found).unwrap()
}

const DELIVERED: &str = "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'delivered'";

/// Two taskers at work on the same endpoints, the first of which is killed. Gives the moment of its death.
struct Pair {
    stage: Stage,
    pool: PgPool,
    seen: Arc<Mutex<Seen>>,
    died: Instant,
    _survivor: Process,
}

impl Pair {
    async fn with_one_killed() -> Self {
        let stage = Stage::new().await.quiet().await;
        let pool = stage.database.pool().await;
        let may = CancellationToken::new();
        let (url, seen) = receiver(may.clone()).await;
        for tenant in 0..TENANTS {
            let tenant = format!("t{tenant}");
            let add = ["webhook", "endpoints", "add", "--tenant", &tenant, "--url", &url, "--yes"];
            answer(program(&stage).args(add)).await.text(0);
        }
        for n in 0..ALL {
            let (tenant, id) = (format!("t{}", n % TENANTS), format!("e{n}"));
            voiceai_webhook::emit(&pool, &tenant, "call.ended", &id, &json!({ "n": n })).await.unwrap();
        }
        let [victim, survivor] =
            ["one", "two"].map(|name| program(&stage).env("INSTANCE_ID", name).arg("run").start());
        for tasker in [&victim, &survivor] {
            tasker.wait_for_line(PATIENCE, "service ready").await;
        }
        wait_until(PATIENCE, "more posts under way than one process makes", async || {
            seen.lock().unwrap().held.len() > EACH
        })
        .await;
        victim.kill9();
        let died = Instant::now();
        victim.wait_exit(PATIENCE).await;
        wait_until(PATIENCE, "posts whose sender is gone", async || !seen.lock().unwrap().cut.is_empty())
            .await;
        assert!(!seen.lock().unwrap().held.is_empty(), "the other one goes on");
        may.cancel();
        Self { stage, pool, seen, died, _survivor: survivor }
    }

    /// Everything arrived and has its end, and what was lost on its way is told of.
    async fn is_whole(&self) {
        assert_eq!(count(&self.pool, "SELECT count(*) FROM ops.webhook_deliveries").await, ALL);
        assert_eq!(
            count(&self.pool, "SELECT count(*) FROM ops.webhook_deliveries WHERE ended_at IS NOT NULL").await,
            ALL
        );
        let (came, cut) = {
            let seen = self.seen.lock().unwrap();
            (seen.came.clone(), seen.cut.clone())
        };
        assert_eq!(came.len(), ALL, "everything came");
        for (id, posts) in &came {
            // Whatever nobody lost came once; what was lost came again.
            let lost = u32::from(cut.contains(id));
            assert!(*posts > lost, "{id}: {posts} posts, of which {lost} were cut off");
        }
        let ends = "SELECT count(*) FROM ops.webhook_attempts WHERE outcome = 'delivered'";
        assert_eq!(count(&self.pool, ends).await, ALL, "each has one end that was taken");
        for id in &cut {
            let delivery: String =
                sqlx::query_scalar("SELECT id::text FROM ops.webhook_deliveries WHERE event_id = $1")
                    .bind(id)
                    .fetch_one(&self.pool)
                    .await
                    .unwrap();
            let shown = answer(program(&self.stage).args(["webhook", "deliveries", &delivery, "--json"]))
                .await
                .json(0);
            let outcomes: Vec<&str> = shown["attempt_rows"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|row| row["outcome"].as_str())
                .collect();
            assert_eq!(outcomes, ["lost", "delivered"], "{shown}");
        }
        let open =
            answer(program(&self.stage).args(["webhook", "deliveries", "--state", "active", "--json"])).await;
        assert_eq!(open.json(0)["deliveries"], Value::Array(Vec::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_is_killed_and_everything_arrives_with_its_end() {
    let pair = Pair::with_one_killed().await;
    // What the survivor may take it delivers at once; the rest is the dead one's until its claim is over.
    let mut before = 0;
    let mut the_same = 0;
    wait_for(PATIENCE, "the survivor has nothing more to do", async || {
        let delivered = count(&pair.pool, DELIVERED).await;
        the_same = if delivered == before { the_same + 1 } else { 0 };
        before = delivered;
        let waiting =
            count(&pair.pool, "SELECT count(*) FROM ops.webhook_deliveries WHERE state = 'waiting'").await;
        if waiting == 0 && the_same >= 10 {
            Ok(())
        } else {
            Err(format!("{delivered} delivered, {waiting} wait"))
        }
    })
    .await;
    assert!(before < ALL, "the dead one held some");
    sqlx::query("UPDATE ops.webhook_claims SET expires_at = now() - interval '1 second'")
        .execute(&pair.pool)
        .await
        .unwrap();
    wait_for(PATIENCE, "everything is delivered", async || {
        let delivered = count(&pair.pool, DELIVERED).await;
        if delivered == ALL { Ok(()) } else { Err(delivered) }
    })
    .await;
    pair.is_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a claim's time on the clock"]
async fn what_a_killed_process_held_waits_for_its_claim_and_no_longer() {
    /// Until the survivor looks, and for the posts themselves.
    const ROOM: Duration = Duration::from_secs(10);
    let pair = Pair::with_one_killed().await;
    wait_for(LEASE + ROOM, "everything is delivered", async || {
        let delivered = count(&pair.pool, DELIVERED).await;
        if delivered == ALL { Ok(()) } else { Err(delivered) }
    })
    .await;
    let took = pair.died.elapsed();
    assert!(took <= LEASE + ROOM, "{took:?}");
    let longest: f64 = sqlx::query_scalar(
        "SELECT extract(epoch FROM max(ended_at - created_at))::float8 FROM ops.webhook_deliveries",
    )
    .fetch_one(&pair.pool)
    .await
    .unwrap();
    println!("the last one ended {took:?} after the death, {longest:.1} s after it was told");
    pair.is_whole().await;
}
