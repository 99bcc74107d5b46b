//! The verdict as rows in a table: standing and time in, slots and cursor out.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{Calendar, Dropped, MissedRuns, Overlap, Pause, Rules, Standing, Verdict, decide, next_look};

/// An instant of 22 November 2026, `HH:MM` or `HH:MM:SS`, UTC.
fn at(clock: &str) -> Timestamp {
    let seconds = if clock.len() == 5 { ":00" } else { "" };
    format!("2026-11-22T{clock}{seconds}Z").parse().unwrap()
}

fn rules(missed: MissedRuns, overlap: Overlap) -> Rules {
    Rules { missed, overlap, on_time_within: SignedDuration::from_secs(60) }
}

fn standing(last_slot: &str) -> Standing {
    Standing { last_slot: at(last_slot), pause: None, busy: false, held: false }
}

/// Every ten minutes.
fn tens(rules: Rules, standing: Standing, now: &str) -> Verdict {
    decide(&Calendar::parse("*/10 * * * *", "UTC").unwrap(), rules, standing, at(now))
}

fn times(clocks: &[&str]) -> Vec<Timestamp> {
    clocks.iter().map(|clock| at(clock)).collect()
}

use MissedRuns::{CatchUp, Once, Skip};

#[test]
fn a_slot_fires_from_its_instant_until_it_counts_as_missed() {
    for (now, fires) in
        [("09:59:59", false), ("10:00", true), ("10:00:59", true), ("10:01", true), ("10:01:01", false)]
    {
        let verdict = tens(rules(Skip, Overlap::Allow), standing("09:50"), now);
        assert_eq!(verdict.fire, if fires { times(&["10:00"]) } else { vec![] }, "{now}");
        assert_eq!(verdict.last_slot, at(if now < "10:00" { "09:50" } else { "10:00" }), "{now}");
        assert_eq!(verdict.dropped.missed, now == "10:01:01", "{now}");
    }
}

#[test]
fn missed_slots_follow_the_policy() {
    // Down from 09:05 to 10:05: 09:10 to 10:00 were missed. At 10:10:02 another slot is on time as well.
    for (missed, at_five, at_ten) in [
        (Skip, &[][..], &["10:10"][..]),
        (Once, &["10:00"], &["10:10"]),
        (CatchUp(1), &["10:00"], &["10:00", "10:10"]),
        (CatchUp(3), &["09:40", "09:50", "10:00"], &["09:40", "09:50", "10:00", "10:10"]),
        (
            CatchUp(100),
            &["09:10", "09:20", "09:30", "09:40", "09:50", "10:00"],
            &["09:10", "09:20", "09:30", "09:40", "09:50", "10:00", "10:10"],
        ),
    ] {
        let verdict = tens(rules(missed, Overlap::Allow), standing("09:00"), "10:05");
        assert_eq!(verdict.fire, times(at_five), "{missed} at 10:05");
        assert_eq!(verdict.last_slot, at("10:00"));
        assert_eq!(verdict.dropped.missed, missed != CatchUp(100), "{missed}");
        let verdict = tens(rules(missed, Overlap::Allow), standing("09:00"), "10:10:02");
        assert_eq!(verdict.fire, times(at_ten), "{missed} at 10:10:02");
        assert_eq!(verdict.last_slot, at("10:10"));
    }
}

#[test]
fn a_held_leader_makes_up_for_nothing_but_fires_what_is_due() {
    for missed in [Skip, Once, CatchUp(5)] {
        for overlap in [Overlap::Allow, Overlap::Skip] {
            let held = Standing { held: true, ..standing("09:00") };
            let verdict = tens(rules(missed, overlap), held, "10:05");
            assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("10:00")), "{missed} {overlap}");
            assert!(verdict.dropped.missed);
            let verdict = tens(rules(missed, overlap), held, "10:10:01");
            assert_eq!(
                (verdict.fire, verdict.last_slot),
                (times(&["10:10"]), at("10:10")),
                "{missed} {overlap}"
            );
        }
    }
}

#[test]
fn an_unfinished_run_makes_the_next_slot_wait_or_drop() {
    let busy = Standing { busy: true, ..standing("09:50") };
    let verdict = tens(rules(Once, Overlap::Allow), busy, "10:00:01");
    assert_eq!(verdict.fire, times(&["10:00"]));

    for missed in [Skip, Once] {
        let verdict = tens(rules(missed, Overlap::Skip), busy, "10:00:01");
        assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("10:00")), "{missed}");
        assert_eq!(verdict.dropped.overlapping, 1);
    }
    // Under catch-up nothing is decided while the run goes on; afterwards the runs follow one another.
    let serial = rules(CatchUp(2), Overlap::Skip);
    let verdict = tens(serial, busy, "10:25");
    assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("09:50")));
    assert_eq!(verdict.dropped, Dropped::default());
    let verdict = tens(serial, standing("09:50"), "10:25");
    assert_eq!((verdict.fire, verdict.last_slot), (times(&["10:10"]), at("10:10")));
    assert!(verdict.dropped.missed, "10:00 is one too many");
    let verdict = tens(serial, standing("10:10"), "10:25");
    assert_eq!((verdict.fire, verdict.last_slot), (times(&["10:20"]), at("10:20")));
}

