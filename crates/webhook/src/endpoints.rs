//! Endpoints: where tenants want their events.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use url::Url;
use uuid::Uuid;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, Row};
use voiceai_runtime::Secret;

use crate::claim::give_up;
use crate::error::WebhookError;
use crate::event;
use crate::guard::Guard;
use crate::signature::{Keys, new_secret};

/// An endpoint as it stands. Its secrets are never part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub tenant: String,
    /// Where events are posted to.
    pub url: String,
    /// Patterns of the events it wants.
    pub events: Vec<String>,
    /// What a person wrote of it.
    pub description: Option<String>,
    /// Deliveries at a time, where it names a figure of its own.
    pub concurrency: Option<i32>,
    /// Longest time to an answer, where it names one of its own.
    pub timeout_ms: Option<i32>,
    /// `active` or `disabled`.
    pub state: String,
    /// `gone`, `failing`, or an operator's reason.
    pub disabled_reason: Option<String>,
    /// Who disabled it; `itself` where nobody did.
    pub disabled_by: Option<String>,
    /// When.
    pub disabled_at: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: i32,
    /// Since when there are only failures.
    pub failing_since: Option<Timestamp>,
    /// Nothing is posted before then: its circuit is open, or it asked for time.
    pub resting_until: Option<Timestamp>,
    /// Deliveries that wait for it or are under way.
    pub waiting: i64,
    /// Deliveries given up and not replayed.
    pub dead: i64,
    /// Secrets that sign at present.
    pub secrets: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Endpoint {
    /// True while nothing keeps deliveries from it.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.state == "active" && self.resting_until.is_none_or(|until| until <= now)
    }
}

/// An endpoint to be made.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Whose.
    pub tenant: String,
    /// Where to.
    pub url: String,
    /// Patterns; none: every event.
    pub events: Vec<String>,
    /// For people.
    pub description: Option<String>,
    /// See [`Endpoint::concurrency`].
    pub concurrency: Option<u32>,
    /// Longest time to an answer.
    pub timeout: Option<Duration>,
    /// What it signs with; else a new one.
    pub secret: Option<Secret>,
}

const ENDPOINT: &str = "SELECT e.*, \
     (SELECT count(*) FROM ops.webhook_open d WHERE d.endpoint_id = e.id) AS waiting, \
     (SELECT count(*) FROM ops.webhook_ended d WHERE d.endpoint_id = e.id AND d.state = 'dead') AS dead, \
     (SELECT count(*) FROM ops.webhook_secrets s WHERE s.endpoint_id = e.id AND (s.expires_at IS NULL OR s.expires_at > now())) \
         AS secrets \
     FROM ops.webhook_endpoints e";

fn endpoint(row: &PgRow) -> Result<Endpoint, sqlx::Error> {
    let time =
        |name: &str| row.try_get::<Option<SqlTimestamp>, _>(name).map(|at| at.map(SqlTimestamp::to_jiff));
    Ok(Endpoint {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        url: row.try_get("url")?,
        events: row.try_get("events")?,
        description: row.try_get("description")?,
        concurrency: row.try_get("concurrency")?,
        timeout_ms: row.try_get("timeout_ms")?,
        state: row.try_get("state")?,
        disabled_reason: row.try_get("disabled_reason")?,
        disabled_by: row.try_get("disabled_by")?,
        disabled_at: time("disabled_at")?,
        failures: row.try_get("failures")?,
        failing_since: time("failing_since")?,
        resting_until: time("resting_until")?,
        waiting: row.try_get("waiting")?,
        dead: row.try_get("dead")?,
        secrets: row.try_get("secrets")?,
        created_at: row.try_get::<SqlTimestamp, _>("created_at")?.to_jiff(),
    })
}

/// Endpoints by id, from the one after `after`.
///
/// # Errors
/// As the database says.
pub async fn list(
    pool: &PgPool,
    tenant: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Endpoint>, WebhookError> {
    let tried = "list webhook endpoints";
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{ENDPOINT} WHERE ($1::text IS NULL OR e.tenant = $1) AND ($2::uuid IS NULL OR e.id > $2) ORDER BY e.id LIMIT $3"
    )))
    .bind(tenant)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    rows.iter().map(|row| endpoint(row).map_err(WebhookError::database(tried))).collect()
}

/// One endpoint.
///
/// # Errors
/// [`WebhookError::NoEndpoint`]; else as the database says.
pub async fn get(pool: &PgPool, id: Uuid) -> Result<Endpoint, WebhookError> {
    let tried = "read a webhook endpoint";
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{ENDPOINT} WHERE e.id = $1")))
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(WebhookError::database(tried))?;
    row.map_or(Err(WebhookError::NoEndpoint(id)), |row| endpoint(&row).map_err(WebhookError::database(tried)))
}

