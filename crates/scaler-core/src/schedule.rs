//! Windows of the week in which other bounds hold.

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::Serialize;

/// The bounds a group is held to at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Fewest servers.
    pub min: u32,
    /// Most servers.
    pub max: u32,
    /// True while servers are only added.
    pub inhibit_scale_down: bool,
    /// Name of the window these come from; `None` outside every window.
    pub window: Option<String>,
}

/// One recurring window. Times are civil times in the window's own zone, so they follow daylight saving.
#[derive(Debug, Clone)]
pub struct Window {
    /// Shown in decisions.
    pub name: String,
    /// IANA zone.
    pub zone: TimeZone,
    /// Days on which the window opens; a window that crosses midnight belongs to the day it opens on.
    pub days: Vec<Weekday>,
    /// First moment inside.
    pub from: Time,
    /// First moment outside; not later than `from` means that the window crosses midnight, equal means a whole day.
    pub to: Time,
    /// Replaces the group's minimum when set.
    pub min: Option<u32>,
    /// Replaces the group's maximum when set.
    pub max: Option<u32>,
    /// Keeps servers from being removed inside the window.
    pub inhibit_scale_down: bool,
    /// The highest open window wins; among equals the one listed first.
    pub priority: i32,
}

impl Window {
    /// True when the window is open at `now`.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());
        let (time, today) = (local.time(), local.weekday());
        let yesterday = local.date().saturating_sub(1.day()).weekday();
        if self.from < self.to {
            return self.days.contains(&today) && (self.from..self.to).contains(&time);
        }
        (time >= self.from && self.days.contains(&today))
            || (time < self.to && self.days.contains(&yesterday))
    }
}

/// The bounds at `now`: the open window with the highest priority over the group's own.
#[must_use]
pub fn bounds(min: u32, max: u32, windows: &[Window], now: Timestamp) -> Bounds {
    let open =
        windows.iter().filter(|window| window.is_open(now)).fold(None, |best: Option<&Window>, next| {
            match best {
                Some(best) if best.priority >= next.priority => Some(best),
                _ => Some(next),
            }
        });
    match open {
        None => Bounds { min, max, inhibit_scale_down: false, window: None },
        Some(window) => Bounds {
            min: window.min.unwrap_or(min),
            max: window.max.unwrap_or(max),
            inhibit_scale_down: window.inhibit_scale_down,
            window: Some(window.name.clone()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str, days: &[Weekday]) -> Window {
        Window {
            name: "w".into(),
            zone: TimeZone::get("Europe/Berlin").expect("a zone"),
            days: days.to_vec(),
            from: from.parse().expect("a time"),
            to: to.parse().expect("a time"),
            min: Some(3),
            max: None,
            inhibit_scale_down: false,
            priority: 0,
        }
    }

    fn open(window: &Window, now: &str) -> bool {
        window.is_open(now.parse().expect("a time"))
    }

    #[test]
    fn edges_are_half_open_and_follow_daylight_saving() {
        let day = window("08:00", "18:00", &[Weekday::Monday]);
        // Monday 2026-01-12: Berlin is UTC+1. Monday 2026-07-13: UTC+2.
        for (now, expected) in [
            ("2026-01-12T06:59:59Z", false),
            ("2026-01-12T07:00:00Z", true),
            ("2026-01-12T16:59:59Z", true),
            ("2026-01-12T17:00:00Z", false),
            ("2026-07-13T05:59:59Z", false),
            ("2026-07-13T06:00:00Z", true),
            ("2026-01-13T10:00:00Z", false),
        ] {
            assert_eq!(open(&day, now), expected, "{now}");
        }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_opens() {
        let night = window("22:00", "06:00", &[Weekday::Friday]);
        // Friday 2026-01-16 22:00 to Saturday 06:00, Berlin, UTC+1.
        for (now, expected) in [
            ("2026-01-16T20:59:59Z", false),
            ("2026-01-16T21:00:00Z", true),
            ("2026-01-17T04:59:59Z", true),
            ("2026-01-17T05:00:00Z", false),
            ("2026-01-16T03:00:00Z", false),
            ("2026-01-17T21:30:00Z", false),
        ] {
            assert_eq!(open(&night, now), expected, "{now}");
        }
        let whole = window("00:00", "00:00", &[Weekday::Friday]);
        assert!(open(&whole, "2026-01-16T12:00:00Z"));
        assert!(!open(&whole, "2026-01-17T12:00:00Z"));
    }

    #[test]
    fn the_highest_priority_wins_and_the_first_among_equals() {
        let friday = [Weekday::Friday];
        let mut first = window("00:00", "00:00", &friday);
        let mut second = first.clone();
        first.name = "first".into();
        second.name = "second".into();
        second.min = Some(5);
        let now: Timestamp = "2026-01-16T12:00:00Z".parse().expect("a time");
        let windows = [first.clone(), second.clone()];
        assert_eq!(bounds(1, 9, &windows, now).min, 3);
        second.priority = 1;
        let raised = bounds(1, 9, &[first, second], now);
        assert_eq!((raised.min, raised.max, raised.window.as_deref()), (5, 9, Some("second")));
        let outside: Timestamp = "2026-01-18T12:00:00Z".parse().expect("a time");
        assert_eq!(
            bounds(1, 9, &windows, outside),
            Bounds { min: 1, max: 9, inhibit_scale_down: false, window: None }
        );
    }
}