#[test]
fn what_falls_into_a_pause_is_never_made_up_for() {
    let pause = Some(Pause { since: at("09:15"), until: at("09:45") });
    let paused = Standing { pause, ..standing("09:00") };
    // While it lasts nothing is decided, and the scheduler need not look before its end.
    let verdict = tens(rules(CatchUp(9), Overlap::Allow), paused, "09:30");
    assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("09:00")));
    let calendar = Calendar::parse("*/10 * * * *", "UTC").unwrap();
    assert_eq!(next_look(&calendar, paused, at("09:30")), Some(at("09:50")));
    // After it: what was missed before and after is, what lay inside is not.
    let verdict = tens(rules(CatchUp(9), Overlap::Allow), paused, "10:05");
    assert_eq!(verdict.fire, times(&["09:10", "09:50", "10:00"]));
    assert_eq!(verdict.last_slot, at("10:00"));
    assert!(verdict.dropped.paused);
    // Only paused slots: the cursor passes them.
    let verdict = tens(rules(Once, Overlap::Allow), Standing { last_slot: at("09:10"), ..paused }, "09:45");
    assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("09:40")));
    assert_eq!(verdict.dropped, Dropped { missed: false, paused: true, overlapping: 0 });
    // A pause that begins later holds nothing back now.
    let later = Standing { pause, ..standing("08:50") };
    assert_eq!(tens(rules(Skip, Overlap::Allow), later, "09:00:01").fire, times(&["09:00"]));
    // A slot at the very end of the pause is due.
    let to_the_minute = Pause { since: at("09:15"), until: at("09:40") };
    let verdict = tens(
        rules(Skip, Overlap::Allow),
        Standing { pause: Some(to_the_minute), ..standing("09:00") },
        "09:40:01",
    );
    assert_eq!(verdict.fire, times(&["09:40"]));
}

#[test]
fn a_cursor_from_the_future_is_brought_back() {
    let verdict = tens(rules(Once, Overlap::Allow), standing("12:00"), "10:00");
    assert!(verdict.rebased);
    assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("10:00")));
    // A clock that was corrected by a little only waits.
    let verdict = tens(rules(Once, Overlap::Allow), standing("10:00"), "09:58");
    assert!(!verdict.rebased);
    assert_eq!((verdict.fire, verdict.last_slot), (vec![], at("10:00")));
}

#[test]
fn the_next_look_is_the_next_slot() {
    let calendar = Calendar::parse("*/10 * * * *", "UTC").unwrap();
    assert_eq!(next_look(&calendar, standing("10:00"), at("10:00:01")), Some(at("10:10")));
    assert_eq!(next_look(&calendar, standing("10:10"), at("10:05")), Some(at("10:20")));
}

#[test]
fn policies_are_read_and_written() {
    for (text, policy) in [
        ("skip", Skip),
        ("ONCE", Once),
        ("catch_up(3)", CatchUp(3)),
        ("catch-up 3", CatchUp(3)),
        ("catch_up:100", CatchUp(100)),
        ("catch up 7", CatchUp(7)),
    ] {
        assert_eq!(text.parse(), Ok(policy), "{text}");
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    for text in ["", "catch_up", "catch_up(0)", "catch_up(101)", "catch_up(-1)", "often"] {
        assert!(text.parse::<MissedRuns>().unwrap_err().to_string().contains("catch_up(N)"), "{text}");
    }
    assert_eq!("Skip".parse(), Ok(Overlap::Skip));
    assert!("queue".parse::<Overlap>().unwrap_err().to_string().contains("`allow` or `skip`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However often and whenever the scheduler looks, no slot fires twice, the cursor never goes back, and under a
    /// generous catch-up every slot outside a pause fires.
    #[test]
    fn looking_at_random_times_fires_each_slot_once(
        gaps in prop::collection::vec(1_i64..900, 1..60),
        overlap in prop::sample::select(vec![Overlap::Allow, Overlap::Skip]),
        missed in prop::sample::select(vec![Skip, Once, CatchUp(100)]),
    ) {
        let calendar = Calendar::parse("*/7 * * * *", "Europe/Berlin").unwrap();
        let start: Timestamp = "2026-10-24T20:00:00Z".parse().unwrap();
        let mut standing = Standing { last_slot: start, pause: None, busy: false, held: false };
        let mut now = start;
        let mut fired = vec![];
        for gap in gaps {
            now = now.checked_add(SignedDuration::from_secs(gap)).unwrap();
            let verdict = decide(&calendar, rules(missed, overlap), standing, now);
            prop_assert!(verdict.last_slot >= standing.last_slot);
            prop_assert!(verdict.fire.iter().all(|slot| *slot > standing.last_slot && *slot <= verdict.last_slot));
            fired.extend(verdict.fire);
            standing.last_slot = verdict.last_slot;
        }
        prop_assert!(fired.is_sorted_by(|one, next| one < next));
        if missed == CatchUp(100) {
            let all: Vec<_> = calendar.slots_between(start, standing.last_slot).collect();
            prop_assert_eq!(fired, all);
        }
    }
}
