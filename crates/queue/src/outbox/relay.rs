//! The relay: rows become jobs. Runs in every voiceai-tasker; each claims its own rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff_sqlx::Timestamp as SqlTimestamp;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::types::Json;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_runtime::{Backoff, BootTime, Pulse, boot_now, random_unit};

use super::wake::Wakeups;
use super::{AddError, Added, Enqueue, Options, OutboxJob, bounded, upkeep};
use crate::new_job::Due;

/// How a relay works.
#[derive(Debug, Clone, Copy)]
pub struct RelaySettings {
    /// How often it looks when nothing wakes it. `WORKER_POLL_INTERVAL_MS`.
    pub poll_interval: Duration,
    /// Most rows of one claim.
    pub batch: u16,
    /// How long a claim lasts; longer than adding a batch can take.
    pub claim: Duration,
    /// How long a relayed row is kept to be looked at.
    pub retention: Duration,
    /// How often critical jobs are checked and old rows deleted.
    pub upkeep_every: Duration,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(5),
            batch: 500,
            claim: Duration::from_secs(30),
            retention: Duration::from_secs(24 * 3600),
            upkeep_every: Duration::from_secs(30),
        }
    }
}

impl RelaySettings {
    /// In how much time the loop beats at least once, both databases being away: what to register its pulse with.
    #[must_use]
    pub const fn bound(&self) -> Duration {
        self.poll_interval.saturating_add(Duration::from_secs(90))
    }
}

/// Moves rows of `ops.outbox` into their queues.
#[derive(Debug)]
pub struct Relay<Q> {
    pool: PgPool,
    queue: Q,
    settings: RelaySettings,
    /// Queues that take nothing at present, and until when they are left alone: a backlog of theirs must not be claimed over and
    /// over.
    closed: Mutex<BTreeMap<String, BootTime>>,
    rows: Counter<u64>,
}

/// How long a queue that took nothing is left alone.
const CLOSED_FOR: Duration = Duration::from_secs(5);

/// What one pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Passed {
    pub(crate) claimed: usize,
    pub(crate) relayed: usize,
    pub(crate) unreachable: bool,
}

