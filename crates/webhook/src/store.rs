//! The rows of deliveries under way: claimed, ended, taken back. Each step is one statement.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};
use voiceai_runtime::Secret;

use crate::WebhookSettings;
use crate::error::WebhookError;
use crate::retry::Policy;

/// Beside an attempt's own limit: the body's last seconds, and the end's way into its row.
pub(crate) const LEASE_ROOM: Duration = Duration::from_secs(30);

/// Which endpoints a look is for. They have slots of their own, so that failing ones cannot take the others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Endpoints whose last attempt was taken.
    Healthy,
    /// Endpoints whose last attempt failed: one attempt at a time each.
    Failing,
}

/// An attempt that this process may make.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: Uuid,
    pub(crate) token: Uuid,
    pub(crate) endpoint: Uuid,
    pub(crate) attempt_no: i32,
    pub(crate) rung: u32,
    pub(crate) event_id: String,
    pub(crate) url: String,
    pub(crate) timeout: Option<Duration>,
    pub(crate) body: String,
    pub(crate) secrets: Vec<Secret>,
}

/// Takes at most `limit` deliveries that are due, endpoints in turn. While the leader of `election` is held, older ones wait: a
/// database that came back from a backup does not know that they were delivered.
pub(crate) async fn claim(
    pool: &PgPool,
    settings: &WebhookSettings,
    election: &str,
    lane: Lane,
    limit: usize,
) -> Result<Vec<Claimed>, WebhookError> {
    let tried = "claim webhook deliveries";
    let rows = sqlx::query(CLAIM)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(lane == Lane::Failing)
        .bind(i64::from(settings.endpoint_concurrency))
        .bind(i64::from(settings.tenant_concurrency))
        .bind((settings.timeout + LEASE_ROOM).as_secs_f64())
        .bind(election)
        .fetch_all(pool)
        .await
        .map_err(WebhookError::database(tried))?;
    rows.iter().map(|row| claimed(row).map_err(WebhookError::database(tried))).collect()
}

fn claimed(row: &PgRow) -> Result<Claimed, sqlx::Error> {
    let secrets: Vec<String> = row.try_get("secrets")?;
    let timeout: Option<i32> = row.try_get("timeout_ms")?;
    Ok(Claimed {
        id: row.try_get("id")?,
        token: row.try_get("claim_token")?,
        endpoint: row.try_get("endpoint_id")?,
        attempt_no: row.try_get("attempts")?,
        rung: u32::try_from(row.try_get::<i32, _>("rung")?).unwrap_or(0),
        event_id: row.try_get("event_id")?,
        url: row.try_get("url")?,
        timeout: timeout.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        body: row.try_get("body")?,
        secrets: secrets.into_iter().map(Secret::new).collect(),
    })
}

