//! One alert at a time: found, decided upon, written down with the jobs that tell of it.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgConnection, PgPool, Row as _};

use super::decide::{Level, Step, addresses, decide};
use crate::PlatformError;
use crate::oncall::{self, OnCall};

/// Which of the tables that not every installation has are there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    pub(super) rules: bool,
    pub(super) schedules: bool,
}

/// What became of one look for a due alert.
#[derive(Debug)]
pub(super) enum Taken {
    None,
    Told(i64),
    Ended(i64),
    /// It stays due; why.
    Failed(i64, String),
}

struct Due {
    id: i64,
    tenant: String,
    level: i64,
    policy: Option<i64>,
    /// The whole row.
    row: Value,
}

/// Takes the alert that is due longest and not among `seen`.
pub(super) async fn take_one(
    pool: &PgPool,
    tables: Tables,
    seen: &[i64],
    now: Timestamp,
) -> Result<Taken, PlatformError> {
    let mut tx = pool.begin().await.map_err(PlatformError::database("escalate alerts"))?;
    let Some(due) = due(&mut tx, tables, seen).await? else { return Ok(Taken::None) };
    let id = due.id;
    match handle(&mut tx, tables, &due, now).await {
        Ok(told) => {
            tx.commit().await.map_err(PlatformError::database("escalate an alert"))?;
            Ok(if told { Taken::Told(id) } else { Taken::Ended(id) })
        }
        Err(error) if error.is_unavailable() => Err(error),
        Err(error) => Ok(Taken::Failed(id, crate::text(&error))),
    }
}

