//! The calendar against the clock changes of 2026, impossible dates, and the laws every slot sequence obeys.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{Calendar, CalendarError, ExpressionError};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn slots(expression: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
    let calendar = Calendar::parse(expression, zone).unwrap();
    calendar.slots_between(at(after), at(until)).map(|slot| slot.to_string()).collect()
}

/// The whole local day in Berlin on which the clock goes from 02:00 to 03:00.
const SPRING: (&str, &str) = ("2026-03-28T22:59:59Z", "2026-03-29T21:59:59Z");
/// The whole local day in Berlin on which the clock goes from 03:00 back to 02:00.
const AUTUMN: (&str, &str) = ("2026-10-24T21:59:59Z", "2026-10-25T22:59:59Z");

#[test]
fn a_fixed_time_is_due_once_on_both_days_of_the_clock_change() {
    let berlin = |expression, (after, until): (&'static str, &'static str)| {
        slots(expression, "Europe/Berlin", after, until)
    };
    // 02:30 does not exist in spring: due when the clock has jumped to 03:00 summer time.
    assert_eq!(berlin("30 2 * * *", SPRING), ["2026-03-29T01:00:00Z"]);
    // 02:30 happens twice in autumn: due the first time.
    assert_eq!(berlin("30 2 * * *", AUTUMN), ["2026-10-25T00:30:00Z"]);
    // Two times inside the jump, and one at its end, are one slot.
    assert_eq!(berlin("0,30 2,3 * * *", SPRING), ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]);
    assert_eq!(
        berlin("0,30 2,3 * * *", AUTUMN),
        ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z", "2026-10-25T02:30:00Z"]
    );
    // Times beside the change keep their wall clock.
    assert_eq!(berlin("30 1 * * *", SPRING), ["2026-03-29T00:30:00Z"]);
    assert_eq!(berlin("0 12 * * *", SPRING), ["2026-03-29T10:00:00Z"]);
    assert_eq!(berlin("0 12 * * *", AUTUMN), ["2026-10-25T11:00:00Z"]);
}

#[test]
fn an_interval_follows_the_clock_on_the_wall() {
    let berlin = |expression, (after, until): (&'static str, &'static str)| {
        slots(expression, "Europe/Berlin", after, until)
    };
    assert!(berlin("*/30 2 * * *", SPRING).is_empty());
    assert_eq!(
        berlin("*/30 2 * * *", AUTUMN),
        ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"]
    );
    // Hourly is every hour of real time: 23 and 25 of them.
    assert_eq!(berlin("0 * * * *", SPRING).len(), 23);
    assert_eq!(berlin("0 * * * *", AUTUMN).len(), 25);
    assert_eq!(berlin("* * * * *", SPRING).len(), 23 * 60);
    assert_eq!(berlin("* * * * *", AUTUMN).len(), 25 * 60);
}

#[test]
fn a_search_that_starts_inside_the_repeated_hour_finds_what_is_still_ahead() {
    // Between the passes, and in the second pass: the fixed time has been, the interval goes on.
    for after in ["2026-10-25T00:45:00Z", "2026-10-25T01:10:00Z"] {
        assert_eq!(
            slots("30 2 * * *", "Europe/Berlin", after, "2026-10-26T23:00:00Z"),
            ["2026-10-26T01:30:00Z"]
        );
    }
    assert_eq!(
        slots("*/30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", "2026-10-25T02:00:00Z"),
        ["2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z"]
    );
}

#[test]
fn a_run_that_the_clock_change_moves_or_repeats_is_noted() {
    for (expression, slot, says) in [
        ("30 2 * * *", "2026-03-29T01:00:00Z", Some("moved")),
        ("30 2 * * *", "2026-03-30T00:30:00Z", None),
        ("30 2 * * *", "2026-10-25T00:30:00Z", Some("the first time")),
        ("0 3 * * *", "2026-03-29T01:00:00Z", None),
        ("0 2,3 * * *", "2026-03-29T01:00:00Z", None),
        ("*/30 * * * *", "2026-10-25T00:30:00Z", Some("both times")),
        ("*/30 * * * *", "2026-10-25T02:30:00Z", None),
    ] {
        let calendar = Calendar::parse(expression, "Europe/Berlin").unwrap();
        let note = calendar.clock_change_note(at(slot));
        assert_eq!(note.is_some(), says.is_some(), "{expression} {slot}: {note:?}");
        assert!(note.unwrap_or_default().contains(says.unwrap_or_default()), "{note:?}");
    }
}

#[test]
fn other_zones_jump_at_midnight_by_half_an_hour_and_by_a_day() {
    // Cairo skips 00:00 to 01:00 on 24 April 2026.
    assert_eq!(
        slots("15 0 * * *", "Africa/Cairo", "2026-04-23T20:00:00Z", "2026-04-24T20:00:00Z"),
        ["2026-04-23T22:00:00Z"]
    );
    // Lord Howe moves by thirty minutes.
    assert_eq!(
        slots("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", "2026-10-04T12:00:00Z"),
        ["2026-10-03T15:30:00Z"]
    );
    // Samoa left 30 December 2011 out.
    assert_eq!(
        slots("0 12 * * *", "Pacific/Apia", "2011-12-30T00:00:00Z", "2011-12-31T12:00:00Z"),
        ["2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"]
    );
}

#[test]
fn days_that_exist_in_some_years_only_are_found() {
    assert_eq!(
        slots("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2033-01-01T00:00:00Z"),
        ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
    );
    // 2100 is no leap year.
    let calendar = Calendar::parse("0 0 29 2 *", "UTC").unwrap();
    assert_eq!(calendar.next_after(at("2096-03-01T00:00:00Z")), Some(at("2104-02-29T00:00:00Z")));
}