impl<Q: Enqueue> Relay<Q> {
    /// A relay that has not begun.
    pub fn new(pool: PgPool, queue: Q, settings: RelaySettings) -> Self {
        let rows = opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.outbox.rows")
            .with_description("Outbox rows handled by the relay, by outcome.")
            .build();
        for outcome in ["relayed", "known", "duplicate", "deferred", "refused", "recovered"] {
            rows.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        Self { pool, queue, settings, closed: Mutex::default(), rows }
    }

    /// Relays until `stopping`: at once when woken, else every [`RelaySettings::poll_interval`]. Neither database's absence ends it.
    pub async fn run(self, wakeups: Wakeups, stopping: CancellationToken, pulse: Pulse) {
        tracing::info!("outbox relay started");
        let mut upkeep_due = boot_now();
        let mut failures = 0;
        while !stopping.is_cancelled() {
            pulse.beat();
            let troubled = self.round(&mut upkeep_due, &stopping, &pulse).await;
            failures = if troubled { failures + 1 } else { 0 };
            pulse.beat();
            let wait = if troubled {
                Backoff::RECONNECT.delay(failures, random_unit()).min(self.settings.poll_interval)
            } else {
                self.settings.poll_interval
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                // While a database is away new rows change nothing.
                () = wakeups.outbox(), if !troubled => {}
            }
        }
        tracing::info!("outbox relay stopped");
    }

    /// Relays everything there is, then looks after what is due. True when a database was away.
    async fn round(&self, upkeep_due: &mut BootTime, stopping: &CancellationToken, pulse: &Pulse) -> bool {
        loop {
            match self.pass().await {
                Ok(passed) if passed.unreachable => return true,
                Ok(passed) if passed.claimed < usize::from(self.settings.batch) => break,
                Ok(_) => pulse.beat(),
                Err(error) => {
                    tracing::warn!(%error, "outbox relay: the database is away; rows stay where they are");
                    return true;
                }
            }
            if stopping.is_cancelled() {
                return false;
            }
        }
        if boot_now() < *upkeep_due {
            return false;
        }
        match upkeep::run(&self.pool, &self.queue, self.settings.retention, pulse).await {
            Ok(recovered) => {
                *upkeep_due = boot_now().saturating_add(self.settings.upkeep_every);
                self.count("recovered", recovered);
                // What was lost is relayed now, not at the next tick.
                recovered > 0 && self.pass().await.is_err()
            }
            Err(error) => {
                tracing::warn!(%error, "outbox upkeep is put off");
                true
            }
        }
    }

    /// Claims one batch, adds it, and records what became of each row.
    pub(crate) async fn pass(&self) -> Result<Passed, sqlx::Error> {
        let claimed_until = boot_now().saturating_add(self.settings.claim);
        let Claimed { jobs, unreadable } =
            bounded(claim(&self.pool, self.settings, &self.closed_queues())).await?;
        let claimed = jobs.len() + unreadable.ids.len();
        if claimed == 0 {
            return Ok(Passed::default());
        }
        // Paused for longer than the claim lasts: by now the rows may be another's.
        if boot_now() >= claimed_until {
            return Ok(Passed { claimed, ..Passed::default() });
        }
        let results = self.queue.add_all(&jobs).await;
        let verdicts = Verdicts::of(&jobs, &results, unreadable);
        self.count("relayed", verdicts.new);
        self.count("known", verdicts.known);
        self.count("duplicate", verdicts.duplicates.len());
        self.count("deferred", verdicts.later.ids.len());
        self.count("refused", verdicts.refused.ids.len());
        verdicts.log();
        self.close(&verdicts);
        bounded(record(&self.pool, &verdicts)).await?;
        Ok(Passed {
            claimed,
            relayed: verdicts.done.len() + verdicts.duplicates.len(),
            unreachable: verdicts.unreachable,
        })
    }

    fn closed_queues(&self) -> Vec<String> {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.retain(|_, until| boot_now() < *until);
        closed.keys().cloned().collect()
    }

    fn close(&self, verdicts: &Verdicts) {
        let until = boot_now().saturating_add(CLOSED_FOR);
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.extend(verdicts.closed.iter().map(|queue| (queue.clone(), until)));
    }

    fn count(&self, outcome: &'static str, rows: usize) {
        self.rows.add(rows as u64, &[KeyValue::new("outcome", outcome)]);
    }
}

/// Takes the oldest visible rows, one statement. `SKIP LOCKED` gives fifty relays fifty different batches.
async fn claim(pool: &PgPool, settings: RelaySettings, closed: &[String]) -> Result<Claimed, sqlx::Error> {
    let rows = sqlx::query(
        "WITH next AS ( \
             SELECT id FROM ops.outbox \
             WHERE relayed_at IS NULL AND refused_at IS NULL AND visible_at <= now() AND queue <> ALL($3) \
             ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED) \
         UPDATE ops.outbox o SET visible_at = now() + $2 * interval '1 second', attempts = attempts + 1 \
         FROM next WHERE o.id = next.id \
         RETURNING o.id, o.queue, o.kind, o.payload, o.priority, o.run_at, o.tenant, o.options, o.traceparent, \
                   o.critical, o.seq",
    )
    .bind(i64::from(settings.batch))
    .bind(settings.claim.as_secs_f64())
    .bind(closed)
    .fetch_all(pool)
    .await?;
    let mut claimed = Claimed::default();
    let mut jobs = Vec::with_capacity(rows.len());
    for row in &rows {
        let seq: i64 = row.try_get("seq")?;
        match read(row) {
            Ok(job) => jobs.push((seq, job)),
            // One row that cannot be read must not hold up the others.
            Err(error) => claimed.unreadable.push(row.try_get("id")?, &error),
        }
    }
    jobs.sort_by_key(|(seq, _)| *seq);
    claimed.jobs = jobs.into_iter().map(|(_, job)| job).collect();
    Ok(claimed)
}

/// A batch, oldest first.
#[derive(Debug, Default)]
struct Claimed {
    jobs: Vec<OutboxJob>,
    unreadable: Reasons,
}

fn read(row: &PgRow) -> Result<OutboxJob, sqlx::Error> {
    let priority: i16 = row.try_get("priority")?;
    Ok(OutboxJob {
        id: row.try_get("id")?,
        queue: row.try_get("queue")?,
        kind: row.try_get("kind")?,
        payload: row.try_get::<Json<Box<RawValue>>, _>("payload")?.0,
        priority: u8::try_from(priority).unwrap_or(0),
        due: row.try_get::<Option<SqlTimestamp>, _>("run_at")?.map_or(Due::Now, |at| Due::At(at.to_jiff())),
        tenant: row.try_get("tenant")?,
        options: row.try_get::<Json<Options>, _>("options")?.0,
        traceparent: row.try_get("traceparent")?,
        critical: row.try_get("critical")?,
    })
}

/// Rows with the text that says why.
#[derive(Debug, Default)]
struct Reasons {
    ids: Vec<String>,
    texts: Vec<String>,
}

impl Reasons {
    fn push(&mut self, id: &str, text: &impl ToString) {
        self.ids.push(id.to_owned());
        self.texts.push(text.to_string().chars().take(1000).collect());
    }
}

/// What a batch came to.
#[derive(Debug, Default)]
struct Verdicts {
    done: Vec<String>,
    duplicates: Vec<String>,
    later: Reasons,
    refused: Reasons,
    new: usize,
    known: usize,
    closed: BTreeSet<String>,
    unreachable: bool,
}

impl Verdicts {
    fn of(jobs: &[OutboxJob], results: &[Result<Added, AddError>], unreadable: Reasons) -> Self {
        let mut all = Self { refused: unreadable, ..Self::default() };
        for (at, job) in jobs.iter().enumerate() {
            match results.get(at) {
                Some(Ok(Added::New)) => {
                    all.new += 1;
                    all.done.push(job.id.clone());
                }
                Some(Ok(Added::Known)) => {
                    all.known += 1;
                    all.done.push(job.id.clone());
                }
                Some(Ok(Added::Duplicate { .. })) => all.duplicates.push(job.id.clone()),
                Some(Err(error @ AddError::Refused(_))) => all.refused.push(&job.id, error),
                Some(Err(error)) => {
                    if matches!(error, AddError::NotNow(_)) {
                        all.closed.insert(job.queue.clone());
                    }
                    all.unreachable |= matches!(error, AddError::Unreachable(_));
                    all.later.push(&job.id, error);
                }
                None => all.later.push(&job.id, &"the queue gave no answer for this row"),
            }
        }
        all
    }

