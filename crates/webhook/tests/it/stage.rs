//! A database, settings for a hurry, and workers.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_config::{Binary, Resolved};
use voiceai_egress::Rule;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx;
use voiceai_runtime::Vitals;
use voiceai_testkit::{database, wait_until};
use voiceai_webhook::deliveries::{self, AttemptRow, Delivery, Filter};
use voiceai_webhook::endpoints::{self, Endpoint, NewEndpoint};
use voiceai_webhook::sending::Sending;
use voiceai_webhook::{Client, Guard, Resolve, SystemResolver, Wake, WebhookSettings, emit, listen};

pub(crate) struct Stage {
    pub(crate) pool: PgPool,
    pub(crate) settings: WebhookSettings,
    pub(crate) resolver: Arc<dyn Resolve>,
    pub(crate) rule: Rule,
    stop: CancellationToken,
}

/// The election whose leader may be held.
pub(crate) const ELECTION: &str = "voiceai:tasker:leader";

/// Quick enough for a test; everything else as it is by default.
const HURRY: [(&str, &str); 6] = [
    ("WEBHOOK_ALLOW_NETWORKS", "127.0.0.1"),
    ("WEBHOOK_ALLOW_HTTP", "true"),
    ("WEBHOOK_TIMEOUT", "500ms"),
    ("WEBHOOK_RETRY_LADDER", "0s,20ms,40ms"),
    ("WEBHOOK_RETRY_JITTER", "0"),
    ("WEBHOOK_CIRCUIT_PAUSE", "30s"),
];

pub(crate) fn settings(own: &[(&'static str, &'static str)]) -> WebhookSettings {
    let hurry = HURRY.into_iter().filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
    let resolved = Resolved::from_pairs(Binary::Tasker, hurry.chain(own.iter().copied()));
    resolved.read(WebhookSettings::read).unwrap_or_else(|report| panic!("{report}")).settings
}

impl Stage {
    pub(crate) async fn new(own: &[(&'static str, &'static str)]) -> Self {
        Self::on(database().await.pool().await, own)
    }

    /// On a database of the test's own, with every migration of the tasker.
    pub(crate) fn on(pool: PgPool, own: &[(&'static str, &'static str)]) -> Self {
        let resolver = Arc::new(SystemResolver);
        Self {
            pool,
            settings: settings(own),
            resolver,
            rule: Rule::default(),
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn guard(&self) -> Guard {
        Guard::new(self.settings.allowed.clone(), Arc::clone(&self.resolver))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.settings, self.guard(), self.rule.clone()).unwrap()
    }

    /// Starts one worker process's part.
    pub(crate) fn work(&self) {
        self.work_with(self.client());
    }

    pub(crate) fn work_with(&self, client: Client) {
        let wake = Wake::new();
        tokio::spawn(listen(self.pool.clone(), wake.clone(), self.stop.clone()));
        let poll = Duration::from_millis(200);
        let sending =
            Sending::new(self.pool.clone(), client, self.settings.clone(), ELECTION.to_owned(), wake, poll);
        let pulse = Vitals::new().register("webhooks", Duration::from_secs(60));
        tokio::spawn(sending.run(self.stop.clone(), CancellationToken::new(), pulse));
    }

    pub(crate) async fn endpoint(&self, tenant: &str, url: &str, events: &[&str]) -> Uuid {
        let new = NewEndpoint {
            tenant: tenant.to_owned(),
            url: url.to_owned(),
            events: events.iter().map(|pattern| (*pattern).to_owned()).collect(),
            description: None,
            concurrency: None,
            timeout: None,
            secret: None,
        };
        endpoints::add(&self.pool, &new, &self.guard()).await.unwrap().0.id
    }

    pub(crate) async fn emit(&self, tenant: &str, id: &str) -> u64 {
        emit(&self.pool, tenant, "call.ended", id, &json!({ "call": id })).await.unwrap().deliveries
    }

    /// One lot of another process: the oldest `count` deliveries, for so many seconds from now; below zero it has run out.
    pub(crate) async fn held_by_another(&self, count: i64, seconds: i64) {
        sqlx::query(
            "INSERT INTO ops.webhook_claims (id, worker, deliveries, tickets, claimed_at, expires_at) \
             SELECT gen_random_uuid(), gen_random_uuid(), array_agg(id), array_agg(ticket), \
                 now() - interval '1 minute', now() + $2 * interval '1 second' \
             FROM (SELECT id, ticket FROM ops.webhook_open ORDER BY due_at LIMIT $1) oldest",
        )
        .bind(count)
        .bind(seconds)
        .execute(&self.pool)
        .await
        .unwrap();
    }

    pub(crate) async fn state(&self, endpoint: Uuid) -> Endpoint {
        endpoints::get(&self.pool, endpoint).await.unwrap()
    }

    pub(crate) async fn deliveries(&self, endpoint: Uuid) -> Vec<Delivery> {
        let filter = Filter { endpoint: Some(endpoint), ..Filter::default() };
        deliveries::list(&self.pool, &filter, None, 1_000).await.unwrap()
    }

    /// Waits until every delivery of the endpoint stands in `state`, and shows the oldest of them.
    pub(crate) async fn until(&self, endpoint: Uuid, state: &str) -> (Delivery, Vec<AttemptRow>) {
        wait_until(Duration::from_secs(20), format!("deliveries {state}"), async || {
            let all = self.deliveries(endpoint).await;
            !all.is_empty() && all.iter().all(|delivery| delivery.state == state)
        })
        .await;
        let id = self.deliveries(endpoint).await.last().unwrap().id;
        deliveries::show(&self.pool, id).await.unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Answers a name with one list after the other; the last one stays.
pub(crate) struct Rebinding {
    pub(crate) answers: Vec<Vec<IpAddr>>,
    pub(crate) asked: AtomicUsize,
}

impl Resolve for Rebinding {
    fn resolve<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let at = self.asked.fetch_add(1, Ordering::SeqCst).min(self.answers.len() - 1);
        Box::pin(std::future::ready(Ok(self.answers[at].clone())))
    }
}
