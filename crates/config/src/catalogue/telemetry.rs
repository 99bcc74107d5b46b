//! Standard OpenTelemetry variables, read by the exporter library under their standard names.

use crate::setting::settings;
use crate::value::kinds::{text, url};
use url::Url;

settings! {
    "Telemetry", "Nothing is exported unless an endpoint is set. Further standard `OTEL_` variables are read by the OpenTelemetry library under their standard names.";

    /// OTLP endpoint of traces, metrics and logs. Unset: nothing is exported.
    OTEL_EXPORTER_OTLP_ENDPOINT: Url = url();
    /// `grpc`, `http/protobuf` or `http/json`.
    OTEL_EXPORTER_OTLP_PROTOCOL: String = text();
}