async fn due(
    connection: &mut PgConnection,
    tables: Tables,
    seen: &[i64],
) -> Result<Option<Due>, PlatformError> {
    let tried = || PlatformError::database("read the alerts that are due");
    let by_rule = "(SELECT r.escalation_policy_id::bigint FROM alert_rules r \
                    WHERE r.tenant_id = a.tenant_id AND r.rule_id::text = a.rule_id::text LIMIT 1)";
    let policy = if tables.rules { by_rule } else { "NULL::bigint" };
    // A silenced alert stays due, and goes up once the silence is over.
    let statement = format!(
        "SELECT a.id::bigint, COALESCE(a.tenant_id::text, ''), COALESCE(a.escalation_level, 0)::bigint, \
             COALESCE({policy}, (SELECT p.policy_id::bigint FROM escalation_policies p \
                                 WHERE p.tenant_id = a.tenant_id AND p.is_default ORDER BY p.policy_id LIMIT 1)), \
             to_jsonb(a) \
         FROM fleet_alert a \
         WHERE a.status = 'OPEN' AND a.next_escalation_at <= now() AND NOT a.id = ANY($1) \
           AND COALESCE((to_jsonb(a) ->> 'silenced_until')::timestamptz, '-infinity') <= now() \
         ORDER BY a.next_escalation_at, a.id LIMIT 1 FOR UPDATE OF a SKIP LOCKED"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(seen)
        .fetch_optional(connection)
        .await
        .map_err(tried())?;
    row.map(|row| {
        Ok(Due {
            id: row.try_get(0).map_err(tried())?,
            tenant: row.try_get(1).map_err(tried())?,
            level: row.try_get(2).map_err(tried())?,
            policy: row.try_get(3).map_err(tried())?,
            row: row.try_get(4).map_err(tried())?,
        })
    })
    .transpose()
}

/// True when people are told, false when there was nobody further.
async fn handle(
    connection: &mut PgConnection,
    tables: Tables,
    due: &Due,
    now: Timestamp,
) -> Result<bool, PlatformError> {
    let levels = match due.policy {
        Some(policy) => levels(connection, policy).await?,
        None => Vec::new(),
    };
    let Step::Escalate(level, next) = decide(due.level, &levels, now) else {
        sqlx::query("UPDATE fleet_alert SET next_escalation_at = NULL WHERE id = $1")
            .bind(due.id)
            .execute(connection)
            .await
            .map_err(PlatformError::database("end an escalation"))?;
        return Ok(false);
    };
    let on_call = match level.schedule.filter(|_| tables.schedules) {
        Some(schedule) => on_call(connection, schedule, now).await?,
        None => None,
    };
    sqlx::query(
        "UPDATE fleet_alert SET escalation_level = $2, escalated_at = $3, next_escalation_at = $4 WHERE id = $1",
    )
    .bind(due.id)
    .bind(i32::try_from(level.number).unwrap_or(i32::MAX))
    .bind(now.to_sqlx())
    .bind(next.to_sqlx())
    .execute(&mut *connection)
    .await
    .map_err(PlatformError::database("write down the level of an alert"))?;
    tell(connection, due, level, on_call.as_ref(), now).await?;
    Ok(true)
}

async fn levels(connection: &mut PgConnection, policy: i64) -> Result<Vec<Level>, PlatformError> {
    let tried = || PlatformError::database("read the levels of an escalation policy");
    let rows = sqlx::query(
        "SELECT level_id::bigint, level_number::bigint, COALESCE(delay_minutes, 15)::bigint, notify_email::text, \
             COALESCE(btrim(notify_webhook), '') <> '', oncall_schedule_id::bigint \
         FROM escalation_levels WHERE policy_id = $1::bigint",
    )
    .bind(policy)
    .fetch_all(connection)
    .await
    .map_err(tried())?;
    rows.iter()
        .map(|row| {
            Ok(Level {
                id: row.try_get(0).map_err(tried())?,
                number: row.try_get(1).map_err(tried())?,
                delay_minutes: row.try_get(2).map_err(tried())?,
                notify_email: row.try_get(3).map_err(tried())?,
                has_webhook: row.try_get(4).map_err(tried())?,
                schedule: row.try_get(5).map_err(tried())?,
            })
        })
        .collect()
}

async fn on_call(
    connection: &mut PgConnection,
    schedule: i64,
    now: Timestamp,
) -> Result<Option<OnCall>, PlatformError> {
    let Some(reading) = oncall::schedule(connection, schedule, now).await? else {
        tracing::warn!(schedule, "an escalation level names an on-call schedule that is not there");
        return Ok(None);
    };
    for flaw in &reading.flaws {
        tracing::warn!(schedule, flaw, "an on-call schedule has a flaw");
    }
    let found = oncall::on_call(&reading.schedule, now);
    if found.is_none() {
        tracing::error!(schedule, "nobody is on call");
    }
    Ok(found)
}

/// The jobs that tell of a level: a notice by mail, a post where the level has an address, and what the tenant's rules say.
async fn tell(
    connection: &mut PgConnection,
    due: &Due,
    level: &Level,
    on_call: Option<&OnCall>,
    now: Timestamp,
) -> Result<(), PlatformError> {
    let field = |name: &str| due.row[name].as_str().unwrap_or_default().trim().to_owned();
    let (summary, kind, device, site) =
        (field("summary"), field("alert_type"), field("device_id"), field("site_id"));
    let summary = if summary.is_empty() { kind.clone() } else { summary };
    let mut to = addresses(level.notify_email.as_deref().unwrap_or_default());
    let email = on_call.and_then(|found| found.responder.email.clone());
    if let Some(email) = email.filter(|email| !to.iter().any(|known| known.eq_ignore_ascii_case(email))) {
        to.push(email);
    }
    let name = on_call.map(|found| found.responder.name.clone());
    let mut jobs = Vec::new();
    // Where the level names nobody that mail reaches, and no address either, those who run the platform are told.
    if !to.is_empty() || !level.has_webhook {
        let who = name.as_deref().map_or_else(String::new, |name| format!("; on call: {name}"));
        let lost = if to.is_empty() { "; the level names nobody that mail reaches" } else { "" };
        let mut variables = json!({
            "tenant": due.tenant, "level": level.number, "alert_id": due.id.to_string(), "alert_type": kind,
            "summary": summary, "opened_at": due.row["created_at"],
        });
        for (name, value) in [("device", &device), ("site", &site)] {
            if !value.is_empty() {
                variables[name] = json!(value);
            }
        }
        if let Some(severity) = due.row["severity"].as_i64() {
            variables["severity"] = json!(severity);
        }
        if let Some(name) = &name {
            variables["on_call"] = json!(name);
        }
        let mut notice = json!({
            "event": "alert_escalated", "group": due.tenant, "reason": format!("level {}: {summary}{who}{lost}", level.number),
            "at": now, "template": "alert.escalated", "variables": variables, "throttle_ms": 0,
        });
        if !device.is_empty() {
            notice["server"] = json!(device);
        }
        if !to.is_empty() {
            notice["to"] = json!(to);
        }
        jobs.push((
            format!("escalation:{}:{}", due.id, level.number),
            "email-queue",
            "notification.send",
            notice,
        ));
    }
    if level.has_webhook {
        let payload =
            json!({ "alert_id": due.id, "level_id": level.id, "level": level.number, "on_call": name });
        jobs.push((
            format!("escalation:{}:{}:post", due.id, level.number),
            super::DUTY_QUEUE,
            "alerts.post",
            payload,
        ));
    }
    jobs.push((
        format!("escalation:{}:{}:dispatch", due.id, level.number),
        super::DUTY_QUEUE,
        "notifications.dispatch",
        json!({}),
    ));
    for (id, queue, kind, payload) in jobs {
        sqlx::query(
            "INSERT INTO ops.outbox (id, queue, kind, payload, priority, critical) \
             VALUES ($1, $2, $3, $4::json, 8, $3 <> 'notifications.dispatch') ON CONFLICT DO NOTHING",
        )
        .bind(id)
        .bind(queue)
        .bind(kind)
        .bind(payload.to_string())
        .execute(&mut *connection)
        .await
        .map_err(PlatformError::database("enqueue what tells of an alert"))?;
    }
    Ok(())
}
