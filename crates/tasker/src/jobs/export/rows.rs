//! The orders: rows of `ops.export_jobs`.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use utoipa::ToSchema;
use utoipa::openapi::{ObjectBuilder, Type};
use uuid::Uuid;
use voiceai_postgres::{PgPool, sqlx};

use super::shape::Format;

/// A new order.
#[derive(Debug, Clone)]
pub struct Order {
    /// `devices`, `alerts`, `telemetry`, or `schema.table`.
    pub export_type: String,
    /// How it is written.
    pub format: Format,
    /// Only this tenant's rows.
    pub tenant: Option<String>,
    /// Which rows.
    pub filters: Value,
    /// Who orders it.
    pub created_by: String,
    /// Where its end is told.
    pub callback_url: Option<String>,
}

/// An order as it stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Export {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: Uuid,
    /// Whose rows; everybody's where absent.
    pub tenant_id: Option<String>,
    /// What is exported.
    pub export_type: String,
    /// `csv`, `json`, `ndjson` or `parquet`.
    #[schema(schema_with = formats)]
    pub format: String,
    /// Which rows.
    #[schema(value_type = Object)]
    pub filters: Value,
    /// `PENDING`, `PROCESSING`, `COMPLETED` or `FAILED`.
    #[schema(schema_with = states)]
    pub status: String,
    /// The object's key.
    pub file_path: Option<String>,
    /// Its length.
    pub file_size_bytes: Option<i64>,
    /// Rows in it.
    pub row_count: Option<i64>,
    /// Why it failed, or the last attempt did.
    pub error: Option<String>,
    /// Who ordered it.
    pub created_by: Option<String>,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When the first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// When object and row are removed.
    pub expires_at: Option<Timestamp>,
    /// Attempts begun.
    pub attempt: i64,
    /// Where its end is told.
    pub callback_url: Option<String>,
    /// `waiting`, `delivered` or `failed`; null until it has ended, and where nobody is told.
    pub callback_state: Option<String>,
    /// Calls made.
    pub callback_attempts: i32,
    /// Why the last call failed.
    pub callback_error: Option<String>,
    /// When the last call was made.
    pub callback_at: Option<Timestamp>,
}

/// The formats as a schema.
pub(crate) fn formats() -> ObjectBuilder {
    let described = "How it is written.";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(Format::ALL.map(Format::word)))
        .description(Some(described))
}

/// The states as a schema.
pub(crate) fn states() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(STATES))
        .description(Some("Where it stands."))
}

const COLUMNS: &str = "id, tenant_id, export_type, format, filters, status, file_path, file_size_bytes, row_count, error, \
                       created_by, created_at, started_at, completed_at, expires_at, attempt, \
                       callback_url, callback_state, callback_attempts, callback_error, callback_at";

fn export(row: &PgRow) -> Export {
    let at = |column: &str| row.get::<Option<SqlTimestamp>, _>(column).map(SqlTimestamp::to_jiff);
    Export {
        id: row.get("id"),
        tenant_id: row.get("tenant_id"),
        export_type: row.get("export_type"),
        format: row.get("format"),
        filters: row.get("filters"),
        status: row.get("status"),
        file_path: row.get("file_path"),
        file_size_bytes: row.get("file_size_bytes"),
        row_count: row.get("row_count"),
        error: row.get("error"),
        created_by: row.get("created_by"),
        created_at: row.get::<SqlTimestamp, _>("created_at").to_jiff(),
        started_at: at("started_at"),
        completed_at: at("completed_at"),
        expires_at: at("expires_at"),
        attempt: row.get("attempt"),
        callback_url: row.get("callback_url"),
        callback_state: row.get("callback_state"),
        callback_attempts: row.get("callback_attempts"),
        callback_error: row.get("callback_error"),
        callback_at: at("callback_at"),
    }
}

