//! Metrics of queues: what this process did, and what a leader reports of the whole.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use voiceai_runtime::LeaderGauge;

use crate::client::QueueStats;
use crate::outbox::Waiting;

/// Bounds in seconds: from a no-op to a job of an hour.
const SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

pub(crate) struct Metrics {
    jobs: Counter<u64>,
    wait: Histogram<f64>,
    run: Histogram<f64>,
    stale: Counter<u64>,
    lost_leases: Counter<u64>,
    lost_jobs: Counter<u64>,
    enqueued: Counter<u64>,
}

pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let meter = opentelemetry::global::meter("voiceai");
        Metrics {
            jobs: meter
                .u64_counter("queue.jobs")
                .with_description("Attempts that ended, by outcome: completed, failed, snoozed, cancelled, returned, or a reason of death")
                .build(),
            wait: meter
                .f64_histogram("queue.job.wait")
                .with_unit("s")
                .with_boundaries(SECONDS.to_vec())
                .with_description("From enqueue to the start of the first attempt")
                .build(),
            run: meter
                .f64_histogram("queue.job.duration")
                .with_unit("s")
                .with_boundaries(SECONDS.to_vec())
                .with_description("Run time of an attempt")
                .build(),
            stale: meter
                .u64_counter("queue.acks.refused")
                .with_description("Acknowledgements refused because the job was another's by then")
                .build(),
            lost_leases: meter
                .u64_counter("queue.leases.lost")
                .with_description("Leases of this process that ended while it held jobs")
                .build(),
            lost_jobs: meter
                .u64_counter("queue.jobs.stalled")
                .with_description("Jobs brought back because their worker was gone")
                .build(),
            enqueued: meter
                .u64_counter("queue.jobs.enqueued")
                .with_description("Jobs accepted from this process; delayed ones apart, by `due`")
                .build(),
        }
    })
}

fn queue_label(queue: &str) -> KeyValue {
    KeyValue::new("queue", queue.to_owned())
}

impl Metrics {
    pub(crate) fn ended(&self, queue: &str, kind: &str, outcome: &'static str, n: u64) {
        self.jobs.add(
            n,
            &[queue_label(queue), KeyValue::new("kind", kind.to_owned()), KeyValue::new("outcome", outcome)],
        );
    }

    pub(crate) fn stale_acks(&self, queue: &str, n: u64) {
        self.stale.add(n, &[queue_label(queue)]);
    }

    pub(crate) fn lost_lease(&self, queue: &str) {
        self.lost_leases.add(1, &[queue_label(queue)]);
    }

    pub(crate) fn lost_jobs(&self, queue: &str, n: u64) {
        self.lost_jobs.add(n, &[queue_label(queue)]);
    }

    pub(crate) fn enqueued(&self, queue: &str, due: &'static str, n: u64) {
        self.enqueued.add(n, &[queue_label(queue), KeyValue::new("due", due)]);
    }
}

/// What one pool measures. Labels are built once and equal counts are added up: a job of a microsecond must not cost two
/// in metrics.
pub(crate) struct Meter {
    queue: [KeyValue; 1],
    /// Labels of each kind, the last one used at the end.
    kinds: Vec<(Arc<str>, [KeyValue; 2])>,
    counted: Option<(Arc<str>, &'static str, u64)>,
}

impl Meter {
    pub(crate) fn new(queue: &str) -> Self {
        Self { queue: [queue_label(queue)], kinds: Vec::new(), counted: None }
    }

    pub(crate) fn ran(&mut self, kind: &Arc<str>, span: Duration) {
        // A lot is mostly of one kind, whose name is one piece of memory: no name is compared then.
        if !self.kinds.last().is_some_and(|(known, _)| Arc::ptr_eq(known, kind)) {
            let at = self.kinds.iter().position(|(known, _)| known == kind);
            let labels = match at {
                Some(at) => self.kinds.remove(at).1,
                None => [self.queue[0].clone(), KeyValue::new("kind", kind.to_string())],
            };
            self.kinds.push((Arc::clone(kind), labels));
        }
        if let Some((_, labels)) = self.kinds.last() {
            get().run.record(span.as_secs_f64(), labels);
        }
    }

    pub(crate) fn waited(&self, span: Duration) {
        get().wait.record(span.as_secs_f64(), &self.queue);
    }

    pub(crate) fn ended(&mut self, kind: &Arc<str>, outcome: &'static str) {
        match &mut self.counted {
            Some((k, o, n)) if *o == outcome && (Arc::ptr_eq(k, kind) || k == kind) => *n += 1,
            _ => {
                self.flush();
                self.counted = Some((Arc::clone(kind), outcome, 1));
            }
        }
    }