// `loaded` walks from endpoint to endpoint over the index of what waits, so that a long backlog of one costs no more than a short one.
// Endpoint rows are locked, and those that another look has locked are left to it: two looks at once do not both fill an endpoint.
// A tenant's and an endpoint's room are filled in rounds: each endpoint's first before anybody's second.
const CLAIM: &str = "\
WITH RECURSIVE clock AS MATERIALIZED (SELECT clock_timestamp() AS now), loaded (id) AS (
    (SELECT endpoint_id FROM ops.webhook_deliveries WHERE state = 'waiting' ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.endpoint_id FROM ops.webhook_deliveries d WHERE d.state = 'waiting' AND d.endpoint_id > l.id
            ORDER BY d.endpoint_id LIMIT 1)
    FROM loaded l WHERE l.id IS NOT NULL
), held AS MATERIALIZED (
    SELECT COALESCE((SELECT held_since FROM ops.leader_terms WHERE name = $6 AND held_since IS NOT NULL), '-infinity') AS since
), open AS MATERIALIZED (
    SELECT e.id, e.tenant, e.url, e.timeout_ms,
        CASE WHEN $2 THEN 1 ELSE COALESCE(e.concurrency, $3) END
            - (SELECT count(*) FROM ops.webhook_deliveries a WHERE a.endpoint_id = e.id AND a.state = 'active') AS room
    FROM ops.webhook_endpoints e, clock
    WHERE e.id IN (SELECT id FROM loaded) AND e.state = 'active' AND (e.failures > 0) = $2
        AND (e.resting_until IS NULL OR e.resting_until <= now)
    FOR NO KEY UPDATE OF e SKIP LOCKED
), busy AS MATERIALIZED (
    SELECT tenant, count(*) AS count FROM ops.webhook_deliveries WHERE state = 'active' GROUP BY tenant
), due AS MATERIALIZED (
    SELECT d.id, o.tenant, o.url, o.timeout_ms, d.due_at, row_number() OVER (PARTITION BY o.id ORDER BY d.due_at, d.id) AS turn
    FROM open o, clock, LATERAL (
        SELECT w.id, w.due_at FROM ops.webhook_deliveries w
        WHERE w.state = 'waiting' AND w.endpoint_id = o.id AND w.due_at <= now AND w.created_at >= (SELECT since FROM held)
        ORDER BY w.due_at LIMIT GREATEST(0, LEAST(o.room, $1))
    ) d
), placed AS MATERIALIZED (
    SELECT due.*, row_number() OVER (PARTITION BY due.tenant ORDER BY turn, due_at)
        + COALESCE((SELECT count FROM busy WHERE busy.tenant = due.tenant), 0) AS place
    FROM due
), chosen AS MATERIALIZED (
    SELECT * FROM placed WHERE place <= $4 ORDER BY turn, due_at LIMIT $1
), claimed AS (
    UPDATE ops.webhook_deliveries d SET state = 'active', claim_token = gen_random_uuid(), attempts = d.attempts + 1,
        claim_expires_at = clock.now + make_interval(secs => $5)
    FROM chosen c, clock WHERE d.id = c.id AND d.state = 'waiting'
    RETURNING d.id, d.endpoint_id, d.tenant, d.event_id, d.claim_token, d.attempts, d.rung, c.url, c.timeout_ms
)
SELECT c.*, v.body,
    ARRAY(SELECT s.secret FROM ops.webhook_secrets s, clock
          WHERE s.endpoint_id = c.endpoint_id AND (s.expires_at IS NULL OR s.expires_at > now)
          ORDER BY s.number DESC) AS secrets
FROM claimed c JOIN ops.webhook_events v ON v.tenant = c.tenant AND v.id = c.event_id";

