//! Hours and days of UTC, and which of them an aggregation computes. Pure.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Unit};
use serde::{Deserialize, Serialize};

use crate::error::PlatformError;

/// How long a bucket of an aggregate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// An hour of UTC.
    Hour,
    /// A day of UTC.
    Day,
}

impl Period {
    /// The word that `date_trunc` takes.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    pub(crate) const fn length(self) -> SignedDuration {
        match self {
            Self::Hour => SignedDuration::from_hours(1),
            Self::Day => SignedDuration::from_hours(24),
        }
    }

    /// How far back a run makes up for what was missed while nobody ran it.
    pub(crate) const fn look_back(self) -> SignedDuration {
        match self {
            Self::Hour => SignedDuration::from_hours(7 * 24),
            Self::Day => SignedDuration::from_hours(35 * 24),
        }
    }

    /// The begin of the bucket that `at` lies in.
    pub(crate) fn floor(self, at: Timestamp) -> Timestamp {
        let unit = match self {
            Self::Hour => Unit::Hour,
            Self::Day => Unit::Day,
        };
        let utc = at.to_zoned(TimeZone::UTC);
        match unit {
            Unit::Day => utc.start_of_day().map_or(at, |start| start.timestamp()),
            _ => {
                let seconds = at.as_second();
                Timestamp::from_second(seconds - seconds.rem_euclid(3600)).unwrap_or(at)
            }
        }
    }
}

/// Whole buckets: `from` inclusive, `to` exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Begin of the first bucket.
    pub from: Timestamp,
    /// End of the last bucket.
    pub to: Timestamp,
}

/// What a payload may say of the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

/// What is known when a window is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) now: Timestamp,
    /// Begin of the newest bucket that was computed.
    pub(crate) newest: Option<Timestamp>,
    /// Time of the oldest row there is.
    pub(crate) oldest_row: Option<Timestamp>,
    /// Rows older than this may have been swept away: a bucket that begins earlier must not be computed again.
    pub(crate) kept: SignedDuration,
}

/// The buckets to compute: those asked for, else every whole one since the newest computed, and that one again, because rows may have
/// come late. None when there is nothing to compute.
///
/// # Errors
/// [`PlatformError::Invalid`] when a window is asked for that has no whole bucket, reaches into the present, or before what is kept.
pub(crate) fn window(period: Period, asked: Asked, known: Known) -> Result<Option<Window>, PlatformError> {
    let end = period.floor(known.now);
    let whole = {
        let edge = known.now - known.kept;
        let floor = period.floor(edge);
        if floor == edge { edge } else { floor + period.length() }
    };
    if asked.from.is_some() || asked.to.is_some() {
        let to = asked.to.unwrap_or(end);
        let from = asked.from.unwrap_or_else(|| to.checked_sub(period.length()).unwrap_or(to));
        for (name, at) in [("from", from), ("to", to)] {
            if period.floor(at) != at {
                let reason = format!("{at} is not the begin of a UTC {}", period.unit());
                return Err(PlatformError::invalid(name, reason));
            }
        }
        if from >= to || to > end {
            let reason = format!(
                "{to} is wanted after `from` ({from}) and not after {end}: only whole buckets are computed"
            );
            return Err(PlatformError::invalid("to", reason));
        }
        if from < whole {
            let reason = format!(
                "{from} is before {whole}: rows from before may have been swept away, so the sums would fall"
            );
            return Err(PlatformError::invalid("from", reason));
        }
        return Ok(Some(Window { from, to }));
    }
    let oldest = known.oldest_row.map_or(end - period.length(), |at| period.floor(at));
    let from = known.newest.unwrap_or(oldest).max(end - period.look_back()).max(whole);
    Ok((from < end).then_some(Window { from, to: end }))
}

/// Whole days from `now` until `at`, counted up: one second is one day.
pub(crate) fn days_until(now: Timestamp, at: Timestamp) -> i64 {
    let seconds = at.as_second() - now.as_second();
    seconds.div_euclid(86_400) + i64::from(seconds.rem_euclid(86_400) > 0)
}

/// The month of UTC that `now` lies in, and the week (from Monday).
pub(crate) fn month_start(now: Timestamp) -> Timestamp {
    let utc = now.to_zoned(TimeZone::UTC);
    utc.first_of_month().and_then(|first| first.start_of_day()).map_or(now, |start| start.timestamp())
}

