//! From the workers' hands to the table, without making a worker wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::is_unavailable;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_runtime::{Backoff, Pulse, boot_now, random_unit};

use super::insert::insert;
use crate::finished::{FinishedJob, HistoryError, HistorySink};

/// How the history is written.
#[derive(Debug, Clone, Copy)]
pub struct HistorySettings {
    /// Most records that wait in memory; the next ones are dropped and counted.
    pub buffer: usize,
    /// Most records of one statement.
    pub batch: usize,
    /// Longest time a record waits for others to come along.
    pub delay: Duration,
    /// Longest time that writing at once, and the last write at shutdown, may take.
    pub limit: Duration,
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self { buffer: 20_000, batch: 500, delay: Duration::from_millis(250), limit: Duration::from_secs(5) }
    }
}

/// The workers' end: takes records and never blocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    records: mpsc::Sender<FinishedJob>,
    pool: PgPool,
    limit: Duration,
    batch: usize,
    counts: Arc<Counts>,
}

/// The writing end; it must be [`Writer::run`].
#[derive(Debug)]
pub struct Writer {
    records: mpsc::Receiver<FinishedJob>,
    pool: PgPool,
    settings: HistorySettings,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    records: Counter<u64>,
    dropped: AtomicU64,
}

impl Counts {
    fn count(&self, outcome: &'static str, records: usize) {
        self.records.add(records as u64, &[KeyValue::new("outcome", outcome)]);
        if outcome == "dropped" {
            self.dropped.fetch_add(records as u64, Ordering::Relaxed);
        }
    }
}

impl History {
    /// Both ends.
    #[must_use]
    pub fn new(pool: PgPool, settings: HistorySettings) -> (Self, Writer) {
        let records = opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.history.records")
            .with_description("Records of the job history, by what became of them.")
            .build();
        let counts = Arc::new(Counts { records, dropped: AtomicU64::new(0) });
        for outcome in ["written", "dropped"] {
            counts.count(outcome, 0);
        }
        let (sender, receiver) = mpsc::channel(settings.buffer.max(1));
        let writer = Writer { records: receiver, pool: pool.clone(), settings, counts: Arc::clone(&counts) };
        (Self { records: sender, pool, limit: settings.limit, batch: settings.batch.max(1), counts }, writer)
    }

    /// Records dropped so far, because the buffer was full or the database refused them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

impl History {
    /// Writes what fits into one statement.
    async fn write_part(&self, part: &[FinishedJob]) -> Result<(), HistoryError> {
        let failed = |reason, refused| HistoryError { records: part.len(), reason, refused };
        match tokio::time::timeout(self.limit, insert(&self.pool, part)).await {
            Ok(Ok(())) => {
                self.counts.count("written", part.len());
                Ok(())
            }
            Ok(Err(error)) => Err(failed(error.to_string(), !is_unavailable(&error))),
            Err(_) => Err(failed(format!("no answer within {:?}", self.limit), false)),
        }
    }
}

impl HistorySink for History {
    fn record(&self, record: FinishedJob) {
        if self.records.try_send(record).is_err() {
            // The writer tells of it, at most once in a while; here is the hot path.
            self.counts.count("dropped", 1);
        }
    }

    fn record_now(
        &self,
        records: Vec<FinishedJob>,
    ) -> Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>> {
        Box::pin(async move {
            let total = records.len();
            let mut left = records;
            while !left.is_empty() {
                let rest = left.split_off(left.len().min(self.batch));
                if let Err(error) = self.write_part(&left).await {
                    // Written later rather than never; the caller knows that it is not there yet.
                    left.extend(rest);
                    for record in left {
                        self.record(record);
                    }
                    return Err(HistoryError { records: total, ..error });
                }
                left = rest;
            }
            Ok(())
        })
    }

    fn write(
        &self,
        records: Vec<FinishedJob>,
    ) -> Pin<Box<dyn Future<Output = Result<(), HistoryError>> + Send + '_>> {
        Box::pin(async move {
            for part in records.chunks(self.batch) {
                match self.write_part(part).await {
                    Err(error) if error.refused => {
                        // One of them must not cost the others their place: the writer tries each by itself.
                        part.iter().for_each(|record| self.record(record.clone()));
                    }
                    written => written?,
                }
            }
            Ok(())
        })
    }
}

