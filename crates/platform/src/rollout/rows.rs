//! Campaigns and their targets.

use std::time::Duration;

use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgConnection, PgPool, Row as _};

use super::decide::{Counts, Pace, Step, decide};
use crate::PlatformError;
use crate::tables::typed;

/// How long an order may be under way before another process gives it again.
const CLAIM: &str = "interval '60 seconds'";
/// Attempts at one order.
pub(super) const ATTEMPTS_MAX: i32 = 5;

/// A rollout that runs.
#[derive(Debug, Clone)]
pub(super) struct Campaign {
    pub(super) id: i64,
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) pace: Pace,
    /// Where its orders go, where it says so itself.
    pub(super) url: Option<String>,
    /// What is rolled out, as its row says.
    pub(super) what: Value,
}

/// An order that this process is to give.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) target: String,
    pub(super) attempts: i32,
}

/// The campaigns that run, and the ids of those that nobody can carry out: they belong to no tenant.
pub(super) async fn running(pool: &PgPool) -> Result<(Vec<Campaign>, Vec<i64>), PlatformError> {
    let tried = || PlatformError::database("read the rollouts that run");
    let rows = sqlx::query(
        "SELECT c.id::bigint, c.tenant_id::text, COALESCE(c.name::text, c.id::text), c.rollout_strategy::text, c.rollout_rate::bigint, \
             c.abort_threshold::float8, to_jsonb(c) \
         FROM ota_campaigns c WHERE c.status = 'RUNNING' ORDER BY c.id LIMIT 1000",
    )
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    let has_firmware: bool = sqlx::query_scalar("SELECT to_regclass('firmware_versions') IS NOT NULL")
        .fetch_one(pool)
        .await
        .map_err(tried())?;
    let (mut campaigns, mut nobodys) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let own: Value = row.try_get(6).map_err(tried())?;
        let id: i64 = row.try_get(0).map_err(tried())?;
        let Some(tenant) = row.try_get::<Option<String>, _>(1).map_err(tried())? else {
            nobodys.push(id);
            continue;
        };
        let mut what = json!({});
        let version = match &own["firmware_version_id"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        if let (true, Some(version)) = (has_firmware, version) {
            let found: Option<Value> =
                sqlx::query_scalar("SELECT to_jsonb(f) FROM firmware_versions f WHERE f.id::text = $1")
                    .bind(version)
                    .fetch_optional(pool)
                    .await
                    .map_err(tried())?;
            if let Some(found) = found {
                what = json!({ "version": found["version"], "firmware_url": found["file_url"], "checksum": found["checksum_sha256"] });
            }
        }
        let url =
            own["dispatch_url"].as_str().map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned);
        let rate: i64 = row.try_get::<Option<i64>, _>(4).map_err(tried())?.unwrap_or(10);
        campaigns.push(Campaign {
            id,
            tenant,
            name: row.try_get(2).map_err(tried())?,
            pace: Pace {
                is_canary: row.try_get::<Option<String>, _>(3).map_err(tried())?.as_deref() == Some("canary"),
                rate: u32::try_from(rate.clamp(0, 10_000)).unwrap_or(0),
                abort_above: row.try_get::<Option<f64>, _>(5).map_err(tried())?.unwrap_or(0.1),
            },
            url,
            what,
        });
    }
    Ok((campaigns, nobodys))
}