/// Orders an export; its job is enqueued with the row.
///
/// # Errors
/// The driver's.
pub async fn create(pool: &PgPool, order: &Order) -> Result<Export, sqlx::Error> {
    let insert = format!(
        "INSERT INTO ops.export_jobs (tenant_id, export_type, format, filters, created_by, callback_url)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING {COLUMNS}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(insert))
        .bind(&order.tenant)
        .bind(&order.export_type)
        .bind(order.format.word())
        .bind(&order.filters)
        .bind(&order.created_by)
        .bind(&order.callback_url)
        .fetch_one(pool)
        .await?;
    Ok(export(&row))
}

/// One order.
///
/// # Errors
/// The driver's.
pub async fn get(pool: &PgPool, id: Uuid) -> Result<Option<Export>, sqlx::Error> {
    let select = format!("SELECT {COLUMNS} FROM ops.export_jobs WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(select)).bind(id).fetch_optional(pool).await?;
    Ok(row.as_ref().map(export))
}

/// What an order's status may be.
pub const STATES: [&str; 4] = ["PENDING", "PROCESSING", "COMPLETED", "FAILED"];

/// Which orders; what is not given selects all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// In this one of [`STATES`].
    pub status: Option<String>,
    /// Those that come after this order.
    pub after: Option<Uuid>,
    /// So many of them are passed over.
    pub offset: u32,
}

/// Orders, newest first, at most `limit`.
///
/// # Errors
/// The driver's.
pub async fn list(pool: &PgPool, filter: &Filter, limit: u32) -> Result<Vec<Export>, sqlx::Error> {
    let select = format!(
        "SELECT {COLUMNS} FROM ops.export_jobs
         WHERE ($1::text IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR status = $2)
           AND ($3::uuid IS NULL
                OR (created_at, id) < (SELECT created_at, id FROM ops.export_jobs WHERE id = $3))
         ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5"
    );
    let select = sqlx::query(sqlx::AssertSqlSafe(select))
        .bind(&filter.tenant)
        .bind(&filter.status)
        .bind(filter.after)
        .bind(i64::from(limit))
        .bind(i64::from(filter.offset));
    Ok(select.fetch_all(pool).await?.iter().map(export).collect())
}

/// Takes an order that is new, or whose worker is gone.
pub(super) async fn claim(
    pool: &PgPool,
    id: Uuid,
    worker: &str,
    lease: Duration,
) -> Result<Option<Export>, sqlx::Error> {
    let update = format!(
        "UPDATE ops.export_jobs
         SET status = 'PROCESSING', attempt = attempt + 1, claimed_by = $2, error = NULL,
             lease_until = now() + make_interval(secs => $3), started_at = COALESCE(started_at, now())
         WHERE id = $1 AND (status = 'PENDING' OR (status = 'PROCESSING' AND lease_until < now()))
         RETURNING {COLUMNS}"
    );
    let update = sqlx::query(sqlx::AssertSqlSafe(update)).bind(id).bind(worker).bind(lease.as_secs_f64());
    Ok(update.fetch_optional(pool).await?.as_ref().map(export))
}

/// Keeps a claim; false when it is lost.
pub(super) async fn renew(pool: &PgPool, claimed: &Export, lease: Duration) -> Result<bool, sqlx::Error> {
    let update = "UPDATE ops.export_jobs SET lease_until = now() + make_interval(secs => $3)
                  WHERE id = $1 AND attempt = $2 AND status = 'PROCESSING'";
    let update = sqlx::query(update).bind(claimed.id).bind(claimed.attempt).bind(lease.as_secs_f64());
    Ok(update.execute(pool).await?.rows_affected() == 1)
}

/// What an export came to.
pub(super) struct Made {
    pub(super) key: String,
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

// The call to the orderer is enqueued with the end: neither can be there without the other.
const CALL: &str = "INSERT INTO ops.outbox (id, kind, payload, run_at)
                    SELECT 'export-callback:' || id, 'export.callback', json_build_object('id', id), now() + make_interval(secs => $3)
                    FROM ended WHERE callback_state = 'waiting' ON CONFLICT DO NOTHING";

/// Ends an order well; false when the claim is lost. `first_call`: how long the orderer's address is not called yet.
pub(super) async fn complete(
    pool: &PgPool,
    claimed: &Export,
    made: &Made,
    retention: Duration,
    first_call: Duration,
) -> Result<bool, sqlx::Error> {
    let update = format!(
        "WITH ended AS (
             UPDATE ops.export_jobs
             SET status = 'COMPLETED', file_path = $4, file_size_bytes = $5, row_count = $6, completed_at = now(),
                 expires_at = now() + make_interval(secs => $7), lease_until = NULL,
                 callback_state = CASE WHEN callback_url IS NOT NULL THEN 'waiting' END
             WHERE id = $1 AND attempt = $2 AND status = 'PROCESSING' RETURNING id, callback_state
         ), call AS ({CALL})
         SELECT EXISTS (SELECT FROM ended)"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(update))
        .bind(claimed.id)
        .bind(claimed.attempt)
        .bind(first_call.as_secs_f64())
        .bind(&made.key)
        .bind(made.bytes.cast_signed())
        .bind(made.rows.cast_signed())
        .bind(retention.as_secs_f64())
        .fetch_one(pool)
        .await
}

/// Ends an order badly, or with `again` gives it back.
pub(super) async fn fail(
    pool: &PgPool,
    claimed: &Export,
    error: &str,
    again: bool,
    retention: Duration,
    first_call: Duration,
) -> Result<(), sqlx::Error> {
    let update = format!(
        "WITH ended AS (
             UPDATE ops.export_jobs
             SET status = CASE WHEN $5 THEN 'PENDING' ELSE 'FAILED' END, error = \"left\"($4, 500), lease_until = NULL,
                 completed_at = CASE WHEN NOT $5 THEN now() END,
                 expires_at = CASE WHEN NOT $5 THEN now() + make_interval(secs => $6) END,
                 callback_state = CASE WHEN NOT $5 AND callback_url IS NOT NULL THEN 'waiting' END
             WHERE id = $1 AND attempt = $2 AND status = 'PROCESSING' RETURNING id, callback_state
         )
         {CALL}"
    );
    sqlx::query(sqlx::AssertSqlSafe(update))
        .bind(claimed.id)
        .bind(claimed.attempt)
        .bind(first_call.as_secs_f64())
        .bind(error)
        .bind(again)
        .bind(retention.as_secs_f64())
        .execute(pool)
        .await
        .map(|_| ())
}

/// Ends an order that is open, with `why` as its error; nothing where it is not. Whoever works on it finds its claim lost.
pub(super) async fn cancel(
    pool: &PgPool,
    id: Uuid,
    why: &str,
    retention: Duration,
    first_call: Duration,
) -> Result<Option<Export>, sqlx::Error> {
    let update = format!(
        "WITH ended AS (
             UPDATE ops.export_jobs
             SET status = 'FAILED', error = \"left\"($2, 500), lease_until = NULL, completed_at = now(),
                 expires_at = now() + make_interval(secs => $4),
                 callback_state = CASE WHEN callback_url IS NOT NULL THEN 'waiting' END
             WHERE id = $1 AND status IN ('PENDING', 'PROCESSING') RETURNING {COLUMNS}
         ), call AS ({CALL})
         SELECT {COLUMNS} FROM ended"
    );
    let update = sqlx::query(sqlx::AssertSqlSafe(update))
        .bind(id)
        .bind(why)
        .bind(first_call.as_secs_f64())
        .bind(retention.as_secs_f64());
    Ok(update.fetch_optional(pool).await?.as_ref().map(export))
}

