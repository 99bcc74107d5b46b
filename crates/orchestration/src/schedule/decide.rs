//! Whether a schedule fires now, and if not, why. Pure: the rules, where the schedule stands and the time come in.

use std::fmt;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};
use voiceai_queue::cron::Calendar;

/// How many slots of an expression are looked at, newest first, for one that days and window admit. More are needed only where the
/// newest ones are outside the window, and then now is outside it too.
const SLOTS_LOOKED_AT: usize = 200;
/// How far ahead it is looked for the next moment that days and window admit: any week has one, if ever one comes.
const DAYS_AHEAD: i64 = 9;

/// The rules of one schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// A schedule that is off never fires.
    pub is_enabled: bool,
    /// What is due when.
    pub times: Times,
    /// In which zone days, window and periods are read.
    pub zone: TimeZone,
    /// The window's begin, in local time; absent: it has none.
    pub after: Option<Time>,
    /// The window's end, in local time and part of it; before its begin: the window goes on over midnight.
    pub before: Option<Time>,
    /// The days on which it may fire, Sunday first. A window over midnight belongs to the day on which it begins.
    pub days: [bool; 7],
    /// Least time from one firing to the next.
    pub min_interval: SignedDuration,
    /// Most firings in one local day.
    pub max_per_day: u32,
    /// Least time from a failure that was the last thing it did to the next firing.
    pub error_cooldown: SignedDuration,
    /// Whether it fires while an earlier job of its project is unfinished.
    pub allow_concurrent: bool,
}

/// What is due when.
#[derive(Debug, Clone, PartialEq)]
pub enum Times {
    /// Once in each period, at the first moment that the other rules admit.
    Each(Period),
    /// At the times of a cron expression, those left out that lie outside days and window.
    Cron(Box<Calendar>),
}

/// A stretch of local time. Weeks begin on Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// So many hours, counted from midnight; 1, 4 or 8.
    Hours(i8),
    /// A day.
    Day,
    /// A week.
    Week,
}

/// Where a schedule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Since when it is known as it is: of the times of an expression, only later ones are due.
    pub since: Timestamp,
    /// The slot that fired last.
    pub last_slot: Option<Timestamp>,
    /// When it ran last, whoever had it run.
    pub last_run: Option<Timestamp>,
    /// When its last job failed, where no later one succeeded.
    pub failed_at: Option<Timestamp>,
    /// How often it fired in the running local day.
    pub runs_today: u32,
    /// A job of its project that is unfinished.
    pub unfinished: Option<String>,
    /// Whether the leader is held, since its database came back from a backup.
    pub held: bool,
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It fires for this slot: once for each.
    Fire {
        /// The slot.
        slot: Timestamp,
    },
    /// Not now.
    Wait {
        /// Why.
        reason: Reason,
        /// When to look again at the latest, where that is known.
        until: Option<Timestamp>,
    },
}

/// Why a schedule does not fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is switched off.
    Off,
    /// The leader is held.
    Held,
    /// Nothing is due; the slot that fired last, and the next one.
    NotDue {
        /// The next one.
        next: Option<Timestamp>,
    },
    /// The local day is none of its days.
    Day(Weekday),
    /// The local time is outside its window.
    Window {
        /// The local time.
        now: Time,
        /// The window's begin.
        after: Option<Time>,
        /// The window's end.
        before: Option<Time>,
    },
    /// A job of the project is unfinished.
    Unfinished(String),
    /// Its last job failed too short a time ago.
    Cooldown(Timestamp),
    /// It ran too short a time ago.
    Interval(Timestamp),
    /// It fired often enough for one day.
    DailyCap {
        /// How often.
        runs: u32,
        /// How often it may.
        max: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("switched off: is_enabled is false"),
            Self::Held => f.write_str(
                "the database came back from a backup; `release --restored` lets schedules fire again",
            ),
            Self::NotDue { next: Some(next) } => write!(f, "nothing is due before {next}"),
            Self::NotDue { next: None } => {
                f.write_str("nothing will ever be due: days, window and expression have no moment in common")
            }
            Self::Day(day) => write!(f, "{day:?} is none of run_on_days"),
            Self::Window { now, after, before } => {
                let end =
                    |end: &Option<Time>, open: &str| end.map_or_else(|| open.to_owned(), |at| at.to_string());
                write!(
                    f,
                    "{} is outside the window from {} to {}",
                    now.strftime("%H:%M"),
                    end(after, "midnight"),
                    end(before, "midnight")
                )
            }
            Self::Unfinished(job) => {
                write!(f, "job {job} of the project is unfinished, and allow_concurrent is false")
            }
            Self::Cooldown(until) => {
                write!(f, "its last job failed; cooldown_after_error_minutes ends at {until}")
            }
            Self::Interval(until) => write!(f, "min_interval_minutes since the last run ends at {until}"),
            Self::DailyCap { runs, max } => {
                write!(f, "it fired {runs} times today, and max_runs_per_day is {max}")
            }
        }
    }
}

