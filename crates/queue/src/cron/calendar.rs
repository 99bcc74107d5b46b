//! When a schedule is due: a cron expression in a time zone. Pure; the caller passes every instant in.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::expression::{self, ExpressionError, Nature};
use super::zone::{ZoneError, find_zone};

/// A validated cron expression in an IANA time zone.
///
/// # The expression
///
/// Five fields: minute (0-59), hour (0-23), day of month (1-31, `L` last day, `LW` last weekday, `15W` the weekday
/// nearest to the 15th), month (1-12 or `JAN`-`DEC`), day of week (0-7 or `SUN`-`SAT`, 0 and 7 are Sunday, `5L` the last
/// Friday, `5#2` the second). Lists, ranges and steps as in cron; `@hourly`, `@daily`, `@midnight`, `@weekly`,
/// `@monthly`, `@yearly` and `@annually` stand for their five fields. When both day fields are restricted a day
/// that matches either is due, as in every cron; `+` before the day of week asks for both. Seconds, years and
/// `@reboot` are refused.
///
/// # The two days of the year when the clock changes
///
/// - **Fixed times** (minute and hour are numbers or lists of numbers, as in `30 2 * * *` or `0 2,14 * * *`) happen once on
///   every day that matches. A time that the clock jumps over is due at the end of the jump: in Berlin on
///   29 March 2026 `30 2 * * *` is due at 03:00 summer time. A time that the clock shows twice is due the first time only.
///   Several times inside one jump share its end, and are one slot.
/// - **Intervals** (a `*`, a range or a step in the minute or the hour) follow the clock on the wall: a time that is jumped
///   over is not due, and a time that is shown twice is due both times. In Berlin `*/30 2 * * *` is due 0 times on 29 March 2026
///   and 4 times on 25 October 2026; `0 * * * *` is due every hour of real time on both days.
#[derive(Clone)]
pub struct Calendar {
    expression: String,
    zone_name: String,
    zone: TimeZone,
    cron: Cron,
    nature: Nature,
}

/// Why a schedule's time cannot be used. Each text names the field and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// The expression does not stand.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// The zone is not in the time-zone database.
    #[error(transparent)]
    Zone(#[from] ZoneError),
}

/// The last slots of a span, and how many came before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// Oldest first; at most as many as were asked for.
    pub slots: Vec<Timestamp>,
    /// Whether the span holds an earlier slot than the first of `slots`.
    pub more: bool,
}

impl Calendar {
    /// Reads and checks an expression and its zone (an IANA name such as `Europe/Berlin` or `UTC`).
    ///
    /// # Errors
    ///
    /// [`CalendarError`] when a field is malformed or out of bounds, when no day can ever match (30 February), or when
    /// the zone is unknown. An expression that is accepted has a next slot.
    pub fn parse(expression: &str, zone: &str) -> Result<Self, CalendarError> {
        let (zone_name, zone) = find_zone(zone)?;
        let checked = expression::check(expression)?;
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(&checked.fields)
            .map_err(|reason| ExpressionError::Unreadable {
                expression: checked.given.clone(),
                reason: reason.to_string(),
            })?;
        // A calendar repeats after 400 years, so a search from any day meets every day there is.
        let anchor: DateTime = date(2000, 1, 1).at(0, 0, 0, 0);
        if cron.find_next_occurrence(&anchor, true).is_err() {
            return Err(ExpressionError::NeverDue { expression: checked.given }.into());
        }
        Ok(Self { expression: checked.given, zone_name, zone, cron, nature: checked.nature })
    }

    /// The expression as it was given, without surrounding blanks.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The zone's name as the time-zone database spells it.
    #[must_use]
    pub fn zone_name(&self) -> &str {
        &self.zone_name
    }

    /// The zone itself, to show slots in local time.
    #[must_use]
    pub const fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Whether the expression names fixed times of day; see the rules of [`Calendar`].
    #[must_use]
    pub const fn is_fixed_time(&self) -> bool {
        matches!(self.nature, Nature::FixedTimes)
    }

    /// The expression in English, without the zone.
    #[must_use]
    pub fn describe(&self) -> String {
        self.cron.describe()
    }

