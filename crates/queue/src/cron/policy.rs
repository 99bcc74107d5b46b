//! Which slots of a schedule fire now. Pure: the row, the calendar and the time come in, a verdict comes out.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

use super::calendar::Calendar;

/// The most runs that `catch up n` may ask for.
pub const CATCH_UP_MAX: u16 = 100;

/// How far a cursor may lie ahead of the database's clock before the clock, not the cursor, is believed.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(5);

/// What happens to slots that passed while nobody could fire them. A slot that is late by no more than
/// [`Rules::on_time_within`] is not missed: it fires under every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissedRuns {
    /// They are dropped.
    Skip,
    /// One run makes up for all of them: the latest missed slot, or the slot that is just due.
    #[default]
    Once,
    /// The latest n of them run, oldest first; 1 to [`CATCH_UP_MAX`].
    CatchUp(u16),
}

/// What happens to a slot that is due while the schedule's previous job is unfinished (waiting, delayed or active).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// It fires all the same.
    Allow,
    /// It is dropped. Under [`MissedRuns::CatchUp`] it waits instead and becomes a missed slot, so that the runs
    /// follow each other, never side by side.
    #[default]
    Skip,
}

/// The rules of one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What happens to missed slots.
    pub missed: MissedRuns,
    /// What happens to a slot while the previous run goes on.
    pub overlap: Overlap,
    /// How late a slot may fire without counting as missed. Longer than a change of leader takes.
    pub on_time_within: SignedDuration,
}

/// A span in which nothing fires and nothing is made up for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Its begin.
    pub since: Timestamp,
    /// Its end, no longer part of it.
    pub until: Timestamp,
}

/// Where a schedule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Every slot up to this instant has been decided.
    pub last_slot: Timestamp,
    /// The pause that is running or was the last.
    pub pause: Option<Pause>,
    /// Whether the job of the previous run is unfinished.
    pub busy: bool,
    /// Whether the leader is held (its database came back from a backup): nothing missed is made up for.
    pub held: bool,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The slots to fire, oldest first.
    pub fire: Vec<Timestamp>,
    /// Where the cursor goes: every slot up to here is decided by this verdict. Unchanged: nothing was due.
    pub last_slot: Timestamp,
    /// What the cursor passes without firing.
    pub dropped: Dropped,
    /// The cursor lay in the future, because the database's clock was set back; it was brought back to now.
    pub rebased: bool,
}

/// Why a verdict passed slots without firing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Missed slots that the policy does not make up for.
    pub missed: bool,
    /// Slots inside a pause.
    pub paused: bool,
    /// Slots that met an unfinished run; their number.
    pub overlapping: u32,
}

/// Decides about every slot that is due at `now`. The caller applies the verdict in one statement that compares
/// `standing.last_slot`, so that two deciders never both apply theirs.
#[must_use]
pub fn decide(calendar: &Calendar, rules: Rules, standing: Standing, now: Timestamp) -> Verdict {
    let unchanged =
        |last_slot| Verdict { fire: vec![], last_slot, dropped: Dropped::default(), rebased: false };
    if standing.last_slot > now.saturating_add(AHEAD_MAX).unwrap_or(Timestamp::MAX) {
        return Verdict { rebased: true, ..unchanged(now) };
    }
    if standing.pause.is_some_and(|pause| pause.since <= now && now < pause.until) {
        return unchanged(standing.last_slot);
    }
    let due = due_slots(calendar, rules, standing, now);
    let Some(last) = due.last else { return unchanged(standing.last_slot) };

    let made_up = match rules.missed {
        _ if standing.held => 0,
        MissedRuns::Skip => 0,
        MissedRuns::Once => usize::from(due.on_time.is_empty()),
        MissedRuns::CatchUp(count) => usize::from(count.min(CATCH_UP_MAX)),
    };
    let passed_over = due.missed.len().saturating_sub(made_up);
    let mut fire = due.missed[passed_over..].to_vec();
    let mut dropped =
        Dropped { missed: due.more_missed || passed_over > 0, paused: due.paused, overlapping: 0 };
    fire.extend(&due.on_time);

    let mut last_slot = last;
    if rules.overlap == Overlap::Skip && !fire.is_empty() {
        let room = usize::from(!standing.busy);
        let waits = matches!(rules.missed, MissedRuns::CatchUp(_)) && !standing.held;
        if waits && fire.len() > room {
            // The rest stays due: the cursor stops at what fires, or stays where it is.
            last_slot = if room == 1 { fire[0] } else { standing.last_slot };
            dropped = if room == 1 { dropped } else { Dropped::default() };
        } else {
            dropped.overlapping = u32::try_from(fire.len().saturating_sub(room)).unwrap_or(u32::MAX);
        }
        fire.truncate(room);
    }
    Verdict { fire, last_slot, dropped, rebased: false }
}

