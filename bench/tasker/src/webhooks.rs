//! Webhooks: a prepared backlog to 100 endpoints against a bare client; and whether ten that hang are felt by the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_runtime::{Secret, Vitals};
use voiceai_webhook::endpoints::{self, NewEndpoint};
use voiceai_webhook::sending::Sending;
use voiceai_webhook::{Client, Guard, Keys, SystemResolver, Wake, WebhookSettings, emit, listen, new_secret};

use crate::receiver::Receiver;
use crate::{Peer, Row, median, number};

/// Endpoints, each of a tenant of its own.
const ENDPOINTS: usize = 100;
/// Of these so many hang.
const HANGING: usize = 10;
/// Events a second while they do, over all endpoints.
const PACE: u32 = 200;

struct Bench {
    pool: PgPool,
    settings: WebhookSettings,
    receiver: Receiver,
    secrets: HashMap<usize, Secret>,
    serial: usize,
}

/// What is written down of webhooks.
pub async fn measure(pool: &PgPool, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let events = number("BENCH_EVENTS", 20_000);
    let mut bench = Bench::new(pool.clone()).await?;
    // A warm-up of both sides: connections, statements, pages.
    bench.ours(events / 10).await?;
    bench.bare(events / 10).await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(bench.ours(events).await?);
        bare.push(bench.bare(events).await?);
    }
    let (mut calm, mut troubled) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        calm.push(bench.p99(false).await?);
        troubled.push(bench.p99(true).await?);
    }
    let peer = |name, values: &[f64], more| Some(Peer { name, value: median(values), more });
    Ok(vec![
        Row {
            work: format!("{events} events to {ENDPOINTS} endpoints, each end committed"),
            unit: "posts/s",
            ours,
            peer: peer("reqwest, the same signed bodies", &bare, true),
        },
        Row {
            work: format!("p99 from event to endpoint, {HANGING} of {ENDPOINTS} others hanging"),
            unit: "ms",
            ours: troubled,
            peer: peer("ours, none hanging", &calm, false),
        },
    ])
}

impl Bench {
    async fn new(pool: PgPool) -> anyhow::Result<Self> {
        let own = [("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1"), ("WEBHOOK_ALLOW_HTTP", "true")];
        let resolved = Resolved::from_pairs(Binary::Tasker, own);
        let settings = resolved.read(WebhookSettings::read).map_err(|report| anyhow::anyhow!("{report}"))?.settings;
        let receiver = Receiver::start()?;
        Ok(Self { pool, settings, receiver, secrets: HashMap::new(), serial: 0 })
    }

    fn guard(&self) -> Guard {
        Guard::new(self.settings.allowed.clone(), Arc::new(SystemResolver))
    }

    /// Endpoints without a past; the first `hanging` of them hang.
    async fn reset(&mut self, hanging: usize) -> anyhow::Result<()> {
        let truncate = "TRUNCATE ops.webhook_events, ops.webhook_endpoints, ops.webhook_claims, ops.webhook_ended, \
                        ops.webhook_failures, ops.outbox CASCADE";
        sqlx::query(truncate).execute(&self.pool).await?;
        for n in 0..ENDPOINTS {
            let path = if n < hanging { "hang" } else { "hook" };
            let secret = new_secret();
            let new = NewEndpoint {
                tenant: tenant(n),
                url: format!("http://{}/{path}/{n}", self.receiver.address),
                events: Vec::new(),
                description: None,
                concurrency: None,
                timeout: None,
                secret: Some(secret.clone()),
            };
            endpoints::add(&self.pool, &new, &self.guard()).await?;
            self.secrets.insert(n, secret);
        }
        Ok(())
    }

    /// Tells of `count` events, endpoints in turn; answers their ids.
    async fn tell(&mut self, count: usize) -> anyhow::Result<Vec<String>> {
        let first = self.serial;
        self.serial += count;
        let pool = &self.pool;
        let told = stream::iter(first..first + count).map(|n| async move {
            let id = format!("evt_{n}");
            emit(pool, &tenant(n % ENDPOINTS), "call.ended", &id, &data(n)).await.map(|_| id)
        });
        let told: Vec<_> = told.buffered(8).collect().await;
        Ok(told.into_iter().collect::<Result<_, _>>()?)
    }

    fn work(&self) -> anyhow::Result<Worker> {
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        let wake = Wake::new();
        tokio::spawn(listen(self.pool.clone(), wake.clone(), stop.clone()));
        let client = Client::new(&self.settings, self.guard(), Rule::default())?;
        let election = "voiceai:tasker:leader".to_owned();
        let poll = Duration::from_secs(5);
        let sending = Sending::new(self.pool.clone(), client, self.settings.clone(), election, wake, poll);
        let pulse = Vitals::new().register("webhooks", Duration::from_secs(60));
        let running = tokio::spawn(sending.run(stop.clone(), force.clone(), pulse));
        Ok(Worker { stop, force, running })
    }

