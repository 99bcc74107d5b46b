//! `/metrics`: the process's metrics, and as leader what waits in each queue at this very moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::watch;
use voiceai_cli::Failure;
use voiceai_listener::Problem;
use voiceai_listener::axum::Router;
use voiceai_listener::axum::extract::State;
use voiceai_listener::axum::http::header::CONTENT_TYPE;
use voiceai_listener::axum::response::{IntoResponse as _, Response};
use voiceai_listener::axum::routing::get;
use voiceai_postgres::Tenure;
use voiceai_queue::Client;
use voiceai_telemetry::{SCRAPE_MEDIA_TYPE, scrape};

use crate::operate::queues;

/// Longest time for counting what waits: a scraper waits ten seconds as a rule.
const COUNT_MAX: Duration = Duration::from_secs(5);

/// Waiting jobs by queue; empty where they are not known or are another's to tell.
type Waiting = Arc<Mutex<BTreeMap<String, u64>>>;

#[derive(Clone)]
struct Scraped {
    client: Client,
    tenure: watch::Receiver<Option<Tenure>>,
    waiting: Waiting,
}

pub(super) fn routes(client: Client, tenure: watch::Receiver<Option<Tenure>>) -> Router {
    let waiting = Waiting::default();
    observe(Arc::clone(&waiting));
    Router::new().route("/metrics", get(answer)).with_state(Scraped { client, tenure, waiting })
}

/// The number that the platform's autoscalers were set to.
fn observe(waiting: Waiting) {
    opentelemetry::global::meter("voiceai")
        .u64_observable_gauge("queue.waiting_jobs")
        .with_description("Jobs that are ready to run and wait for a worker; given by the leader alone")
        .with_callback(move |observer| {
            let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for (queue, count) in waiting.iter() {
                observer.observe(*count, &[KeyValue::new("queue", queue.clone())]);
            }
        })
        .build();
}

async fn answer(State(scraped): State<Scraped>) -> Result<Response, Problem> {
    let known = scraped.look().await;
    *scraped.waiting.lock().unwrap_or_else(PoisonError::into_inner) = known;
    let document = scrape().map_err(|error| Problem::internal("metrics_failed", error.to_string()))?;
    Ok(([(CONTENT_TYPE, SCRAPE_MEDIA_TYPE)], document).into_response())
}

impl Scraped {
    /// What is not known is left out, and never zero: an autoscaler must not take an absent Redis for an empty queue.
    async fn look(&self) -> BTreeMap<String, u64> {
        let leads = self.tenure.borrow().as_ref().is_some_and(Tenure::is_trusted);
        if !leads {
            return BTreeMap::new();
        }
        let error = match tokio::time::timeout(COUNT_MAX, self.count()).await {
            Ok(Ok(known)) => return known,
            Ok(Err(failure)) => failure.message,
            Err(_) => format!("no answer within {COUNT_MAX:?}"),
        };
        tracing::warn!(error, "a scrape goes without queue_waiting_jobs");
        BTreeMap::new()
    }

    async fn count(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let names = queues::names(&self.client).await?;
        let all = queues::look(&self.client, &names).await?;
        Ok(all.into_iter().map(|stats| (stats.queue, stats.waiting)).collect())
    }
}
