//! Who is on call: rotations that are counted from an anchor in the schedule's own zone, and overrides.
//!
//! Pure. [`on_call`] takes a schedule as its rows say and a moment, and answers with one responder and the end of their shift. Shifts
//! are counted from the anchor onwards without ever starting over, so that with `n` responders each has every `n`-th shift. They begin
//! by the clock on the wall: a handoff at nine is at nine in summer and in winter, and a shift that the change of clocks falls into
//! is an hour longer or shorter.

mod rows;

use jiff::civil::{self, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};
use serde::{Deserialize, Serialize};

pub use rows::{Reading, schedule};

/// The Monday that weeks are counted from where a layer has no anchor of its own.
const EPOCH: DateTime = civil::date(2018, 1, 1).at(23, 59, 59, 0);
/// Longest shift that is believed: a year.
const SHIFT_MAX_HOURS: i64 = 366 * 24;

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Responder {
    /// As the schedule has it.
    pub name: String,
    /// Where to; absent where the schedule names somebody without an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// Responders who take turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The layer's own id.
    pub id: String,
    /// Lower first: the first layer that has somebody decides.
    pub order: i64,
    /// Whole hours on the wall clock.
    pub shift_hours: i64,
    /// The day of the handoff, 0 and 7 for Sunday, 1 for Monday.
    pub handoff_day: i64,
    /// The hour of the handoff, 0 to 23.
    pub handoff_hour: i64,
    /// On the wall clock: shifts are counted from the handoff at or before it, so that then the first responder is on call.
    pub anchor: Option<DateTime>,
    /// In turn.
    pub responders: Vec<Responder>,
}

/// Somebody who stands in, from `start` until just before `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// In which layer; in the whole schedule when absent.
    pub layer: Option<String>,
    /// Who.
    pub responder: Responder,
    /// From then on.
    pub start: Timestamp,
    /// Not any more from then on.
    pub end: Timestamp,
}

/// A schedule.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Where its clocks hang.
    pub zone: TimeZone,
    /// In any order.
    pub layers: Vec<Layer>,
    /// In any order.
    pub overrides: Vec<Override>,
}

/// Who is on call, and until when nothing changes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnCall {
    /// Who.
    pub responder: Responder,
    /// True when they stand in for somebody.
    pub is_override: bool,
    /// The end of the override or of the shift.
    pub until: Timestamp,
}

/// Who is on call at `now`; `None` where no layer has anybody.
///
/// An override of the whole schedule wins, of several the one that began last. Then the layers in their order: an override of the
/// layer, else whose shift it is.
#[must_use]
pub fn on_call(schedule: &Schedule, now: Timestamp) -> Option<OnCall> {
    if let Some(found) = stand_in(&schedule.overrides, None, now) {
        return Some(found);
    }
    let mut layers: Vec<&Layer> = schedule.layers.iter().collect();
    layers.sort_by(|a, b| (a.order, &a.id).cmp(&(b.order, &b.id)));
    layers.into_iter().find_map(|layer| {
        stand_in(&schedule.overrides, Some(&layer.id), now).or_else(|| turn(layer, &schedule.zone, now))
    })
}

fn stand_in(overrides: &[Override], layer: Option<&str>, now: Timestamp) -> Option<OnCall> {
    let here = overrides.iter().filter(|o| o.layer.as_deref() == layer && o.start <= now && now < o.end);
    let found = here.max_by_key(|o| (o.start, std::cmp::Reverse(o.end)))?;
    Some(OnCall { responder: found.responder.clone(), is_override: true, until: found.end })
}

fn turn(layer: &Layer, zone: &TimeZone, now: Timestamp) -> Option<OnCall> {
    let count = i64::try_from(layer.responders.len()).ok().filter(|count| *count > 0)?;
    let (number, until) = shift(layer, zone, now)?;
    let whose = usize::try_from(number.rem_euclid(count)).ok()?;
    Some(OnCall { responder: layer.responders.get(whose)?.clone(), is_override: false, until })
}

/// The number of the shift that `now` falls into, and its end. Before the anchor numbers are negative, and go on in the same turn.
fn shift(layer: &Layer, zone: &TimeZone, now: Timestamp) -> Option<(i64, Timestamp)> {
    let hours = layer.shift_hours.clamp(1, SHIFT_MAX_HOURS);
    let first = first_handoff(layer)?;
    let begin = |number: i64| -> Option<Timestamp> {
        let wall = first.checked_add(SignedDuration::from_hours(number.checked_mul(hours)?)).ok()?;
        handoff(zone, wall)
    };
    let wall = zone.to_datetime(now);
    let since = wall.duration_since(first).as_secs();
    // What the wall clock says is near; the beginnings themselves decide, because an hour may come twice or not at all.
    let mut number = since.div_euclid(hours * 3_600);
    while begin(number)? > now {
        number -= 1;
    }
    while begin(number + 1)? <= now {
        number += 1;
    }
    Some((number, begin(number + 1)?))
}

/// When the wall clock first shows `wall`; where it leaps over it, when it leaps.
fn handoff(zone: &TimeZone, wall: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(wall);
    match ambiguous.offset() {
        // Two handoffs in the hour that is left out are at the same moment, and the shift between them has no length.
        AmbiguousOffset::Gap { before, .. } => {
            let leapt = before.to_timestamp(wall).ok()?;
            let leap = zone.preceding(leapt + SignedDuration::from_secs(1)).next()?;
            Some(leap.timestamp())
        }
        _ => ambiguous.compatible().ok(),
    }
}

/// The handoff at or before the anchor.
fn first_handoff(layer: &Layer) -> Option<DateTime> {
    let anchor = layer.anchor.unwrap_or(EPOCH);
    let day = i64::from(anchor.weekday().to_sunday_zero_offset());
    let back = (day - layer.handoff_day.rem_euclid(7)).rem_euclid(7);
    let hour = i8::try_from(layer.handoff_hour.clamp(0, 23)).ok()?;
    let date = anchor.date().checked_sub(Span::new().days(back)).ok()?;
    let found = date.at(hour, 0, 0, 0);
    // On the day of the handoff, but before its hour.
    if found <= anchor { Some(found) } else { found.checked_sub(Span::new().days(7)).ok() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
