use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};

/// Bounds in seconds, as the semantic conventions for HTTP servers name them.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

struct Metrics {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
    connections: UpDownCounter<i64>,
    cut: Counter<u64>,
}

fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let meter = opentelemetry::global::meter("voiceai");
        Metrics {
            duration: meter
                .f64_histogram("http.server.request.duration")
                .with_unit("s")
                .with_boundaries(SECONDS.to_vec())
                .with_description("From the end of a request's head to the head of its response")
                .build(),
            active: meter
                .i64_up_down_counter("http.server.active_requests")
                .with_description("Requests being answered")
                .build(),
            connections: meter
                .i64_up_down_counter("http.server.connections")
                .with_description("Open connections")
                .build(),
            cut: meter
                .u64_counter("http.server.connections.cut")
                .with_description("Connections cut because the client took too long, by what it was doing")
                .build(),
        }
    })
}

/// One request was answered.
pub(crate) fn answered(
    listener: &'static str,
    method: &'static str,
    route: &str,
    status: u16,
    took: Duration,
) {
    get().duration.record(
        took.as_secs_f64(),
        &[
            KeyValue::new("listener", listener),
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status)),
        ],
    );
}

/// A connection's time was over.
pub(crate) fn cut(listener: &'static str, doing: &'static str) {
    get().cut.add(1, &[KeyValue::new("listener", listener), KeyValue::new("doing", doing)]);
}

/// Counts a request for as long as it is being answered, also when its client goes away meanwhile.
pub(crate) struct Active([KeyValue; 2]);

impl Active {
    pub(crate) fn new(listener: &'static str, method: &'static str) -> Self {
        let labels = [KeyValue::new("listener", listener), KeyValue::new("http.request.method", method)];
        get().active.add(1, &labels);
        Self(labels)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        get().active.add(-1, &self.0);
    }
}

/// Counts a connection for as long as it is open.
pub(crate) struct Open([KeyValue; 1]);

impl Open {
    pub(crate) fn new(listener: &'static str) -> Self {
        let labels = [KeyValue::new("listener", listener)];
        get().connections.add(1, &labels);
        Self(labels)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        get().connections.add(-1, &self.0);
    }
}
