//! Every migration file, embedded. A file is frozen once it has landed: a change is a new file. A file whose name starts
//! with `breaking_` after its number makes older binaries refuse the database.

use crate::Component;

macro_rules! component {
    ($name:literal, $folder:literal, [$($file:literal),* $(,)?]) => {
        Component {
            name: $name,
            files: &[$(($file, include_str!(concat!("../../../migrations/", $folder, "/", $file, ".sql")))),*],
        }
    };
}

/// Leader terms, audit, installation, outbox: run by both binaries.
pub const COMMON: Component = component!("common", "common", ["0001_leadership", "0010_outbox"]);

/// Servers, operations, decisions.
pub const SCALER: Component =
    component!("scaler", "scaler", ["0001_servers", "0002_server_group", "0010_providers", "0011_spec_hash"]);

/// Schedules, job history, backups.
pub const TASKER: Component = component!(
    "tasker",
    "tasker",
    [
        "0001_schedules",
        "0002_job_history",
        "0010_backups",
        "0020_replays",
        "0021_queue_settings",
        "0030_webhooks",
        "0031_webhook_disabled",
        "0032_webhook_disabled_notice",
        "0040_backup_series",
        "0041_export_jobs",
        "0042_export_callbacks",
        "0050_notices",
        "0060_service_health",
        "0061_system_metrics",
        "0070_housekeeping",
        "0075_certificates",
        "0076_notice_audiences",
        "0077_sla_reports",
        "0078_rollout_orders",
        "0080_recordings",
        "0085_orchestration",
        "0093_export_scope",
        "0096_orchestration_told",
        "0097_revocation_list_placed",
    ]
);

/// Outgoing mail.
pub const MAIL: Component = component!("mail", "mail", ["0001_deliveries", "0002_feedback", "0003_upkeep"]);

/// Every component, in the order in which they are run.
pub const ALL: &[Component] = &[COMMON, SCALER, TASKER, MAIL];