/// Decides about one schedule. Whoever applies a [`Decision::Fire`] does so in one statement that compares
/// [`Standing::last_slot`], so that two deciders never both fire a slot.
#[must_use]
pub fn decide(rules: &Rules, standing: &Standing, now: Timestamp) -> Decision {
    let wait = |reason, until| Decision::Wait { reason, until };
    if !rules.is_enabled {
        return wait(Reason::Off, None);
    }
    if standing.held {
        return wait(Reason::Held, None);
    }
    let Some(slot) = due(rules, standing, now) else {
        let next = next(rules, now);
        return wait(Reason::NotDue { next }, next);
    };
    let local = now.to_zoned(rules.zone.clone());
    if let Some(reason) = rules.refuses(&local) {
        return wait(reason, next_open(rules, now));
    }
    if let (false, Some(job)) = (rules.allow_concurrent, &standing.unfinished) {
        return wait(Reason::Unfinished(job.clone()), None);
    }
    let after = |at: Option<Timestamp>, span: SignedDuration| {
        at.and_then(|at| at.checked_add(span).ok()).filter(|until| *until > now)
    };
    if let Some(until) = after(standing.failed_at, rules.error_cooldown) {
        return wait(Reason::Cooldown(until), Some(until));
    }
    if let Some(until) = after(standing.last_run, rules.min_interval) {
        return wait(Reason::Interval(until), Some(until));
    }
    if standing.runs_today >= rules.max_per_day {
        let reason = Reason::DailyCap { runs: standing.runs_today, max: rules.max_per_day };
        return wait(
            reason,
            local.tomorrow().and_then(|day| day.start_of_day()).ok().map(|day| day.timestamp()),
        );
    }
    Decision::Fire { slot }
}

/// The begin of the local day of `now`: from here on firings count toward the daily cap.
#[must_use]
pub fn day_begins(zone: &TimeZone, now: Timestamp) -> Timestamp {
    let local = now.to_zoned(zone.clone());
    local.start_of_day().map_or(now, |day| day.timestamp())
}

/// The slot that is due: the newest one that neither fired nor was overtaken by a run.
fn due(rules: &Rules, standing: &Standing, now: Timestamp) -> Option<Timestamp> {
    let done = [standing.last_slot, standing.last_run].into_iter().flatten().max();
    match &rules.times {
        Times::Each(period) => {
            let slot = period_begin(*period, &now.to_zoned(rules.zone.clone()))?;
            (done.is_none_or(|done| done < slot)).then_some(slot)
        }
        Times::Cron(calendar) => {
            let from = done.map_or(standing.since, |done| done.max(standing.since)).min(now);
            let latest = calendar.latest(from, now, SLOTS_LOOKED_AT).slots;
            let admitted = |slot: &Timestamp| rules.refuses(&slot.to_zoned(rules.zone.clone())).is_none();
            latest.into_iter().rev().find(admitted)
        }
    }
}

