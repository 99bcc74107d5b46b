//! The daily service level report: once a tenant and day, as a row of `report_runs`, as a page, and by mail.

mod figures;

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};
use jiff_sqlx::ToSqlx as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_config::Reader;
use voiceai_config::catalogue::duty as names;
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

pub use figures::{Figures, TopDevice};

use crate::escalation::channel::recipients;
use crate::outgoing::plain_id;
use crate::tables::typed;
use crate::{Needs, PlatformError, finish, missing};

const NEEDS: Needs = Needs(&[
    ("tenants", &["tenant_id", "name", "status"]),
    ("fleet_alert", &["tenant_id", "device_id", "status", "created_at", "closed_at"]),
    ("device_state", &["tenant_id", "device_id", "status"]),
    (
        "report_runs",
        &[
            "run_id",
            "tenant_id",
            "report_type",
            "status",
            "triggered_by",
            "parameters",
            "row_count",
            "completed_at",
        ],
    ),
]);
const REGISTRY: Needs = Needs(&[("device_registry", &["tenant_id", "device_id"])]);

/// The settings of the report.
#[derive(Debug, Clone)]
pub struct SlaSettings {
    /// `SLA_REPORT_DAYS`.
    pub days: u32,
    /// `SLA_REPORT_RECIPIENTS`.
    pub recipients: Vec<String>,
}

impl SlaSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            days: reader.get(&names::SLA_REPORT_DAYS),
            recipients: reader.optional(&names::SLA_REPORT_RECIPIENTS).unwrap_or_default(),
        }
    }
}

/// What the job works with.
#[derive(Clone, Debug)]
pub struct SlaContext {
    /// Where the rows are.
    pub pool: PgPool,
    /// Days and recipients.
    pub settings: SlaSettings,
}

/// `reports.sla`: the report of the day for every active tenant that has none yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlaReport {
    /// One tenant alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

struct Tenant {
    id: String,
    name: String,
    /// The whole row: how a tenant wants its report stands in `metadata.sla_report`.
    row: Value,
}

impl Job for SlaReport {
    const KIND: &'static str = "reports.sla";
    const QUEUE: &'static str = crate::escalation::DUTY_QUEUE;
    type Context = SlaContext;

    async fn run(&self, context: &SlaContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        // The day of the order: a report that is made after midnight is still yesterday's.
        let day = attempt.enqueued_at().to_zoned(TimeZone::UTC).date();
        finish(&context.pool, Self::KIND, NEEDS, self.report(context, day)).await
    }
}

impl SlaReport {
    async fn report(&self, context: &SlaContext, day: Date) -> Result<Value, PlatformError> {
        let pool = &context.pool;
        let has_registry = missing(pool, REGISTRY).await?.is_none();
        let (mut made, mut known, mut failed) = (0, 0, Vec::new());
        if self
            .tenant
            .as_deref()
            .is_some_and(|tenant| tenant.is_empty() || tenant.chars().any(char::is_control))
        {
            let problem = "the id of a tenant is wanted, not empty and without control characters";
            return Err(PlatformError::invalid("tenant", problem));
        }
        let tenants = tenants(pool, self.tenant.as_deref()).await?;
        if let (Some(named), true) = (&self.tenant, tenants.is_empty()) {
            return Err(PlatformError::invalid("tenant", format!("`{named}` is no active tenant")));
        }
        for tenant in tenants {
            match one(context, &tenant, day, has_registry).await {
                Ok(true) => made += 1,
                Ok(false) => known += 1,
                Err(error) if error.is_unavailable() => return Err(error),
                // One tenant's data keeps no other from its report.
                Err(error) => {
                    let error = crate::text(&error);
                    tracing::error!(tenant = tenant.id, error, "a service level report cannot be made");
                    failed.push(json!({ "tenant": tenant.id, "error": error }));
                }
            }
        }
        prune(pool).await?;
        if made + known == 0 && !failed.is_empty() {
            return Err(PlatformError::invalid("reports", format!("none could be made: {}", failed[0])));
        }
        Ok(json!({ "day": day.to_string(), "made": made, "known": known, "failed": failed }))
    }
}

