//! Every setting, by topic. To add one, add three lines to the `settings!` block of its topic: the doc line, the name with its
//! type, the steps of the declaration. Then run the tests of this crate with `UPDATE_DOCS=1`.
//!
//! Only what code reads is declared: a variable without a reader would be a promise.

pub mod duty;
pub mod form;
pub mod general;
pub mod housekeeping;
pub mod http;
pub mod leader;
pub mod mail;
pub mod monitor;
pub mod notice;
pub mod orchestration;
pub mod platform;
pub mod postgres;
pub mod proxy;
pub mod queue;
pub mod recording;
pub mod redis;
pub mod scaler;
pub mod storage;
pub mod telemetry;
pub mod transport;
pub mod webhook;

use crate::setting::{Declaration, Section};

/// Every topic, in the order of the documents.
pub static SECTIONS: &[&Section] = &[
    &general::SECTION,
    &platform::SECTION,
    &redis::SECTION,
    &postgres::SECTION,
    &leader::SECTION,
    &scaler::SECTION,
    &queue::SECTION,
    &http::SECTION,
    &mail::SECTION,
    &transport::SECTION,
    &notice::SECTION,
    &webhook::SECTION,
    &orchestration::SECTION,
    &monitor::SECTION,
    &storage::SECTION,
    &duty::SECTION,
    &recording::SECTION,
    &housekeeping::SECTION,
    &telemetry::SECTION,
    &proxy::SECTION,
];

/// Every declaration.
pub fn declarations() -> impl Iterator<Item = &'static Declaration> {
    SECTIONS.iter().flat_map(|section| section.declarations).copied()
}

/// Variables that begin like ours: one that is not declared is worth a warning even when it is like no other name.
pub(crate) const PREFIXES: &[&str] = &[
    "ALERT_",
    "BACKUP_",
    "CLOUD_INIT_",
    "CRL_",
    "DATABASE_",
    "DIAGNOSTIC_",
    "DISPATCHER_",
    "EMAIL_",
    "EXPORTS_",
    "EXPORT_",
    "HEALTH_",
    "HEARTBEAT_",
    "HOUSEKEEPING_",
    "INTERNAL_HTTP_",
    "LEADER_",
    "MAIL_",
    "METRICS_",
    "ORCHESTRATION_",
    "POST_CALL_",
    "PROVIDER_",
    "QUEUE_",
    "RECORDING_",
    "RECORDINGS_",
    "REDIS_",
    "RETENTION_",
    "ROLLOUT_",
    "SCALING_",
    "SCHEDULER_",
    "SES_",
    "SMTP_",
    "SYSTEM_ALERT_",
    "TASKER_",
    "VOICEAI_",
    "WATCHED_",
    "WEBHOOK_",
    "WORKER_",
];

/// Variables of other programs that begin like ours or are near to one of ours.
pub(crate) const FOREIGN: &[fn(&str) -> bool] = &[
    |name| ["OTEL_", "AWS_", "npm_", "CARGO_", "RUST"].iter().any(|prefix| name.starts_with(prefix)),
    // Where the private stack's mail sink keeps what it received.
    |name| name == "SMTP_SINK_DIR",
    // What Kubernetes and Docker links put into every container for a service named like ours.
    |name| name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT"),
    |name| name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP")),
];

/// Variables that earlier services read, with what to do instead.
pub(crate) const RETIRED: &[(&str, &str)] = &[
    ("MAIL_REDIS_ADDR", "set REDIS_URL, or REDIS_HOST and REDIS_PORT"),
    ("MAIL_REDIS_USERNAME", "set REDIS_USERNAME"),
    ("MAIL_REDIS_TLS_ENABLED", "set REDIS_URL with the scheme rediss://"),
    ("MAIL_REDIS_REPLICA_ADDRS", "replicas are not read from; unset it"),
    ("MAIL_REDIS_ATTEMPT_SCHEDULE_KEY", "attempts are rows in PostgreSQL; unset it"),
    ("MAIL_REDIS_DEAD_LETTER_PREFIX", "dead letters are rows in PostgreSQL; unset it"),
    ("MAIL_DELIVERY_TTL", "unset it"),
    ("MAIL_ATTEMPT_TTL", "unset it"),
    ("SMTP_SECURE", "set SMTP_TLS"),
];