    /// The first slot later than `after`; `None` only past the year 5000.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self.nature {
            Nature::FixedTimes => self.next_fixed_time(after),
            Nature::Interval => self.next_interval(after),
        }
    }

    /// The slots later than `after` and not later than `until`, oldest first. Lazy, so a long span costs only what is taken.
    pub fn slots_between(&self, after: Timestamp, until: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(after), |slot| self.next_after(*slot))
            .take_while(move |slot| *slot <= until)
    }

    /// The next `count` slots later than `after`.
    #[must_use]
    pub fn next_runs(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        self.slots_between(after, Timestamp::MAX).take(count).collect()
    }

    /// The last `count` slots in (`after`, `until`]. A span of years with a slot a minute costs no more than a few
    /// times `count` steps: the search looks back over a window that doubles.
    #[must_use]
    pub fn latest(&self, after: Timestamp, until: Timestamp, count: usize) -> Latest {
        let mut window = SignedDuration::from_hours(1);
        loop {
            let from = until.checked_sub(window).unwrap_or(after).max(after);
            let mut slots: Vec<_> = self.slots_between(from, until).collect();
            if from == after || slots.len() > count {
                let more = slots.len() > count;
                slots.drain(..slots.len().saturating_sub(count));
                return Latest { slots, more };
            }
            window = window.saturating_add(window);
        }
    }

    /// What a change of the clock does to the run at `slot`, where it does something.
    #[must_use]
    pub fn clock_change_note(&self, slot: Timestamp) -> Option<&'static str> {
        let wall = slot.to_zoned(self.zone.clone()).datetime();
        let repeated =
            matches!(self.zone.to_ambiguous_timestamp(wall).offset(), AmbiguousOffset::Fold { .. });
        match self.nature {
            Nature::FixedTimes if repeated => Some("the clock shows this time twice; it runs the first time"),
            Nature::FixedTimes => {
                // A slot that the expression does not name stands in for one that the clock jumped over.
                let named = self.cron.is_time_matching(&wall).unwrap_or(true);
                let at_jump =
                    self.zone.preceding(slot.saturating_add(SignedDuration::from_secs(1)).ok()?).next();
                let jumped = at_jump.is_some_and(|jump| jump.timestamp() == slot);
                (!named && jumped).then_some("moved: the clock jumps over the time itself")
            }
            Nature::Interval if repeated => Some("the clock shows this time twice; it runs both times"),
            Nature::Interval => None,
        }
    }

    fn next_fixed_time(&self, after: Timestamp) -> Option<Timestamp> {
        let mut wall = after.to_zoned(self.zone.clone()).datetime();
        let mut inclusive = true;
        loop {
            // The search runs on the wall clock alone; the zone's jumps are applied to what it finds. On the second pass
            // of a repeated hour it meets times whose slot has gone by, and goes on.
            wall = self.cron.find_next_occurrence(&wall, inclusive).ok()?;
            inclusive = false;
            let slot = self.instant_of(wall)?;
            if slot > after {
                return Some(slot);
            }
        }
    }

    /// The instant at which the wall clock first shows `wall`, or jumps over it.
    fn instant_of(&self, wall: DateTime) -> Option<Timestamp> {
        match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
            AmbiguousOffset::Gap { after, .. } => {
                // Read with the later offset, a time inside the jump lies just before the jump.
                let before_jump = after.to_timestamp(wall).ok()?;
                self.zone.following(before_jump).next().map(|jump| jump.timestamp())
            }
        }
    }

    fn next_interval(&self, after: Timestamp) -> Option<Timestamp> {
        let mut from = after;
        loop {
            let start = from.to_zoned(self.zone.clone());
            let slot = self.cron.find_next_occurrence(&start, false).ok()?.timestamp();
            if slot > after {
                return Some(slot);
            }
            from = from.checked_add(SignedDuration::from_secs(1)).ok()?;
        }
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Calendar({:?} in {})", self.expression, self.zone_name)
    }
}

impl PartialEq for Calendar {
    fn eq(&self, other: &Self) -> bool {
        self.expression == other.expression && self.zone_name == other.zone_name
    }
}

impl Eq for Calendar {}