async fn tenants(pool: &PgPool, only: Option<&str>) -> Result<Vec<Tenant>, PlatformError> {
    let tried = || PlatformError::database("read the tenants");
    let rows = sqlx::query(
        "SELECT t.tenant_id::text, COALESCE(NULLIF(btrim(t.name::text), ''), t.tenant_id::text), to_jsonb(t) FROM tenants t \
         WHERE t.status = 'ACTIVE' AND to_jsonb(t) ->> 'deleted_at' IS NULL AND ($1::text IS NULL OR t.tenant_id::text = $1) \
           AND t.tenant_id::text NOT LIKE '\\_\\_%' \
         ORDER BY t.tenant_id",
    )
    .bind(only)
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    rows.iter()
        .map(|row| {
            Ok(Tenant {
                id: row.try_get(0).map_err(tried())?,
                name: row.try_get(1).map_err(tried())?,
                row: row.try_get(2).map_err(tried())?,
            })
        })
        .collect()
}

/// True when the report was made now, false when the tenant has that day's.
async fn one(
    context: &SlaContext,
    tenant: &Tenant,
    day: Date,
    has_registry: bool,
) -> Result<bool, PlatformError> {
    let pool = &context.pool;
    let tried = || PlatformError::database("make a service level report");
    let known: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM ops.sla_reports WHERE tenant = $1 AND day = $2)")
            .bind(&tenant.id)
            .bind(day.to_sqlx())
            .fetch_one(pool)
            .await
            .map_err(tried())?;
    if known {
        return Ok(false);
    }
    let now = Timestamp::now();
    let figures = figures::read(pool, &tenant.id, context.settings.days, has_registry).await?;
    let report = figures.report(&tenant.id, &tenant.name, day, context.settings.days, now);
    let html = figures::page(&report)?;
    let mut tx = pool.begin().await.map_err(tried())?;
    let new = sqlx::query(
        "INSERT INTO ops.sla_reports (tenant, day, report, html) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(&tenant.id)
    .bind(day.to_sqlx())
    .bind(&report)
    .bind(&html)
    .execute(&mut *tx)
    .await
    .map_err(tried())?
    .rows_affected();
    if new == 0 {
        return Ok(false);
    }
    let sql = format!(
        "WITH run AS ( \
             INSERT INTO report_runs (tenant_id, report_type, status, triggered_by, parameters, row_count, completed_at) \
             VALUES ({}, 'sla_summary', 'done', 'scheduled', $3, $4, now()) RETURNING run_id \
         ) \
         UPDATE ops.sla_reports SET run_id = run.run_id::text FROM run WHERE tenant = $1 AND day = $2",
        typed("report_runs", "tenant_id", "$1::text")
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&tenant.id)
        .bind(day.to_sqlx())
        .bind(&report)
        .bind(i32::try_from(figures.total_devices).unwrap_or(i32::MAX))
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    let own = &tenant.row["metadata"]["sla_report"];
    let locale = own["locale"].as_str().or_else(|| tenant.row["locale"].as_str());
    for (suffix, to, locale) in
        [("", recipients(own), locale), (":ops", context.settings.recipients.clone(), None)]
    {
        if to.is_empty() {
            continue;
        }
        let mut notice = json!({
            "event": "sla_report", "group": tenant.name, "at": now, "to": to, "throttle_ms": 0,
            "reason": figures.line(), "template": "report.sla", "variables": figures.variables(&tenant.name, day, context.settings.days),
        });
        if let Some(locale) = locale {
            notice["locale"] = json!(locale);
        }
        sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json) \
             ON CONFLICT DO NOTHING",
        )
        .bind(plain_id(&format!("sla:{day}{suffix}"), &tenant.id))
        .bind(notice.to_string())
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    }
    tx.commit().await.map_err(tried())?;
    Ok(true)
}

async fn prune(pool: &PgPool) -> Result<(), PlatformError> {
    sqlx::query("DELETE FROM ops.sla_reports WHERE day < current_date - 731")
        .execute(pool)
        .await
        .map(drop)
        .map_err(PlatformError::database("forget old service level reports"))
}
