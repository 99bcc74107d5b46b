//! `llm.aggregate`: what language models cost, by hour and day, in total and by organization, provider, model, tier and type of request.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, AssertSqlSafe};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::period::{Asked, Known, Period, window};
use crate::tables::{Needs, oldest};
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep, begin};

const LIMIT: Duration = Duration::from_secs(1_200);

/// Sums costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmAggregate {
    /// Into hours or into days.
    pub period: Period,
    /// Begin of the first bucket; else since the newest computed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// End of the last bucket; else that of the last whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

/// What alerts and sums read of the log.
pub(crate) const USAGE: (&str, &[&str]) = (
    "llm_usage_log",
    &[
        "organization_id",
        "provider",
        "model",
        "tier",
        "request_type",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "estimated_cost_cents",
        "latency_ms",
        "success",
        "created_at",
    ],
);

impl Job for LlmAggregate {
    const KIND: &'static str = "llm.aggregate";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1_800);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, _attempt: &Attempt) -> Result<Outcome, JobError> {
        const NEEDS: Needs = Needs(&[
            USAGE,
            (
                "llm_cost_aggregates",
                &[
                    "period_type",
                    "period_start",
                    "period_end",
                    "organization_id",
                    "provider",
                    "model",
                    "tier",
                    "request_type",
                    "total_requests",
                    "successful_requests",
                    "failed_requests",
                    "total_prompt_tokens",
                    "total_completion_tokens",
                    "total_tokens",
                    "total_cost_cents",
                    "avg_latency_ms",
                    "p50_latency_ms",
                    "p95_latency_ms",
                    "p99_latency_ms",
                    "computed_at",
                ],
            ),
        ]);
        upkeep.finish(Self::KIND, NEEDS, self.aggregate(upkeep)).await
    }
}

/// `$1` `hourly` or `daily`, `$2` begin, `$3` end, `$4` `hour` or `day`.
///
/// A NULL in a dimension means "all of them", so the log's own NULLs are named `unknown` in the rows of detail, and a sum by organization
/// leaves out what belongs to none: no two rows of a bucket can be taken for one another.
const SUM: &str = "\
INSERT INTO llm_cost_aggregates (period_type, period_start, period_end, organization_id, provider, model, tier, request_type,
    total_requests, successful_requests, failed_requests, total_prompt_tokens, total_completion_tokens, total_tokens,
    total_cost_cents, avg_latency_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms, computed_at)
SELECT $1, at, at + ('1 ' || $4)::interval, organization_id, provider, model, tier, request_type,
    count(*), count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success),
    COALESCE(sum(prompt_tokens), 0), COALESCE(sum(completion_tokens), 0), COALESCE(sum(total_tokens), 0),
    COALESCE(sum(cents), 0), avg(latency_ms)::integer,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY latency_ms), percentile_disc(0.95) WITHIN GROUP (ORDER BY latency_ms),
    percentile_disc(0.99) WITHIN GROUP (ORDER BY latency_ms), now()
FROM (
    SELECT date_trunc($4, created_at, 'UTC') AS at, organization_id,
        COALESCE(provider::text, 'unknown') AS provider, COALESCE(model::text, 'unknown') AS model,
        COALESCE(tier::text, 'unknown') AS tier, COALESCE(request_type::text, 'unknown') AS request_type,
        COALESCE(success, true) AS success, prompt_tokens, completion_tokens, total_tokens,
        estimated_cost_cents AS cents, latency_ms
    FROM llm_usage_log WHERE created_at >= $2 AND created_at < $3
) log
GROUP BY at, GROUPING SETS (
    (organization_id, provider, model, tier, request_type), (organization_id, provider), (organization_id),
    (provider, model), (provider), ())
HAVING NOT (grouping(organization_id) = 0 AND organization_id IS NULL AND grouping(model) = 1)";

impl LlmAggregate {
    async fn aggregate(&self, upkeep: &Upkeep) -> Result<Value, PlatformError> {
        let word = match self.period {
            Period::Hour => "hourly",
            Period::Day => "daily",
        };
        let tried = "sum up the costs of language models";
        let mut session = upkeep.session(LIMIT).await?;
        let (newest, oldest): (Option<jiff_sqlx::Timestamp>, Option<jiff_sqlx::Timestamp>) = sqlx::query_as(
            AssertSqlSafe(format!(
                "SELECT (SELECT max(period_start)::timestamptz FROM llm_cost_aggregates \
                         WHERE period_type = $1 AND period_start > '-infinity' AND period_start <= now()), {}",
                oldest("llm_usage_log", "created_at")
            )),
        )
        .bind(word)
        .fetch_one(&mut session)
        .await
        .map_err(PlatformError::database(tried))?;
        let known = Known {
            now: Timestamp::now(),
            newest: newest.map(jiff_sqlx::Timestamp::to_jiff),
            oldest_row: oldest.map(jiff_sqlx::Timestamp::to_jiff),
            // The log is the platform's to sweep; nothing here deletes of it.
            kept: jiff::SignedDuration::from_hours(24 * 3_650),
        };
        let Some(window) = window(self.period, Asked { from: self.from, to: self.to }, known)? else {
            return Ok(json!({ "rows": 0 }));
        };
        // Replaced whole: a unique key over columns that may be NULL lets the same bucket in twice. One at a time, by the lock.
        let mut transaction = begin(&mut session, tried).await?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('voiceai:llm.aggregate', 0))")
            .execute(&mut *transaction)
            .await
            .map_err(PlatformError::database(tried))?;
        let delete = "DELETE FROM llm_cost_aggregates WHERE period_type = $1 AND period_start >= $2 AND period_start < $3";
        sqlx::query(delete)
            .bind(word)
            .bind(window.from.to_sqlx())
            .bind(window.to.to_sqlx())
            .execute(&mut *transaction)
            .await
            .map_err(PlatformError::database(tried))?;
        let done = sqlx::query(SUM)
            .bind(word)
            .bind(window.from.to_sqlx())
            .bind(window.to.to_sqlx())
            .bind(self.period.unit())
            .execute(&mut *transaction)
            .await
            .map_err(PlatformError::database(tried))?;
        transaction.commit().await.map_err(PlatformError::database(tried))?;
        Ok(json!({ "rows": done.rows_affected(), "from": window.from, "to": window.to }))
    }
}