/// Checks an endpoint that is to be made, as far as that can be done without asking anybody.
///
/// # Errors
/// [`WebhookError::Invalid`], naming what is wrong.
pub fn check(new: &NewEndpoint, guard: &Guard) -> Result<(), WebhookError> {
    if new.tenant.trim().is_empty() || new.tenant.chars().count() > 200 {
        return Err(WebhookError::invalid("tenant", "1 to 200 characters are wanted"));
    }
    let url = Url::parse(&new.url).map_err(|error| WebhookError::invalid("url", error.to_string()))?;
    if new.url.len() > 2_000 {
        return Err(WebhookError::invalid("url", "at most 2000 characters are wanted"));
    }
    guard.check_url(&url).map_err(|error| WebhookError::invalid("url", error.to_string()))?;
    new.events.iter().try_for_each(|pattern| event::check_pattern(pattern))?;
    if new.events.len() > 100 {
        return Err(WebhookError::invalid("events", "at most 100 patterns are wanted"));
    }
    if new.concurrency.is_some_and(|n| !(1..=1_000).contains(&n)) {
        return Err(WebhookError::invalid("concurrency", "1 to 1000 is wanted"));
    }
    let bounds = Duration::from_millis(100)..=Duration::from_secs(60);
    if new.timeout.is_some_and(|timeout| !bounds.contains(&timeout)) {
        return Err(WebhookError::invalid("timeout", "100ms to 60s is wanted"));
    }
    if let Some(secret) = &new.secret {
        Keys::new(vec![secret.clone()])
            .map_err(|error| WebhookError::invalid("secret", error.to_string()))?;
    }
    Ok(())
}

/// Makes an endpoint. What it signs with is answered this once.
///
/// # Errors
/// As [`check`]; else as the database says.
pub async fn add(
    pool: &PgPool,
    new: &NewEndpoint,
    guard: &Guard,
) -> Result<(Endpoint, Secret), WebhookError> {
    check(new, guard)?;
    let id = Uuid::now_v7();
    let secret = new.secret.clone().unwrap_or_else(new_secret);
    let every = ["*".to_owned()];
    let events = if new.events.is_empty() { &every[..] } else { &new.events[..] };
    sqlx::query(
        "WITH made AS (INSERT INTO ops.webhook_endpoints (id, tenant, url, events, description, concurrency, timeout_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id) \
         INSERT INTO ops.webhook_secrets (endpoint_id, number, secret) SELECT id, 1, $8 FROM made",
    )
    .bind(id)
    .bind(&new.tenant)
    .bind(&new.url)
    .bind(events)
    .bind(&new.description)
    .bind(new.concurrency.map(|n| i32::try_from(n).unwrap_or(i32::MAX)))
    .bind(new.timeout.map(|timeout| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)))
    .bind(secret.expose())
    .execute(pool)
    .await
    .map_err(WebhookError::database("make a webhook endpoint"))?;
    Ok((get(pool, id).await?, secret))
}

/// Gives an endpoint a new secret, and a new version: workers keep an endpoint with its secrets until it has another. The ones before still sign beside it for `grace`, so that the receiver can change over.
///
/// # Errors
/// [`WebhookError::NoEndpoint`]; else as the database says.
pub async fn rotate(pool: &PgPool, id: Uuid, grace: Duration) -> Result<Secret, WebhookError> {
    let secret = new_secret();
    let done = sqlx::query(
        "WITH old AS (UPDATE ops.webhook_secrets SET expires_at = now() + make_interval(secs => $2) \
             WHERE endpoint_id = $1 AND expires_at IS NULL), \
         changed AS (UPDATE ops.webhook_endpoints SET updated_at = clock_timestamp() WHERE id = $1) \
         INSERT INTO ops.webhook_secrets (endpoint_id, number, secret) \
         SELECT e.id, COALESCE((SELECT max(number) FROM ops.webhook_secrets s WHERE s.endpoint_id = e.id), 0) + 1, $3 \
         FROM ops.webhook_endpoints e WHERE e.id = $1",
    )
    .bind(id)
    .bind(grace.as_secs_f64())
    .bind(secret.expose())
    .execute(pool)
    .await
    .map_err(WebhookError::database("give a webhook endpoint a new secret"))?;
    if done.rows_affected() == 0 { Err(WebhookError::NoEndpoint(id)) } else { Ok(secret) }
}

