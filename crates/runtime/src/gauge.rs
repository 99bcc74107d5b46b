//! Gauges that only one process of several may report, and only while it may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

type Values = Mutex<HashMap<Vec<KeyValue>, f64>>;

/// A gauge of the whole installation, which the leader alone reports: sums over processes would be n-fold otherwise. It says what
/// it holds and nothing else: after [`LeaderGauge::clear`] the process reports no value at all, where an ordinary gauge would go
/// on with its last one for ever.
///
/// Make it once in a process and clone it: clones hold the same values.
#[derive(Clone, Debug)]
pub struct LeaderGauge(Arc<Values>);

impl LeaderGauge {
    /// A gauge without values, by the name and unit it is reported under; an empty unit is none.
    #[must_use]
    pub fn new(meter: &Meter, name: &'static str, unit: &'static str, description: &'static str) -> Self {
        let values: Arc<Values> = Arc::default();
        // The meter outlives everybody: what was dropped reports nothing.
        let held = Arc::downgrade(&values);
        let _ = meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                let Some(values) = held.upgrade() else { return };
                for (labels, value) in &*values.lock().unwrap_or_else(PoisonError::into_inner) {
                    observer.observe(*value, labels);
                }
            })
            .build();
        Self(values)
    }

    /// Sets one value. The order of labels does not matter to who reads them, and must be the same each time.
    pub fn set(&self, labels: &[KeyValue], value: f64) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match values.get_mut(labels) {
            Some(have) => *have = value,
            None => drop(values.insert(labels.to_vec(), value)),
        }
    }

    /// Sets a count. Beyond 2^53 it is no longer exact.
    #[expect(clippy::cast_precision_loss, reason = "nobody counts that far")]
    pub fn set_count(&self, labels: &[KeyValue], count: u64) {
        self.set(labels, count as f64);
    }

    /// Holds these values and no others.
    pub fn replace(&self, new: impl IntoIterator<Item = (Vec<KeyValue>, f64)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = new.into_iter().collect();
    }

    /// Keeps the values whose labels are wanted.
    pub fn retain(&self, wanted: impl Fn(&[KeyValue]) -> bool) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.retain(|labels, _| wanted(labels));
    }

    /// Reports nothing until the next value is set.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
    use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

    use super::*;

    /// What one collection exports of the only metric.
    fn exported(provider: &SdkMeterProvider, exporter: &InMemoryMetricExporter) -> Vec<f64> {
        exporter.reset();
        provider.force_flush().expect("flushed");
        let mut values = Vec::new();
        for resource in exporter.get_finished_metrics().expect("exported") {
            for metric in
                resource.scope_metrics().flat_map(opentelemetry_sdk::metrics::data::ScopeMetrics::metrics)
            {
                if let AggregatedMetrics::F64(MetricData::Gauge(gauge)) = metric.data() {
                    values.extend(
                        gauge.data_points().map(opentelemetry_sdk::metrics::data::GaugeDataPoint::value),
                    );
                }
            }
        }
        values.sort_by(f64::total_cmp);
        values
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_cleared_is_exported_no_more() {
        let exporter = InMemoryMetricExporter::default();
        let reader = PeriodicReader::builder(exporter.clone()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let gauge = LeaderGauge::new(&provider.meter("test"), "depth", "", "How deep");
        let label = |queue: &'static str| [KeyValue::new("queue", queue)];
        assert!(exported(&provider, &exporter).is_empty());
        gauge.set(&label("a"), 1.0);
        gauge.set_count(&label("b"), 2);
        gauge.set(&label("a"), 3.0);
        assert_eq!(exported(&provider, &exporter), [2.0, 3.0]);
        gauge.retain(|labels| labels == label("a"));
        assert_eq!(exported(&provider, &exporter), [3.0]);
        gauge.clone().replace([(label("c").to_vec(), 9.0)]);
        assert_eq!(exported(&provider, &exporter), [9.0]);
        gauge.clear();
        assert!(exported(&provider, &exporter).is_empty());
        gauge.set(&label("a"), 4.0);
        assert_eq!(exported(&provider, &exporter), [4.0], "the next leader reports again");
        drop(gauge);
        assert!(exported(&provider, &exporter).is_empty(), "nobody is left to vouch for it");
    }
}
