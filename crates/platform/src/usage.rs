//! `usage.aggregate`: sums of `usage_events` by tenant and metric, for every hour and day of UTC.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::period::{Asked, Known, Period, window};
use crate::tables::{Needs, newest, oldest};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep};

const LIMIT: Duration = Duration::from_secs(1_200);

/// Sums usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageAggregate {
    /// Into hours or into days.
    pub period: Period,
    /// Begin of the first bucket; else since the newest computed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// End of the last bucket; else that of the last whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

impl Job for UsageAggregate {
    const KIND: &'static str = "usage.aggregate";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1_800);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, _attempt: &Attempt) -> Result<Outcome, JobError> {
        const EVENTS: (&str, &[&str]) = ("usage_events", &["tenant_id", "metric", "quantity", "occurred_at"]);
        const HOURS: Needs = Needs(&[
            EVENTS,
            ("usage_hourly", &["tenant_id", "metric", "hour", "quantity", "events", "computed_at"]),
        ]);
        const DAYS: Needs = Needs(&[
            EVENTS,
            ("usage_daily", &["tenant_id", "metric", "day", "quantity", "events", "computed_at"]),
        ]);
        let needs = match self.period {
            Period::Hour => HOURS,
            Period::Day => DAYS,
        };
        upkeep.finish(Self::KIND, needs, self.aggregate(upkeep)).await
    }
}

impl UsageAggregate {
    async fn aggregate(&self, upkeep: &Upkeep) -> Result<Value, PlatformError> {
        let (table, column, cast) = match self.period {
            Period::Hour => ("usage_hourly", "hour", ""),
            Period::Day => ("usage_daily", "day", "::date"),
        };
        let mut session = upkeep.session(LIMIT).await?;
        let sql = format!("SELECT {}, {}", newest(table, column), oldest("usage_events", "occurred_at"));
        let (newest, oldest): (Option<jiff_sqlx::Timestamp>, Option<jiff_sqlx::Timestamp>) =
            sqlx::query_as(AssertSqlSafe(sql))
                .fetch_one(&mut session)
                .await
                .map_err(PlatformError::database("look for the newest sums of usage"))?;
        let known = Known {
            now: Timestamp::now(),
            newest: newest.map(jiff_sqlx::Timestamp::to_jiff),
            oldest_row: oldest.map(jiff_sqlx::Timestamp::to_jiff),
            kept: upkeep.kept_events(),
        };
        let Some(window) = window(self.period, Asked { from: self.from, to: self.to }, known)? else {
            return Ok(json!({ "rows": 0 }));
        };
        let unit = self.period.unit();
        // A day is summed from the events, not from the hours: it is right whether or not its hours were.
        let sql = format!(
            "INSERT INTO {table} (tenant_id, metric, {column}, quantity, events, computed_at) \
             SELECT tenant_id, metric, date_trunc('{unit}', occurred_at, 'UTC'){cast}, COALESCE(sum(quantity), 0), count(*), now() \
             FROM usage_events WHERE occurred_at >= $1 AND occurred_at < $2 AND tenant_id IS NOT NULL AND metric IS NOT NULL \
             GROUP BY 1, 2, 3 \
             ON CONFLICT (tenant_id, metric, {column}) DO UPDATE \
             SET quantity = EXCLUDED.quantity, events = EXCLUDED.events, computed_at = EXCLUDED.computed_at"
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(window.from.to_sqlx())
            .bind(window.to.to_sqlx())
            .execute(&mut session)
            .await
            .map_err(PlatformError::database("sum up usage"))?;
        Ok(json!({ "rows": done.rows_affected(), "from": window.from, "to": window.to }))
    }
}
