//! What every process of ours has.

use std::path::PathBuf;
use std::time::Duration;

use crate::setting::settings;
use crate::value::kinds::{path, seconds, text};

settings! {
    "General", "What both services need to know about themselves.";

    /// Name of the environment: part of every server's name and of the installation's mark in Redis and PostgreSQL. A process whose environment differs from the mark refuses to start.
    ENVIRONMENT: String = text().default("development").bootstrap()
        .check("letters, digits and hyphens, at most 32, neither first nor last a hyphen", is_label);
    /// Name of this process among its equals: in the leader key, the audit trail and the state file's name. Two processes of one service on one host need two.
    INSTANCE_ID: String = text().computed_default("the host's name").bootstrap()
        .check("letters, digits, `-`, `_` and `.`, at most 128", is_id);
    /// Folder of the state file that `healthcheck` reads.
    RUNTIME_DIR: PathBuf = path().computed_default("`/run/voiceai`, else the system's temporary folder").bootstrap();
    /// How long a start waits for Redis and PostgreSQL before it ends with exit code 5.
    START_TIMEOUT: Duration = seconds().default("30s").between(1_000, 3_600_000);
    /// From SIGTERM to the end: intake stops, running work is drained, leases are handed back, telemetry is flushed.
    SHUTDOWN_TIMEOUT: Duration = seconds().default("30s").aliases(&["MAIL_SHUTDOWN_TIMEOUT"]).between(1_000, 3_600_000);
    /// Least level of the log lines written: trace, debug, info, warn, error or off; or a comma list with targets, `info,fred=warn`.
    LOG_LEVEL: String = text().default("info")
        .check("trace, debug, info, warn, error or off, alone or as a list such as info,fred=warn", is_filter);
    /// Who is named in the audit trail of a command that changes something, where `--as` is not given. In a container one of the two is required.
    VOICEAI_OPERATOR: String = text().bootstrap();
    /// Development builds only: stops or aborts the process at a named point, for fault tests. A release build refuses to start with it.
    VOICEAI_FAILPOINT: String = text().bootstrap();
}

fn is_label(raw: &str) -> bool {
    let inner = raw.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    inner && raw.len() <= 32 && !raw.starts_with('-') && !raw.ends_with('-')
}

fn is_id(raw: &str) -> bool {
    raw.len() <= 128 && raw.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_filter(raw: &str) -> bool {
    let is_level = |text: &str| {
        ["trace", "debug", "info", "warn", "error", "off"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(text))
    };
    raw.split(',').map(str::trim).all(|directive| match directive.split_once('=') {
        Some((target, level)) => !target.is_empty() && is_level(level),
        None => is_level(directive),
    })
}