/// What came of a call.
pub(super) struct Called<'a> {
    pub(super) state: &'static str,
    pub(super) attempts: i32,
    pub(super) error: Option<&'a str>,
}

/// Writes down a call to the orderer's address.
pub(super) async fn called(pool: &PgPool, id: Uuid, called: &Called<'_>) -> Result<(), sqlx::Error> {
    let update =
        "UPDATE ops.export_jobs SET callback_state = $2, callback_attempts = $3, callback_error = $4,
                      callback_at = now() WHERE id = $1";
    let update = sqlx::query(update).bind(id).bind(called.state).bind(called.attempts).bind(called.error);
    update.execute(pool).await.map(|_| ())
}

/// Enqueues again the orders that nobody works on although they are open for longer than their job should need: whose worker
/// was killed, or whose job was discarded. At most one job an hour and order; a needless one finds nothing to claim.
pub(super) async fn enqueue_forgotten(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let insert = "INSERT INTO ops.outbox (id, kind, payload)
                  SELECT 'export:' || id || ':' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDDHH24'), 'export.run',
                         json_build_object('id', id)
                  FROM ops.export_jobs
                  WHERE (status = 'PENDING' AND created_at < now() - interval '15 minutes')
                     OR (status = 'PROCESSING' AND lease_until < now() - interval '5 minutes')
                  ORDER BY created_at LIMIT 1000
                  ON CONFLICT DO NOTHING";
    Ok(sqlx::query(insert).execute(pool).await?.rows_affected())
}

/// An order whose time is over, and since when, in microseconds since 1970.
pub(super) type Expired = (Uuid, i64);

/// Some orders whose time is over, those that come after `after`.
pub(super) async fn expired(
    pool: &PgPool,
    after: Option<Expired>,
    limit: i64,
) -> Result<Vec<Expired>, sqlx::Error> {
    let select = "SELECT id, (extract(epoch FROM expires_at) * 1000000)::bigint FROM ops.export_jobs
                  WHERE status IN ('COMPLETED', 'FAILED') AND expires_at < now()
                    AND ($1::bigint IS NULL OR ((extract(epoch FROM expires_at) * 1000000)::bigint, id) > ($1, $2))
                  ORDER BY 2, 1 LIMIT $3";
    let select = sqlx::query(select).bind(after.map(|(_, at)| at)).bind(after.map(|(id, _)| id)).bind(limit);
    Ok(select.fetch_all(pool).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Removes an order whose object is gone; false when it is gone already.
pub(super) async fn remove(pool: &PgPool, id: Uuid) -> Result<bool, sqlx::Error> {
    let delete = "DELETE FROM ops.export_jobs WHERE id = $1 AND status IN ('COMPLETED', 'FAILED')";
    sqlx::query(delete).bind(id).execute(pool).await.map(|done| done.rows_affected() == 1)
}
