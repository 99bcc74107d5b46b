use jiff::civil::{Time, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use voiceai_queue::cron::Calendar;

use super::decide::{Decision, Period, Reason, Rules, Standing, Times, day_begins, decide};

const EVERY_DAY: [bool; 7] = [true; 7];

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Hourly in UTC, without any other rule.
fn rules() -> Rules {
    Rules {
        is_enabled: true,
        times: Times::Each(Period::Hours(1)),
        zone: TimeZone::UTC,
        after: None,
        before: None,
        days: EVERY_DAY,
        min_interval: SignedDuration::ZERO,
        max_per_day: 24,
        error_cooldown: SignedDuration::ZERO,
        allow_concurrent: false,
    }
}

fn cron(expression: &str, name: &str) -> Rules {
    let calendar = Calendar::parse(expression, name).unwrap();
    Rules { zone: zone(name), times: Times::Cron(Box::new(calendar)), ..rules() }
}

fn fresh() -> Standing {
    Standing {
        since: at("2026-01-01T00:00:00Z"),
        last_slot: None,
        last_run: None,
        failed_at: None,
        runs_today: 0,
        unfinished: None,
        held: false,
    }
}

fn fires(rules: &Rules, standing: &Standing, now: &str) -> Option<Timestamp> {
    match decide(rules, standing, at(now)) {
        Decision::Fire { slot } => Some(slot),
        Decision::Wait { .. } => None,
    }
}

fn waits(rules: &Rules, standing: &Standing, now: &str) -> (Reason, Option<Timestamp>) {
    match decide(rules, standing, at(now)) {
        Decision::Wait { reason, until } => (reason, until),
        Decision::Fire { slot } => panic!("{now}: fires for {slot}"),
    }
}

#[test]
fn each_period_is_due_once_in_local_time() {
    for (period, name, now, slot) in [
        (Period::Hours(1), "UTC", "2026-11-22T10:59:59Z", "2026-11-22T10:00:00Z"),
        (Period::Hours(1), "Asia/Kolkata", "2026-11-22T10:10:00Z", "2026-11-22T09:30:00Z"),
        (Period::Hours(4), "UTC", "2026-11-22T11:59:59Z", "2026-11-22T08:00:00Z"),
        (Period::Hours(4), "Europe/Berlin", "2026-11-22T11:00:00Z", "2026-11-22T11:00:00Z"),
        (Period::Hours(8), "UTC", "2026-11-22T23:59:59Z", "2026-11-22T16:00:00Z"),
        (Period::Day, "Europe/Berlin", "2026-11-22T22:59:59Z", "2026-11-21T23:00:00Z"),
        (Period::Day, "Europe/Berlin", "2026-11-22T23:00:00Z", "2026-11-22T23:00:00Z"),
        // 22 November 2026 is a Sunday: the last day of its week.
        (Period::Week, "UTC", "2026-11-22T23:59:59Z", "2026-11-16T00:00:00Z"),
        (Period::Week, "UTC", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z"),
        // The day of the clock change has 25 hours, and midnight does not exist in Cairo on the day it begins.
        (Period::Day, "Europe/Berlin", "2026-10-25T22:30:00Z", "2026-10-24T22:00:00Z"),
        (Period::Day, "Africa/Cairo", "2026-04-23T22:30:00Z", "2026-04-23T22:00:00Z"),
    ] {
        let rules = Rules { times: Times::Each(period), zone: zone(name), ..rules() };
        assert_eq!(fires(&rules, &fresh(), now), Some(at(slot)), "{period:?} in {name} at {now}");
        let fired = Standing { last_slot: Some(at(slot)), ..fresh() };
        let (reason, until) = waits(&rules, &fired, now);
        assert!(matches!(reason, Reason::NotDue { next: Some(_) }), "{reason:?}");
        assert!(until.unwrap() > at(now), "{period:?} in {name}");
        // Somebody else ran it in the same period.
        let run = Standing { last_run: Some(at(slot)), ..fresh() };
        assert_eq!(fires(&rules, &run, now), None, "{period:?} in {name}");
    }
}

#[test]
fn an_hour_that_the_clock_shows_twice_is_two_hours() {
    let rules = Rules { zone: zone("Europe/Berlin"), ..rules() };
    let first = fires(&rules, &fresh(), "2026-10-25T00:30:00Z").unwrap();
    let second =
        fires(&rules, &Standing { last_slot: Some(first), ..fresh() }, "2026-10-25T01:30:00Z").unwrap();
    assert_eq!((first, second), (at("2026-10-25T00:00:00Z"), at("2026-10-25T01:00:00Z")));
    let (_, until) = waits(&rules, &Standing { last_slot: Some(first), ..fresh() }, "2026-10-25T00:30:00Z");
    assert_eq!(until, Some(second));
}

#[test]
fn days_are_local_and_a_period_waits_for_one() {
    // Weekly, on Wednesdays: Monday's slot is fired on Wednesday.
    let mut days = [false; 7];
    days[3] = true;
    let rules = Rules { times: Times::Each(Period::Week), zone: zone("Europe/Berlin"), days, ..rules() };
    let (reason, until) = waits(&rules, &fresh(), "2026-11-24T22:59:59Z");
    assert_eq!(reason, Reason::Day(jiff::civil::Weekday::Tuesday));
    assert_eq!(until, Some(at("2026-11-24T23:00:00Z")), "Wednesday begins in Berlin");
    assert_eq!(fires(&rules, &fresh(), "2026-11-24T23:00:00Z"), Some(at("2026-11-22T23:00:00Z")));
    // No day at all.
    let never = Rules { days: [false; 7], ..rules };
    assert_eq!(waits(&never, &fresh(), "2026-11-24T23:00:00Z").1, None);
    let none = Rules { days: [false; 7], ..cron("0 9 * * *", "UTC") };
    assert_eq!(waits(&none, &fresh(), "2026-11-24T10:00:00Z").0, Reason::NotDue { next: None });
}

#[test]
fn a_window_may_have_one_end_or_go_over_midnight() {
    let window = |after: Option<Time>, before: Option<Time>| Rules { after, before, ..rules() };
    let (nine, five, ten) = (time(9, 0, 0, 0), time(17, 0, 0, 0), time(22, 0, 0, 0));
    for (after, before, clock, open) in [
        (Some(nine), Some(five), "08:59:59.999", false),
        (Some(nine), Some(five), "09:00:00", true),
        (Some(nine), Some(five), "17:00:00.5", true),
        (Some(nine), Some(five), "17:00:01", false),
        (Some(nine), None, "08:59:59", false),
        (Some(nine), None, "23:59:59", true),
        (None, Some(nine), "00:00:00", true),
        (None, Some(nine), "09:00:01", false),
        (Some(ten), Some(nine), "21:59:59", false),
        (Some(ten), Some(nine), "22:00:00", true),
        (Some(ten), Some(nine), "08:59:59", true),
        (Some(ten), Some(nine), "09:00:01", false),
        (Some(nine), Some(nine), "03:00:00", true),
    ] {
        let now = format!("2026-11-24T{clock}Z");
        let rules = window(after, before);
        assert_eq!(fires(&rules, &fresh(), &now).is_some(), open, "{after:?} to {before:?} at {clock}");
        if !open {
            let (reason, until) = waits(&rules, &fresh(), &now);
            assert!(matches!(reason, Reason::Window { .. }), "{reason:?}");
            assert!(
                fires(&rules, &fresh(), &until.unwrap().to_string()).is_some(),
                "{clock}: opens at {until:?}"
            );
        }
    }
}

#[test]
fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
    let mut days = [false; 7];
    days[1] = true; // Monday, 23 November 2026
    let rules = Rules { after: Some(time(22, 0, 0, 0)), before: Some(time(6, 0, 0, 0)), days, ..rules() };
    for (now, open) in [
        ("2026-11-23T05:00:00Z", false), // Sunday's night
        ("2026-11-23T22:00:00Z", true),
        ("2026-11-24T06:00:00Z", true), // Monday's night, on Tuesday
        ("2026-11-24T22:30:00Z", false),
    ] {
        assert_eq!(fires(&rules, &fresh(), now).is_some(), open, "{now}");
    }
}

#[test]
fn an_expression_is_due_at_its_times_that_days_and_window_admit() {
    let rules = cron("30 9 * * *", "America/New_York");
    let since = Standing { since: at("2026-11-23T12:00:00Z"), ..fresh() };
    assert_eq!(waits(&rules, &since, "2026-11-23T14:29:59Z").1, Some(at("2026-11-23T14:30:00Z")));
    let slot = fires(&rules, &since, "2026-11-23T14:30:00Z").unwrap();
    assert_eq!(slot, at("2026-11-23T14:30:00Z"));
    let fired = Standing { last_slot: Some(slot), ..since.clone() };
    assert_eq!(waits(&rules, &fired, "2026-11-23T14:30:01Z").1, Some(at("2026-11-24T14:30:00Z")));
    // Of several that were missed, the newest stands for all.
    assert_eq!(fires(&rules, &fired, "2026-11-27T20:00:00Z"), Some(at("2026-11-27T14:30:00Z")));
    // What lay before it was known as it is never was due.
    let changed = Standing { since: at("2026-11-23T20:00:00Z"), ..fresh() };
    assert_eq!(fires(&rules, &changed, "2026-11-23T21:00:00Z"), None);
    // A time outside the window is none of the schedule's times: it is not made up for when the window opens.
    let early = Rules { after: Some(time(12, 0, 0, 0)), ..rules.clone() };
    let (reason, _) = waits(&early, &since, "2026-11-23T18:00:00Z");
    assert_eq!(reason, Reason::NotDue { next: None });
    // The same of a day: Saturday's time is not made up for on Sunday or Monday at midnight.
    let workdays = Rules { days: [false, true, true, true, true, true, false], ..rules };
    let friday = Standing { last_slot: Some(at("2026-11-27T14:30:00Z")), ..fresh() };
    let (_, until) = waits(&workdays, &friday, "2026-11-30T05:00:00Z");
    assert_eq!(until, Some(at("2026-11-30T14:30:00Z")));
}

#[test]
fn a_missed_time_is_made_up_for_only_within_day_and_window() {
    let rules =
        Rules { after: Some(time(9, 0, 0, 0)), before: Some(time(12, 0, 0, 0)), ..cron("0 10 * * *", "UTC") };
    let fired = Standing { last_slot: Some(at("2026-11-23T10:00:00Z")), ..fresh() };
    assert_eq!(fires(&rules, &fired, "2026-11-24T11:30:00Z"), Some(at("2026-11-24T10:00:00Z")));
    let (reason, until) = waits(&rules, &fired, "2026-11-24T15:00:00Z");
    assert!(matches!(reason, Reason::Window { .. }), "{reason:?}");
    assert_eq!(until, Some(at("2026-11-25T09:00:00Z")));
}

#[test]
fn interval_cooldown_cap_and_concurrency_put_a_slot_off() {
    let rules = Rules {
        min_interval: SignedDuration::from_mins(60),
        error_cooldown: SignedDuration::from_mins(30),
        max_per_day: 3,
        ..rules()
    };
    let now = "2026-11-24T10:00:00Z";
    let run = |text: &str| Standing { last_run: Some(at(text)), ..fresh() };
    assert_eq!(
        waits(&rules, &run("2026-11-24T09:00:01Z"), now),
        (Reason::Interval(at("2026-11-24T10:00:01Z")), Some(at("2026-11-24T10:00:01Z")))
    );
    assert!(fires(&rules, &run("2026-11-24T09:00:00Z"), now).is_some());
    let failed = |text: &str| Standing { failed_at: Some(at(text)), ..fresh() };
    assert_eq!(
        waits(&rules, &failed("2026-11-24T09:30:01Z"), now).0,
        Reason::Cooldown(at("2026-11-24T10:00:01Z"))
    );
    assert!(fires(&rules, &failed("2026-11-24T09:30:00Z"), now).is_some());
    let often = |runs_today| Standing { runs_today, ..fresh() };
    assert!(fires(&rules, &often(2), now).is_some());
    let (reason, until) = waits(&rules, &often(3), now);
    assert_eq!((reason, until), (Reason::DailyCap { runs: 3, max: 3 }, Some(at("2026-11-25T00:00:00Z"))));
    let busy = Standing { unfinished: Some("orch-p-1".to_owned()), ..fresh() };
    assert_eq!(waits(&rules, &busy, now).0, Reason::Unfinished("orch-p-1".to_owned()));
    assert!(fires(&Rules { allow_concurrent: true, ..rules.clone() }, &busy, now).is_some());
    assert_eq!(waits(&Rules { is_enabled: false, ..rules.clone() }, &fresh(), now).0, Reason::Off);
    assert_eq!(waits(&rules, &Standing { held: true, ..fresh() }, now).0, Reason::Held);
}

#[test]
fn every_reason_says_what_to_look_at() {
    let until = at("2026-11-24T10:00:00Z");
    for (reason, says) in [
        (Reason::Off, "is_enabled"),
        (Reason::Held, "release --restored"),
        (Reason::NotDue { next: Some(until) }, "2026-11-24T10:00:00Z"),
        (Reason::Day(jiff::civil::Weekday::Sunday), "Sunday is none of run_on_days"),
        (
            Reason::Window { now: time(8, 5, 9, 0), after: Some(time(9, 0, 0, 0)), before: None },
            "08:05 is outside the window from 09:00:00 to midnight",
        ),
        (Reason::Unfinished("orch-1".to_owned()), "allow_concurrent"),
        (Reason::Cooldown(until), "cooldown_after_error_minutes"),
        (Reason::Interval(until), "min_interval_minutes"),
        (Reason::DailyCap { runs: 3, max: 3 }, "max_runs_per_day is 3"),
    ] {
        let text = reason.to_string();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn the_daily_cap_counts_local_days() {
    assert_eq!(day_begins(&zone("America/New_York"), at("2026-11-24T03:00:00Z")), at("2026-11-23T05:00:00Z"));
}
