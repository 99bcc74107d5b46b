//! Figures of the platform over time: each source by itself, in its own time limit. A source that fails leaves a gap and is
//! counted; it is never a zero.

mod sources;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::{PgPool, Tenure};
use voiceai_runtime::Pulse;

pub use sources::{Platform, Postgres, RedisServer, Scaler, Services};

use crate::error::{MonitorError, chain};
use crate::metrics;
use crate::settings::CollectorSettings;

/// Where this process does not lead it looks again after that time, beside being told.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often partitions are made and dropped, and hours summed up.
const UPKEEP_EVERY: Duration = Duration::from_secs(300);

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What it is, in words with underscores and the unit at the end: `db_size_bytes`.
    pub metric: String,
    /// Of whom.
    pub service: String,
    /// Which of them.
    pub tags: BTreeMap<String, String>,
    /// The figure.
    pub value: f64,
}

impl Point {
    /// A figure without tags.
    #[must_use]
    pub fn new(service: impl Into<String>, metric: impl Into<String>, value: f64) -> Self {
        Self { metric: metric.into(), service: service.into(), tags: BTreeMap::new(), value }
    }

    /// A count. Beyond 2^53 it is no longer exact.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "nobody counts that far")]
    pub fn count(service: impl Into<String>, metric: impl Into<String>, count: u64) -> Self {
        Self::new(service, metric, count as f64)
    }

    /// The same with a tag.
    #[must_use]
    pub fn tag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.tags.insert(name.to_owned(), value.into());
        self
    }
}

/// Why a source has nothing to say.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Where figures come from.
pub trait Source: Send + Sync + 'static {
    /// Its name in metrics and logs.
    fn name(&self) -> &'static str;

    /// Its figures of now. Dropped when it takes too long.
    ///
    /// # Errors
    /// When it cannot be asked: then this time has a gap.
    fn collect(&self) -> BoxFuture<'_, Result<Vec<Point>, SourceError>>;
}

/// Collects figures, on the leader. Cheap to clone; one of the clones may run at a time.
#[derive(Clone)]
pub struct Collector {
    pool: PgPool,
    settings: CollectorSettings,
    sources: Arc<[Arc<dyn Source>]>,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a collection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Points written.
    pub points: u64,
    /// Sources that left a gap, and why.
    pub gaps: BTreeMap<&'static str, String>,
}

impl Collector {
    /// A collector that has not begun.
    #[must_use]
    pub fn new(pool: PgPool, settings: CollectorSettings, sources: Vec<Arc<dyn Source>>) -> Self {
        Self { pool, settings, sources: sources.into() }
    }

