use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::fleet::{Hold, Phase, Server, Unmanaged};
use crate::heartbeat::{Beat, Reading, Unknown};

fn now() -> Timestamp {
    "2026-01-14T12:00:00Z".parse().expect("a time")
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn policy(config: Value) -> Policy {
    Policy::read(&json!({
        "id": "1", "name": "g", "scalingEnabled": true, "scalingProvider": "local",
        "minInstances": 1, "maxInstances": 4, "scalingConfig": config,
    }))
    .expect("a valid policy")
}

fn beat(active: u64) -> Beat {
    Beat { service: None, group: None, active, capacity: Some(100), at: now(), version: None }
}

fn server(name: &str, phase: Phase, reading: Reading) -> Server {
    Server {
        name: name.into(),
        phase,
        reading,
        silent_for: SignedDuration::ZERO,
        created_at: ago(7200),
        protected_until: None,
    }
}

fn active(name: &str, calls: u64) -> Server {
    server(name, Phase::Active, Reading::Known(beat(calls)))
}

fn silent(name: &str, seconds: i64) -> Server {
    let mut server = server(name, Phase::Active, Reading::Unknown(Unknown::Missing));
    server.silent_for = SignedDuration::from_secs(seconds);
    server
}

fn booting(name: &str) -> Server {
    server(name, Phase::Booting, Reading::Unknown(Unknown::Missing))
}

fn draining(name: &str, calls: u64) -> Server {
    let phase = Phase::Draining { cancellable: true, by_operator: false };
    server(name, phase, Reading::Known(beat(calls)))
}

fn group(servers: Vec<Server>) -> GroupState {
    GroupState { servers, ..GroupState::default() }
}

fn outcome(group: &GroupState, policy: &Policy) -> (String, Reason) {
    let decision = decide(group, policy, now());
    let action = match &decision.action {
        Action::Hold => "hold".to_owned(),
        Action::Add { undrain, create } if undrain.is_empty() => format!("+{create}"),
        Action::Add { undrain, create } => format!("back {} +{create}", undrain.join(" ")),
        Action::Remove { drain } => format!("-{}", drain.join(" -")),
    };
    (action, decision.reason)
}

fn check(group: &GroupState, policy: &Policy, action: &str, reason: Reason) {
    let decision = decide(group, policy, now());
    assert_eq!(outcome(group, policy), (action.to_owned(), reason), "{}", decision.text);
}

#[test]
fn both_edges_of_both_thresholds() {
    let policy = policy(json!({}));
    for (calls, action, reason) in [
        ([70, 70], "hold", Reason::OnTarget),
        ([70, 71], "+1", Reason::Busy),
        ([30, 30], "hold", Reason::OnTarget),
        ([30, 29], "-b", Reason::Idle),
        ([0, 0], "-a", Reason::Idle),
        ([100, 100], "+1", Reason::Busy),
    ] {
        let group = group(vec![active("a", calls[0]), active("b", calls[1])]);
        check(&group, &policy, action, reason);
    }
}

#[test]
fn switches_and_pauses_come_first() {
    let mut busy = group(vec![active("a", 100)]);
    let mut off = policy(json!({}));
    off.enabled = false;
    check(&busy, &off, "hold", Reason::Disabled);
    off.enabled = true;
    off.scaling_enabled = false;
    check(&busy, &off, "hold", Reason::ScalingDisabled);
    busy.limits.paused = Some(Hold { why: "paused by ann".into(), until: Some(now()) });
    check(&busy, &policy(json!({})), "hold", Reason::Paused);
    assert!(decide(&busy, &policy(json!({})), now()).text.contains("paused by ann"));
    let empty = GroupState { limits: busy.limits.clone(), ..GroupState::default() };
    check(&empty, &policy(json!({})), "hold", Reason::Paused);
}

#[test]
fn the_minimum_is_repaired_past_cooldown_and_blindness() {
    let mut policy = policy(json!({}));
    policy.min = 3;
    let mut below = group(vec![active("a", 10)]);
    below.last_up = Some(ago(1));
    check(&below, &policy, "+2", Reason::BelowMinimum);
    below.servers.push(booting("b"));
    check(&below, &policy, "+1", Reason::BelowMinimum);
    let mut blind = group(vec![silent("a", 10)]);
    blind.unreadable = true;
    check(&blind, &policy, "+2", Reason::BelowMinimum);
    check(&group(vec![]), &policy, "+2", Reason::BelowMinimum);
}

#[test]
fn missing_data_never_removes_and_never_adds() {
    let policy = policy(json!({}));
    for (servers, reason) in [
        (vec![silent("a", 10)], Reason::Blind),
        (vec![silent("a", 10), silent("b", 10), active("c", 0)], Reason::Blind),
        (vec![silent("a", 10), silent("b", 10), active("c", 100)], Reason::Blind),
        // Half are known: removal assumes the missing one full, addition assumes it empty.
        (vec![silent("a", 10), active("b", 0)], Reason::OnTarget),
        (vec![silent("a", 10), active("b", 100)], Reason::OnTarget),
    ] {
        check(&group(servers), &policy, "hold", reason);
    }
    let mut unreadable = group(vec![active("a", 0), active("b", 0)]);
    unreadable.unreadable = true;
    check(&unreadable, &policy, "hold", Reason::Blind);
    let malformed = server("a", Phase::Active, Reading::Unknown(Unknown::Malformed("active: -1".into())));
    check(&group(vec![malformed]), &policy, "hold", Reason::Blind);
}

#[test]
fn a_server_silent_for_long_is_replaced_only_within_the_maximum() {
    let mut policy = policy(json!({}));
    policy.min = 2;
    check(&group(vec![silent("a", 299), active("b", 40)]), &policy, "hold", Reason::OnTarget);
    check(&group(vec![silent("a", 300), active("b", 40)]), &policy, "+1", Reason::BelowMinimum);
    policy.max = 2;
    check(&group(vec![silent("a", 300), active("b", 40)]), &policy, "hold", Reason::AtMaximum);
    let mut unreadable = group(vec![silent("a", 9000), active("b", 40)]);
    unreadable.unreadable = true;
    policy.max = 4;
    check(&unreadable, &policy, "hold", Reason::Blind);
    // It says something, only not something believable: it is alive.
    let mut odd = server("a", Phase::Active, Reading::Unknown(Unknown::Malformed("x".into())));
    odd.silent_for = SignedDuration::from_secs(9000);
    check(&group(vec![odd, active("b", 40)]), &policy, "hold", Reason::OnTarget);
}

#[test]
fn the_cooldown_counts_from_the_decision_in_both_directions() {
    let policy = policy(json!({}));
    let busy = || group(vec![active("a", 100)]);
    let idle = || group(vec![active("a", 0), active("b", 0)]);
    for (last, held) in [(299, true), (300, false)] {
        for (mut group, action, why) in [(busy(), "+1", Reason::Busy), (idle(), "-a", Reason::Idle)] {
            for up in [true, false] {
                group.last_up = up.then(|| ago(last));
                group.last_down = (!up).then(|| ago(last));
                if held {
                    check(&group, &policy, "hold", Reason::CoolingDown);
                    let decision = decide(&group, &policy, now());
                    assert_eq!(decision.held_until, Some(now() + SignedDuration::from_secs(1)));
                    assert!(decision.text.contains("1 s left"), "{}", decision.text);
                } else {
                    check(&group, &policy, action, why);
                }
            }
        }
    }
}

#[test]
fn an_action_in_the_future_does_not_hold_for_ever() {
    let mut busy = group(vec![active("a", 100)]);
    busy.last_up = Some(now() + SignedDuration::from_hours(24));
    let decision = decide(&busy, &policy(json!({})), now());
    assert_eq!(decision.held_until, Some(now() + SignedDuration::from_secs(300)));
}

#[test]
fn separate_cooldowns_hold_their_own_direction() {
    let policy = policy(json!({"scaleUpCooldownSeconds": 10, "scaleDownCooldownSeconds": 100}));
    let mut busy = group(vec![active("a", 100)]);
    busy.last_down = Some(ago(50));
    check(&busy, &policy, "+1", Reason::Busy);
    let mut idle = group(vec![active("a", 0), active("b", 0)]);
    idle.last_up = Some(ago(50));
    check(&idle, &policy, "hold", Reason::CoolingDown);
}

#[test]
fn minimum_and_maximum_hold() {
    let mut policy = policy(json!({}));
    policy.max = 2;
    check(&group(vec![active("a", 100), active("b", 100)]), &policy, "hold", Reason::AtMaximum);
    policy.min = 2;
    check(&group(vec![active("a", 0), active("b", 0)]), &policy, "hold", Reason::AtMinimum);
    policy.min = 1;
    check(
        &group(vec![active("a", 90), active("b", 95), active("c", 99)]),
        &policy,
        "-a",
        Reason::AboveMaximum,
    );
    check(&group(vec![silent("a", 9), silent("b", 9), active("c", 9)]), &policy, "hold", Reason::Blind);
}

#[test]
fn what_exists_counts_toward_the_maximum_when_buying() {
    let mut policy = policy(json!({}));
    policy.max = 2;
    let mut leaving = group(vec![active("a", 100), server("b", Phase::Leaving, Reading::Known(beat(0)))]);
    check(&leaving, &policy, "hold", Reason::AtMaximum);
    leaving.servers[1].phase = Phase::Failed;
    check(&leaving, &policy, "hold", Reason::AtMaximum);
    policy.max = 3;
    check(&leaving, &policy, "+1", Reason::Busy);
}

#[test]
fn a_drain_is_called_off_before_anything_is_bought() {
    let policy = policy(json!({"stepUp": 2}));
    check(
        &group(vec![active("a", 90), draining("b", 5), draining("c", 6)]),
        &policy,
        "back c b +0",
        Reason::Busy,
    );
    check(&group(vec![active("a", 90), draining("b", 5)]), &policy, "back b +1", Reason::Busy);
    let by_operator =
        server("b", Phase::Draining { cancellable: true, by_operator: true }, Reading::Known(beat(5)));
    check(&group(vec![active("a", 90), by_operator]), &policy, "+2", Reason::Busy);
    let too_late =
        server("b", Phase::Draining { cancellable: false, by_operator: false }, Reading::Known(beat(5)));
    check(&group(vec![active("a", 90), too_late]), &policy, "+2", Reason::Busy);
}

#[test]
fn load_on_draining_servers_is_demand() {
    let policy = policy(json!({}));
    check(&group(vec![active("a", 60), draining("b", 10)]), &policy, "hold", Reason::OnTarget);
    check(&group(vec![active("a", 60), draining("b", 11)]), &policy, "back b +0", Reason::Busy);
}

#[test]
fn booting_servers_are_capacity_on_its_way_and_not_in_the_average() {
    let policy = policy(json!({}));
    let mut busy = group(vec![active("a", 100), booting("b")]);
    check(&busy, &policy, "hold", Reason::CapacityComing);
    assert_eq!(decide(&busy, &policy, now()).inputs.utilisation, Some(1.0));
    busy.servers[0] = active("a", 141);
    check(&busy, &policy, "+1", Reason::Busy);
    busy.servers.push(booting("c"));
    busy.servers[0] = active("a", 300);
    check(&busy, &policy, "hold", Reason::SurgeLimit);
    check(&group(vec![active("a", 0), active("b", 0), booting("c")]), &policy, "hold", Reason::Booting);
    check(&group(vec![booting("a")]), &policy, "hold", Reason::Booting);
}

#[test]
fn a_removal_must_leave_the_rest_below_the_upper_threshold() {
    let mut policy = policy(json!({}));
    policy.scale_down_below = 0.36;
    // Two servers at 35 %: one alone would carry 70 %, which is not below 0.7.
    check(&group(vec![active("a", 35), active("b", 35)]), &policy, "hold", Reason::WouldOverload);
    check(&group(vec![active("a", 35), active("b", 34)]), &policy, "-b", Reason::Idle);
    // What still drains has to be carried as well.
    policy.max_drain = 2;
    check(
        &group(vec![active("a", 20), active("b", 20), draining("c", 30)]),
        &policy,
        "hold",
        Reason::WouldOverload,
    );
}

#[test]
fn the_emptiest_then_the_oldest_goes_and_some_never() {
    let policy = policy(json!({"minAgeSeconds": 600}));
    let mut servers = vec![active("a", 5), active("b", 2), active("c", 2), silent("d", 10)];
    servers[2].created_at = ago(9000);
    // The silent one is emptiest of all for who reads missing as zero.
    check(&group(servers.clone()), &policy, "-c", Reason::Idle);
    servers.pop();
    check(&group(servers.clone()), &policy, "-c", Reason::Idle);
    servers[2].protected_until = Some(now() + SignedDuration::from_secs(1));
    check(&group(servers.clone()), &policy, "-b", Reason::Idle);
    servers[1].created_at = ago(599);
    check(&group(servers.clone()), &policy, "-a", Reason::Idle);
    servers[0].protected_until = Some(now() + SignedDuration::from_secs(1));
    check(&group(servers.clone()), &policy, "hold", Reason::NoCandidate);
    servers[2].protected_until = Some(now());
    check(&group(servers), &policy, "-c", Reason::Idle);
}

#[test]
fn the_last_server_in_service_stays() {
    let mut policy = policy(json!({}));
    policy.min = 0;
    check(&group(vec![active("a", 0)]), &policy, "hold", Reason::LastActive);
    check(&group(vec![active("a", 0), draining("b", 0)]), &policy, "hold", Reason::DrainLimit);
    check(&group(vec![]), &policy, "hold", Reason::Empty);
}

#[test]
fn one_drains_at_a_time_unless_told_otherwise() {
    let one = policy(json!({}));
    let servers = vec![active("a", 1), active("b", 2), active("c", 3), draining("d", 4)];
    check(&group(servers.clone()), &one, "hold", Reason::DrainLimit);
    let more = policy(json!({"maxDrain": 3, "stepDown": 2}));
    check(&group(servers), &more, "-a -b", Reason::Idle);
}

#[test]
fn servers_of_others_count_and_are_never_chosen() {
    let policy = policy(json!({}));
    let unmanaged = |calls| Unmanaged { name: "hand-made".into(), beat: beat(calls) };
    let mut group = group(vec![active("a", 20)]);
    group.unmanaged = vec![unmanaged(0)];
    check(&group, &policy, "-a", Reason::Idle);
    group.unmanaged = vec![unmanaged(100), unmanaged(100)];
    check(&group, &policy, "+1", Reason::Busy);
    group.unmanaged = vec![unmanaged(100), unmanaged(100), unmanaged(100)];
    check(&group, &policy, "hold", Reason::AtMaximum);
    group.servers.clear();
    group.unmanaged = vec![unmanaged(0)];
    check(&group, &policy, "hold", Reason::AtMinimum);
    group.unmanaged = vec![unmanaged(0), unmanaged(0)];
    check(&group, &policy, "hold", Reason::NoCandidate);
}

#[test]
fn shared_limits_stop_buying_and_name_themselves() {
    let policy = policy(json!({}));
    let busy = |change: &dyn Fn(&mut GroupState)| {
        let mut group = group(vec![active("a", 100)]);
        change(&mut group);
        group
    };
    check(&busy(&|group| group.limits.fleet_room = Some(0)), &policy, "hold", Reason::FleetLimit);
    check(&busy(&|group| group.limits.fleet_room = Some(1)), &policy, "+1", Reason::Busy);
    check(&busy(&|group| group.limits.creates_last_hour = 60), &policy, "hold", Reason::CreateLimit);
    check(&busy(&|group| group.limits.creates_last_hour = 59), &policy, "+1", Reason::Busy);
    let until = now() + SignedDuration::from_mins(30);
    let held = busy(&|group| {
        group.limits.no_creates = Some(Hold { why: "quota used up".into(), until: Some(until) });
    });
    check(&held, &policy, "hold", Reason::ProviderHeld);
    let decision = decide(&held, &policy, now());
    assert_eq!(decision.held_until, Some(until));
    assert!(decision.text.contains("quota used up"), "{}", decision.text);
    // A drain can still be called off: nothing is bought.
    let back = busy(&|group| {
        group.limits.no_creates = held.limits.no_creates.clone();
        group.servers.push(draining("b", 1));
    });
    check(&back, &policy, "back b +0", Reason::Busy);
}

fn history(samples: &[(i64, Option<f64>, u32)]) -> Vec<Sample> {
    samples
        .iter()
        .map(|&(seconds, utilisation, wish)| Sample { at: ago(seconds), utilisation, wish, panic: false })
        .collect()
}

#[test]
fn a_breach_must_last_its_periods_and_an_unknown_one_breaks_it() {
    let policy = policy(json!({"scaleUpPeriods": 3, "scaleDownPeriods": 2}));
    let mut busy = group(vec![active("a", 100)]);
    for (past, action, reason) in [
        (history(&[]), "hold", Reason::Periods),
        (history(&[(30, Some(0.9), 2)]), "hold", Reason::Periods),
        (history(&[(60, Some(0.9), 2), (30, Some(0.7), 1)]), "hold", Reason::Periods),
        (history(&[(60, Some(0.9), 2), (30, None, 1)]), "hold", Reason::Periods),
        (history(&[(60, Some(0.71), 2), (30, Some(0.71), 2)]), "+1", Reason::Busy),
    ] {
        busy.history = past;
        check(&busy, &policy, action, reason);
    }
    let mut idle = group(vec![active("a", 0), active("b", 0)]);
    check(&idle, &policy, "hold", Reason::Periods);
    idle.history = history(&[(30, Some(0.1), 1)]);
    check(&idle, &policy, "-a", Reason::Idle);
}

#[test]
fn stabilisation_takes_the_lowest_wish_up_and_the_highest_down() {
    let policy = policy(json!({
        "scaleUpStabilisationSeconds": 60, "scaleDownStabilisationSeconds": 300, "stepUp": 2, "stepDown": 2,
    }));
    let mut busy = group(vec![active("a", 100)]);
    busy.history = history(&[(59, Some(0.5), 1)]);
    check(&busy, &policy, "hold", Reason::Stabilising);
    busy.history = history(&[(60, Some(0.5), 1), (30, Some(0.8), 2)]);
    check(&busy, &policy, "+1", Reason::Busy);
    let mut idle = group(vec![active("a", 0), active("b", 0), active("c", 0)]);
    idle.history = history(&[(299, Some(0.5), 3)]);
    check(&idle, &policy, "hold", Reason::Stabilising);
    idle.history = history(&[(300, Some(0.5), 3), (200, Some(0.2), 2)]);
    check(&idle, &policy, "-a", Reason::Idle);
}

#[test]
fn a_panic_passes_the_cooldown_asks_for_all_and_is_followed_by_calm() {
    let policy = policy(json!({"panicThreshold": 0.9, "maxSurge": 10}));
    let mut group = group(vec![active("a", 200)]);
    group.last_up = Some(ago(1));
    check(&group, &policy, "+2", Reason::Panic);
    group.servers = vec![active("a", 89)];
    check(&group, &policy, "hold", Reason::CoolingDown);
    group.servers = vec![active("a", 90)];
    check(&group, &policy, "+1", Reason::Panic);
    group.servers = vec![active("a", 0), active("b", 0)];
    group.last_up = None;
    group.history = vec![Sample { at: ago(599), utilisation: Some(0.95), wish: 3, panic: true }];
    check(&group, &policy, "hold", Reason::AfterPanic);
    group.history[0].at = ago(600);
    check(&group, &policy, "-a", Reason::Idle);
}

#[test]
fn target_tracking_asks_for_what_the_load_needs() {
    let mut policy =
        policy(json!({"mode": "target", "targetUtilisation": 0.5, "maxSurge": 10, "maxDrain": 10}));
    policy.max = 10;
    check(&group(vec![active("a", 100), active("b", 100)]), &policy, "+2", Reason::Busy);
    check(&group(vec![active("a", 55)]), &policy, "hold", Reason::OnTarget);
    check(&group(vec![active("a", 56)]), &policy, "+1", Reason::Busy);
    check(&group(vec![active("a", 100), booting("b")]), &policy, "hold", Reason::OnTarget);
    let idle = vec![active("a", 10), active("b", 10), active("c", 10), active("d", 10)];
    check(&group(idle), &policy, "-a -b -c", Reason::Idle);
    // 7 servers' worth of load at the target is 7 servers, not 8 by rounding.
    let even: Vec<_> = (0..5).map(|n| active(&format!("s{n}"), 70)).collect();
    check(&group(even), &policy, "+2", Reason::Busy);
}

#[test]
fn a_window_moves_the_bounds_and_may_keep_servers() {
    // 2026-01-14 is a Wednesday; 12:00 UTC is 13:00 in Berlin.
    let config = json!({"schedules": [
        {"name": "day", "timezone": "Europe/Berlin", "days": ["wed"], "from": "13:00", "to": "14:00",
         "minInstances": 2, "inhibitScaleDown": true}]});
    let policy = policy(config);
    check(&group(vec![active("a", 50)]), &policy, "+1", Reason::BelowMinimum);
    let idle = group(vec![active("a", 0), active("b", 0), active("c", 0)]);
    check(&idle, &policy, "hold", Reason::ScaleDownInhibited);
    let later = decide(&idle, &policy, now() + SignedDuration::from_hours(1));
    assert_eq!(later.reason, Reason::Idle);
    assert_eq!(later.bounds.window, None);
}

#[test]
fn a_decision_explains_itself() {
    let mut policy = policy(json!({"stepUp": 5}));
    policy.max = 3;
    let decision = decide(&group(vec![active("a", 100)]), &policy, now());
    assert_eq!(decision.wish, 6);
    assert_eq!(decision.clamps, [Clamp { rule: Reason::AtMaximum, from: 6, to: 3 }]);
    assert_eq!(decision.text, "add 2: utilisation 1.000 is above 0.7");
    let view = serde_json::to_value(&decision).expect("JSON");
    assert_eq!(view["action"], json!({"do": "add", "undrain": [], "create": 2}));
    assert_eq!(view["reason"], "busy");
    assert_eq!(view["inputs"]["utilisation"], 1.0);
}

#[test]
fn the_words_of_reasons_are_what_is_serialised() {
    for reason in [Reason::Blind, Reason::CoolingDown, Reason::WouldOverload, Reason::ScaleDownInhibited] {
        assert_eq!(serde_json::to_value(reason).expect("JSON"), reason.as_str());
    }
}