/// How long until something may be due that is not now; `None`: nothing waits.
pub(crate) async fn next_due(pool: &PgPool) -> Result<Option<Duration>, WebhookError> {
    let tried = "look for the next webhook delivery";
    let row = sqlx::query(
        "SELECT extract(epoch FROM LEAST( \
             (SELECT min(due_at) FROM ops.webhook_deliveries WHERE state = 'waiting' AND due_at > now()), \
             (SELECT min(resting_until) FROM ops.webhook_endpoints WHERE state = 'active' AND resting_until > now()) \
         ) - now())::float8",
    )
    .fetch_one(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let seconds: Option<f64> = row.try_get(0).map_err(WebhookError::database(tried))?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Again { wait: Duration },
    Dead { reason: &'static str },
}

/// How an attempt ended, as it is written.
#[derive(Debug, Clone)]
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

/// What writing an end brought about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// False: the claim had passed to another.
    pub(crate) ours: bool,
    /// Why the endpoint was disabled with it.
    pub(crate) disabled: Option<String>,
}

/// Writes how an attempt ended, and what that says of the endpoint.
pub(crate) async fn finish(
    pool: &PgPool,
    policy: &Policy,
    claimed: &Claimed,
    ended: &Ended,
) -> Result<Written, WebhookError> {
    let tried = "write down how a webhook attempt ended";
    let (state, wait, dead) = match ended.end {
        End::Delivered => ("delivered", None, None),
        End::Again { wait } => ("waiting", Some(wait.as_secs_f64()), None),
        End::Dead { reason } => ("dead", None, Some(reason)),
    };
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let row = sqlx::query(FINISH)
        .bind(claimed.id)
        .bind(claimed.token)
        .bind(state)
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
        .fetch_one(pool)
        .await
        .map_err(WebhookError::database(tried))?;
    Ok(Written {
        ours: row.try_get("ours").map_err(WebhookError::database(tried))?,
        disabled: row.try_get("disabled").map_err(WebhookError::database(tried))?,
    })
}

// An endpoint that works is not written to: its row would be the one that all its deliveries wait for.
// When an endpoint is disabled, by 410 or by its long failure, what waits for it is dead with it; a replay brings it back.
const FINISH: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now), done AS (
    UPDATE ops.webhook_deliveries d SET state = $3, claim_token = NULL, claim_expires_at = NULL, dead_reason = $5,
        rung = CASE WHEN $3 = 'waiting' THEN rung + 1 ELSE rung END,
        due_at = CASE WHEN $3 = 'waiting' THEN now + make_interval(secs => $4) ELSE due_at END,
        ended_at = CASE WHEN $3 = 'waiting' THEN NULL ELSE now END,
        last_status = $7, last_error = CASE WHEN $3 = 'delivered' THEN NULL ELSE $8 END
    FROM clock WHERE d.id = $1 AND d.claim_token = $2 AND d.state = 'active'
    RETURNING d.endpoint_id, d.attempts
), attempt AS (
    INSERT INTO ops.webhook_attempts (delivery_id, attempt_no, started_at, ended_at, outcome, status, error, response, address,
        retry_after_ms, duration_ms)
    SELECT $1, done.attempts, now - $12 * interval '1 millisecond', now, $6, $7, $8, $9, $10, $11, $12 FROM done, clock
    ON CONFLICT DO NOTHING
), judged AS MATERIALIZED (
    SELECT e.id, e.failures + 1 AS failures, COALESCE(e.failing_since, now) AS failing_since, e.resting_until,
        CASE WHEN $14 THEN 'gone'
             WHEN COALESCE(e.failing_since, now) <= now - make_interval(secs => $18) THEN 'failing' END AS reason
    FROM ops.webhook_endpoints e, done, clock
    WHERE e.id = done.endpoint_id AND $3 <> 'delivered' AND e.state = 'active' FOR NO KEY UPDATE OF e
), failed AS (
    UPDATE ops.webhook_endpoints e SET failures = j.failures, failing_since = j.failing_since, updated_at = now,
        resting_until = GREATEST(j.resting_until, now + make_interval(secs => $13),
            CASE WHEN j.failures >= $15
                THEN now + make_interval(secs => LEAST($17, $16 * power(2, LEAST(j.failures - $15, 20)))) END),
        state = CASE WHEN j.reason IS NULL THEN 'active' ELSE 'disabled' END, disabled_reason = j.reason,
        disabled_by = CASE WHEN j.reason IS NOT NULL THEN 'itself' END, disabled_at = CASE WHEN j.reason IS NOT NULL THEN now END
    FROM judged j, clock WHERE e.id = j.id
    RETURNING e.id, e.disabled_reason
), recovered AS (
    UPDATE ops.webhook_endpoints e SET failures = 0, failing_since = NULL, resting_until = NULL, updated_at = now
    FROM done, clock WHERE e.id = done.endpoint_id AND $3 = 'delivered' AND (e.failures > 0 OR e.resting_until IS NOT NULL)
), given_up AS (
    UPDATE ops.webhook_deliveries d SET state = 'dead', dead_reason = 'endpoint_disabled', ended_at = now
    FROM failed f, clock WHERE f.disabled_reason IS NOT NULL AND d.endpoint_id = f.id AND d.state = 'waiting' AND d.id <> $1
)
SELECT EXISTS (SELECT FROM done) AS ours, (SELECT disabled_reason FROM failed) AS disabled";

/// Writes down deliveries that were taken, all of them in one statement. Answers those whose claim was still ours.
pub(crate) async fn deliver(
    pool: &PgPool,
    ends: &[(&Claimed, &Ended)],
) -> Result<HashSet<Uuid>, WebhookError> {
    let tried = "write down webhooks that were taken";
    let column =
        |value: fn(&Claimed) -> Uuid| ends.iter().map(|(claimed, _)| value(claimed)).collect::<Vec<_>>();
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let rows = sqlx::query(DELIVER)
        .bind(column(|claimed| claimed.id))
        .bind(column(|claimed| claimed.token))
        .bind(ends.iter().map(|(_, ended)| ended.status.map(i32::from)).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ended.response.as_deref()).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ended.address.as_deref()).collect::<Vec<_>>())
        .bind(ends.iter().map(|(_, ended)| ms(ended.took)).collect::<Vec<_>>())
        .fetch_all(pool)
        .await
        .map_err(WebhookError::database(tried))?;
    rows.iter().map(|row| row.try_get(0).map_err(WebhookError::database(tried))).collect()
}