/// When the scheduler has to look at this schedule again: the next slot, or the end of its pause.
#[must_use]
pub fn next_look(calendar: &Calendar, standing: Standing, now: Timestamp) -> Option<Timestamp> {
    let next = calendar.next_after(standing.last_slot.max(now))?;
    Some(match standing.pause {
        Some(pause) if pause.since <= now && next < pause.until => calendar
            .next_after(pause.until.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(pause.until))?,
        _ => next,
    })
}

/// The slots that are due, told apart.
struct DueSlots {
    /// The latest missed ones, at most [`CATCH_UP_MAX`], oldest first.
    missed: Vec<Timestamp>,
    /// Whether earlier missed ones exist.
    more_missed: bool,
    on_time: Vec<Timestamp>,
    /// Whether some lay inside the pause.
    paused: bool,
    /// The latest of all, the paused ones included.
    last: Option<Timestamp>,
}

fn due_slots(calendar: &Calendar, rules: Rules, standing: Standing, now: Timestamp) -> DueSlots {
    let after = standing.last_slot;
    let last = calendar.latest(after, now, 1).slots.pop();
    let keep = usize::from(CATCH_UP_MAX);
    let just_before =
        |instant: Timestamp| instant.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(instant);
    // The span falls into what lies before the pause and what lies after it.
    let spans = match standing.pause {
        Some(pause) => {
            [(after, just_before(pause.since).min(now)), (after.max(just_before(pause.until)), now)]
        }
        None => [(after, after), (after, now)],
    };
    let paused = standing.pause.is_some_and(|pause| {
        let from = after.max(just_before(pause.since));
        calendar.slots_between(from, now.min(just_before(pause.until))).next().is_some()
    });
    let on_time_from = now.checked_sub(rules.on_time_within).unwrap_or(Timestamp::MIN);
    let mut missed = vec![];
    let mut more_missed = false;
    let mut on_time = vec![];
    for (from, until) in spans.into_iter().filter(|(from, until)| from < until) {
        let boundary = just_before(on_time_from).clamp(from, until);
        let latest = calendar.latest(from, boundary, keep);
        more_missed |= latest.more;
        missed.extend(latest.slots);
        on_time.extend(calendar.slots_between(boundary, until));
    }
    let excess = missed.len().saturating_sub(keep);
    more_missed |= excess > 0;
    missed.drain(..excess);
    DueSlots { missed, more_missed, on_time, paused, last }
}

/// A missed-run policy that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "missed-run policy {given:?} is not known: write `skip`, `once` or `catch_up(N)` with N from 1 to 100"
)]
pub struct MissedRunsError {
    given: String,
}

impl FromStr for MissedRuns {
    type Err = MissedRunsError;

    /// Reads `skip`, `once`, `catch_up(3)`; also `catch-up 3`, `catch_up:3` and `catch up 3`.
    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let error = || MissedRunsError { given: given.to_owned() };
        let text = given.trim().to_ascii_lowercase();
        match text.as_str() {
            "skip" => return Ok(Self::Skip),
            "once" => return Ok(Self::Once),
            _ => {}
        }
        let rest = ["catch_up", "catch-up", "catch up", "catchup"]
            .iter()
            .find_map(|word| text.strip_prefix(word))
            .ok_or_else(error)?;
        let count = rest.trim().trim_start_matches(['(', ':', '=']).trim_end_matches(')').trim();
        match count.parse() {
            Ok(count @ 1..=CATCH_UP_MAX) => Ok(Self::CatchUp(count)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for MissedRuns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip => f.write_str("skip"),
            Self::Once => f.write_str("once"),
            Self::CatchUp(count) => write!(f, "catch_up({count})"),
        }
    }
}

/// An overlap policy that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("overlap policy {given:?} is not known: write `allow` or `skip`")]
pub struct OverlapError {
    given: String,
}

impl FromStr for Overlap {
    type Err = OverlapError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        match given.trim().to_ascii_lowercase().as_str() {
            "allow" => Ok(Self::Allow),
            "skip" => Ok(Self::Skip),
            _ => Err(OverlapError { given: given.to_owned() }),
        }
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Skip => "skip",
        })
    }
}
