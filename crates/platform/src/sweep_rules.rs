//! What a sweep deletes. A rule is a table, the columns it uses, and which of its rows are old.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::Retention;
use crate::tables::Needs;

/// Which tables a sweep goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SweepSet {
    /// Trails of what was done: the platform's audit, subscriptions, notifications, and our own log of upkeep.
    Logs,
    /// Processed webhooks, events, the platform's log of mail, what has an end of its own, caches.
    Platform,
    /// Ended runs of agents.
    Orchestration,
}

/// Which rows go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) table: &'static str,
    pub(crate) needs: Needs,
    /// Over the table's columns, with `$1` for the age in seconds. `t` is the table.
    pub(crate) old: &'static str,
    /// How old; `None` where the row says itself when it ends.
    pub(crate) age: Option<fn(&Retention) -> Duration>,
    /// Emptied rather than deleted: the assignments.
    pub(crate) clears: Option<&'static str>,
}

macro_rules! rule {
    ($table:literal, [$($column:literal),+], $age:expr, $old:expr) => {
        Rule { table: $table, needs: Needs(&[($table, &[$($column),+])]), old: $old, age: $age, clears: None }
    };
}

const LOGS: &[Rule] = &[
    rule!(
        "audit_log",
        ["timestamp"],
        Some(|kept| kept.audit),
        r#"t."timestamp" < now() - make_interval(secs => $1)"#
    ),
    rule!(
        "subscription_audit",
        ["event_timestamp"],
        Some(|kept| kept.subscription_audit),
        "t.event_timestamp < now() - make_interval(secs => $1)"
    ),
    rule!(
        "subscription_notifications",
        ["created_at", "status"],
        Some(|kept| kept.notifications),
        "t.created_at < now() - make_interval(secs => $1) AND t.status IS DISTINCT FROM 'PENDING'"
    ),
    rule!(
        "notification_log",
        ["sent_at"],
        Some(|kept| kept.notifications),
        "t.sent_at < now() - make_interval(secs => $1)"
    ),
    rule!(
        "notification_jobs",
        ["updated_at", "status"],
        Some(|kept| kept.notifications),
        "t.updated_at < now() - make_interval(secs => $1) AND t.status IN ('COMPLETED', 'FAILED')"
    ),
    rule!(
        "ops.maintenance_log",
        ["started_at", "status"],
        Some(|kept| kept.maintenance_log),
        "t.started_at < now() - make_interval(secs => $1) AND t.status <> 'RUNNING'"
    ),
    // A mark guards the effects of a term of months: it outlives the longest of them.
    rule!("ops.housekeeping_marks", ["at"], Some(|_| MARKS_KEPT), "t.at < now() - make_interval(secs => $1)"),
];

const MARKS_KEPT: Duration = Duration::from_secs(5 * 366 * 86_400);

const PLATFORM: &[Rule] = &[
    rule!(
        "payment_webhooks",
        ["created_at", "processed"],
        Some(|kept| kept.payment_webhooks),
        "t.created_at < now() - make_interval(secs => $1) AND t.processed"
    ),
    rule!(
        "analytics_events",
        ["timestamp"],
        Some(|kept| kept.events),
        r#"t."timestamp" < now() - make_interval(secs => $1)"#
    ),
    rule!(
        "usage_events",
        ["occurred_at"],
        Some(|kept| kept.events),
        "t.occurred_at < now() - make_interval(secs => $1)"
    ),
    rule!(
        "email_logs",
        ["created_at"],
        Some(|kept| kept.mail_logs),
        "t.created_at < now() - make_interval(secs => $1)"
    ),
    rule!(
        "email_queue",
        ["created_at", "status", "attempts", "max_attempts"],
        Some(|kept| kept.mail_logs),
        "t.created_at < now() - make_interval(secs => $1) \
         AND (t.status IN ('sent', 'cancelled') OR (t.status = 'failed' AND t.attempts >= t.max_attempts))"
    ),
    rule!("email_bounce_list", ["expires_at"], None, "t.expires_at < now() AND $1::float8 IS NOT NULL"),
    rule!("github_analysis_cache", ["expires_at"], None, "t.expires_at < now() AND $1::float8 IS NOT NULL"),
    Rule {
        table: "analytics_reports",
        needs: Needs(&[("analytics_reports", &["cached_data", "cached_at", "cache_ttl_seconds"])]),
        old: "t.cached_data IS NOT NULL AND $1::float8 IS NOT NULL \
              AND t.cached_at < now() - make_interval(secs => COALESCE(t.cache_ttl_seconds, 3600))",
        age: None,
        clears: Some("cached_data = NULL, cached_at = NULL"),
    },
];

const ORCHESTRATION: &[Rule] = &[
    rule!(
        "orchestration_execution_logs",
        ["date_created"],
        Some(|kept| kept.execution_logs),
        "t.date_created < now() - make_interval(secs => $1)"
    ),
    // A run that a later one names as its parent goes after that one: the lineage is never cut.
    rule!(
        "orchestration_jobs",
        ["id", "status", "completed_at", "date_created", "parent_job_id"],
        Some(|kept| kept.orchestration_jobs),
        "COALESCE(t.completed_at, t.date_created) < now() - make_interval(secs => $1) \
         AND t.status IN ('completed', 'failed', 'cancelled', 'timeout') \
         AND NOT EXISTS (SELECT FROM orchestration_jobs c WHERE c.parent_job_id = t.id)"
    ),
];

impl SweepSet {
    pub(crate) const fn rules(self) -> &'static [Rule] {
        match self {
            Self::Logs => LOGS,
            Self::Platform => PLATFORM,
            Self::Orchestration => ORCHESTRATION,
        }
    }
}

impl Rule {
    /// The statement of one batch: `$1` is the age in seconds, `$2` the most rows. Rows that others hold are left for later, and the
    /// condition is asked again of the row itself, so that a row's place in another partition is no licence.
    pub(crate) fn statement(&self) -> String {
        let Self { table, old, .. } = self;
        let batch =
            format!("ARRAY(SELECT t.ctid FROM {table} t WHERE {old} LIMIT $2 FOR UPDATE OF t SKIP LOCKED)");
        match self.clears {
            Some(assignments) => {
                format!("UPDATE {table} t SET {assignments} WHERE t.ctid = ANY({batch}) AND {old}")
            }
            None => format!("DELETE FROM {table} t WHERE t.ctid = ANY({batch}) AND {old}"),
        }
    }

    /// What stays where a table is emptied of what is older than this.
    pub(crate) fn age(&self, kept: &Retention) -> Duration {
        self.age.map_or(Duration::ZERO, |age| age(kept))
    }
}