/// The Monday of the week of UTC that `now` lies in.
pub(crate) fn week_start(now: Timestamp) -> Timestamp {
    let utc = now.to_zoned(TimeZone::UTC);
    let back = i64::from(utc.weekday().to_monday_zero_offset());
    let monday = utc.checked_sub(back.days()).unwrap_or(utc);
    monday.start_of_day().map_or(now, |start| start.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn known(newest: Option<&str>, oldest: Option<&str>) -> Known {
        Known {
            now: at("2026-11-22T10:20:30Z"),
            newest: newest.map(at),
            oldest_row: oldest.map(at),
            kept: SignedDuration::from_hours(90 * 24),
        }
    }

    fn chosen(period: Period, known: Known) -> Option<(String, String)> {
        let window = window(period, Asked::default(), known).unwrap()?;
        Some((window.from.to_string(), window.to.to_string()))
    }

    #[test]
    fn what_was_missed_is_made_up_for_within_bounds() {
        let pair = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        let ten = "2026-11-22T10:00:00Z";
        // the newest bucket again, and all since
        assert_eq!(
            chosen(Period::Hour, known(Some("2026-11-22T06:00:00Z"), None)),
            pair("2026-11-22T06:00:00Z", ten)
        );
        // nothing computed yet: since the first row
        assert_eq!(
            chosen(Period::Hour, known(None, Some("2026-11-22T03:59:59Z"))),
            pair("2026-11-22T03:00:00Z", ten)
        );
        // no row at all: the last bucket
        assert_eq!(chosen(Period::Hour, known(None, None)), pair("2026-11-22T09:00:00Z", ten));
        // never further back than a week
        assert_eq!(
            chosen(Period::Hour, known(Some("2026-01-01T00:00:00Z"), None)),
            pair("2026-11-15T10:00:00Z", ten)
        );
        let days = chosen(Period::Day, known(Some("2026-11-20T00:00:00Z"), None));
        assert_eq!(days, pair("2026-11-20T00:00:00Z", "2026-11-22T00:00:00Z"));
        // never into what may have been swept
        let swept =
            Known { kept: SignedDuration::from_hours(24), ..known(Some("2026-11-10T00:00:00Z"), None) };
        assert_eq!(chosen(Period::Hour, swept), pair("2026-11-21T11:00:00Z", ten));
        assert_eq!(chosen(Period::Day, swept), None);
        // a row of the future asks for nothing
        assert_eq!(chosen(Period::Hour, known(Some("2026-11-22T12:00:00Z"), None)), None);
    }

    #[test]
    fn a_window_that_is_asked_for_is_whole_past_and_still_there() {
        let ask = |from: Option<&str>, to: Option<&str>| {
            window(Period::Hour, Asked { from: from.map(at), to: to.map(at) }, known(None, None))
                .map(|window| window.map(|window| (window.from.to_string(), window.to.to_string())))
                .map_err(|error| error.to_string())
        };
        let one = ask(None, Some("2026-11-20T05:00:00Z")).unwrap().unwrap();
        assert_eq!(one.0, "2026-11-20T04:00:00Z");
        assert!(ask(Some("2026-11-20T05:00:00Z"), None).unwrap().is_some());
        for (from, to, says) in [
            (Some("2026-11-20T05:30:00Z"), None, "is not the begin"),
            (Some("2026-11-20T05:00:00Z"), Some("2026-11-20T05:00:00Z"), "after `from`"),
            (None, Some("2026-11-22T11:00:00Z"), "not after 2026-11-22T10:00:00Z"),
            (Some("2026-01-01T00:00:00Z"), None, "swept"),
        ] {
            let error = ask(from, to).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn days_weeks_and_months() {
        let now = at("2026-11-22T10:20:30Z");
        for (then, days) in [
            ("2026-11-22T10:20:30Z", 0),
            ("2026-11-22T10:20:31Z", 1),
            ("2026-11-23T10:20:30Z", 1),
            ("2026-11-23T10:20:31Z", 2),
            ("2026-11-21T10:20:30Z", -1),
        ] {
            assert_eq!(days_until(now, at(then)), days, "{then}");
        }
        assert_eq!(week_start(now), at("2026-11-16T00:00:00Z"));
        assert_eq!(week_start(at("2026-11-16T00:00:00Z")), at("2026-11-16T00:00:00Z"));
        assert_eq!(month_start(now), at("2026-11-01T00:00:00Z"));
        assert_eq!(Period::Hour.floor(at("1969-12-31T23:30:00Z")), at("1969-12-31T23:00:00Z"));
    }
}