impl Writer {
    /// Writes until `finish`, which is given when no worker records any more, then writes what is left within
    /// [`HistorySettings::limit`].
    pub async fn run(mut self, finish: CancellationToken, pulse: Pulse) {
        self.run_on(finish, pulse).await;
    }

    /// The same, and may be called again after it panicked: what was not taken up yet is still there.
    pub async fn run_on(&mut self, finish: CancellationToken, pulse: Pulse) {
        let mut batch = Vec::with_capacity(self.settings.batch);
        let mut reported = 0;
        while !finish.is_cancelled() {
            pulse.beat();
            tokio::select! {
                () = finish.cancelled() => break,
                // Also the loop's heartbeat while nothing finishes.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                taken = self.records.recv_many(&mut batch, self.settings.batch) => {
                    if taken == 0 {
                        break;
                    }
                    self.fill(&mut batch, &finish).await;
                    self.write_until(&mut batch, &finish, &pulse).await;
                }
            }
            self.report(&mut reported);
        }
        self.write_rest(batch).await;
        self.report(&mut reported);
    }

    /// Waits a moment for others to come along.
    async fn fill(&mut self, batch: &mut Vec<FinishedJob>, finish: &CancellationToken) {
        let full = tokio::time::sleep(self.settings.delay);
        tokio::pin!(full);
        while batch.len() < self.settings.batch {
            let room = self.settings.batch - batch.len();
            tokio::select! {
                () = &mut full => return,
                () = finish.cancelled() => return,
                taken = self.records.recv_many(batch, room) => if taken == 0 { return },
            }
        }
    }

    /// Writes one batch; while the database is away, again and again. The channel behind it fills meanwhile, and overflows.
    async fn write_until(&self, batch: &mut Vec<FinishedJob>, finish: &CancellationToken, pulse: &Pulse) {
        let mut failures = 0;
        while !batch.is_empty() {
            pulse.beat();
            let Err(error) = self.write(batch).await else { return };
            if failures == 0 {
                tracing::warn!(%error, records = batch.len(), "job history waits for PostgreSQL");
            }
            let wait = Backoff::RECONNECT.delay(failures, random_unit());
            failures += 1;
            tokio::select! {
                () = finish.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Empties `batch` into the table. An error: the database is away and the batch is kept.
    async fn write(&self, batch: &mut Vec<FinishedJob>) -> Result<(), sqlx::Error> {
        let limited = tokio::time::timeout(self.settings.limit, insert(&self.pool, batch)).await;
        match limited.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(()) => {
                self.counts.count("written", batch.len());
                batch.clear();
                Ok(())
            }
            Err(error) if is_unavailable(&error) => Err(error),
            Err(error) => {
                self.write_singly(batch, &error).await;
                Ok(())
            }
        }
    }

    /// The database refused the statement: one record must not cost the others their place.
    async fn write_singly(&self, batch: &mut Vec<FinishedJob>, error: &sqlx::Error) {
        tracing::warn!(%error, records = batch.len(), "job history batch refused; written one by one");
        for job in batch.drain(..) {
            match insert(&self.pool, std::slice::from_ref(&job)).await {
                Ok(()) => self.counts.count("written", 1),
                Err(error) => {
                    tracing::error!(%error, job.id = %job.id, kind = &*job.kind, "job history record dropped");
                    self.counts.count("dropped", 1);
                }
            }
        }
    }

    /// What is left at shutdown.
    async fn write_rest(&mut self, mut batch: Vec<FinishedJob>) {
        let until = boot_now().saturating_add(self.settings.limit);
        self.records.close();
        loop {
            while batch.len() < self.settings.batch {
                match self.records.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            if batch.is_empty() {
                return;
            }
            let left = until.duration_since(boot_now());
            let written = tokio::time::timeout(left, self.write(&mut batch)).await;
            if !matches!(written, Ok(Ok(()))) {
                break;
            }
        }
        let mut lost = batch.len();
        while self.records.try_recv().is_ok() {
            lost += 1;
        }
        self.counts.count("dropped", lost);
        tracing::warn!(
            records = lost,
            "job history records dropped at shutdown: PostgreSQL did not take them"
        );
    }

    fn report(&self, reported: &mut u64) {
        let dropped = self.counts.dropped.load(Ordering::Relaxed);
        if dropped > *reported {
            tracing::warn!(records = dropped - *reported, "job history records dropped");
            *reported = dropped;
        }
    }
}