/// Lets an endpoint have events again, with its failures forgotten. What died meanwhile stays dead: replay it.
///
/// # Errors
/// [`WebhookError::NoEndpoint`]; else as the database says.
pub async fn enable(pool: &PgPool, id: Uuid) -> Result<(), WebhookError> {
    change(
        pool,
        id,
        "UPDATE ops.webhook_endpoints SET state = 'active', disabled_reason = NULL, disabled_by = NULL, disabled_at = NULL, \
             failures = 0, failing_since = NULL, resting_until = NULL, updated_at = now() WHERE id = $1",
        "enable a webhook endpoint",
    )
    .await?;
    wake(pool).await
}

/// Posts nothing more to an endpoint. What waits for it is dead, and may be replayed once it is enabled again.
///
/// # Errors
/// [`WebhookError::NoEndpoint`]; else as the database says.
pub async fn disable(pool: &PgPool, id: Uuid, by: &str, reason: &str) -> Result<u64, WebhookError> {
    let tried = "disable a webhook endpoint";
    let off = sqlx::query(
        "UPDATE ops.webhook_endpoints SET state = 'disabled', disabled_reason = $2, disabled_by = $3, \
             disabled_at = now(), updated_at = now() WHERE id = $1",
    )
    .bind(id)
    .bind(reason)
    .bind(by)
    .execute(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    if off.rows_affected() == 0 {
        return Err(WebhookError::NoEndpoint(id));
    }
    give_up(pool, id).await
}

/// Removes an endpoint with its secrets, deliveries and attempts.
///
/// # Errors
/// [`WebhookError::NoEndpoint`]; else as the database says.
pub async fn remove(pool: &PgPool, id: Uuid) -> Result<(), WebhookError> {
    change(
        pool,
        id,
        "WITH mine AS (SELECT id FROM ops.webhook_deliveries WHERE endpoint_id = $1), \
         attempts AS (DELETE FROM ops.webhook_failures a USING mine WHERE a.delivery_id = mine.id), \
         ended AS (DELETE FROM ops.webhook_ended WHERE endpoint_id = $1) \
         DELETE FROM ops.webhook_endpoints WHERE id = $1",
        "remove a webhook endpoint",
    )
    .await
}

async fn change(pool: &PgPool, id: Uuid, sql: &'static str, tried: &'static str) -> Result<(), WebhookError> {
    let done = sqlx::query(sql).bind(id).execute(pool).await.map_err(WebhookError::database(tried))?;
    if done.rows_affected() == 0 { Err(WebhookError::NoEndpoint(id)) } else { Ok(()) }
}

pub(crate) async fn wake(pool: &PgPool) -> Result<(), WebhookError> {
    sqlx::query("SELECT pg_notify('voiceai_webhook', '')")
        .execute(pool)
        .await
        .map(drop)
        .map_err(WebhookError::database("wake the webhook workers"))
}

/// What a probe or a delivery to this endpoint is signed with.
///
/// # Errors
/// [`WebhookError::Invalid`] when there is no secret that can sign; else as the database says.
pub async fn keys(pool: &PgPool, id: Uuid) -> Result<Keys, WebhookError> {
    let tried = "read an endpoint's secrets";
    let rows = sqlx::query(
        "SELECT secret FROM ops.webhook_secrets WHERE endpoint_id = $1 AND (expires_at IS NULL OR expires_at > now()) \
         ORDER BY number DESC",
    )
    .bind(id)
    .fetch_all(pool)
    .await
    .map_err(WebhookError::database(tried))?;
    let secrets: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let secrets = secrets.map_err(WebhookError::database(tried))?.into_iter().map(Secret::new).collect();
    Keys::new(secrets).map_err(|error| WebhookError::invalid("secret", error.to_string()))
}

/// The probe of an endpoint: an event of the type `webhook.test`, posted once and written nowhere.
///
/// # Errors
/// As [`get`] and [`keys`].
pub async fn probe(pool: &PgPool, id: Uuid, timeout: Duration) -> Result<crate::post::Request, WebhookError> {
    let endpoint = get(pool, id).await?;
    let url = Url::parse(&endpoint.url).map_err(|error| WebhookError::invalid("url", error.to_string()))?;
    let own = endpoint.timeout_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    Ok(crate::post::Request {
        url,
        id: format!("test_{}", Uuid::now_v7()),
        body: event::probe_body(id, Timestamp::now()).into(),
        keys: Some(keys(pool, id).await?),
        timeout: own.unwrap_or(timeout).min(timeout),
    })
}