#[test]
fn an_expression_that_is_never_due_is_refused() {
    for expression in ["0 0 30 2 *", "0 0 30,31 FEB *", "0 0 31 2,4,6,9,11 *", "0 0 30 2 +MON"] {
        let error = Calendar::parse(expression, "UTC").unwrap_err();
        assert_eq!(
            error,
            CalendarError::Expression(ExpressionError::NeverDue { expression: expression.to_owned() })
        );
        assert!(error.to_string().contains("day of month"), "{error}");
    }
    // Either day field is enough in cron, so this one is due on Mondays.
    assert!(Calendar::parse("0 0 30 2 MON", "UTC").is_ok());
}

#[test]
fn day_modifiers_and_names_mean_what_they_say() {
    let month = ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z");
    let in_february = |expression| slots(expression, "UTC", month.0, month.1);
    assert_eq!(in_february("0 7 L * *"), ["2026-02-28T07:00:00Z"]);
    assert_eq!(in_february("0 7 LW * *"), ["2026-02-27T07:00:00Z"]);
    assert_eq!(in_february("0 7 15W * *"), ["2026-02-16T07:00:00Z"]);
    assert_eq!(in_february("0 7 * * FRIL"), ["2026-02-27T07:00:00Z"]);
    assert_eq!(in_february("0 7 * * MON#2"), ["2026-02-09T07:00:00Z"]);
    assert_eq!(in_february("0 7 * * SAT-SUN").len(), 8);
    assert_eq!(in_february("0 7 13 * FRI").len(), 4);
    assert_eq!(in_february("0 7 13 * +FRI"), ["2026-02-13T07:00:00Z"]);
    assert_eq!(in_february("@weekly").len(), 4);
}

#[test]
fn the_latest_slots_of_a_long_span_are_found_without_walking_it() {
    let calendar = Calendar::parse("* * * * *", "Europe/Berlin").unwrap();
    let (after, until) = (at("2006-01-01T00:00:00Z"), at("2026-11-22T12:00:30Z"));
    let latest = calendar.latest(after, until, 3);
    let expected = ["2026-11-22T11:58:00Z", "2026-11-22T11:59:00Z", "2026-11-22T12:00:00Z"].map(at);
    assert_eq!(latest.slots, expected);
    assert!(latest.more);

    let yearly = Calendar::parse("0 0 1 1 *", "UTC").unwrap();
    let latest = yearly.latest(at("2024-06-01T00:00:00Z"), until, 3);
    assert_eq!(latest.slots, ["2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"].map(at));
    assert!(!latest.more);
    assert!(yearly.latest(until, until, 3).slots.is_empty());
}

fn expressions() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "30 2 * * *",
        "0,15,59 1,2,3 * * *",
        "*/7 * * * *",
        "*/30 2 * * *",
        "0 */3 * * *",
        "5 0-4 * * SUN",
        "0 2 L * *",
        "59 23 31 12 *",
    ])
}

fn zones() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Africa/Cairo",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Santiago",
    ])
}

proptest! {
    // Each case walks days or a year.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever a scheduler starts or restarts, it sees the same slots: none twice, none lost at the seam.
    #[test]
    fn a_span_cut_anywhere_has_the_same_slots(
        expression in expressions(),
        zone in zones(),
        start in 1_767_225_600_i64..1_798_761_600, // 2026
        first in 0_i64..200_000,
        second in 0_i64..200_000,
        nanos in 0_i32..1_000_000_000,
    ) {
        let calendar = Calendar::parse(expression, zone).unwrap();
        let after = Timestamp::new(start, nanos).unwrap();
        let cut = after.checked_add(SignedDuration::from_secs(first)).unwrap();
        let until = cut.checked_add(SignedDuration::from_secs(second)).unwrap();
        let whole: Vec<_> = calendar.slots_between(after, until).collect();
        let mut parts: Vec<_> = calendar.slots_between(after, cut).collect();
        parts.extend(calendar.slots_between(cut, until));
        prop_assert_eq!(&whole, &parts);
        prop_assert!(whole.is_sorted_by(|one, next| one < next));
        prop_assert!(whole.iter().all(|slot| *slot > after && *slot <= until));
        let latest = calendar.latest(after, until, 4);
        prop_assert_eq!(&latest.slots[..], &whole[whole.len().saturating_sub(4)..]);
        prop_assert_eq!(latest.more, whole.len() > 4);
    }

    /// A daily fixed time has exactly one slot for every local day, whatever the zone does.
    #[test]
    fn a_daily_fixed_time_has_one_slot_a_day_of_the_year(zone in zones(), hour in 0_u8..24, minute in 0_u8..60) {
        let calendar = Calendar::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
        let year = calendar.slots_between(at("2025-12-31T00:00:00Z"), at("2027-01-02T00:00:00Z"));
        let days: Vec<_> = year
            .map(|slot| slot.to_zoned(calendar.zone().clone()).date())
            .filter(|day| day.year() == 2026)
            .collect();
        prop_assert_eq!(days.len(), 365);
        prop_assert!(days.is_sorted_by(|one, next| one < next));
    }

    /// No text makes the parser panic or hang, and what it accepts has a next slot.
    #[test]
    fn any_text_is_answered(text in "[-0-9*/,LW#?+@A-Z ]{0,24}") {
        if let Ok(calendar) = Calendar::parse(&text, "UTC") {
            prop_assert!(calendar.next_after(at("2026-11-22T00:00:00Z")).is_some());
        }
    }
}
