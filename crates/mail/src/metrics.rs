//! Metrics: what this process did, and what a leader reports of the whole.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use voiceai_runtime::LeaderGauge;

use crate::delivery::{AttemptStatus, DeadReason, DeliveryStatus};
use crate::intake::{AcceptError, Accepted, Rejected, Source};

/// Bounds in milliseconds: from a local sink to a server that scans for ten minutes.
const MILLISECONDS: [f64; 14] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 15_000.0, 60_000.0, 600_000.0,
];

pub(crate) struct Metrics {
    accepted: Counter<u64>,
    outcomes: Counter<u64>,
    transitions: Counter<u64>,
    dead_letters: Counter<u64>,
    suppressed: Counter<u64>,
    malformed: Counter<u64>,
    duration: Histogram<f64>,
    late: Histogram<f64>,
    depth: LeaderGauge,
    oldest: LeaderGauge,
    paused: LeaderGauge,
}

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

impl Metrics {
    fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        let counter =
            |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        let leader_gauge = |name, unit, what| LeaderGauge::new(&meter, name, unit, what);
        let histogram = |name: &'static str, what: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("ms").with_boundaries(MILLISECONDS.to_vec());
            histogram.with_description(what).build()
        };
        let this = Self {
            accepted: counter("mail.intake.commands", "Commands given to intake, by source and outcome"),
            outcomes: counter("mail.attempt.outcomes", "Attempts that ended, by their last state"),
            transitions: counter("mail.delivery.ended", "Recipients that ended, by their state"),
            dead_letters: counter("mail.delivery.dead_letters", "Recipients given up, by reason"),
            suppressed: counter("mail.delivery.suppressed", "Recipients that were not written to on purpose"),
            malformed: counter(
                "mail.stream_commands.malformed",
                "Stream commands that no delivery could be made of",
            ),
            duration: histogram("mail.provider.send.duration_ms", "Time of one attempt at the provider"),
            late: histogram("mail.attempt.delay_ms", "From when an attempt was due to its start"),
            depth: leader_gauge("mail.attempt_schedule.depth", "", "Attempts that are due and not claimed"),
            oldest: leader_gauge(
                "mail.attempt_schedule.oldest_age_ms",
                "",
                "How long the oldest of them has been due",
            ),
            paused: leader_gauge(
                "mail.pauses",
                "",
                "Providers, domains and tenants that mail is not sent to at present",
            ),
        };
        for status in AttemptStatus::ALL.iter().filter(|status| status.is_terminal()) {
            this.outcomes.add(0, &[KeyValue::new("status", status.as_str())]);
        }
        for reason in DeadReason::ALL {
            this.dead_letters.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        for source in Source::ALL {
            for outcome in
                ["accepted", "known", "suppressed", "failed", "rejected", "conflict", "unavailable"]
            {
                let labels = [KeyValue::new("source", source.as_str()), KeyValue::new("outcome", outcome)];
                this.accepted.add(0, &labels);
            }
        }
        this.suppressed.add(0, &[]);
        for code in Rejected::CODES {
            this.malformed.add(0, &[KeyValue::new("failure_code", code)]);
        }
        this
    }

    pub(crate) fn accepted(&self, source: Source, result: &Result<Accepted, AcceptError>) {
        let outcome = match result {
            Ok(accepted) if accepted.known => "known",
            Ok(accepted) if accepted.status == DeliveryStatus::Suppressed => {
                self.suppressed.add(1, &[]);
                "suppressed"
            }
            Ok(accepted) if accepted.status == DeliveryStatus::Failed => "failed",
            Ok(_) => "accepted",
            Err(AcceptError::Rejected(_)) => "rejected",
            Err(AcceptError::Conflict { .. }) => "conflict",
            Err(AcceptError::Store(_)) => "unavailable",
        };
        self.accepted.add(1, &[KeyValue::new("source", source.as_str()), KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn attempt_ended(
        &self,
        provider: &'static str,
        settled: &crate::delivery::Settled,
        took: Option<Duration>,
    ) {
        let (status, recipient) = (settled.attempt.as_str(), settled.recipient());
        self.outcomes.add(1, &[KeyValue::new("status", status), KeyValue::new("provider", provider)]);
        if let Some(took) = took {
            let labels = [KeyValue::new("provider", provider), KeyValue::new("status", status)];
            self.duration.record(took.as_secs_f64() * 1000.0, &labels);
        }
        match settled.verdict {
            crate::delivery::Verdict::Again(_) => return,
            crate::delivery::Verdict::Dead(reason) => {
                self.dead_letters.add(1, &[KeyValue::new("reason", reason.as_str())]);
            }
            crate::delivery::Verdict::Over(crate::delivery::RecipientStatus::Suppressed) => {
                self.suppressed.add(1, &[]);
            }
            crate::delivery::Verdict::Over(_) => {}
        }
        self.transitions.add(1, &[KeyValue::new("status", recipient.as_str())]);
    }

    pub(crate) fn attempt_begins(&self, late: Duration) {
        self.late.record(late.as_secs_f64() * 1000.0, &[]);
    }

    pub(crate) fn malformed(&self, code: &'static str) {
        self.malformed.add(1, &[KeyValue::new("failure_code", code)]);
    }

    pub(crate) fn backlog(&self, depth: u64, oldest: Duration, paused: u64) {
        self.depth.set_count(&[], depth);
        self.oldest.set_count(&[], u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX));
        self.paused.set_count(&[], paused);
    }

    /// Another process leads: the backlog is its to report.
    pub(crate) fn forget_backlog(&self) {
        for gauge in [&self.depth, &self.oldest, &self.paused] {
            gauge.clear();
        }
    }
}
