//! Whose clock schedules follow.

use jiff::{SignedDuration, Timestamp};

/// Further apart than any clock that merely goes wrong; no rehearsal needs to be nearer.
const REHEARSAL_FROM: SignedDuration = SignedDuration::from_hours(12);

/// The clock of schedules, given the database's at this moment: the database's, whatever this machine's shows.
///
/// The exception is a rehearsal: a process that was started under `faketime`, more than twelve hours away from the database,
/// follows the time it was given. So the two days of the clock change can be tried with the real programs, without
/// touching anybody's clock.
pub(crate) fn now(database: Timestamp) -> Timestamp {
    choose(database, Timestamp::now(), under_faketime())
}

/// The time this process was given, where it may be in a rehearsal: for a statement that compares it with the database's
/// itself.
pub(crate) fn faked() -> Option<Timestamp> {
    under_faketime().then(Timestamp::now)
}

fn under_faketime() -> bool {
    std::env::var("LD_PRELOAD").is_ok_and(|libraries| libraries.contains("libfaketime"))
}

fn choose(database: Timestamp, own: Timestamp, under_faketime: bool) -> Timestamp {
    let apart = own.duration_since(database).abs();
    if under_faketime && apart > REHEARSAL_FROM { own } else { database }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_faked_clock_that_is_far_away_is_followed() {
        let database: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (own, under_faketime, followed) in [
            ("2026-03-29T00:59:50Z", true, true),
            ("2027-03-28T00:59:50Z", true, true),
            ("2026-11-22T13:00:00Z", true, false), // a skew that is being tested
            ("2026-11-22T11:50:00Z", true, false),
            ("1970-01-01T00:00:00Z", false, false), // a clock that lost its battery
            ("2026-11-22T12:00:01Z", false, false),
        ] {
            let own = own.parse().unwrap();
            let expected = if followed { own } else { database };
            assert_eq!(choose(database, own, under_faketime), expected, "{own} {under_faketime}");
        }
    }
}