/// When something is due next, nothing being due now.
fn next(rules: &Rules, now: Timestamp) -> Option<Timestamp> {
    match &rules.times {
        Times::Each(period) => {
            let local = now.to_zoned(rules.zone.clone());
            let begin = period_end(*period, &local)?;
            if rules.refuses(&begin.to_zoned(rules.zone.clone())).is_none() {
                Some(begin)
            } else {
                next_open(rules, begin)
            }
        }
        Times::Cron(calendar) => {
            let mut at = now;
            // A year of daily times: whoever is due less often than that on an allowed day is looked for again then.
            for _ in 0..400 {
                at = calendar.next_after(at)?;
                if rules.refuses(&at.to_zoned(rules.zone.clone())).is_none() {
                    return Some(at);
                }
            }
            None
        }
    }
}

/// The first moment after `now` that days and window admit, to the minute.
fn next_open(rules: &Rules, now: Timestamp) -> Option<Timestamp> {
    let local = now.to_zoned(rules.zone.clone());
    let opens = rules.after.unwrap_or(Time::midnight());
    let mut candidates = Vec::new();
    for ahead in 0..=DAYS_AHEAD {
        let date = local.date().checked_add(ahead.days()).ok()?;
        for time in [Time::midnight(), opens] {
            candidates.extend(date.to_datetime(time).to_zoned(rules.zone.clone()).ok());
        }
    }
    let open = candidates.iter().filter(|at| at.timestamp() > now && rules.refuses(at).is_none());
    open.map(Zoned::timestamp).min()
}

impl Rules {
    /// Why days or window do not admit this moment.
    fn refuses(&self, local: &Zoned) -> Option<Reason> {
        // To the second: a window to 17:00 has 17:00:00 in it.
        let time = local.time().with().subsec_nanosecond(0).build().unwrap_or(local.time());
        let (inside, date) = match (self.after, self.before) {
            (Some(after), Some(before)) if after > before => {
                let early = time <= before;
                let day = if early { local.date().yesterday().unwrap_or(local.date()) } else { local.date() };
                (early || time >= after, day)
            }
            (Some(after), Some(before)) if after == before => (true, local.date()),
            (after, before) => {
                let inside =
                    after.is_none_or(|after| time >= after) && before.is_none_or(|before| time <= before);
                (inside, local.date())
            }
        };
        if !inside {
            return Some(Reason::Window { now: time, after: self.after, before: self.before });
        }
        let day = weekday(date);
        (!self.days[usize::from(day.to_sunday_zero_offset().unsigned_abs())]).then_some(Reason::Day(day))
    }
}

fn weekday(date: Date) -> Weekday {
    date.weekday()
}

fn period_begin(period: Period, local: &Zoned) -> Option<Timestamp> {
    let begin = match period {
        Period::Hours(hours) => {
            let hour = local.hour() - local.hour() % hours;
            // Where the clock shows an hour twice, each showing is an hour of its own.
            local.with().hour(hour).minute(0).second(0).subsec_nanosecond(0).build().ok()?
        }
        Period::Day => local.start_of_day().ok()?,
        Period::Week => {
            let back = i64::from(local.weekday().to_monday_zero_offset());
            local.checked_sub(back.days()).ok()?.start_of_day().ok()?
        }
    };
    Some(begin.timestamp())
}

fn period_end(period: Period, local: &Zoned) -> Option<Timestamp> {
    let begin = period_begin(period, local)?.to_zoned(local.time_zone().clone());
    let end = match period {
        Period::Hours(hours) => {
            let by_clock = match begin.hour() + hours {
                24.. => begin.tomorrow().ok()?.start_of_day().ok()?,
                hour => begin.date().at(hour, 0, 0, 0).to_zoned(local.time_zone().clone()).ok()?,
            };
            // Where the clock is set back within the period, its repeated hour begins earlier than the wall clock says.
            let by_span = begin.checked_add(i64::from(hours).hours()).ok()?;
            return [by_clock, by_span]
                .iter()
                .map(Zoned::timestamp)
                .filter(|at| *at > local.timestamp())
                .min();
        }
        Period::Day => begin.tomorrow().ok()?.start_of_day().ok()?,
        Period::Week => begin.checked_add(1.week()).ok()?.start_of_day().ok()?,
    };
    Some(end.timestamp())
}
