use std::collections::{BTreeMap, BTreeSet};

use super::*;

const UP: &str = "
planned    secrets_fetched   secrets
planned    failed            failed
secrets    document_rendered rendered
secrets    failed            failed
rendered   intent_written    requested
rendered   failed            failed
requested  provider_accepted created
requested  out_of_stock      rendered
requested  failed            failed
created    provider_running  running
created    failed            failed
running    heartbeat_seen    heartbeat
running    failed            failed
heartbeat  routed_in         routed
heartbeat  failed            failed
routed     finished          done
failed     cleanup_started   cleaning
cleaning   provider_gone     failed_clean
";

const DOWN: &str = "
planned    preflight_passed  preflight
planned    cancel_requested  cancelling
preflight  routed_out        unrouted
preflight  cancel_requested  cancelling
unrouted   drain_started     draining
unrouted   cancel_requested  cancelling
draining   calls_ended       drained
draining   deadline_passed   forced
draining   cancel_requested  cancelling
drained    unlisted          unlisted
drained    cancel_requested  cancelling
forced     unlisted          unlisted
forced     cancel_requested  cancelling
unlisted   delete_requested  deleting
deleting   provider_gone     deleted
deleting   failed            failed
deleted    leftovers_removed cleaned
cleaned    finished          done
cancelling routed_in         cancelled
";

fn table(kind: Kind) -> BTreeMap<(State, Event), State> {
    let text = match kind {
        Kind::Up => UP,
        Kind::Down => DOWN,
    };
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("three words");
            let (from, event, to) = (word(), word(), word());
            (
                (State::parse(from).expect("a state"), Event::parse(event).expect("an event")),
                State::parse(to).expect("a state"),
            )
        })
        .collect()
}

#[test]
fn every_state_meets_every_event_as_the_table_says() {
    for kind in [Kind::Up, Kind::Down] {
        let table = table(kind);
        for &state in State::ALL {
            for &event in Event::ALL {
                let next = Operation { kind, state }.next(event).map(|operation| operation.state);
                assert_eq!(
                    next,
                    table.get(&(state, event)).copied(),
                    "{} {} + {}",
                    kind.as_str(),
                    state.as_str(),
                    event.as_str()
                );
            }
        }
    }
}

#[test]
fn every_reachable_state_is_final_or_leads_to_a_final_one() {
    for kind in [Kind::Up, Kind::Down] {
        let mut seen = BTreeSet::from([State::Planned]);
        let mut open = vec![State::Planned];
        while let Some(state) = open.pop() {
            let operation = Operation { kind, state };
            let nexts: Vec<_> = Event::ALL.iter().filter_map(|&event| operation.next(event)).collect();
            assert_eq!(nexts.is_empty(), operation.is_final(), "{operation:?}");
            for next in nexts {
                if seen.insert(next.state) {
                    open.push(next.state);
                }
            }
        }
    }
}

#[test]
fn the_status_of_a_server_follows_from_the_state() {
    for (kind, state, status) in [
        (Kind::Up, State::Planned, ServerStatus::Booting),
        (Kind::Up, State::Heartbeat, ServerStatus::Booting),
        (Kind::Up, State::Routed, ServerStatus::Active),
        (Kind::Up, State::Done, ServerStatus::Active),
        (Kind::Up, State::Failed, ServerStatus::Failed),
        (Kind::Up, State::Cleaning, ServerStatus::Failed),
        (Kind::Up, State::FailedClean, ServerStatus::Gone),
        (Kind::Down, State::Planned, ServerStatus::Draining),
        (Kind::Down, State::Forced, ServerStatus::Draining),
        (Kind::Down, State::Unlisted, ServerStatus::Leaving),
        (Kind::Down, State::Cleaned, ServerStatus::Leaving),
        (Kind::Down, State::Done, ServerStatus::Gone),
        (Kind::Down, State::Cancelling, ServerStatus::Draining),
        (Kind::Down, State::Cancelled, ServerStatus::Active),
        (Kind::Down, State::Failed, ServerStatus::Failed),
    ] {
        assert_eq!(Operation { kind, state }.server_status(), status, "{kind:?} {state:?}");
    }
}

#[test]
fn words_are_read_back_and_a_removal_can_be_called_off_until_it_is_unlisted() {
    for &state in State::ALL {
        assert_eq!(State::parse(state.as_str()), Some(state));
    }
    for &status in ServerStatus::ALL {
        assert_eq!(ServerStatus::parse(status.as_str()), Some(status));
    }
    assert_eq!(Kind::parse("up"), Some(Kind::Up));
    assert_eq!(State::parse("nonsense"), None);
    let cancellable: Vec<_> = State::ALL
        .iter()
        .filter(|&&state| Operation { kind: Kind::Down, state }.is_cancellable())
        .map(|state| state.as_str())
        .collect();
    assert_eq!(cancellable, ["planned", "preflight", "unrouted", "draining", "drained", "forced"]);
    assert!(State::ALL.iter().all(|&state| !Operation { kind: Kind::Up, state }.is_cancellable()));
}
