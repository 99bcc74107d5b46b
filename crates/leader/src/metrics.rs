use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

/// The election's metrics, on the global meter.
pub(crate) struct Metrics {
    is_leader: Gauge<u64>,
    term: Gauge<i64>,
    transitions: Counter<u64>,
    renew: Histogram<f64>,
    election: KeyValue,
}

impl Metrics {
    /// `election` is a setting of the installation, not an id: few values, so it may be a label.
    pub(crate) fn new(election: &str) -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        let this = Self {
            is_leader: meter
                .u64_gauge("voiceai.leader.is_leader")
                .with_description("1 while this process may act as the leader, else 0.")
                .build(),
            term: meter
                .i64_gauge("voiceai.leader.term")
                .with_description("The term this process was last given.")
                .build(),
            transitions: meter
                .u64_counter("voiceai.leader.transitions")
                .with_description("How often this process became or ceased to be the leader.")
                .build(),
            renew: meter
                .f64_histogram("voiceai.leader.renew.duration")
                .with_boundaries(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ])
                .with_unit("s")
                .with_description("Time of one renewal, failed ones included.")
                .build(),
            election: KeyValue::new("election", election.to_owned()),
        };
        this.acts(false);
        for to in ["leader", "follower"] {
            this.transitions.add(0, &[this.election.clone(), KeyValue::new("to", to)]);
        }
        this
    }

    pub(crate) fn acts(&self, yes: bool) {
        self.is_leader.record(u64::from(yes), std::slice::from_ref(&self.election));
    }

    pub(crate) fn elected(&self, term: i64) {
        self.acts(true);
        self.term.record(term, std::slice::from_ref(&self.election));
        self.transitions.add(1, &[self.election.clone(), KeyValue::new("to", "leader")]);
    }

    pub(crate) fn lost(&self) {
        self.acts(false);
        self.transitions.add(1, &[self.election.clone(), KeyValue::new("to", "follower")]);
    }

    pub(crate) fn renewed(&self, took: Duration, ok: bool) {
        let outcome = KeyValue::new("outcome", if ok { "renewed" } else { "failed" });
        self.renew.record(took.as_secs_f64(), &[self.election.clone(), outcome]);
    }
}
