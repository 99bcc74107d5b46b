//! The loop that fires orchestration schedules. It runs in every voiceai-tasker and acts only in the leader.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::{PgPool, Tenure, term};
use voiceai_queue::outbox::Wakeups;
use voiceai_runtime::{Clock, Pulse, boot_now};

use super::decide::{Decision, Reason, Standing, day_begins, decide};
use super::row::{Malformed, Schedule, slot_job_id};
use super::store::{self, Fired, Note, State};
use crate::error::{OrchestrationError, chain};
use crate::store::reconcile;
use crate::{limits, metrics, tell};

/// An unchanged reason is written anew after so long, so that its age tells whether somebody looks.
const NOTE_AGAIN: SignedDuration = SignedDuration::from_mins(1);

/// Where a pass has its time from.
#[derive(Clone)]
enum Time {
    /// The database's clock, read with the schedules. It is the one clock that every process shares: a leader whose own clock is wrong
    /// fires neither early nor twice, and what a pass decides agrees with the times that are written in the rows it decides from.
    Database,
    /// Another one.
    Given(Arc<dyn Clock>),
}

impl Time {
    fn now(&self, database: Timestamp) -> Timestamp {
        match self {
            Self::Database => database,
            Self::Given(clock) => clock.now(),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "Database",
            Self::Given(_) => "Given",
        })
    }
}

/// Fires schedules: each slot once, whatever the number of evaluators, restarts and changes of leader. Time is the database's clock.
#[derive(Debug, Clone)]
pub struct Evaluator {
    pool: PgPool,
    time: Time,
    poll: Duration,
    wakeups: Wakeups,
    troubled: bool,
}

/// The pass ended early.
enum Halt {
    NotLeading,
    Failed(OrchestrationError),
}

impl From<OrchestrationError> for Halt {
    fn from(error: OrchestrationError) -> Self {
        Self::Failed(error)
    }
}

impl Evaluator {
    /// An evaluator that has not begun. It wakes the relay of `wakeups` for what it fires, and looks at least every `poll`.
    #[must_use]
    pub const fn new(pool: PgPool, poll: Duration, wakeups: Wakeups) -> Self {
        Self { pool, time: Time::Database, poll, wakeups, troubled: false }
    }

    /// The same by another clock than the database's: what is due, admitted and written down is as of its time. It is looked at once
    /// each `poll`.
    #[must_use]
    pub fn by(self, clock: Arc<dyn Clock>) -> Self {
        Self { time: Time::Given(clock), ..self }
    }

    /// Fires until `stopping`, whenever `tenure` says that this process leads. A database that is away is waited for.
    pub async fn run(
        mut self,
        mut tenure: watch::Receiver<Option<Tenure>>,
        stopping: CancellationToken,
        pulse: Pulse,
    ) {
        tracing::info!("orchestration scheduler started");
        let mut election_is_over = false;
        while !stopping.is_cancelled() {
            pulse.beat();
            let leading = tenure.borrow_and_update().clone();
            let wait = match leading {
                Some(leading) => self.look(&leading, &pulse).await,
                None => self.poll,
            };
            pulse.beat();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                changed = tenure.changed(), if !election_is_over => election_is_over = changed.is_err(),
            }
        }
        tracing::info!("orchestration scheduler stopped");
    }

    /// One pass, and how long to wait for the next.
    async fn look(&mut self, tenure: &Tenure, pulse: &Pulse) -> Duration {
        match self.pass(tenure, pulse).await {
            Ok(wait) => {
                if self.troubled {
                    tracing::info!("orchestration scheduler: the database is back");
                    self.troubled = false;
                }
                wait
            }
            Err(Halt::NotLeading) => self.poll,
            Err(Halt::Failed(error)) => {
                if !self.troubled {
                    tracing::warn!(error = chain(&error), "orchestration schedules cannot be looked at now");
                    self.troubled = true;
                }
                self.poll.min(Duration::from_secs(1))
            }
        }
    }

    async fn pass(&self, tenure: &Tenure, pulse: &Pulse) -> Result<Duration, Halt> {
        if tenure.check().is_err() {
            return Err(Halt::NotLeading);
        }
        let asked = boot_now();
        let ended = reconcile(&self.pool).await?;
        if ended > 0 {
            tracing::info!(jobs = ended, "orchestration jobs that ended elsewhere are written down");
        }
        let Some(loaded) = store::load(&self.pool).await? else { return Ok(self.poll) };
        let now = self.time.now(loaded.now);
        let days: Vec<_> = loaded
            .rows
            .iter()
            .filter_map(|(schedule, _)| schedule.as_ref().ok())
            .map(|schedule| (schedule.id.clone(), day_begins(&schedule.rules.zone, now)))
            .collect();
        let runs = store::runs_since(&self.pool, &days).await?;
        let mut unfinished = store::unfinished(&self.pool).await?;
        let mut notes = Vec::new();
        let mut next: Option<Timestamp> = None;
        for (schedule, state) in &loaded.rows {
            pulse.beat();
            let schedule = match schedule {
                Ok(schedule) => schedule,
                Err(malformed) => {
                    notes.extend(misconfigured(malformed, state.as_ref(), now));
                    continue;
                }
            };
            let known = state.as_ref().filter(|state| state.definition == schedule.definition);
            let since = known.map_or(now, |state| state.since);
            let standing = Standing {
                since,
                last_slot: state.as_ref().and_then(|state| state.last_slot),
                last_run: newest(schedule.last_run, state.as_ref().and_then(|state| state.last_fired_at)),
                failed_at: failed_at(schedule, state.as_ref()),
                runs_today: runs.get(&schedule.id).copied().unwrap_or(0),
                unfinished: unfinished.get(&schedule.project).cloned(),
                held: tenure.is_held(),
            };
            match decide(&schedule.rules, &standing, now) {
                Decision::Wait { reason, until } => {
                    next = next.into_iter().chain(until).min();
                    notes.extend(waiting(
                        schedule,
                        state.as_ref(),
                        known.is_some(),
                        since,
                        &reason,
                        until,
                        now,
                    ));
                }
                Decision::Fire { slot } => {
                    let term = tenure.check().map_err(|_| Halt::NotLeading)?;
                    if state.is_none() {
                        // The row that the firing moves.
                        let note = note(schedule, since, "waiting", "due".to_owned(), None);
                        store::note(&self.pool, term, &[note], now).await?;
                    }
                    match store::fire(
                        &self.pool,
                        term,
                        &loaded.table,
                        schedule,
                        standing.last_slot,
                        slot,
                        now,
                    )
                    .await?
                    {
                        Fired::Yes => {
                            let id = slot_job_id(schedule, slot);
                            metrics::get().fired();
                            self.wakeups.wake_outbox();
                            tracing::info!(schedule = schedule.id, project = schedule.project, %slot, job.id = id,
                                "orchestration schedule fired");
                            // Of two schedules of one project only those fire together that may run together.
                            unfinished.insert(schedule.project.clone(), id);
                        }
                        Fired::Overtaken => {
                            tracing::warn!(schedule = schedule.id, %slot, "slot was fired before; its job stays one");
                        }
                        Fired::StaleTerm => {
                            term::refused(term, "orchestration.schedule.fire");
                            return Err(Halt::NotLeading);
                        }
                    }
                }
            }
        }
        if !notes.is_empty() {
            let term = tenure.check().map_err(|_| Halt::NotLeading)?;
            store::note(&self.pool, term, &notes, now).await?;
        }
        pulse.beat();
        self.keep_platform().await?;
        let passed = SignedDuration::try_from(boot_now().duration_since(asked)).unwrap_or_default();
        let until = next.map(|next| next.duration_since(now).saturating_sub(passed));
        Ok(until
            .map_or(self.poll, |until| Duration::try_from(until).unwrap_or(Duration::ZERO).min(self.poll)))
    }
}

