//! JSON logs, traces, metrics and logs by OTLP.
//!
//! - **Log lines** go to stderr, for every command: stdout carries data only. One JSON object a line, with `timestamp`
//!   (RFC 3339, UTC, milliseconds), `level`, `target`, `message`, the event's fields, the fields of its spans, and inside
//!   a span `otel_trace_id` and `otel_span_id`, whether or not anything is exported. A line that repeats is written at
//!   most once in ten seconds, with `repeats_left_out`.
//! - **OTLP**: traces, metrics and logs leave the process when the standard `OTEL_` variables say so, and only then. A
//!   wrong value is an error that names its variable.
//! - **Prometheus**: where it was asked for at start, [`scrape`] gives the same metrics as a document.
//!
//! ```no_run
//! # async fn run() -> Result<(), voiceai_telemetry::TelemetryError> {
//! use voiceai_telemetry::{TelemetrySettings, init};
//! let telemetry = init(&TelemetrySettings {
//!     service: "voiceai-tasker".to_owned(),
//!     version: env!("CARGO_PKG_VERSION").to_owned(),
//!     revision: voiceai_telemetry::REVISION.to_owned(),
//!     instance_id: "tasker-1".to_owned(),
//!     environment: "staging".to_owned(),
//!     log_level: "info".to_owned(),
//!     scrape: false,
//! })?;
//! telemetry.log_start(&[("LEADER_LOCK_TTL_MS".to_owned(), "10000".to_owned())]);
//! // ... the work ...
//! telemetry.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod json;
mod level;
mod otel_env;
mod panics;
mod pipeline;
mod propagation;
mod repeat;
mod scrape;

use std::fmt;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry};

pub use level::{DEBUG_FOR, LogLevel, toggle_debug_on_sigusr1};
pub use propagation::{
    continue_trace, current_traceparent, link_trace, span_from_traceparent, traceparent_of,
};

pub use scrape::{SCRAPE_MEDIA_TYPE, ScrapeError, scrape};

use json::{JsonLayer, Sink};
use pipeline::Pipeline;

/// The source revision this was built from: `VOICEAI_REVISION` of the build, else git's, else `unknown`.
/// A release build is always exact; a development build keeps the revision of its last full compilation.
pub const REVISION: &str = env!("VOICEAI_BUILD_REVISION");

/// How long the end of the process waits for exporters: a collector that is away costs no more than this.
pub const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Who speaks, and how much.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    /// The binary's name, `service.name` unless `OTEL_SERVICE_NAME` says otherwise.
    pub service: String,
    /// The binary's version.
    pub version: String,
    /// The source revision; [`REVISION`] of this build.
    pub revision: String,
    /// `INSTANCE_ID`: which of several equal processes.
    pub instance_id: String,
    /// `ENVIRONMENT`, as `deployment.environment.name`.
    pub environment: String,
    /// `LOG_LEVEL`; see [`LogLevel::parse`].
    pub log_level: String,
    /// `METRICS_HTTP`: whether metrics are kept for [`scrape`], beside any export.
    pub scrape: bool,
}

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The variable's name.
    pub name: String,
    /// What is wrong with it and what to do; never a secret's value.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.problem)
    }
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Settings that cannot be used, all of them. The binary ends with exit code 4.
    #[error("read the telemetry settings: {}", join(.0))]
    Settings(Vec<Violation>),
    /// The exporter of one signal refused its settings. Exit code 4.
    #[error("build the OTLP exporter of {signal}")]
    Exporter {
        /// `traces`, `metrics` or `logs`.
        signal: &'static str,
        /// What the exporter said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Export was asked for outside a tokio runtime.
    #[error("start OTLP export: call init inside the tokio runtime")]
    NoRuntime,
    /// The process has a log already.
    #[error("start the log: it has been started before in this process")]
    AlreadyStarted,
}

