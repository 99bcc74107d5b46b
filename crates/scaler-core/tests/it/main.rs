//! What holds for every group, policy and moment, whatever they are.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use voiceai_scaler_core::fleet::{Hold, Limits};
use voiceai_scaler_core::heartbeat::{self, Beat, Unknown};
use voiceai_scaler_core::{Action, GroupState, Phase, Policy, Reading, Sample, Server, Unmanaged, decide};

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn beat(active: u64, capacity: u64) -> Beat {
    Beat { service: None, group: None, active, capacity: Some(capacity), at: now(), version: None }
}

fn reading() -> impl Strategy<Value = Reading> {
    prop_oneof![
        4 => (0..300_u64, 1..200_u64).prop_map(|(active, capacity)| Reading::Known(beat(active, capacity))),
        1 => Just(Reading::Unknown(Unknown::Missing)),
        1 => Just(Reading::Unknown(Unknown::Malformed("x".into()))),
    ]
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        1 => Just(Phase::Booting),
        5 => Just(Phase::Active),
        2 => any::<(bool, bool)>().prop_map(|(cancellable, by_operator)| Phase::Draining { cancellable, by_operator }),
        1 => Just(Phase::Leaving),
        1 => Just(Phase::Failed),
    ]
}

fn servers() -> impl Strategy<Value = Vec<Server>> {
    let one = (phase(), reading(), 0..900_i64, 0..9000_i64, proptest::option::of(-500..500_i64));
    proptest::collection::vec(one, 0..12).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(index, (phase, reading, silent, age, protected))| Server {
                name: format!("s{index}"),
                silent_for: match &reading {
                    Reading::Known(_) => SignedDuration::ZERO,
                    Reading::Unknown(_) => SignedDuration::from_secs(silent),
                },
                phase,
                reading,
                created_at: ago(age),
                protected_until: protected.map(ago),
            })
            .collect()
    })
}

fn group() -> impl Strategy<Value = GroupState> {
    let sample = (0..1000_i64, proptest::option::of(0.0..2.0_f64), 0..15_u32, any::<bool>());
    (
        servers(),
        proptest::collection::vec((0..200_u64, 1..200_u64), 0..4),
        proptest::bool::weighted(0.1),
        proptest::option::of(0..600_i64),
        proptest::option::of(0..600_i64),
        proptest::collection::vec(sample, 0..5),
        (proptest::option::of(0..5_u32), 0..70_u32, any::<bool>(), proptest::bool::weighted(0.1)),
    )
        .prop_map(
            |(servers, unmanaged, unreadable, up, down, history, (fleet_room, creates, held, paused))| {
                let hold = |why: &str| Hold { why: why.into(), until: None };
                let mut history: Vec<Sample> = history
                    .into_iter()
                    .map(|(seconds, utilisation, wish, panic)| Sample {
                        at: ago(seconds),
                        utilisation,
                        wish,
                        panic,
                    })
                    .collect();
                history.sort_by_key(|sample| sample.at);
                GroupState {
                    servers,
                    unmanaged: unmanaged
                        .into_iter()
                        .enumerate()
                        .map(|(index, (active, capacity))| Unmanaged {
                            name: format!("u{index}"),
                            beat: beat(active, capacity),
                        })
                        .collect(),
                    unreadable,
                    last_up: up.map(ago),
                    last_down: down.map(ago),
                    history,
                    limits: Limits {
                        fleet_room,
                        creates_last_hour: creates,
                        paused: paused.then(|| hold("p")),
                        no_creates: held.then(|| hold("h")),
                    },
                }
            },
        )
}

