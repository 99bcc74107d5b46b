//! The process's metrics as a Prometheus document.

use std::sync::OnceLock;

use opentelemetry_prometheus::PrometheusExporter;
use opentelemetry_sdk::error::OTelSdkError;
use prometheus::{Registry, TextEncoder};

/// The media type of what [`scrape`] gives.
pub const SCRAPE_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The process was started without `METRICS_HTTP`.
    #[error("metrics are not kept for scraping: METRICS_HTTP was not true at start")]
    NotKept,
    /// One of them has no valid form.
    #[error("write the metrics down")]
    Encode(#[source] prometheus::Error),
}

static KEPT: OnceLock<Registry> = OnceLock::new();

/// A reader for the meters, and the registry that it fills at each scrape. Names follow the rules of OpenTelemetry for
/// Prometheus: dots become underscores, a unit its word at the end, a counter ends in `_total`. The scope of a metric is no
/// label: there is one, and it would only stand on every line.
pub(crate) fn keep() -> Result<(Registry, PrometheusExporter), OTelSdkError> {
    let registry = Registry::new();
    let exporter =
        opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
    Ok((registry, exporter.build()?))
}

pub(crate) fn publish(registry: Registry) {
    // A process has one pipeline, so nothing is there yet.
    let _ = KEPT.set(registry);
}

/// Every metric of the process as it is now, in Prometheus' text format 0.0.4.
///
/// # Errors
/// Where the process was not told to keep metrics, or one cannot be written.
pub fn scrape() -> Result<String, ScrapeError> {
    let registry = KEPT.get().ok_or(ScrapeError::NotKept)?;
    TextEncoder::new().encode_to_string(&registry.gather()).map_err(ScrapeError::Encode)
}
