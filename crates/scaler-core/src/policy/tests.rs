use serde_json::json;

use super::*;

fn row(changes: Value) -> Value {
    let mut row = json!({
        "id": "g1", "name": "eu-voice", "service": "voice", "enabled": true, "scalingEnabled": true,
        "minInstances": 1, "maxInstances": 4, "scaleUpThreshold": 0.7, "scaleDownThreshold": 0.3,
        "cooldownSeconds": 300, "scalingProvider": "local", "scalingConfig": {},
    });
    for (name, value) in changes.as_object().expect("an object") {
        row[name] = value.clone();
    }
    row
}

fn fields_refused(changes: Value) -> Vec<String> {
    let error = Policy::read(&row(changes)).expect_err("a violation");
    assert_eq!(error.group, "eu-voice");
    error.violations.into_iter().map(|violation| violation.field).collect()
}

#[test]
fn a_row_of_defaults_follows_the_platform() {
    let policy = Policy::read(&json!({"id": "1", "name": "g"})).expect("defaults are valid");
    assert_eq!(policy.service, Service::Voice);
    assert!(policy.enabled && !policy.scaling_enabled);
    assert_eq!((policy.min, policy.max), (1, 10));
    assert_eq!((policy.scale_up_above, policy.scale_down_below), (0.7, 0.3));
    assert_eq!(policy.cooldown_up, SignedDuration::from_secs(300));
    assert_eq!(policy.cooldown_down, SignedDuration::from_secs(300));
    assert_eq!((policy.periods_up, policy.periods_down), (1, 1));
    assert_eq!(policy.dispatcher, Dispatcher { setid: 1, port: 5060, transport: "udp".into() });
    assert_eq!(policy.drain, Drain { timeout: None, at_deadline: AtDeadline::End });
    assert_eq!(policy.candidates.len(), 1);
}

#[test]
fn a_missing_or_null_column_is_looked_for_in_the_configuration_and_a_set_one_wins() {
    let config = json!({"maxInstances": 7, "scaleUpThreshold": 0.9, "minInstances": 3});
    let mut row = row(json!({"maxInstances": null, "scalingConfig": config}));
    row.as_object_mut().expect("an object").remove("scaleUpThreshold");
    let policy = Policy::read(&row).expect("valid");
    assert_eq!((policy.min, policy.max, policy.scale_up_above), (1, 7, 0.9));
}

#[test]
fn violations_name_the_field() {
    for (changes, expected) in [
        (json!({"minInstances": 5}), vec!["minInstances"]),
        (json!({"minInstances": -1}), vec!["minInstances"]),
        (json!({"maxInstances": 0}), vec!["maxInstances"]),
        (json!({"maxInstances": 1.5}), vec!["maxInstances"]),
        (json!({"maxInstances": 9_999_999_999_u64}), vec!["maxInstances"]),
        (json!({"scaleUpThreshold": 0.3}), vec!["scaleDownThreshold"]),
        (json!({"scaleUpThreshold": 0.2}), vec!["scaleDownThreshold"]),
        (json!({"scaleUpThreshold": 1.01}), vec!["scaleUpThreshold"]),
        (json!({"scaleUpThreshold": -0.1}), vec!["scaleUpThreshold"]),
        // PostgreSQL's to_jsonb writes a float's NaN and Infinity as text.
        (json!({"scaleUpThreshold": "NaN"}), vec!["scaleUpThreshold"]),
        (json!({"scaleDownThreshold": "Infinity"}), vec!["scaleDownThreshold"]),
        (json!({"cooldownSeconds": -1}), vec!["cooldownSeconds"]),
        (json!({"service": "video"}), vec!["service"]),
        (json!({"scalingProvider": null}), vec!["scalingProvider"]),
        (json!({"scalingProvider": "../etc"}), vec!["scalingProvider"]),
        (json!({"scalingEnabled": "yes"}), vec!["scalingEnabled"]),
        (json!({"scalingConfig": []}), vec!["scalingConfig"]),
        (json!({"scalingConfig": "{}"}), vec!["scalingConfig"]),
        (json!({"scalingConfig": {"mode": "magic"}}), vec!["scalingConfig.mode"]),
        (json!({"scalingConfig": {"mode": "target"}}), vec!["scalingConfig.targetUtilisation"]),
        (
            json!({"scalingConfig": {"mode": "target", "targetUtilisation": 0.8}}),
            vec!["scalingConfig.targetUtilisation"],
        ),
        (json!({"scalingConfig": {"panicThreshold": 0.7}}), vec!["scalingConfig.panicThreshold"]),
        (json!({"scalingConfig": {"candidates": []}}), vec!["scalingConfig.candidates"]),
        (
            json!({"scalingConfig": {"candidates": [{"type": "$(id)"}, 5]}}),
            vec!["scalingConfig.candidates[0].type", "scalingConfig.candidates[1]"],
        ),
        (json!({"scalingConfig": {"dispatcher": {"port": 0}}}), vec!["scalingConfig.dispatcher.port"]),
        (json!({"scalingConfig": {"dispatcher": {"setid": 0}}}), vec!["scalingConfig.dispatcher.setid"]),
        (
            json!({"scalingConfig": {"dispatcher": {"transport": "sctp;x"}}}),
            vec!["scalingConfig.dispatcher.transport"],
        ),
        (json!({"scalingConfig": {"schedules": {}}}), vec!["scalingConfig.schedules"]),
        (
            json!({"scalingConfig": {"schedules": [
                {"timezone": "Mars/Base", "from": "25:00", "to": "10:00", "minInstances": 9}]}}),
            vec![
                "scalingConfig.schedules[0].minInstances",
                "scalingConfig.schedules[0].timezone",
                "scalingConfig.schedules[0].from",
            ],
        ),
        (json!({"minInstances": "two", "scaleUpThreshold": true}), vec!["minInstances", "scaleUpThreshold"]),
    ] {
        assert_eq!(fields_refused(changes.clone()), expected, "{changes}");
    }
    let error = Policy::read(&row(json!({"minInstances": 5}))).expect_err("a violation").to_string();
    assert_eq!(error, "server group `eu-voice` is not usable: minInstances: 5 is above maxInstances 4");
}

