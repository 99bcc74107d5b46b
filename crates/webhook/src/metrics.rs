use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

/// What attempts are counted by.
pub(crate) const OUTCOMES: [&str; 8] = [
    "delivered",
    "refused",
    "unresolved",
    "address_refused",
    "unreachable",
    "tls",
    "broken_answer",
    "timed_out",
];

pub(crate) struct Metrics {
    attempts: Counter<u64>,
    dead: Counter<u64>,
    disabled: Counter<u64>,
    duration: Histogram<f64>,
    waiting: Gauge<u64>,
    oldest: Gauge<u64>,
    endpoints_disabled: Gauge<u64>,
}

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

impl Metrics {
    fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai-webhook");
        let counter = |name, about| meter.u64_counter(name).with_description(about).build();
        let this = Self {
            attempts: counter("webhook.attempts", "Attempts that ended, by outcome"),
            dead: counter("webhook.dead", "Deliveries given up"),
            disabled: counter("webhook.endpoints.disabled", "Endpoints that were disabled by themselves"),
            duration: meter
                .f64_histogram("webhook.attempt.duration")
                .with_unit("s")
                .with_description("Time of one attempt")
                .build(),
            waiting: meter.u64_gauge("webhook.due").with_description("Deliveries that are due").build(),
            oldest: meter
                .u64_gauge("webhook.oldest_age")
                .with_unit("ms")
                .with_description("How long the oldest of them has been due, endpoints that rest apart")
                .build(),
            endpoints_disabled: meter
                .u64_gauge("webhook.endpoints.disabled_now")
                .with_description("Endpoints that are disabled")
                .build(),
        };
        for outcome in OUTCOMES {
            this.attempts.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        this.dead.add(0, &[]);
        this.disabled.add(0, &[]);
        this
    }

    pub(crate) fn ended(&self, outcome: &'static str, took: Duration, dead: bool, disabled: bool) {
        let label = [KeyValue::new("outcome", outcome)];
        self.attempts.add(1, &label);
        self.duration.record(took.as_secs_f64(), &label);
        self.dead.add(u64::from(dead), &[]);
        self.disabled.add(u64::from(disabled), &[]);
    }

    pub(crate) fn backlog(&self, due: u64, oldest: Duration, disabled: u64) {
        self.waiting.record(due, &[]);
        self.oldest.record(u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX), &[]);
        self.endpoints_disabled.record(disabled, &[]);
    }
}
