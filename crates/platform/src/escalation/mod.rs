//! Alerts that nobody has taken care of go up the levels of their policy; alerts that open and close go to the channels that a
//! tenant's rules name.
//!
//! [`AlertEscalate`] takes one due alert after the other, each in a transaction of its own under `SKIP LOCKED`: the alert's new level
//! and the jobs that tell of it are committed together, so that each level of an alert is told once, whoever is killed when.
//! [`AlertPost`] posts to a level's address. [`NotificationDispatch`] makes rows of `notification_jobs` out of the routing rules and
//! delivers them.

pub mod channel;
mod decide;
mod dispatch;
mod post;
mod rows;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, HistoryMode, Job, JobError, Outcome};

pub use decide::{Level, Step, addresses, decide};
pub use dispatch::NotificationDispatch;
pub use post::AlertPost;

use crate::outgoing::Outgoing;
use crate::{Needs, PlatformError, finish, missing};

const NEEDS: Needs = Needs(&[
    (
        "fleet_alert",
        &[
            "id",
            "tenant_id",
            "device_id",
            "alert_type",
            "status",
            "severity",
            "summary",
            "created_at",
            "escalation_level",
            "escalated_at",
            "next_escalation_at",
        ],
    ),
    ("escalation_policies", &["policy_id", "tenant_id", "is_default"]),
    (
        "escalation_levels",
        &[
            "level_id",
            "policy_id",
            "level_number",
            "delay_minutes",
            "notify_email",
            "notify_webhook",
            "oncall_schedule_id",
        ],
    ),
]);
const RULES: Needs = Needs(&[
    ("alert_rules", &["tenant_id", "rule_id", "escalation_policy_id"]),
    ("fleet_alert", &["rule_id"]),
]);
const SCHEDULES: Needs = Needs(&[
    ("oncall_schedules", &["schedule_id"]),
    ("oncall_layers", &["layer_id", "schedule_id", "layer_order", "responders"]),
    ("oncall_overrides", &["schedule_id", "responder", "start_at", "end_at"]),
]);
/// The queue of duties: one that pauses or fills `default` keeps nobody from being called at night.
pub const DUTY_QUEUE: &str = "duties";
/// Alerts of one run.
const ALERTS_MAX: usize = 200;

/// What the jobs of this module work with.
#[derive(Clone, Debug)]
pub struct EscalationContext {
    /// Where the rows are.
    pub pool: PgPool,
    /// The ways out.
    pub outgoing: Outgoing,
}

/// `alerts.escalate`: every alert whose time has come.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertEscalate {}

impl Job for AlertEscalate {
    const KIND: &'static str = "alerts.escalate";
    const QUEUE: &'static str = DUTY_QUEUE;
    const HISTORY: HistoryMode = HistoryMode::Failures;
    const PRIORITY: u8 = 8;
    type Context = EscalationContext;

    async fn run(&self, context: &EscalationContext, _attempt: &Attempt) -> Result<Outcome, JobError> {
        finish(&context.pool, Self::KIND, NEEDS, escalate(&context.pool)).await
    }
}

async fn escalate(pool: &PgPool) -> Result<Value, PlatformError> {
    let tables = rows::Tables {
        rules: missing(pool, RULES).await?.is_none(),
        schedules: missing(pool, SCHEDULES).await?.is_none(),
    };
    let (mut told, mut ended) = (0, 0);
    let (mut seen, mut failed): (Vec<i64>, Vec<Value>) = (Vec::new(), Vec::new());
    while seen.len() < ALERTS_MAX {
        match rows::take_one(pool, tables, &seen, Timestamp::now()).await? {
            rows::Taken::None => break,
            rows::Taken::Told(alert) => {
                told += 1;
                seen.push(alert);
            }
            rows::Taken::Ended(alert) => {
                ended += 1;
                seen.push(alert);
            }
            // One alert that cannot be handled keeps no other from being told of.
            rows::Taken::Failed(alert, error) => {
                tracing::error!(alert, error, "an alert cannot be escalated");
                failed.push(json!({ "alert": alert, "error": error }));
                seen.push(alert);
            }
        }
    }
    if failed.is_empty() || told + ended > 0 {
        return Ok(json!({ "escalated": told, "ended": ended, "failed": failed }));
    }
    Err(PlatformError::invalid(
        "alerts",
        format!("none of {} could be escalated: {}", failed.len(), failed[0]),
    ))
}
