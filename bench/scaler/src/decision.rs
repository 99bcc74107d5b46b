//! The decision alone: no store, no clock.

use std::hint::black_box;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use voiceai_scaler_core::heartbeat::{Beat, Reading};
use voiceai_scaler_core::{GroupState, Limits, Phase, Policy, Sample, Server, decide};

use crate::Row;

const SERVERS: u32 = 50;
const DECISIONS: u32 = 20_000;

fn state(now: Timestamp, active: u64) -> GroupState {
    let server = |number: u32| Server {
        name: format!("prod-voice-{number:02}"),
        phase: Phase::Active,
        reading: Reading::Known(Beat {
            service: Some("voice".to_owned()),
            group: Some("eu".to_owned()),
            active,
            capacity: Some(100),
            at: now,
            version: None,
        }),
        silent_for: SignedDuration::ZERO,
        created_at: now - SignedDuration::from_hours(i64::from(number)),
        protected_until: None,
    };
    let sample = |number: i64| Sample {
        at: now - SignedDuration::from_secs(30 * number),
        utilisation: Some(0.5),
        wish: SERVERS,
        panic: false,
    };
    GroupState {
        servers: (0..SERVERS).map(server).collect(),
        unmanaged: Vec::new(),
        unreadable: false,
        last_up: None,
        last_down: None,
        history: (0..20).rev().map(sample).collect(),
        limits: Limits::default(),
    }
}

/// Microseconds of one decision about a group of 50 servers, a third of them each holding, adding and removing.
pub fn per_group(rounds: usize) -> Row {
    let now = Timestamp::now();
    let policy = json!({
        "id": "g", "name": "eu", "scalingEnabled": true, "scalingProvider": "local", "minInstances": 1,
        "maxInstances": 100, "cooldownSeconds": 0,
    });
    let policy = Policy::read(&policy).unwrap_or_else(|error| panic!("{error}"));
    let states = [state(now, 50), state(now, 90), state(now, 10)];
    let once = || {
        let began = Instant::now();
        for number in 0..DECISIONS {
            black_box(decide(black_box(&states[number as usize % 3]), &policy, now));
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(DECISIONS)
    };
    once();
    Row {
        work: "the decision about one group of 50 servers".to_owned(),
        unit: "us",
        rounds: (0..rounds).map(|_| once()).collect(),
        limit: Some(10.0),
    }
}
