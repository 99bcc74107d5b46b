//! JSON logs, traces, metrics and logs by OTLP.