#[test]
fn a_name_that_cannot_be_a_label_is_refused() {
    for name in ["", "a b", "$(id)", "x;y", "é"] {
        let error = Policy::read(&row(json!({"name": name}))).expect_err("a violation");
        assert_eq!(error.violations[0].field, "name", "{name:?}");
    }
    assert!(Policy::read(&json!([])).is_err());
    assert!(Policy::read(&json!({"id": "1"})).is_err());
}

#[test]
fn separate_values_override_the_shared_cooldown() {
    let config =
        json!({"scaleDownCooldownSeconds": 900, "scaleUpPeriods": 2, "scaleDownStabilisationSeconds": 60});
    let policy = Policy::read(&row(json!({"scalingConfig": config}))).expect("valid");
    assert_eq!(policy.cooldown_up, SignedDuration::from_secs(300));
    assert_eq!(policy.cooldown_down, SignedDuration::from_secs(900));
    assert_eq!((policy.periods_up, policy.periods_down), (2, 1));
    assert_eq!(policy.stabilise_down, SignedDuration::from_secs(60));
}

#[test]
fn candidates_come_from_the_list_or_from_the_plain_keys() {
    let names = |config: Value| {
        let policy = Policy::read(&row(json!({"scalingConfig": config}))).expect("valid");
        policy
            .candidates
            .iter()
            .map(|candidate| format!("{}@{}", candidate.machine(), candidate.location()))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(json!({"serverType": "cx22", "location": "fsn1"})), ["cx22@fsn1"]);
    assert_eq!(
        names(json!({"machineType": "c7i.large", "region": "eu-central-1"})),
        ["c7i.large@eu-central-1"]
    );
    assert_eq!(
        names(
            json!({"candidates": [{"type": "a", "location": "x"}, {"type": "b", "location": "y", "extra": 1}]})
        ),
        ["a@x", "b@y"]
    );
    assert_eq!(names(json!({})), ["@"]);
}

#[test]
fn the_platforms_cap_bounds_a_voice_servers_capacity() {
    let capped = Policy::read(&row(json!({"maxConcurrentCalls": 50}))).expect("valid");
    let free = Policy::read(&row(json!({}))).expect("valid");
    let api = Policy::read(&row(json!({"maxConcurrentCalls": 50, "service": "api"}))).expect("valid");
    for (policy, said, expected) in [
        (&capped, Some(100), 50),
        (&capped, Some(20), 20),
        (&capped, None, 50),
        (&free, Some(250), 250),
        (&free, None, 100),
        (&api, Some(1000), 1000),
    ] {
        assert_eq!(policy.capacity_of(said), expected);
    }
}
