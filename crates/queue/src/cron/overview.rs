//! What `cron list` shows.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use voiceai_postgres::PgPool;

use super::policy::next_look;
use super::schedule::{Record, Schedule};
use super::store::{self, ScheduleError};
use super::{Calendar, Pause, Standing};

/// How many coming runs are shown.
pub const NEXT_RUNS: usize = 5;

/// One line of `cron list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// `active`, `paused`, `disabled` or `malformed`.
    pub state: &'static str,
    /// What is wrong with a malformed row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The rest, absent for a row that cannot be read.
    #[serde(flatten)]
    pub details: Option<Details>,
}

/// A schedule and when it comes next.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Details {
    /// The kind of its jobs.
    pub kind: String,
    /// Their queue.
    pub queue: String,
    /// Their payload.
    pub payload: Value,
    /// Their priority.
    pub priority: u8,
    /// The cron expression.
    pub expression: String,
    /// The expression in English.
    pub description: Option<String>,
    /// The zone.
    pub zone: String,
    /// The missed-run policy.
    pub missed: String,
    /// The overlap policy.
    pub overlap: String,
    /// Whether an operator has set it, so that a release does not change it.
    pub overridden: bool,
    /// End of the pause that is running.
    pub paused_until: Option<Timestamp>,
    /// Why it is paused.
    pub paused_reason: Option<String>,
    /// Every slot up to here is decided.
    pub last_slot: Timestamp,
    /// How long the first slot that nobody has decided is past, where that is longer than a change of leader takes: nothing
    /// fires schedules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdue_seconds: Option<i64>,
    /// The coming runs, a pause counted in; none while disabled.
    pub next_runs: Vec<NextRun>,
    /// What it did so far.
    #[serde(flatten)]
    pub record: Record,
}

/// A coming run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NextRun {
    /// When.
    pub at: Timestamp,
    /// The same in the schedule's zone, with its offset.
    pub local: String,
    /// Set where a change of the clock moves or repeats this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// Every schedule by name, malformed rows included.
///
/// "Now" is the database's clock, as it is for firing; a machine whose own clock is wrong changes nothing. Only a process that was
/// started under `faketime` more than twelve hours away follows the time it was given, here and in the scheduler, so that the
/// days of the clock change can be rehearsed with the real programs.
///
/// # Errors
/// As the database says.
pub async fn list(pool: &PgPool) -> Result<Vec<Line>, ScheduleError> {
    let (rows, now) = store::load(pool)
        .await
        .map_err(|source| ScheduleError::Database { tried: "read the schedules", source })?;
    Ok(rows
        .into_iter()
        .map(|row| match row {
            Ok(schedule) => line(schedule, now),
            Err(row) => {
                Line { name: row.name, state: "malformed", problem: Some(row.problem), details: None }
            }
        })
        .collect())
}

fn line(schedule: Schedule, now: Timestamp) -> Line {
    let paused = schedule.is_paused(now);
    let calendar = schedule.definition.check();
    let problem = calendar.as_ref().err().map(ToString::to_string);
    let state = match (&problem, schedule.definition.enabled, paused) {
        (Some(_), ..) => "malformed",
        (None, false, _) => "disabled",
        (None, true, true) => "paused",
        (None, true, false) => "active",
    };
    let pause = schedule.pause.as_ref().map(|(pause, _)| *pause);
    let next_runs = match &calendar {
        Ok(calendar) if schedule.definition.enabled => coming(calendar, schedule.last_slot, pause, now),
        _ => vec![],
    };
    let overdue_seconds = match &calendar {
        Ok(calendar) if state == "active" => overdue(calendar, schedule.last_slot, pause, now),
        _ => None,
    };
    let (pause, reason) = schedule.pause.filter(|_| paused).unzip();
    let definition = schedule.definition;
    Line {
        name: definition.name,
        state,
        problem,
        details: Some(Details {
            kind: definition.kind,
            queue: definition.queue,
            payload: definition.payload,
            priority: definition.priority,
            description: calendar.ok().map(|calendar| calendar.describe()),
            expression: definition.expression,
            zone: definition.zone,
            missed: definition.missed.to_string(),
            overlap: definition.overlap.to_string(),
            overridden: schedule.overridden,
            paused_until: pause.map(|pause| pause.until),
            paused_reason: reason.flatten(),
            last_slot: schedule.last_slot,
            overdue_seconds,
            next_runs,
            record: schedule.record,
        }),
    }
}

/// How long ago the first undecided slot was; slots inside the last pause are not waited for.
fn overdue(calendar: &Calendar, last_slot: Timestamp, pause: Option<Pause>, now: Timestamp) -> Option<i64> {
    let mut first = calendar.next_after(last_slot)?;
    if let Some(pause) = pause.filter(|pause| pause.since <= first && first < pause.until) {
        first = calendar.next_after(pause.until.checked_sub(SignedDuration::from_nanos(1)).ok()?)?;
    }
    let late = now.duration_since(first).as_secs();
    (late > OVERDUE_AFTER).then_some(late)
}

/// Seconds; a change of leader and two polls at the defaults.
const OVERDUE_AFTER: i64 = 60;

fn coming(calendar: &Calendar, last_slot: Timestamp, pause: Option<Pause>, now: Timestamp) -> Vec<NextRun> {
    let standing = Standing { last_slot: last_slot.min(now), pause, busy: false, held: false };
    let Some(first) = next_look(calendar, standing, now) else { return vec![] };
    let rest = calendar.next_runs(first, NEXT_RUNS - 1);
    std::iter::once(first)
        .chain(rest)
        .map(|at| NextRun {
            at,
            local: at.to_zoned(calendar.zone().clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
            note: calendar.clock_change_note(at),
        })
        .collect()
}
