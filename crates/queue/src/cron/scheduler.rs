//! The loop that fires schedules. It runs in every voiceai-tasker and acts only in the leader.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_postgres::{Tenure, term};
use voiceai_runtime::{Pulse, boot_now};

use super::calendar::Calendar;
use super::policy::{Overlap, Rules, Standing, Verdict, decide, next_look};
use super::schedule::{Schedule, slot_job_id};
use super::store::{self, Applied, Malformed};
use crate::outbox::{Enqueue, JobStanding, Wakeups, bounded};

/// How the scheduler works.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerSettings {
    /// How often it looks when neither a slot nor a change wakes it. `SCHEDULER_POLL_INTERVAL_MS`.
    pub poll_interval: Duration,
    /// How late a slot may fire without counting as missed. Longer than a change of leader takes.
    pub on_time_within: Duration,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { poll_interval: Duration::from_secs(10), on_time_within: Duration::from_secs(60) }
    }
}

impl SchedulerSettings {
    /// In how much time the loop beats at least once, both databases being away: what to register its pulse with.
    #[must_use]
    pub const fn bound(&self) -> Duration {
        self.poll_interval.saturating_add(Duration::from_secs(90))
    }
}

/// Fires schedules: each slot exactly once, whatever the number of schedulers, restarts and changes of leader.
///
/// A slot becomes a job by one statement in PostgreSQL that checks the leader's term, moves the schedule's cursor from exactly where
/// it was read, and writes the outbox row. It happens as a whole or not at all, so a kill -9 at any
/// moment leaves the slot either due or fired, and two schedulers that decide the same can only apply it once. From there the
/// [`crate::outbox`] makes one job of the row, and looks after it until it has finished, even when Redis loses it.
///
/// Time is the database's clock, so a machine whose own clock is wrong fires neither early nor twice; [`super::list`] names the
/// one exception, a rehearsal.
#[derive(Debug)]
pub struct Scheduler<Q> {
    pool: PgPool,
    queue: Q,
    settings: SchedulerSettings,
    wakeups: Wakeups,
    known: HashMap<String, Known>,
    slots: Counter<u64>,
    lateness: Histogram<f64>,
    troubled: bool,
}

/// What was made of a row, as long as its revision stays the same.
#[derive(Debug)]
struct Known {
    revision: i64,
    calendar: Option<Calendar>,
}

/// What one pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// The database's clock.
    pub(crate) now: Timestamp,
    /// When something is due next.
    pub(crate) next: Option<Timestamp>,
}