    /// Longest time for which [`Collector::run`] does not beat, beside what PostgreSQL takes.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        self.settings.interval.max(LOOK_AGAIN) + self.settings.source_timeout
    }

    /// Runs until `stopping`, whenever `tenure` says that this process leads.
    pub async fn run(
        self,
        mut tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!(sources = self.sources.len(), "metrics collector started");
        let mut election_is_over = false;
        let mut troubled = BTreeSet::new();
        let mut upkeep_at = Instant::now();
        while !stopping.is_cancelled() {
            pulse.beat();
            let leads = tenure.borrow_and_update().clone().filter(Tenure::is_trusted);
            let began = Instant::now();
            let mut next = LOOK_AGAIN;
            if let Some(held) = leads {
                let round = async {
                    if Instant::now() >= upkeep_at {
                        upkeep_at = Instant::now() + UPKEEP_EVERY;
                        self.look_after(&held, &mut troubled).await;
                        pulse.beat();
                    }
                    self.round(&held, Timestamp::now()).await
                };
                tokio::select! {
                    () = stopping.cancelled() => break,
                    collected = round => tell(&collected, &mut troubled),
                }
                next = (began + self.settings.interval).saturating_duration_since(Instant::now());
            } else {
                // Its successor has done it meanwhile, or nobody has.
                upkeep_at = Instant::now();
            }
            pulse.beat();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(next) => {}
                changed = tenure.changed(), if !election_is_over => election_is_over = changed.is_err(),
            }
        }
        tracing::info!("metrics collector stopped");
    }

    async fn look_after(&self, tenure: &Tenure, troubled: &mut BTreeSet<&'static str>) {
        match self.upkeep(tenure, Timestamp::now()).await {
            Ok(()) => {
                if troubled.remove("upkeep") {
                    tracing::info!("partitions of ops.system_metrics are looked after again");
                }
            }
            Err(MonitorError::Replaced { .. }) => {}
            Err(error) => {
                if troubled.insert("upkeep") {
                    tracing::warn!(error = %chain(&error), "partitions of ops.system_metrics cannot be looked after now");
                }
            }
        }
    }

    /// Makes partitions for today and the days ahead, drops those whose time is over, and sums up the hours that have ended. Where
    /// TimescaleDB keeps the figures, its own policies do that.
    ///
    /// # Errors
    /// As the database says.
    pub async fn upkeep(&self, tenure: &Tenure, now: Timestamp) -> Result<(), MonitorError> {
        store::upkeep(&self.pool, tenure, &self.settings, now).await
    }

    /// One collection of every source, as of `at`. Points are written source by source, as each ends.
    pub async fn round(&self, tenure: &Tenure, at: Timestamp) -> Collected {
        let mut collecting = JoinSet::new();
        for source in self.sources.iter() {
            let (source, limit) = (Arc::clone(source), self.settings.source_timeout);
            collecting.spawn(async move {
                let began = Instant::now();
                let collecting = AssertUnwindSafe(async { source.collect().await }).catch_unwind();
                let collected = match tokio::time::timeout(limit, collecting).await {
                    Ok(Ok(Ok(points))) => Ok(points),
                    Ok(Ok(Err(error))) => Err(chain(&*error)),
                    // The panic hook has said where.
                    Ok(Err(_)) => Err("it panicked".to_owned()),
                    Err(_) => Err(format!("not done within {limit:?}")),
                };
                let label = [KeyValue::new("source", source.name())];
                metrics::get().source.record(began.elapsed().as_secs_f64(), &label);
                (source.name(), collected)
            });
        }
        let mut all = Collected::default();
        while let Some(ended) = collecting.join_next().await {
            // None of them panics, and none is aborted.
            let Ok((name, collected)) = ended else { continue };
            let written = match collected {
                Ok(points) => self.write(tenure, at, &points).await,
                Err(gap) => Err(gap),
            };
            let label = [KeyValue::new("source", name)];
            metrics::get().source_failures.add(u64::from(written.is_err()), &label);
            match written {
                Ok(points) => {
                    metrics::get().points.add(points, &label);
                    all.points += points;
                }
                Err(gap) => drop(all.gaps.insert(name, gap)),
            }
        }
        all
    }

    async fn write(&self, tenure: &Tenure, at: Timestamp, points: &[Point]) -> Result<u64, String> {
        if points.is_empty() {
            return Ok(0);
        }
        let written = match tenure.check() {
            Ok(term) => store::write(&self.pool, term, at, points).await,
            Err(error) => return Err(error.to_string()),
        };
        written.map_err(|error| chain(&error))
    }
}

/// Says which sources have begun to fail, and which have come back.
fn tell(collected: &Collected, troubled: &mut BTreeSet<&'static str>) {
    for (source, gap) in &collected.gaps {
        if troubled.insert(source) {
            tracing::warn!(source, gap, "figures of this source have a gap from now on");
        }
    }
    let well = |source: &&'static str| *source != "upkeep" && !collected.gaps.contains_key(source);
    for source in troubled.iter().copied().filter(well).collect::<Vec<_>>() {
        troubled.remove(source);
        tracing::info!(source, "figures of this source are collected again");
    }
}