    /// Adds what was counted.
    pub(crate) fn flush(&mut self) {
        if let Some((kind, outcome, n)) = self.counted.take() {
            let kind = KeyValue::new("kind", kind.to_string());
            get().jobs.add(n, &[self.queue[0].clone(), kind, KeyValue::new("outcome", outcome)]);
        }
    }
}

/// Gauges of whole queues. Backend-wide numbers: reported by the leader alone, or sums would be n-fold. Clones hold the same values.
#[derive(Clone, Debug)]
pub struct QueueGauges {
    depth: LeaderGauge,
    oldest: LeaderGauge,
    saturation: LeaderGauge,
    workers: LeaderGauge,
    capacity: LeaderGauge,
}

impl Default for QueueGauges {
    fn default() -> Self {
        Self::new()
    }
}

impl QueueGauges {
    /// Gauges of the meter `voiceai`.
    #[must_use]
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        let leader_gauge = |name, unit, about| LeaderGauge::new(&meter, name, unit, about);
        Self {
            depth: leader_gauge("queue.depth", "", "Jobs by state: waiting, delayed, active, dead"),
            oldest: leader_gauge("queue.oldest_age", "s", "Age of the oldest waiting job; 0 when none waits"),
            saturation: leader_gauge(
                "queue.saturation",
                "",
                "(waiting + active) / capacity of all workers: the number for autoscalers",
            ),
            workers: leader_gauge("queue.workers", "", "Live workers"),
            capacity: leader_gauge("queue.capacity", "", "Slots of all live workers"),
        }
    }

    /// Reports one queue.
    pub fn record(&self, stats: &QueueStats) {
        let queue = queue_label(&stats.queue);
        for (state, n) in [
            ("waiting", stats.waiting),
            ("delayed", stats.delayed),
            ("active", stats.active),
            ("dead", stats.dead),
        ] {
            self.depth.set_count(&[queue.clone(), KeyValue::new("state", state)], n);
        }
        let oldest = stats.oldest_waiting_ms.map_or(0.0, |ms| Duration::from_millis(ms).as_secs_f64());
        let queue = [queue];
        self.oldest.set(&queue, oldest);
        match stats.saturation {
            Some(saturation) => self.saturation.set(&queue, saturation),
            // Without workers there is no such share: it must not stay what it was.
            None => self.saturation.retain(|labels| labels != queue),
        }
        self.workers.set_count(&queue, u64::try_from(stats.workers.len()).unwrap_or(0));
        self.capacity.set_count(&queue, stats.capacity);
    }

    /// Forgets every queue but these.
    pub fn keep(&self, queues: &[String]) {
        let labels: Vec<_> = queues.iter().map(|queue| queue_label(queue)).collect();
        for gauge in [&self.depth, &self.oldest, &self.saturation, &self.workers, &self.capacity] {
            gauge.retain(|have| have.first().is_some_and(|queue| labels.contains(queue)));
        }
    }

    /// Reports nothing any more: another process leads.
    pub fn clear(&self) {
        for gauge in [&self.depth, &self.oldest, &self.saturation, &self.workers, &self.capacity] {
            gauge.clear();
        }
    }
}

/// Gauges of the outbox. Backend-wide like [`QueueGauges`].
#[derive(Clone, Debug)]
pub struct OutboxGauges {
    depth: LeaderGauge,
    oldest: LeaderGauge,
    /// Queues that were reported: one that has nothing left is reported as empty, not left at its last value.
    seen: BTreeSet<String>,
}

impl Default for OutboxGauges {
    fn default() -> Self {
        Self::new()
    }
}

impl OutboxGauges {
    /// Gauges of the meter `voiceai`.
    #[must_use]
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("voiceai");
        Self {
            depth: LeaderGauge::new(
                &meter,
                "outbox.depth",
                "",
                "Rows of the outbox that are not relayed, by state: waiting, or refused by their queue",
            ),
            oldest: LeaderGauge::new(
                &meter,
                "outbox.oldest_age",
                "s",
                "Age of the oldest row that waits to be relayed; 0 when none does",
            ),
            seen: BTreeSet::new(),
        }
    }

    /// Reports what [`crate::outbox::waiting`] found; `queues` are those that exist, with rows or without.
    pub fn record(&mut self, queues: &[String], waiting: &[Waiting]) {
        self.seen.extend(queues.iter().cloned());
        self.seen.extend(waiting.iter().map(|w| w.queue.clone()));
        for queue in &self.seen {
            let row = waiting.iter().find(|w| w.queue == *queue);
            let label = queue_label(queue);
            for (state, n) in
                [("waiting", row.map_or(0, |w| w.waiting)), ("refused", row.map_or(0, |w| w.refused))]
            {
                let n = u64::try_from(n).unwrap_or(0);
                self.depth.set_count(&[label.clone(), KeyValue::new("state", state)], n);
            }
            let oldest = row.map_or(0, |w| w.oldest_seconds);
            let oldest = Duration::from_secs(u64::try_from(oldest).unwrap_or(0));
            self.oldest.set(&[label], oldest.as_secs_f64());
        }
    }

    /// Reports nothing any more: another process leads.
    pub fn clear(&mut self) {
        self.seen.clear();
        self.depth.clear();
        self.oldest.clear();
    }
}