/// The pass ended early.
#[derive(Debug)]
enum Halt {
    /// The leadership is over.
    NotLeading,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Halt {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl<Q: Enqueue> Scheduler<Q> {
    /// A scheduler that has not begun. It wakes the relay of `wakeups` for what it fires.
    pub fn new(pool: PgPool, queue: Q, settings: SchedulerSettings, wakeups: Wakeups) -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        let slots = meter
            .u64_counter("voiceai.cron.slots")
            .with_description("Slots of schedules that were decided, by outcome.")
            .build();
        for outcome in ["fired", "missed", "paused", "overlapped"] {
            slots.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        let lateness = meter
            .f64_histogram("voiceai.cron.lateness")
            .with_unit("s")
            .with_description("From a slot's instant to its firing, by the database's clock.")
            .build();
        Self { pool, queue, settings, wakeups, known: HashMap::new(), slots, lateness, troubled: false }
    }

    /// Fires until `stopping`, whenever `tenure` says that this process leads: exactly at the next slot, at once when a schedule was
    /// changed, and at every [`SchedulerSettings::poll_interval`] in any case. A database that is away is waited for.
    pub async fn run(
        mut self,
        mut tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!("scheduler started");
        let mut election_is_over = false;
        while !stopping.is_cancelled() {
            pulse.beat();
            let leading = tenure.borrow_and_update().clone();
            let wait = match leading {
                Some(leading) => self.look(&leading, &pulse).await,
                None => self.settings.poll_interval,
            };
            pulse.beat();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.wakeups.schedules() => {}
                changed = tenure.changed(), if !election_is_over => election_is_over = changed.is_err(),
            }
        }
        tracing::info!("scheduler stopped");
    }

    /// One pass, and how long to wait for the next.
    async fn look(&mut self, tenure: &Tenure, pulse: &Pulse) -> Duration {
        let poll = self.settings.poll_interval;
        match self.pass(tenure, pulse).await {
            Ok(look) => {
                if self.troubled {
                    tracing::info!("scheduler: the database is back");
                    self.troubled = false;
                }
                let until = look.next.map(|next| next.duration_since(look.now));
                until.map_or(poll, |until| Duration::try_from(until).unwrap_or(Duration::ZERO).min(poll))
            }
            Err(Halt::NotLeading) => poll,
            Err(Halt::Database(error)) => {
                if !self.troubled {
                    tracing::warn!(%error, "scheduler: the database is away; slots are fired when it is back");
                    self.troubled = true;
                }
                poll.min(Duration::from_secs(1))
            }
        }
    }

    async fn pass(&mut self, tenure: &Tenure, pulse: &Pulse) -> Result<Look, Halt> {
        if tenure.check().is_err() {
            return Err(Halt::NotLeading);
        }
        let asked = boot_now();
        let (rows, now) = bounded(store::load(&self.pool)).await?;
        let mut seen = Vec::with_capacity(rows.len());
        let mut next: Option<Timestamp> = None;
        for row in rows {
            pulse.beat();
            let schedule = match row {
                Ok(schedule) => schedule,
                Err(malformed) => {
                    seen.push(malformed.name.clone());
                    self.report(malformed);
                    continue;
                }
            };
            seen.push(schedule.definition.name.clone());
            if !schedule.definition.enabled {
                continue;
            }
            let Some(calendar) = self.calendar(&schedule) else { continue };
            let cursor = self.decide_one(tenure, &calendar, &schedule, now).await?;
            let standing = Standing { last_slot: cursor, ..self.standing(&schedule, tenure, false) };
            next = next.into_iter().chain(next_look(&calendar, standing, now)).min();
        }
        self.known.retain(|name, _| seen.contains(name));
        // The pass took time; what is due next is measured from now.
        let passed = SignedDuration::try_from(boot_now().duration_since(asked)).unwrap_or_default();
        Ok(Look { now: now.saturating_add(passed).unwrap_or(now), next })
    }

    /// The calendar of a row, parsed once a revision. A row whose calendar does not stand is reported once and skipped.
    fn calendar(&mut self, schedule: &Schedule) -> Option<Calendar> {
        let name = &schedule.definition.name;
        if let Some(known) = self.known.get(name)
            && known.revision == schedule.revision
        {
            return known.calendar.clone();
        }
        match schedule.definition.check() {
            Ok(calendar) => {
                let known = Known { revision: schedule.revision, calendar: Some(calendar.clone()) };
                self.known.insert(name.clone(), known);
                Some(calendar)
            }
            Err(error) => {
                let problem = error.to_string();
                self.report(Malformed { name: name.clone(), revision: schedule.revision, problem });
                None
            }
        }
    }

    fn report(&mut self, row: Malformed) {
        if self.known.get(&row.name).is_some_and(|known| known.revision == row.revision) {
            return;
        }
        tracing::error!(schedule = row.name, problem = row.problem, "schedule skipped; the others go on");
        self.known.insert(row.name, Known { revision: row.revision, calendar: None });
    }

    fn standing(&self, schedule: &Schedule, tenure: &Tenure, busy: bool) -> Standing {
        Standing {
            last_slot: schedule.last_slot,
            pause: schedule.pause.as_ref().map(|(pause, _)| *pause),
            busy,
            held: tenure.is_held(),
        }
    }

    fn rules(&self, schedule: &Schedule) -> Rules {
        Rules {
            missed: schedule.definition.missed,
            overlap: schedule.definition.overlap,
            on_time_within: SignedDuration::try_from(self.settings.on_time_within)
                .unwrap_or(SignedDuration::MAX),
        }
    }

    /// Decides and applies for one schedule; answers where its cursor is now.
    async fn decide_one(
        &self,
        tenure: &Tenure,
        calendar: &Calendar,
        schedule: &Schedule,
        now: Timestamp,
    ) -> Result<Timestamp, Halt> {
        let name = &schedule.definition.name;
        let mut verdict = decide(calendar, self.rules(schedule), self.standing(schedule, tenure, false), now);
        if !verdict.fire.is_empty() && schedule.definition.overlap == Overlap::Skip {
            match self.is_busy(schedule).await? {
                Some(false) => {}
                Some(true) => {
                    verdict =
                        decide(calendar, self.rules(schedule), self.standing(schedule, tenure, true), now);
                }
                // Nobody knows whether the previous run goes on: decided as soon as somebody does.
                None => return Ok(schedule.last_slot),
            }
        }
        if verdict.last_slot == schedule.last_slot {
            return Ok(schedule.last_slot);
        }
        let term = tenure.check().map_err(|_| Halt::NotLeading)?;
        let span = tracing::info_span!("schedule.fire", schedule.name = name);
        match bounded(store::apply(&self.pool, term, schedule, &verdict).instrument(span)).await? {
            Applied::Done(added) => self.tell(schedule, &verdict, &added, now),
            // Read again at the next pass, which the change has woken already.
            Applied::Overtaken => {}
            Applied::StaleTerm => {
                term::refused(term, "schedule.fire");
                return Err(Halt::NotLeading);
            }
        }
        Ok(verdict.last_slot)
    }

    /// Whether the job that the schedule fired last is unfinished; `None` when the queue cannot be asked.
    async fn is_busy(&self, schedule: &Schedule) -> Result<Option<bool>, sqlx::Error> {
        let Some(id) = &schedule.record.last_job_id else { return Ok(Some(false)) };
        let row = bounded(
            sqlx::query(
                "SELECT queue, relayed_at IS NOT NULL, refused_at IS NOT NULL OR settled_at IS NOT NULL \
                 FROM ops.outbox WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(&self.pool),
        )
        .await?;
        let (queue, in_outbox) = match row {
            Some(row) => {
                let (relayed, over): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
                if over || !relayed {
                    return Ok(Some(!over));
                }
                (row.try_get(0)?, true)
            }
            None => (schedule.definition.queue.clone(), false),
        };
        match self.queue.standings(&queue, std::slice::from_ref(id)).await {
            Ok(standings) => Ok(Some(match standings.first() {
                Some(JobStanding::Unfinished) => true,
                // A critical row whose job the queue does not know was lost by Redis, and is relayed again.
                Some(JobStanding::Unknown) | None => in_outbox,
                Some(JobStanding::Finished) => false,
            })),
            Err(error) => {
                tracing::warn!(%error, schedule = schedule.definition.name, "schedule waits: its last run cannot be looked up");
                Ok(None)
            }
        }
    }

    fn tell(&self, schedule: &Schedule, verdict: &Verdict, added: &[String], now: Timestamp) {
        let name = &schedule.definition.name;
        if !added.is_empty() {
            self.wakeups.wake_outbox();
        }
        for slot in &verdict.fire {
            let id = slot_job_id(name, *slot);
            if !added.contains(&id) {
                tracing::warn!(schedule = name, job.id = id, "slot was fired before; its job stays one");
                continue;
            }
            let late = now.duration_since(*slot);
            self.lateness.record(late.as_secs_f64(), &[]);
            let late_ms = i64::try_from(late.as_millis()).unwrap_or(i64::MAX);
            tracing::info!(schedule = name, %slot, job.id = id, late_ms, "schedule fired");
        }
        self.count("fired", added.len());
        self.count("missed", usize::from(verdict.dropped.missed));
        self.count("paused", usize::from(verdict.dropped.paused));
        self.count("overlapped", usize::try_from(verdict.dropped.overlapping).unwrap_or(usize::MAX));
        if verdict.dropped.missed {
            tracing::warn!(
                schedule = name, from = %schedule.last_slot, to = %verdict.last_slot, policy = %schedule.definition.missed,
                "missed slots are not made up for"
            );
        }
        if verdict.dropped.overlapping > 0 {
            tracing::warn!(
                schedule = name,
                slots = verdict.dropped.overlapping,
                "slot dropped: the last run is unfinished"
            );
        }
        if verdict.rebased {
            tracing::warn!(
                schedule = name, cursor = %schedule.last_slot, %now,
                "the database's clock was set back; the schedule goes on from now"
            );
        }
    }

    fn count(&self, outcome: &'static str, slots: usize) {
        self.slots.add(slots as u64, &[KeyValue::new("outcome", outcome)]);
    }
}
