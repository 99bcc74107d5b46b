use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use voiceai_runtime::LeaderGauge;

use crate::decide::State;

const METER: &str = "voiceai";

pub(crate) struct Metrics {
    checks: Counter<u64>,
    check: Histogram<f64>,
    round: Gauge<f64>,
    late: Counter<u64>,
    alerts: Counter<u64>,
    /// Of the collector.
    pub(crate) points: Counter<u64>,
    pub(crate) source_failures: Counter<u64>,
    pub(crate) source: Histogram<f64>,
    services: LeaderGauge,
    open: LeaderGauge,
}

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

impl Metrics {
    fn new() -> Self {
        let meter = opentelemetry::global::meter(METER);
        let counter = |name, about| meter.u64_counter(name).with_description(about).build();
        let histogram =
            |name, about| meter.f64_histogram(name).with_unit("s").with_description(about).build();
        let this = Self {
            checks: counter("voiceai.health.checks", "Watched services asked, by state"),
            check: histogram(
                "voiceai.health.check.duration",
                "Time to the head of a watched service's answer",
            ),
            round: meter
                .f64_gauge("voiceai.health.round.duration")
                .with_unit("s")
                .with_description("Time of the last round over all watched services")
                .build(),
            late: counter("voiceai.health.rounds.late", "Rounds that took longer than HEALTH_CHECK_INTERVAL"),
            alerts: counter(
                "voiceai.health.alerts",
                "Alerts of watched services, by event: opened or closed",
            ),
            points: counter("voiceai.collector.points", "Figures written to ops.system_metrics, by source"),
            source_failures: counter(
                "voiceai.collector.source.failures",
                "Collections of one source that failed and left a gap",
            ),
            source: histogram("voiceai.collector.source.duration", "Time of one collection of one source"),
            services: LeaderGauge::new(
                &meter,
                "voiceai.health.services",
                "",
                "Watched services by state; given by the leader alone",
            ),
            open: LeaderGauge::new(
                &meter,
                "voiceai.health.alert_open",
                "",
                "1 for each watched service whose alert is open; given by the leader alone",
            ),
        };
        for state in State::ALL {
            this.checks.add(0, &[KeyValue::new("state", state.word())]);
        }
        for event in ["opened", "closed"] {
            this.alerts.add(0, &[KeyValue::new("event", event)]);
        }
        this.late.add(0, &[]);
        this
    }

    pub(crate) fn checked(&self, state: State, latency: Option<Duration>) {
        self.checks.add(1, &[KeyValue::new("state", state.word())]);
        if let Some(latency) = latency {
            self.check.record(latency.as_secs_f64(), &[]);
        }
    }

    pub(crate) fn round(&self, took: Duration, late: bool) {
        self.round.record(took.as_secs_f64(), &[]);
        self.late.add(u64::from(late), &[]);
    }

    pub(crate) fn alert(&self, event: &'static str) {
        self.alerts.add(1, &[KeyValue::new("event", event)]);
    }

    /// What the leader knows of all services.
    pub(crate) fn standings<'s>(&self, all: impl Iterator<Item = (&'s str, State, bool)>) {
        let mut counts = State::ALL.map(|state| (state, 0_u64));
        let mut open = Vec::new();
        for (service, state, alert) in all {
            if let Some((_, count)) = counts.iter_mut().find(|(of, _)| *of == state) {
                *count += 1;
            }
            if alert {
                open.push((vec![KeyValue::new("service", service.to_owned())], 1.0));
            }
        }
        for (state, count) in counts {
            self.services.set_count(&[KeyValue::new("state", state.word())], count);
        }
        self.open.replace(open);
    }

    /// What this process does not know any more.
    pub(crate) fn forget(&self) {
        self.services.clear();
        self.open.clear();
    }
}