fn join(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Checks the `OTEL_` variables of this process and `LOG_LEVEL` without starting anything.
///
/// # Errors
/// Every violation at once.
pub fn check(log_level: &str) -> Result<(), Vec<Violation>> {
    read_settings(log_level).map(|_| ())
}

fn read_settings(log_level: &str) -> Result<(LogLevel, otel_env::Plan), Vec<Violation>> {
    let lookup = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    match (LogLevel::parse(log_level), otel_env::plan(&lookup)) {
        (Ok(level), Ok(plan)) => Ok((level, plan)),
        (level, plan) => Err(level.err().into_iter().chain(plan.err().unwrap_or_default()).collect()),
    }
}

/// Starts the log, the trace ids and, where the environment asks for it, the export; installs the panic hook.
/// Once a process, inside the tokio runtime, before anything that may fail.
///
/// # Errors
/// [`TelemetryError`]; nothing has been started then.
pub fn init(settings: &TelemetrySettings) -> Result<Telemetry, TelemetryError> {
    let (level, plan) = read_settings(&settings.log_level).map_err(TelemetryError::Settings)?;
    let pipeline = Pipeline::build(settings, &plan)?;
    let sink = Sink::new(Box::new(std::io::stderr()));
    let subscriber = subscriber(&pipeline, &level, sink.clone(), settings);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::AlreadyStarted)?;
    pipeline.make_global();
    panics::install_hook();
    Ok(Telemetry { settings: settings.clone(), level, sink, pipeline: Some(pipeline) })
}

fn subscriber(
    pipeline: &Pipeline,
    level: &LogLevel,
    sink: Sink,
    settings: &TelemetrySettings,
) -> impl tracing::Subscriber + Send + Sync {
    let events_are_logs = pipeline.logs.is_some();
    let traces = tracing_opentelemetry::layer()
        .with_tracer(pipeline.traces.tracer("voiceai"))
        .with_threads(false)
        .with_filter(
            FilterFn::new(move |metadata| is_traced(metadata, events_are_logs))
                .with_max_level_hint(LevelFilter::INFO),
        );
    let logs = pipeline.logs.as_ref().map(|provider| {
        let level = level.clone();
        OpenTelemetryTracingBridge::new(provider)
            .with_filter(FilterFn::new(|metadata| !feeds_itself(metadata)))
            .with_filter(level)
    });
    let lines = JsonLayer::new(sink, &settings.service, &settings.instance_id).with_filter(level.clone());
    Registry::default().with(traces).with(logs).with(lines)
}

/// Spans, and the events worth keeping on a span: an error marks it as failed; the others would only be sent twice when
/// logs are exported too.
fn is_traced(metadata: &Metadata<'_>, events_are_logs: bool) -> bool {
    let wanted = metadata.is_span() || !events_are_logs || *metadata.level() == Level::ERROR;
    wanted && *metadata.level() <= Level::INFO && !feeds_itself(metadata)
}

/// True for what the exporters themselves say: exported, it would cause the next export, for ever.
fn feeds_itself(metadata: &Metadata<'_>) -> bool {
    const EXPORTERS: [&str; 7] = ["hyper", "h2", "tonic", "tower", "reqwest", "rustls", "opentelemetry"];
    let target = metadata.target();
    EXPORTERS.iter().any(|name| target.starts_with(name))
}

/// A process's telemetry. Dropping it sends what is buffered, as [`Telemetry::shutdown`] does, but blocks meanwhile.
pub struct Telemetry {
    settings: TelemetrySettings,
    level: LogLevel,
    sink: Sink,
    pipeline: Option<Pipeline>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// The switch behind [`toggle_debug_on_sigusr1`].
    pub fn level(&self) -> LogLevel {
        self.level.clone()
    }

    /// Writes the one start line: version, revision, and the settings in effect as name and value. The caller passes
    /// secrets already masked.
    pub fn log_start(&self, settings: &[(String, String)]) {
        let settings: serde_json::Map<_, _> =
            settings.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let settings_json = serde_json::Value::Object(settings).to_string();
        let TelemetrySettings { version, revision, environment, .. } = &self.settings;
        let pid = std::process::id();
        tracing::info!(version, revision, environment, pid, settings_json, "service started");
    }

    /// Writes the counts of lines left out, sends what is buffered and stops the export, within [`FLUSH_MAX`]. Log lines
    /// are still written afterwards.
    pub async fn shutdown(mut self) {
        let (sink, pipeline) = (self.sink.clone(), self.pipeline.take());
        // Off the runtime's threads: the exporters need them to send what is left.
        let closed = tokio::task::spawn_blocking(move || close(&sink, pipeline)).await;
        if let Err(error) = closed {
            tracing::error!(%error, "telemetry could not be flushed");
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        close(&self.sink, self.pipeline.take());
    }
}

fn close(sink: &Sink, pipeline: Option<Pipeline>) {
    let unsent = pipeline.map(|pipeline| pipeline.close(FLUSH_MAX)).unwrap_or_default();
    if !unsent.is_empty() {
        let signals = unsent.join(", ");
        tracing::warn!(signals, "telemetry lost at the end: the OTLP endpoint did not take it in time");
    }
    sink.write_left_out();
}
