//! How attempts end, written down. Each end, and each lot of those that were taken, is one statement.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;
use voiceai_postgres::sqlx::{self, Connection as _, PgPool, Row};

use crate::claim::{Busy, Claimed, DURABLE, begin};
use crate::error::WebhookError;
use crate::retry::Policy;

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Again { wait: Duration },
    Dead { reason: &'static str },
}

/// How an attempt ended, as it is written.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) outcome: &'static str,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
    pub(crate) response: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) took: Duration,
    /// The endpoint asked to be left alone, or to be left for ever.
    pub(crate) rest: Option<Duration>,
    pub(crate) gone: bool,
}

/// What writing a failure brought about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// False: the claim had passed to another.
    pub(crate) ours: bool,
    /// Why the endpoint was disabled with it.
    pub(crate) disabled: Option<String>,
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Writes how an attempt failed, and what that says of the endpoint.
pub(crate) async fn fail(
    pool: &PgPool,
    policy: &Policy,
    claimed: &Claimed,
    ended: &Ended,
) -> Result<Written, WebhookError> {
    let tried = "write down how a webhook attempt failed";
    let (wait, dead) = match ended.end {
        End::Again { wait } => (Some(wait.as_secs_f64()), None),
        End::Dead { reason } => (None, Some(reason)),
        End::Delivered => (None, None),
    };
    let mut transaction = begin(pool, DURABLE, tried).await?;
    let row = sqlx::query(FAIL)
        .bind(claimed.id)
        .bind(claimed.lot.id)
        .bind(wait)
        .bind(dead)
        .bind(ended.outcome)
        .bind(ended.status.map(i32::from))
        .bind(&ended.error)
        .bind(&ended.response)
        .bind(&ended.address)
        .bind(ended.retry_after.map(ms))
        .bind(ms(ended.took))
        .bind(ended.rest.map(|rest| rest.as_secs_f64()))
        .bind(ended.gone)
        .bind(i64::from(policy.circuit_failures))
        .bind(policy.circuit_pause.as_secs_f64())
        .bind(policy.circuit_pause_max.as_secs_f64())
        .bind(policy.disable_after.as_secs_f64())
        .bind(claimed.ticket)
        .fetch_one(&mut *transaction)
        .await
        .map_err(WebhookError::database(tried))?;
    let written = Written {
        ours: row.try_get("ours").map_err(WebhookError::database(tried))?,
        disabled: row.try_get("disabled").map_err(WebhookError::database(tried))?,
    };
    transaction.commit().await.map_err(WebhookError::database(tried))?;
    Ok(written)
}

// The lot is locked against whoever takes it back: while it stands, its deliveries are ours. When the endpoint is disabled, by 410 or by
// its long failure, this delivery is dead with it; what waits is given up afterwards. A replay brings them back.
const FAIL: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now), lot AS MATERIALIZED (
    SELECT id FROM ops.webhook_claims WHERE id = $2 FOR KEY SHARE
), ours AS MATERIALIZED (
    SELECT o.id, o.endpoint_id, o.attempts + 1 AS attempt_no FROM lot, ops.webhook_open o WHERE o.id = $1 AND o.ticket = $18
    FOR UPDATE OF o
), judged AS MATERIALIZED (
    SELECT e.id, e.failures + 1 AS failures, COALESCE(e.failing_since, now) AS failing_since, e.resting_until,
        CASE WHEN $13 THEN 'gone'
             WHEN COALESCE(e.failing_since, now) <= now - make_interval(secs => $17) THEN 'failing' END AS reason
    FROM ops.webhook_endpoints e, ours, clock WHERE e.id = ours.endpoint_id AND e.state = 'active' FOR NO KEY UPDATE OF e
), failed AS (
    UPDATE ops.webhook_endpoints e SET failures = j.failures, failing_since = j.failing_since, updated_at = now,
        resting_until = GREATEST(j.resting_until, now + make_interval(secs => $12),
            CASE WHEN j.failures >= $14
                THEN now + make_interval(secs => LEAST($16, $15 * power(2, LEAST(j.failures - $14, 20)))) END),
        state = CASE WHEN j.reason IS NULL THEN 'active' ELSE 'disabled' END, disabled_reason = j.reason,
        disabled_by = CASE WHEN j.reason IS NOT NULL THEN 'itself' END, disabled_at = CASE WHEN j.reason IS NOT NULL THEN now END
    FROM judged j, clock WHERE e.id = j.id
), again AS (
    UPDATE ops.webhook_open o SET ticket = DEFAULT, attempts = ours.attempt_no, rung = o.rung + 1,
        due_at = now + make_interval(secs => $3), last_status = $6, last_error = $7
    FROM ours, judged j, clock WHERE o.id = ours.id AND $3::float8 IS NOT NULL AND j.reason IS NULL
), over AS (
    DELETE FROM ops.webhook_open o USING ours LEFT JOIN judged j ON true
    WHERE o.id = ours.id AND ($3::float8 IS NULL OR j.id IS NULL OR j.reason IS NOT NULL)
    RETURNING o.*, ours.attempt_no
), kept AS (
    INSERT INTO ops.webhook_ended (id, endpoint_id, event_seq, tenant, event_id, event_type, state, attempts, dead_reason,
        last_status, last_error, replays, created_at, ended_at)
    SELECT id, endpoint_id, event_seq, tenant, event_id, event_type, 'dead', attempt_no, COALESCE($4, 'endpoint_disabled'), $6, $7,
        replays, created_at, now FROM over, clock
), attempt AS (
    INSERT INTO ops.webhook_failures (delivery_id, attempt_no, started_at, ended_at, outcome, status, error, response, address,
        retry_after_ms, duration_ms)
    SELECT id, attempt_no, now - $11 * interval '1 millisecond', now, $5, $6, $7, $8, $9, $10, $11 FROM ours, clock
)
SELECT EXISTS (SELECT FROM ours) AS ours, (SELECT reason FROM judged) AS disabled";

