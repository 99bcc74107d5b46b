//! The OpenTelemetry providers: always one that hands out trace ids, exporters only where the plan wants them.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol as Wire, SpanExporter, WithExportConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::otel_env::{Plan, Protocol, SignalPlan};
use crate::{TelemetryError, TelemetrySettings, scrape};

/// The providers of a process. The tracer's is always there: without exporters it still gives every span its ids.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) traces: SdkTracerProvider,
    pub(crate) logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
    /// What a scrape reads, where metrics are kept for it.
    registry: Option<prometheus::Registry>,
}

/// One exporter, by the plan's transport. What the plan does not say (endpoint, headers, time limit, compression) the
/// exporter reads from the same variables, which have been checked.
macro_rules! exporter {
    ($kind:ident, $signal:expr) => {
        match $signal {
            SignalPlan { protocol: Protocol::Grpc, tls: true } => $kind::builder()
                .with_tonic()
                .with_tls_config(ClientTlsConfig::new().with_enabled_roots())
                .build(),
            SignalPlan { protocol: Protocol::Grpc, tls: false } => $kind::builder().with_tonic().build(),
            SignalPlan { protocol: Protocol::HttpProtobuf, .. } => {
                $kind::builder().with_http().with_protocol(Wire::HttpBinary).build()
            }
        }
    };
}

impl Pipeline {
    /// Builds what the plan asks for. Sends nothing yet: an endpoint that is away is not an error.
    pub(crate) fn build(settings: &TelemetrySettings, plan: &Plan) -> Result<Self, TelemetryError> {
        if !plan.is_empty() && tokio::runtime::Handle::try_current().is_err() {
            return Err(TelemetryError::NoRuntime);
        }
        let resource = resource(settings);
        let failed = |signal: &'static str| {
            move |source: ExporterBuildError| TelemetryError::Exporter { signal, source: Box::new(source) }
        };
        let mut traces = SdkTracerProvider::builder().with_resource(resource.clone());
        if let Some(signal) = plan.traces {
            traces = traces.with_batch_exporter(exporter!(SpanExporter, signal).map_err(failed("traces"))?);
        }
        let mut logs = None;
        if let Some(signal) = plan.logs {
            let exporter = exporter!(LogExporter, signal).map_err(failed("logs"))?;
            let provider = SdkLoggerProvider::builder().with_resource(resource.clone());
            logs = Some(provider.with_batch_exporter(exporter).build());
        }
        let mut meters = SdkMeterProvider::builder().with_resource(resource);
        if let Some(signal) = plan.metrics {
            let exporter = exporter!(MetricExporter, signal).map_err(failed("metrics"))?;
            meters = meters.with_periodic_exporter(exporter);
        }
        let mut registry = None;
        if settings.scrape {
            let (kept, reader) = scrape::keep()
                .map_err(|source| TelemetryError::Exporter { signal: "metrics", source: Box::new(source) })?;
            meters = meters.with_reader(reader);
            registry = Some(kept);
        }
        let metrics = (plan.metrics.is_some() || settings.scrape).then(|| meters.build());
        Ok(Self { traces: traces.build(), logs, metrics, registry })
    }

    /// Makes the meters of the whole process report here.
    pub(crate) fn make_global(&self) {
        if let Some(metrics) = &self.metrics {
            opentelemetry::global::set_meter_provider(metrics.clone());
        }
        if let Some(registry) = &self.registry {
            scrape::publish(registry.clone());
        }
    }

    /// Sends what is buffered and stops, all signals at the same time, within `limit`. Returns the signals that did not
    /// end in time or failed. Blocks; needs the tokio runtime's other threads to go on working.
    pub(crate) fn close(&self, limit: Duration) -> Vec<&'static str> {
        // The SDK's own limits are not kept by every exporter, so each closes on a thread that may be left behind.
        let until = Instant::now() + limit;
        let (done, ended) = mpsc::channel();
        let mut open = Vec::new();
        let mut close = |signal: &'static str, work: Box<dyn FnOnce() -> bool + Send>| {
            open.push(signal);
            let done = done.clone();
            std::thread::spawn(move || {
                let _ = done.send((signal, work()));
            });
        };
        let traces = self.traces.clone();
        close("traces", Box::new(move || traces.shutdown_with_timeout(limit).is_ok()));
        if let Some(logs) = self.logs.clone() {
            close("logs", Box::new(move || logs.shutdown_with_timeout(limit).is_ok()));
        }
        if let Some(metrics) = self.metrics.clone() {
            close("metrics", Box::new(move || metrics.shutdown_with_timeout(limit).is_ok()));
        }
        drop(done);
        let mut failed = Vec::new();
        while let Ok((signal, sound)) = ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            open.retain(|waiting| *waiting != signal);
            if !sound {
                failed.push(signal);
            }
        }
        failed.extend(open);
        failed
    }
}

/// Who reports. What the operator says in `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` wins over what we know.
fn resource(settings: &TelemetrySettings) -> Resource {
    let given = Resource::builder().build();
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.trim().is_empty());
    let in_attributes = std::env::var("OTEL_RESOURCE_ATTRIBUTES")
        .is_ok_and(|list| list.split(',').any(|entry| entry.trim_start().starts_with("service.name=")));
    let ours = [
        ("service.name", settings.service.clone()),
        ("service.namespace", "voiceai".to_owned()),
        ("service.version", settings.version.clone()),
        ("service.instance.id", settings.instance_id.clone()),
        ("deployment.environment.name", settings.environment.clone()),
        ("vcs.ref.head.revision", settings.revision.clone()),
    ];
    let wanted = ours.into_iter().filter(|(key, _)| match *key {
        // The SDK fills in a placeholder of its own, so this one key is looked up where it comes from.
        "service.name" => !named && !in_attributes,
        key => given.get(&opentelemetry::Key::new(key)).is_none(),
    });
    Resource::builder().with_attributes(wanted.map(|(key, value)| KeyValue::new(key, value))).build()
}