    fn log(&self) {
        for (id, reason) in self.refused.ids.iter().zip(&self.refused.texts) {
            tracing::error!(outbox.id = id, reason, "outbox row refused; correct or delete it");
        }
        if let Some(reason) = self.later.texts.first() {
            tracing::warn!(rows = self.later.ids.len(), reason, "outbox rows wait; they are relayed later");
        }
    }
}

/// Writes the verdicts, one statement. A row that was relayed meanwhile by another is left as it is.
async fn record(pool: &PgPool, verdicts: &Verdicts) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH done AS ( \
             UPDATE ops.outbox SET relayed_at = now(), last_error = NULL, \
                 visible_at = now() + interval '30 seconds', \
                 settled_at = CASE WHEN id = ANY($2) THEN now() END \
             WHERE id = ANY($1 || $2) AND relayed_at IS NULL), \
         refused AS ( \
             UPDATE ops.outbox o SET refused_at = now(), last_error = r.reason \
             FROM unnest($3::text[], $4::text[]) AS r (id, reason) WHERE o.id = r.id AND o.relayed_at IS NULL) \
         UPDATE ops.outbox o SET last_error = r.reason, \
             visible_at = now() + least(power(2, least(o.attempts, 5)), 30) * interval '1 second' \
                          * (CASE WHEN $7 THEN 0.05 ELSE 0.2 END) \
         FROM unnest($5::text[], $6::text[]) AS r (id, reason) WHERE o.id = r.id AND o.relayed_at IS NULL",
    )
    .bind(&verdicts.done)
    .bind(&verdicts.duplicates)
    .bind(&verdicts.refused.ids)
    .bind(&verdicts.refused.texts)
    .bind(&verdicts.later.ids)
    .bind(&verdicts.later.texts)
    .bind(verdicts.unreachable)
    .execute(pool)
    .await
    .map(|_| ())
}
