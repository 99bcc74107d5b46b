use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

use crate::answer::{Again, Heard};

/// What orchestration counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    calls: Counter<u64>,
    duration: Histogram<f64>,
    schedules: Counter<u64>,
}

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let meter = opentelemetry::global::meter("voiceai");
        let calls = meter
            .u64_counter("voiceai.orchestration.calls")
            .with_description("Calls of agents, by outcome.")
            .build();
        for outcome in ["succeeded", "failed", "refused", "resting"] {
            calls.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        Metrics {
            calls,
            duration: meter
                .f64_histogram("voiceai.orchestration.call.duration")
                .with_unit("s")
                .with_description("From a call of an agent to the last byte of its answer.")
                .build(),
            schedules: meter
                .u64_counter("voiceai.orchestration.schedules.fired")
                .with_description("Slots of orchestration schedules that became jobs.")
                .build(),
        }
    })
}

impl Metrics {
    pub(crate) fn called(&self, heard: &Heard, took: Duration) {
        let outcome = match heard {
            Heard::Done(_) => "succeeded",
            Heard::Failed(failed) => match failed.again {
                Again::Never => "refused",
                Again::Later => "failed",
                Again::After(_) => "resting",
            },
        };
        self.calls.add(1, &[KeyValue::new("outcome", outcome)]);
        self.duration.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn fired(&self) {
        self.schedules.add(1, &[]);
    }
}