const DELIVER: &str = "\
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now), ended AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::bigint[])
        AS e (id, token, status, response, address, took)
), done AS (
    UPDATE ops.webhook_deliveries d SET state = 'delivered', claim_token = NULL, claim_expires_at = NULL, dead_reason = NULL,
        ended_at = now, last_status = e.status, last_error = NULL
    FROM ended e, clock WHERE d.id = e.id AND d.claim_token = e.token AND d.state = 'active'
    RETURNING d.id, d.endpoint_id, d.attempts, e.status, e.response, e.address, e.took
), attempt AS (
    INSERT INTO ops.webhook_attempts (delivery_id, attempt_no, started_at, ended_at, outcome, status, response, address, duration_ms)
    SELECT id, attempts, now - took * interval '1 millisecond', now, 'delivered', status, response, address, took FROM done, clock
    ON CONFLICT DO NOTHING
), recovered AS (
    UPDATE ops.webhook_endpoints e SET failures = 0, failing_since = NULL, resting_until = NULL, updated_at = now
    FROM clock WHERE e.id IN (SELECT endpoint_id FROM done) AND (e.failures > 0 OR e.resting_until IS NOT NULL)
)
SELECT id FROM done";

/// Gives back a delivery that was claimed and not begun, as if it had not been claimed.
pub(crate) async fn hand_back(pool: &PgPool, claimed: &Claimed) -> Result<(), WebhookError> {
    sqlx::query(
        "UPDATE ops.webhook_deliveries SET state = 'waiting', claim_token = NULL, claim_expires_at = NULL, \
             attempts = attempts - 1 WHERE id = $1 AND claim_token = $2 AND state = 'active'",
    )
    .bind(claimed.id)
    .bind(claimed.token)
    .execute(pool)
    .await
    .map(drop)
    .map_err(WebhookError::database("hand a webhook delivery back"))
}

/// Takes back what processes held that are gone, or too slow to be waited for. Answers how many. `timeout`: the longest attempt,
/// by which a claim tells when its attempt began.
pub(crate) async fn take_back(pool: &PgPool, timeout: Duration) -> Result<u64, WebhookError> {
    let done = sqlx::query(
        "WITH lost AS ( \
             UPDATE ops.webhook_deliveries SET state = CASE WHEN e.state = 'active' THEN 'waiting' ELSE 'dead' END, \
                 dead_reason = CASE WHEN e.state = 'active' THEN NULL ELSE 'endpoint_disabled' END, \
                 ended_at = CASE WHEN e.state = 'active' THEN NULL ELSE clock_timestamp() END, \
                 claim_token = NULL, claim_expires_at = NULL \
             FROM (SELECT d.id, p.state, d.claim_expires_at FROM ops.webhook_deliveries d JOIN ops.webhook_endpoints p ON p.id = d.endpoint_id \
                   WHERE d.state = 'active' AND d.claim_expires_at < clock_timestamp() LIMIT 1000 FOR UPDATE OF d SKIP LOCKED) e \
             WHERE webhook_deliveries.id = e.id \
             RETURNING webhook_deliveries.id, webhook_deliveries.attempts, e.claim_expires_at AS expired_at) \
         INSERT INTO ops.webhook_attempts (delivery_id, attempt_no, started_at, ended_at, outcome, error) \
         SELECT id, attempts, expired_at - make_interval(secs => $1), clock_timestamp(), 'lost', \
             'the process ended before it could say what came of it' FROM lost \
         ON CONFLICT (delivery_id, attempt_no) DO UPDATE SET outcome = 'lost', ended_at = excluded.ended_at, error = excluded.error \
             WHERE webhook_attempts.outcome IS NULL",
    )
    .bind((timeout + LEASE_ROOM).as_secs_f64())
    .execute(pool)
    .await
    .map_err(WebhookError::database("take back webhook deliveries of processes that are gone"))?;
    Ok(done.rows_affected())
}