    async fn in_state(&self, state: &str) -> anyhow::Result<usize> {
        let count = sqlx::query_scalar("SELECT count(*) FROM ops.webhook_deliveries WHERE state = $1");
        let count: i64 = count.bind(state).fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Deliveries a second, from the start of the worker to the last one's committed end.
    async fn ours(&mut self, count: usize) -> anyhow::Result<f64> {
        self.reset(0).await?;
        self.tell(count).await?;
        sqlx::query("VACUUM ANALYZE ops.webhook_open").execute(&self.pool).await?;
        let taken = self.receiver.taken.load(Ordering::Relaxed);
        let begun = Instant::now();
        let worker = self.work()?;
        // The receiver is asked first: a count in the database is work that the other side does not have.
        while self.receiver.taken.load(Ordering::Relaxed) - taken < count as u64 {
            ensure!(begun.elapsed() < Duration::from_secs(600), "not delivered within ten minutes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while self.in_state("delivered").await? < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let took = begun.elapsed();
        worker.end().await?;
        Ok(count as f64 / took.as_secs_f64())
    }

    /// The same events by a client that knows no rows: posts a second.
    async fn bare(&mut self, count: usize) -> anyhow::Result<f64> {
        let client = reqwest::Client::builder().no_proxy().timeout(self.settings.timeout).build()?;
        let keys: Result<Vec<_>, _> = (0..ENDPOINTS).map(|n| Keys::new(vec![self.secrets[&n].clone()])).collect();
        let keys = keys?;
        let bodies: Vec<String> = sqlx::query_scalar("SELECT body FROM ops.webhook_events ORDER BY created_at LIMIT $1")
            .bind(i64::try_from(count)?)
            .fetch_all(&self.pool)
            .await?;
        ensure!(bodies.len() == count, "there are {} bodies", bodies.len());
        let address = self.receiver.address;
        let begun = Instant::now();
        let posted = stream::iter(bodies.into_iter().enumerate()).map(|(n, body)| {
            let (client, keys) = (&client, &keys[n % ENDPOINTS]);
            async move {
                let id = format!("bare_{n}");
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
                let signature = keys.sign(&id, i64::try_from(now)?, body.as_bytes());
                let request = client
                    .post(format!("http://{address}/hook/{}", n % ENDPOINTS))
                    .header("content-type", "application/json")
                    .header("webhook-id", id)
                    .header("webhook-timestamp", now)
                    .header("webhook-signature", signature)
                    .body(body);
                request.send().await?.error_for_status()?;
                anyhow::Ok(())
            }
        });
        let posted: Vec<_> = posted.buffer_unordered(self.settings.concurrency).collect().await;
        let took = begun.elapsed();
        posted.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(count as f64 / took.as_secs_f64())
    }

    /// Milliseconds within which 99 of 100 events of the endpoints that never hang arrive, at an even pace.
    async fn p99(&mut self, hangs: bool) -> anyhow::Result<f64> {
        self.reset(if hangs { HANGING } else { 0 }).await?;
        let worker = self.work()?;
        while self.receiver.came.try_recv().is_ok() {}
        let seconds = u32::try_from(number("BENCH_SECONDS", 10))?;
        let mut told = HashMap::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / PACE);
        for n in 0..usize::try_from(PACE * seconds)? {
            tick.tick().await;
            self.serial += 1;
            let id = format!("evt_{}", self.serial);
            let at = Instant::now();
            emit(&self.pool, &tenant(n % ENDPOINTS), "call.ended", &id, &data(n)).await?;
            if n % ENDPOINTS >= HANGING {
                told.insert(id, at);
            }
        }
        let mut took = Vec::with_capacity(told.len());
        while took.len() < told.len() {
            let next = tokio::time::timeout(Duration::from_secs(30), self.receiver.came.recv());
            let (id, at) = next.await.context("an event never came")?.context("the receiver is gone")?;
            if let Some(told) = told.get(&id) {
                took.push(at.duration_since(*told).as_secs_f64() * 1_000.0);
            }
        }
        worker.end().await?;
        took.sort_by(f64::total_cmp);
        Ok(took[took.len() * 99 / 100])
    }
}

struct Worker {
    stop: CancellationToken,
    force: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Worker {
    async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.force.cancel();
        Ok(self.running.await?)
    }
}

fn tenant(n: usize) -> String {
    format!("tenant-{n}")
}

fn data(n: usize) -> serde_json::Value {
    json!({
        "call_id": Uuid::from_u128(n as u128), "seconds": n % 3_600, "direction": "inbound", "agent": "support",
        "transcript": "A line of what was said, as a receiver might store it. ".repeat(8),
    })
}
