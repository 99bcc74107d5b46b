//! What is due for a subscription. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::period::days_until;

/// The states that have something before them. `SUSPENDED` and `EXPIRED` are ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Trial,
    Active,
    Grace,
}

impl State {
    pub(super) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "TRIAL" => Self::Trial,
            "ACTIVE" => Self::Active,
            "GRACE" => Self::Grace,
            _ => return None,
        })
    }
}

/// A subscription as far as its course goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    pub(super) state: State,
    pub(super) term_end: Timestamp,
    pub(super) grace_end: Option<Timestamp>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// The reminder of `notice` days, `left` days before the end.
    Remind {
        notice: i64,
        left: i64,
    },
    /// The term is over: served on until then.
    Grace {
        until: Timestamp,
    },
    /// The grace is over.
    Suspend,
    /// A trial is over; it has no grace.
    Expire,
}

/// Chooses the step. `notices` are days, largest first. Of several reminders that were missed the nearest alone is due, so that a tenant
/// who was not told for a while gets one mail and not six. Grace counts from when it is granted, not from the end of the term: nobody is
/// suspended without it because nothing ran for two weeks.
pub(super) fn decide(course: Course, notices: &[i64], grace: SignedDuration, now: Timestamp) -> Step {
    let Course { state, term_end, grace_end } = course;
    match state {
        State::Grace if now >= grace_end.unwrap_or(term_end + grace) => Step::Suspend,
        State::Grace => Step::Nothing,
        State::Trial if now >= term_end => Step::Expire,
        State::Active if now >= term_end => {
            Step::Grace { until: grace_end.filter(|end| *end > now).unwrap_or(now + grace) }
        }
        State::Trial | State::Active => {
            let left = days_until(now, term_end);
            match notices.iter().copied().filter(|days| left <= *days).min() {
                Some(notice) => Step::Remind { notice, left },
                None => Step::Nothing,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICES: [i64; 6] = [90, 60, 30, 14, 7, 1];
    const GRACE: SignedDuration = SignedDuration::from_hours(14 * 24);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn step(state: State, term_end: &str, grace_end: Option<&str>) -> Step {
        let course = Course { state, term_end: at(term_end), grace_end: grace_end.map(at) };
        decide(course, &NOTICES, GRACE, at("2026-11-22T12:00:00Z"))
    }

    #[test]
    fn both_edges_of_every_step() {
        let remind = |notice, left| Step::Remind { notice, left };
        for (state, term_end, grace_end, wanted) in [
            (State::Active, "2027-02-20T12:00:01Z", None, Step::Nothing),
            (State::Active, "2027-02-20T12:00:00Z", None, remind(90, 90)),
            (State::Active, "2027-01-21T12:00:01Z", None, remind(90, 61)),
            (State::Active, "2027-01-21T12:00:00Z", None, remind(60, 60)),
            (State::Active, "2026-12-12T12:00:00Z", None, remind(30, 20)),
            (State::Active, "2026-11-29T12:00:00Z", None, remind(7, 7)),
            (State::Trial, "2026-11-22T12:00:01Z", None, remind(1, 1)),
            (State::Active, "2026-11-22T12:00:00Z", None, Step::Grace { until: at("2026-12-06T12:00:00Z") }),
            // long over: the grace begins now all the same
            (State::Active, "2026-01-01T00:00:00Z", None, Step::Grace { until: at("2026-12-06T12:00:00Z") }),
            (
                State::Active,
                "2026-11-22T12:00:00Z",
                Some("2026-11-30T00:00:00Z"),
                Step::Grace { until: at("2026-11-30T00:00:00Z") },
            ),
            (State::Trial, "2026-11-22T12:00:00Z", None, Step::Expire),
            (State::Grace, "2026-11-20T00:00:00Z", Some("2026-11-22T12:00:01Z"), Step::Nothing),
            (State::Grace, "2026-11-20T00:00:00Z", Some("2026-11-22T12:00:00Z"), Step::Suspend),
            (State::Grace, "2026-11-08T12:00:01Z", None, Step::Nothing),
            (State::Grace, "2026-11-08T12:00:00Z", None, Step::Suspend),
        ] {
            assert_eq!(step(state, term_end, grace_end), wanted, "{state:?} {term_end}");
        }
        assert_eq!(State::of("SUSPENDED"), None);
        assert_eq!(State::of("EXPIRED"), None);
    }
}