impl Evaluator {
    /// Brings the platform's own tables up to date. Schedules fire whatever those are like.
    async fn keep_platform(&self) -> Result<(), OrchestrationError> {
        let told = tell::due(&self.pool).await;
        let reset = limits::reset_day(&self.pool).await;
        for (what, done) in [("told of orchestration jobs", told), ("set to today", reset)] {
            match done {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(rows, "the platform's tables are {what}"),
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => tracing::warn!(error = chain(&error), "the platform's tables cannot be {what}"),
            }
        }
        Ok(())
    }
}

fn newest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).max()
}

/// When the schedule's last job failed, where none succeeded since.
fn failed_at(schedule: &Schedule, state: Option<&State>) -> Option<Timestamp> {
    let failed = newest(schedule.last_failure, state.and_then(|state| state.last_failure_at))?;
    let succeeded = newest(schedule.last_success, state.and_then(|state| state.last_success_at));
    succeeded.is_none_or(|succeeded| succeeded < failed).then_some(failed)
}

fn note(
    schedule: &Schedule,
    since: Timestamp,
    decision: &'static str,
    reason: String,
    next: Option<Timestamp>,
) -> Note {
    Note { id: schedule.id.clone(), definition: schedule.definition.clone(), since, decision, reason, next }
}

/// What is to be written of a schedule that waits: nothing where the same was written a moment ago.
fn waiting(
    schedule: &Schedule,
    state: Option<&State>,
    is_known: bool,
    since: Timestamp,
    reason: &Reason,
    until: Option<Timestamp>,
    now: Timestamp,
) -> Option<Note> {
    let decision = if *reason == Reason::Off { "off" } else { "waiting" };
    // What a schedule fired last is told by its other columns; the slot that just fired is not due again.
    let words = reason.to_string();
    let is_written = state.is_some_and(|state| {
        let is_fresh = now.duration_since(state.evaluated_at) < NOTE_AGAIN;
        // The clock of a window's reason goes on each second: the same reason is not written at each look.
        let is_same = state.reason == words
            || (matches!(reason, Reason::Window { .. }) && state.reason.contains("outside the window"));
        is_known && is_fresh && is_same && state.decision == decision
    });
    (!is_written).then(|| note(schedule, since, decision, words, until))
}

fn misconfigured(malformed: &Malformed, state: Option<&State>, now: Timestamp) -> Option<Note> {
    let is_written = state.is_some_and(|state| {
        state.reason == malformed.problem && now.duration_since(state.evaluated_at) < NOTE_AGAIN
    });
    if is_written || malformed.id.is_empty() {
        return None;
    }
    if state.is_none_or(|state| state.reason != malformed.problem) {
        tracing::error!(
            schedule = malformed.id,
            problem = malformed.problem,
            "orchestration schedule skipped; the others go on"
        );
    }
    Some(Note {
        id: malformed.id.clone(),
        definition: String::new(),
        since: now,
        decision: "misconfigured",
        reason: malformed.problem.clone(),
        next: None,
    })
}
