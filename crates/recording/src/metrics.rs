use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

pub(crate) struct Metrics {
    attempts: Counter<u64>,
    audio: Histogram<f64>,
    duration: Histogram<f64>,
    calls: Counter<u64>,
    originals: Counter<u64>,
}

/// Outcomes of attempts that alerts read.
const OUTCOMES: [&str; 12] = [
    "processed",
    "missing",
    "truncated",
    "unusable",
    "beyond_limits",
    "refused",
    "disk_full",
    "file",
    "tool",
    "no_bucket",
    "store",
    "database",
];

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

impl Metrics {
    fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai-recording");
        let counter = |name, about| meter.u64_counter(name).with_description(about).build();
        let this = Self {
            attempts: counter("recording.attempts", "Attempts to process a recording, by outcome"),
            audio: meter
                .f64_histogram("recording.audio")
                .with_unit("s")
                .with_description("Length of processed recordings")
                .build(),
            duration: meter
                .f64_histogram("recording.attempt.duration")
                .with_unit("s")
                .with_description("Time of an attempt to process a recording")
                .build(),
            calls: counter("post_call.calls", "Calls that were closed, by what was done with their record"),
            originals: counter("recording.originals", "Originals looked at by the sweep, by outcome"),
        };
        // A rise from nothing is seen only where there was a nothing.
        for outcome in OUTCOMES {
            this.attempts.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        this
    }

    pub(crate) fn attempt(&self, outcome: &'static str, took: Duration) {
        let outcome = [KeyValue::new("outcome", outcome)];
        self.attempts.add(1, &outcome);
        self.duration.record(took.as_secs_f64(), &outcome);
    }

    pub(crate) fn audio(&self, seconds: f64) {
        self.audio.record(seconds, &[]);
    }

    pub(crate) fn call(&self, record: &'static str) {
        self.calls.add(1, &[KeyValue::new("record", record)]);
    }

    pub(crate) fn original(&self, outcome: &'static str) {
        self.originals.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}
