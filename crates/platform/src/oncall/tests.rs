use proptest::prelude::*;

use super::*;

fn person(name: &str) -> Responder {
    Responder { name: name.to_owned(), email: Some(format!("{name}@example.com")) }
}

fn layer(shift_hours: i64, names: &[&str]) -> Layer {
    Layer {
        id: "l1".to_owned(),
        order: 0,
        shift_hours,
        handoff_day: 1,
        handoff_hour: 9,
        anchor: Some(civil::date(2026, 1, 5).at(9, 0, 0, 0)),
        responders: names.iter().map(|name| person(name)).collect(),
    }
}

fn schedule(zone: &str, layers: Vec<Layer>) -> Schedule {
    Schedule { zone: TimeZone::get(zone).expect("a zone"), layers, overrides: Vec::new() }
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn who(schedule: &Schedule, now: &str) -> String {
    on_call(schedule, at(now)).map_or_else(|| "nobody".to_owned(), |found| found.responder.name)
}

#[test]
fn weekly_shifts_go_round_and_never_start_over() {
    let three = schedule("UTC", vec![layer(168, &["ann", "ben", "cat"])]);
    for (now, name) in [
        ("2026-01-05T08:59:59Z", "cat"),
        ("2026-01-05T09:00:00Z", "ann"),
        ("2026-01-12T08:59:59Z", "ann"),
        ("2026-01-12T09:00:00Z", "ben"),
        ("2026-01-19T09:00:00Z", "cat"),
        ("2026-01-26T09:00:00Z", "ann"),
        ("2026-02-02T09:00:00Z", "ben"),
        // 52 weeks after the anchor: 52 mod 3 = 1.
        ("2027-01-04T12:00:00Z", "ben"),
    ] {
        assert_eq!(who(&three, now), name, "{now}");
    }
    let found = on_call(&three, at("2026-01-14T00:00:00Z")).expect("somebody");
    assert_eq!((found.until, found.is_override), (at("2026-01-19T09:00:00Z"), false));
}

#[test]
fn days_and_half_days_take_turns_too() {
    let days = schedule("UTC", vec![layer(24, &["ann", "ben"])]);
    assert_eq!(who(&days, "2026-01-05T10:00:00Z"), "ann");
    assert_eq!(who(&days, "2026-01-06T10:00:00Z"), "ben");
    // Seven days are an odd number: the weeks are not alike.
    assert_eq!(who(&days, "2026-01-12T10:00:00Z"), "ben");
    let nights = schedule("UTC", vec![layer(12, &["ann", "ben"])]);
    assert_eq!(who(&nights, "2026-01-05T20:59:59Z"), "ann");
    assert_eq!(who(&nights, "2026-01-05T21:00:00Z"), "ben");
}

#[test]
fn the_first_responder_is_on_call_at_the_anchor() {
    let mut late = layer(168, &["ann", "ben"]);
    late.anchor = Some(civil::date(2026, 1, 7).at(12, 0, 0, 0));
    let late = schedule("UTC", vec![late]);
    assert_eq!(who(&late, "2026-01-07T12:00:00Z"), "ann");
    assert_eq!(who(&late, "2026-01-12T09:00:00Z"), "ben");
    // On the day of the handoff, an hour before it.
    let mut early = layer(168, &["ann", "ben"]);
    early.anchor = Some(civil::date(2026, 1, 5).at(8, 0, 0, 0));
    let early = schedule("UTC", vec![early]);
    assert_eq!(who(&early, "2026-01-05T08:00:00Z"), "ann");
    assert_eq!(who(&early, "2026-01-05T09:00:00Z"), "ben");
    let mut unknown = layer(168, &["ann", "ben"]);
    unknown.anchor = None;
    unknown.handoff_day = 7;
    let unknown = schedule("UTC", vec![unknown]);
    // Sundays from 2017-12-31 on.
    assert_eq!(who(&unknown, "2018-01-01T00:00:00Z"), "ann");
    assert_eq!(who(&unknown, "2018-01-07T09:00:00Z"), "ben");
    assert_eq!(who(&unknown, "2018-01-14T09:00:00Z"), "ann");
}

#[test]
fn handoffs_stay_at_nine_when_the_clocks_change() {
    let berlin = schedule("Europe/Berlin", vec![layer(168, &["ann", "ben"])]);
    // 2026-03-29 is the spring change: nine is 08:00 UTC before and 07:00 UTC after.
    let before = on_call(&berlin, at("2026-03-23T08:00:00Z")).expect("somebody");
    assert_eq!(who(&berlin, "2026-03-23T07:59:59Z"), "ann");
    assert_eq!((before.responder.name.as_str(), before.until), ("ben", at("2026-03-30T07:00:00Z")));
    assert_eq!(who(&berlin, "2026-03-30T06:59:59Z"), "ben");
    assert_eq!(who(&berlin, "2026-03-30T07:00:00Z"), "ann");
    // And back on 2026-10-25.
    let before = on_call(&berlin, at("2026-10-20T00:00:00Z")).expect("somebody");
    assert_eq!(before.until, at("2026-10-26T08:00:00Z"));
}

#[test]
fn a_handoff_in_an_hour_that_comes_twice_or_never_is_one_handoff() {
    let mut hourly = layer(1, &["ann", "ben"]);
    hourly.anchor = Some(civil::date(2026, 10, 19).at(0, 0, 0, 0));
    hourly.handoff_hour = 0;
    let berlin = schedule("Europe/Berlin", vec![hourly]);
    // 02:00 comes twice, at 00:00 and at 01:00 UTC: the shift that begins at the first lasts two hours.
    let twice = on_call(&berlin, at("2026-10-25T00:00:00Z")).expect("somebody");
    assert_eq!(twice.until, at("2026-10-25T02:00:00Z"));
    assert_eq!(who(&berlin, "2026-10-25T01:30:00Z"), twice.responder.name);
    // In spring 02:00 is left out: the shift that would begin there has no length.
    let never = on_call(&berlin, at("2027-03-28T00:59:59Z")).expect("somebody");
    assert_eq!(never.until, at("2027-03-28T01:00:00Z"));
    assert_eq!(who(&berlin, "2027-03-28T01:00:00Z"), never.responder.name, "two handoffs at once");
}

#[test]
fn an_override_wins_from_its_start_until_just_before_its_end() {
    let mut week = schedule("UTC", vec![layer(168, &["ann", "ben"])]);
    let over = |layer: Option<&str>, name: &str, start: &str, end: &str| Override {
        layer: layer.map(str::to_owned),
        responder: person(name),
        start: at(start),
        end: at(end),
    };
    week.overrides = vec![
        over(None, "dan", "2026-01-06T00:00:00Z", "2026-01-07T00:00:00Z"),
        over(None, "eve", "2026-01-06T12:00:00Z", "2026-01-06T13:00:00Z"),
        over(Some("l1"), "fay", "2026-01-06T00:00:00Z", "2026-01-08T00:00:00Z"),
        over(Some("other"), "gus", "2026-01-05T00:00:00Z", "2026-02-01T00:00:00Z"),
    ];
    for (now, name) in [
        ("2026-01-05T23:59:59Z", "ann"),
        ("2026-01-06T00:00:00Z", "dan"),
        ("2026-01-06T12:30:00Z", "eve"),
        ("2026-01-06T13:00:00Z", "dan"),
        ("2026-01-07T00:00:00Z", "fay"),
        ("2026-01-08T00:00:00Z", "ann"),
    ] {
        assert_eq!(who(&week, now), name, "{now}");
    }
    assert!(on_call(&week, at("2026-01-06T00:00:00Z")).expect("somebody").is_override);
}

#[test]
fn the_first_layer_that_has_somebody_decides() {
    let mut empty = layer(168, &[]);
    empty.order = -1;
    let mut second = layer(168, &["zoe"]);
    second.order = 5;
    second.id = "l2".to_owned();
    let both = schedule("UTC", vec![second, layer(168, &["ann"]), empty.clone()]);
    assert_eq!(who(&both, "2026-01-06T00:00:00Z"), "ann");
    assert_eq!(who(&schedule("UTC", vec![empty]), "2026-01-06T00:00:00Z"), "nobody");
    assert_eq!(who(&schedule("UTC", Vec::new()), "2026-01-06T00:00:00Z"), "nobody");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the shift, the zone and the moment: one shift follows the other without a gap, and everybody has their turn in order.
    #[test]
    fn shifts_follow_each_other_and_everybody_has_their_turn(
        hours in prop::sample::select(vec![1_i64, 4, 8, 12, 24, 36, 168, 336]),
        day in 0_i64..8,
        hour in 0_i64..24,
        people in 1_usize..6,
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Asia/Kathmandu"]),
        second in 1_577_836_800_i64..1_893_456_000,
    ) {
        let names: Vec<String> = (0..people).map(|n| format!("p{n}")).collect();
        let mut layer = layer(hours, &[]);
        layer.handoff_day = day;
        layer.handoff_hour = hour;
        layer.responders = names.iter().map(|name| person(name)).collect();
        let zone = TimeZone::get(zone).expect("a zone");
        let mut now = Timestamp::from_second(second).expect("a time");
        let (mut number, mut until) = shift(&layer, &zone, now).expect("a shift");
        for _ in 0..(people * 3) {
            prop_assert!(until > now);
            let length = until.duration_since(now).as_hours();
            prop_assert!(length <= hours + 1, "{length} of {hours}");
            // The whole shift is one number: just before its end too.
            let (last, _) = shift(&layer, &zone, until - SignedDuration::from_nanos(1)).expect("a shift");
            prop_assert_eq!(last, number);
            let (next, end) = shift(&layer, &zone, until).expect("a shift");
            // One further, or two where the one between has no length because its hour is left out.
            prop_assert!(next == number + 1 || (hours == 1 && next == number + 2), "{} after {}", next, number);
            let found = turn(&layer, &zone, until).expect("somebody");
            let whose = usize::try_from(next.rem_euclid(i64::try_from(people).unwrap())).unwrap();
            prop_assert_eq!(&found.responder.name, &names[whose]);
            (now, number, until) = (until, next, end);
        }
    }
}