/// What one look at a campaign led to.
#[derive(Debug)]
pub(super) enum Looked {
    /// Another process has it, or it runs no longer.
    Elsewhere,
    /// These orders are claimed; give them.
    Claimed(Vec<Order>),
    /// Nothing is to be ordered now.
    Waiting,
    /// It has ended.
    Ended(&'static str),
}

/// One look at a campaign, in one transaction that holds its row: what timed out is failed, the step decided and taken. `can_order` is
/// false where nothing could be posted.
pub(super) async fn look(
    pool: &PgPool,
    campaign: &Campaign,
    report_timeout: Duration,
    can_order: bool,
) -> Result<Looked, PlatformError> {
    let tried = || PlatformError::database("take a rollout's next step");
    let mut tx = pool.begin().await.map_err(tried())?;
    let held: Option<bool> = sqlx::query_scalar(
        "SELECT true FROM ota_campaigns WHERE id = $1::bigint AND status = 'RUNNING' FOR UPDATE SKIP LOCKED",
    )
    .bind(campaign.id)
    .fetch_optional(&mut *tx)
    .await
    .map_err(tried())?;
    if held.is_none() {
        return Ok(Looked::Elsewhere);
    }
    time_out(&mut tx, campaign, report_timeout).await?;
    let counts = recount(&mut tx, campaign).await?;
    let looked = match decide(counts, campaign.pace) {
        Step::Abort => {
            end(&mut tx, campaign, "ABORTED", counts).await?;
            Looked::Ended("ABORTED")
        }
        Step::Complete => {
            end(&mut tx, campaign, "COMPLETED", counts).await?;
            Looked::Ended("COMPLETED")
        }
        step => {
            let more = if let Step::Order(more) = step { more } else { 0 };
            let orders = if can_order { claim(&mut tx, campaign, more).await? } else { Vec::new() };
            if orders.is_empty() { Looked::Waiting } else { Looked::Claimed(orders) }
        }
    };
    tx.commit().await.map_err(tried())?;
    Ok(looked)
}

/// The tenant of a campaign, `$2`, in the type that its targets have it in.
fn owner() -> String {
    typed("ota_device_status", "tenant_id", "$2::text")
}

/// Targets that were ordered long ago and never reported an end.
async fn time_out(
    connection: &mut PgConnection,
    campaign: &Campaign,
    after: Duration,
) -> Result<(), PlatformError> {
    let sql = format!(
        "UPDATE ota_device_status d SET status = 'FAILED', completed_at = now(), error_message = 'no report of its end' \
         WHERE d.campaign_id = $1::bigint AND d.tenant_id = {} AND d.status IN ('DOWNLOADING', 'INSTALLING') \
           AND COALESCE((SELECT o.sent_at FROM ops.rollout_orders o WHERE o.tenant = $2 AND o.campaign = $1::bigint::text \
                         AND o.target = d.device_id::text), d.started_at::timestamptz, d.created_at::timestamptz) < now() - make_interval(secs => $3) \
           AND NOT (d.status = 'DOWNLOADING' AND EXISTS ( \
                SELECT FROM ops.rollout_orders o WHERE o.tenant = $2 AND o.campaign = $1::bigint::text \
                AND o.target = d.device_id::text AND o.state = 'claimed'))",
        owner()
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(campaign.id)
        .bind(&campaign.tenant)
        .bind(after.as_secs_f64())
        .execute(connection)
        .await
        .map(drop)
        .map_err(PlatformError::database("fail the targets that never reported"))
}

async fn recount(connection: &mut PgConnection, campaign: &Campaign) -> Result<Counts, PlatformError> {
    let tried = || PlatformError::database("count a rollout's targets");
    let sql = format!(
        "WITH counted AS ( \
             SELECT count(*) AS total, count(*) FILTER (WHERE status = 'PENDING') AS pending, \
                 count(*) FILTER (WHERE status IN ('DOWNLOADING', 'INSTALLING')) AS under_way, \
                 count(*) FILTER (WHERE status = 'SUCCESS') AS succeeded, count(*) FILTER (WHERE status = 'FAILED') AS failed \
             FROM ota_device_status WHERE campaign_id = $1::bigint AND tenant_id = {} \
         ), written AS ( \
             UPDATE ota_campaigns c SET total_devices = n.total, succeeded = n.succeeded, failed = n.failed, \
                 started_at = COALESCE(c.started_at, now()) \
             FROM counted n WHERE c.id = $1::bigint \
         ) \
         SELECT pending, under_way, succeeded, failed FROM counted",
        owner()
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(campaign.id)
        .bind(&campaign.tenant)
        .fetch_one(connection)
        .await
        .map_err(tried())?;
    let count = |column: usize| row.try_get::<i64, _>(column).map(i64::unsigned_abs).map_err(tried());
    Ok(Counts { pending: count(0)?, under_way: count(1)?, succeeded: count(2)?, failed: count(3)? })
}

/// Claims what another process left, and `more` new targets: the order's row and the target's state come before the post.
async fn claim(
    connection: &mut PgConnection,
    campaign: &Campaign,
    more: u64,
) -> Result<Vec<Order>, PlatformError> {
    let tried = || PlatformError::database("claim a rollout's targets");
    let statement = format!(
        "WITH chosen AS ( \
             SELECT d.id, d.device_id::text AS device_id FROM ota_device_status d \
             WHERE d.campaign_id = $1::bigint AND d.tenant_id = {owner} AND d.status = 'PENDING' \
             ORDER BY d.id LIMIT $3 FOR UPDATE SKIP LOCKED \
         ), marked AS ( \
             UPDATE ota_device_status d SET status = 'DOWNLOADING', started_at = now(), error_message = NULL \
             FROM chosen WHERE d.id = chosen.id \
         ), fresh AS ( \
             INSERT INTO ops.rollout_orders AS o (tenant, campaign, target, state, attempts, claim_expires_at) \
             SELECT $2, $1::bigint::text, device_id, 'claimed', 1, clock_timestamp() + {CLAIM} FROM chosen \
             ON CONFLICT (tenant, campaign, target) DO UPDATE SET state = 'claimed', attempts = 1, sent_at = NULL, \
                 claimed_at = clock_timestamp(), claim_expires_at = EXCLUDED.claim_expires_at \
             RETURNING target, attempts \
         ), left_over AS ( \
             UPDATE ops.rollout_orders o SET attempts = o.attempts + 1, claimed_at = clock_timestamp(), \
                 claim_expires_at = clock_timestamp() + {CLAIM} \
             FROM ( \
                 SELECT x.target FROM ops.rollout_orders x JOIN ota_device_status d ON d.tenant_id = {owner} \
                     AND d.campaign_id = $1::bigint AND d.device_id::text = x.target AND d.status = 'DOWNLOADING' \
                 WHERE x.tenant = $2 AND x.campaign = $1::bigint::text AND x.state = 'claimed' AND x.claim_expires_at <= clock_timestamp() \
                 ORDER BY x.claimed_at LIMIT $4 \
             ) AS due \
             WHERE o.tenant = $2 AND o.campaign = $1::bigint::text AND o.target = due.target \
             RETURNING o.target, o.attempts \
         ) \
         SELECT target, attempts FROM left_over UNION ALL SELECT target, attempts FROM fresh",
        owner = owner()
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(campaign.id)
        .bind(&campaign.tenant)
        .bind(i64::try_from(more).unwrap_or(i64::MAX))
        .bind(i64::from(campaign.pace.rate.max(1)))
        .fetch_all(connection)
        .await
        .map_err(tried())?;
    rows.iter()
        .map(|row| {
            Ok(Order { target: row.try_get(0).map_err(tried())?, attempts: row.try_get(1).map_err(tried())? })
        })
        .collect()
}

async fn end(
    connection: &mut PgConnection,
    campaign: &Campaign,
    status: &str,
    counts: Counts,
) -> Result<(), PlatformError> {
    let tried = || PlatformError::database("end a rollout");
    if status == "ABORTED" {
        // Also those whose order was claimed and is not known to have left.
        let sql = format!(
            "UPDATE ota_device_status d SET status = 'SKIPPED', completed_at = now(), error_message = 'the rollout was aborted' \
             WHERE d.campaign_id = $1::bigint AND d.tenant_id = {} AND (d.status = 'PENDING' OR (d.status = 'DOWNLOADING' \
                   AND EXISTS (SELECT FROM ops.rollout_orders o WHERE o.tenant = $2 AND o.campaign = $1::bigint::text \
                               AND o.target = d.device_id::text AND o.state = 'claimed' AND o.claim_expires_at <= clock_timestamp())))",
            owner()
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(campaign.id)
            .bind(&campaign.tenant)
            .execute(&mut *connection)
            .await
            .map_err(tried())?;
    }
    let sql = format!(
        "UPDATE ota_campaigns SET status = {}, completed_at = now() WHERE id = $1::bigint",
        typed("ota_campaigns", "status", "$2::text")
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(campaign.id)
        .bind(status)
        .execute(&mut *connection)
        .await
        .map_err(tried())?;
    let total = counts.pending + counts.under_way + counts.succeeded + counts.failed;
    let word = status.to_ascii_lowercase();
    let reason = format!(
        "{} of {total} succeeded, {} failed, {} were not begun",
        counts.succeeded, counts.failed, counts.pending
    );
    let severity = if status == "ABORTED" { 4 } else { 2 };
    let payload = json!({
        "event": format!("rollout_{word}"), "group": campaign.name, "server": campaign.tenant, "reason": reason,
        "severity": severity,
    });
    sqlx::query(
        "INSERT INTO ops.outbox (id, queue, kind, payload, critical) \
         VALUES ($1, 'email-queue', 'notification.send', $2::json, true) ON CONFLICT DO NOTHING",
    )
    .bind(format!("rollout:{}:{word}", campaign.id))
    .bind(payload.to_string())
    .execute(&mut *connection)
    .await
    .map_err(tried())?;
    let data = json!({ "campaign_id": campaign.id, "name": campaign.name, "status": status, "succeeded": counts.succeeded,
                       "failed": counts.failed, "not_begun": counts.pending });
    let event = voiceai_webhook::NewEvent {
        tenant: &campaign.tenant,
        event_type: &format!("rollout.{word}"),
        id: &format!("rollout:{}:{word}", campaign.id),
        data: &data,
        at: jiff::Timestamp::now(),
    };
    voiceai_webhook::emit_within(connection, &event, 262_144)
        .await
        .map(drop)
        .map_err(|error| PlatformError::invalid(format!("rollout {}", campaign.id), crate::text(&error)))
}

/// The order left.
pub(super) async fn sent(pool: &PgPool, campaign: &Campaign, order: &Order) -> Result<(), PlatformError> {
    sqlx::query(
        "UPDATE ops.rollout_orders SET state = 'sent', sent_at = clock_timestamp(), claim_expires_at = NULL, last_error = NULL \
         WHERE tenant = $1 AND campaign = $2::bigint::text AND target = $3",
    )
    .bind(&campaign.tenant)
    .bind(campaign.id)
    .bind(&order.target)
    .execute(pool)
    .await
    .map(drop)
    .map_err(PlatformError::database("write down a rollout's order"))
}

/// The order did not leave: once more after `wait`, or never when that is absent. A target that has reported meanwhile got it all the
/// same.
pub(super) async fn refused(
    pool: &PgPool,
    campaign: &Campaign,
    order: &Order,
    error: &str,
    wait: Option<Duration>,
) -> Result<(), PlatformError> {
    let tried = || PlatformError::database("write down a rollout's failed order");
    let mut tx = pool.begin().await.map_err(tried())?;
    sqlx::query(
        "UPDATE ops.rollout_orders SET last_error = $4, state = CASE WHEN $5::float8 IS NULL THEN 'failed' ELSE 'claimed' END, \
             claim_expires_at = clock_timestamp() + make_interval(secs => $5) \
         WHERE tenant = $1 AND campaign = $2::bigint::text AND target = $3",
    )
    .bind(&campaign.tenant)
    .bind(campaign.id)
    .bind(&order.target)
    .bind(error)
    .bind(wait.map(|wait| wait.as_secs_f64()))
    .execute(&mut *tx)
    .await
    .map_err(tried())?;
    if wait.is_none() {
        let sql = format!(
            "UPDATE ota_device_status SET status = 'FAILED', completed_at = now(), error_message = $4 \
             WHERE tenant_id = {} AND campaign_id = $2::bigint AND device_id = {} AND status = 'DOWNLOADING'",
            typed("ota_device_status", "tenant_id", "$1::text"),
            typed("ota_device_status", "device_id", "$3::text")
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&campaign.tenant)
            .bind(campaign.id)
            .bind(&order.target)
            .bind(error)
            .execute(&mut *tx)
            .await
            .map_err(tried())?;
    }
    tx.commit().await.map_err(tried())
}