fn policy() -> impl Strategy<Value = Policy> {
    (0..4_u32, 1..8_u32, any::<bool>(), 0..400_u32, 1..4_u32, 1..4_u32, any::<bool>()).prop_map(
        |(min, extra, target, cooldown, step, surge, panic)| {
            let mut config = json!({"stepUp": step, "stepDown": step, "maxSurge": surge, "maxDrain": surge});
            if target {
                config["mode"] = json!("target");
                config["targetUtilisation"] = json!(0.5);
            }
            if panic {
                config["panicThreshold"] = json!(0.9);
            }
            Policy::read(&json!({
                "id": "1", "name": "g", "scalingEnabled": true, "scalingProvider": "local", "minInstances": min,
                "maxInstances": min + extra, "cooldownSeconds": cooldown, "scalingConfig": config,
            }))
            .expect("a policy")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn no_decision_breaks_a_bound(group in group(), policy in policy()) {
        let decision = decide(&group, &policy, now());
        let inputs = &decision.inputs;
        let find = |name: &String| group.servers.iter().find(|server| server.name == *name).expect("one of ours");
        match &decision.action {
            Action::Hold => {}
            Action::Add { undrain, create } => {
                prop_assert!(group.limits.paused.is_none());
                prop_assert!(!undrain.is_empty() || *create > 0);
                prop_assert!(inputs.existing() + create <= policy.max.max(inputs.existing()), "{}", decision.text);
                prop_assert!(inputs.booting + create <= policy.max_surge.max(inputs.booting));
                prop_assert!(*create == 0 || group.limits.no_creates.is_none());
                prop_assert!(group.limits.fleet_room.is_none_or(|room| *create <= room));
                for name in undrain {
                    let called = Phase::Draining { cancellable: true, by_operator: false };
                    prop_assert_eq!(find(name).phase, called);
                }
            }
            Action::Remove { drain } => {
                prop_assert!(group.limits.paused.is_none() && !group.unreadable && inputs.blind.is_none());
                prop_assert!(!drain.is_empty());
                let gone = u32::try_from(drain.len()).unwrap();
                prop_assert_eq!(drain.iter().collect::<HashSet<_>>().len(), drain.len());
                prop_assert!(inputs.counted() - gone >= policy.min.min(inputs.counted()), "{}", decision.text);
                prop_assert!(inputs.active + inputs.unmanaged > gone, "the last in service");
                prop_assert!(inputs.draining + gone <= policy.max_drain);
                for name in drain {
                    let server = find(name);
                    prop_assert_eq!(server.phase, Phase::Active);
                    prop_assert!(server.reading.known().is_some(), "its calls are unknown");
                    prop_assert!(server.protected_until.is_none_or(|until| until <= now()));
                }
            }
        }
        prop_assert_eq!(decide(&group, &policy, now()), decision, "the same twice");
    }

    #[test]
    fn no_heartbeat_makes_the_parser_panic_or_believe_nonsense(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let reading = heartbeat::read(Some(&raw), now(), SignedDuration::from_secs(60));
        prop_assert!(reading.known().is_none());
    }

    #[test]
    fn no_row_makes_the_policy_panic(text in "\\PC{0,80}", number in any::<f64>(), whole in any::<i64>()) {
        let values = [json!(text), json!(number), json!(whole), json!([text]), json!({ "type": text })];
        let fields = [
            "name", "service", "minInstances", "maxInstances", "scaleUpThreshold", "scaleDownThreshold", "cooldownSeconds",
            "scalingProvider", "maxConcurrentCalls", "priority", "scalingConfig",
        ];
        let keys = ["dispatcher", "candidates", "schedules", "mode", "panicThreshold", "secretsName", "drainDeadline"];
        for value in &values {
            for field in fields {
                let mut row = json!({"id": "1", "name": "g", "scalingEnabled": true, "scalingProvider": "local"});
                row[field] = value.clone();
                let _ = Policy::read(&row);
            }
            for key in keys {
                let _ = Policy::read(&json!({"id": "1", "name": "g", "scalingConfig": { key: value }}));
                let _ = Policy::read(&json!({"id": "1", "name": "g", "scalingConfig": { key: [value] }}));
            }
        }
    }
}