/// Writes down deliveries that were taken, all of them in one statement. Answers those whose claim was still ours.
pub(crate) async fn deliver(
    pool: &PgPool,
    busy: &mut Busy,
    ends: &[(&Claimed, &Ended)],
) -> Result<HashSet<Uuid>, WebhookError> {
    let tried = "write down webhooks that were taken";
    let mut connection = busy.take(pool, tried).await?;
    let mut transaction = connection.begin_with(DURABLE).await.map_err(WebhookError::database(tried))?;
    let written: Vec<Uuid> = sqlx::query_scalar(DELIVER)
        .bind(ends.iter().map(|(claimed, _)| claimed.id).collect::<Vec<_>>())
        .bind(ends.iter().map(|(claimed, _)| claimed.ticket).collect::<Vec<_>>())
        .bind(ends.iter().map(|(claimed, _)| claimed.lot.id).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ended.status.map(i32::from)).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ended.response.as_deref()).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ended.address.as_deref()).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ms(ended.took)).collect::<Vec<_>>())
        .fetch_one(&mut *transaction)
        .await
        .map_err(WebhookError::database(tried))?;
    transaction.commit().await.map_err(WebhookError::database(tried))?;
    busy.keep(connection, ends.len());
    Ok(written.into_iter().collect())
}

// The lots are locked against whoever takes them back: while they stand, their deliveries are ours.
// An endpoint that works is not written to: its row would be the one that all its deliveries wait for.
const DELIVER: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now), lots AS MATERIALIZED (
    SELECT id FROM ops.webhook_claims WHERE id = ANY($3::uuid[]) ORDER BY id FOR KEY SHARE
), ends AS MATERIALIZED (
    SELECT e.* FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::int[], $5::text[], $6::text[], $7::bigint[])
        AS e (id, ticket, lot, status, response, address, took)
    WHERE e.lot = ANY (ARRAY(SELECT id FROM lots))
), done AS (
    DELETE FROM ops.webhook_open o USING ends e WHERE o.id = e.id AND o.ticket = e.ticket
    RETURNING o.id, o.endpoint_id, o.event_seq, o.tenant, o.event_id, o.event_type, o.attempts, o.replays, o.created_at,
        e.status, e.response, e.address, e.took
), kept AS (
    INSERT INTO ops.webhook_ended (id, endpoint_id, event_seq, tenant, event_id, event_type, state, attempts, last_status, replays,
        created_at, ended_at, response, address, duration_ms)
    SELECT id, endpoint_id, event_seq, tenant, event_id, event_type, 'delivered', attempts + 1, status, replays, created_at, now,
        response, address, took
    FROM done, clock
), recovered AS (
    UPDATE ops.webhook_endpoints e SET failures = 0, failing_since = NULL, resting_until = NULL, updated_at = now
    FROM clock WHERE (e.failures > 0 OR e.resting_until IS NOT NULL) AND e.id = ANY (ARRAY(SELECT DISTINCT endpoint_id FROM done))
)
SELECT COALESCE(array_agg(id), '{}') FROM done";
