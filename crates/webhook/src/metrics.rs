use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use voiceai_runtime::LeaderGauge;

use crate::backlog::Backlog;

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
    due: LeaderGauge,
    oldest: LeaderGauge,
    endpoints_resting: LeaderGauge,
    endpoints_disabled: LeaderGauge,
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
            due: LeaderGauge::new(
                &meter,
                "webhook.due",
                "",
                "Deliveries that are due, those of endpoints that rest apart",
            ),
            oldest: LeaderGauge::new(
                &meter,
                "webhook.oldest_age",
                "ms",
                "How long the oldest of them has been due",
            ),
            endpoints_resting: LeaderGauge::new(
                &meter,
                "webhook.endpoints.resting_now",
                "",
                "Endpoints that are left alone for a while: their circuit is open, or they asked for time",
            ),
            endpoints_disabled: LeaderGauge::new(
                &meter,
                "webhook.endpoints.disabled_now",
                "",
                "Endpoints that are disabled",
            ),
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
        if dead {
            self.dead.add(1, &[]);
        }
        if disabled {
            self.disabled.add(1, &[]);
        }
    }

    /// The leader's view of all.
    pub(crate) fn backlog(&self, backlog: &Backlog) {
        self.due.set_count(&[], backlog.due);
        self.oldest.set_count(&[], backlog.oldest_seconds.saturating_mul(1_000));
        self.endpoints_resting.set_count(&[], backlog.endpoints_resting);
        self.endpoints_disabled.set_count(&[], backlog.endpoints_disabled);
    }

    /// Another leads, and tells.
    pub(crate) fn forget_backlog(&self) {
        for gauge in [&self.due, &self.oldest, &self.endpoints_resting, &self.endpoints_disabled] {
            gauge.clear();
        }
    }
}
