//! The rows: which certificates end, which are revoked, and of which people were told.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::json;
use voiceai_postgres::sqlx::{self, PgPool, Row as _};

use super::crl::{Revoked, serial};
use super::standing::RevocationList;
use crate::PlatformError;
use crate::tables::typed;

/// Rows of one statement.
const BATCH: i64 = 1_000;

/// A certificate that people are to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    /// Small hexadecimal digits.
    pub(super) fingerprint: String,
    /// Its tenant; `endpoints` for one that an endpoint shows.
    pub(super) group: String,
    /// The device or endpoint.
    pub(super) host: String,
    pub(super) issuer: String,
    pub(super) not_after: Timestamp,
    /// Whose device; absent for endpoints.
    pub(super) device: Option<(String, String)>,
}

/// Ends what is past its time, in small statements. How many.
pub(super) async fn expire(pool: &PgPool) -> Result<u64, PlatformError> {
    let mut ended = 0;
    loop {
        let done = sqlx::query(
            "UPDATE device_certificates SET status = 'EXPIRED', updated_at = now() WHERE id IN ( \
                 SELECT id FROM device_certificates WHERE status = 'ACTIVE' AND not_after <= now() \
                 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)",
        )
        .bind(BATCH)
        .execute(pool)
        .await
        .map_err(PlatformError::database("end certificates that are past their time"))?
        .rows_affected();
        ended += done;
        if done < BATCH.unsigned_abs() {
            return Ok(ended);
        }
    }
}

/// What the list must hold, and the rows whose serial number cannot be read, by their id.
pub(super) async fn revoked(pool: &PgPool) -> Result<(Vec<Revoked>, Vec<String>), PlatformError> {
    let tried = || PlatformError::database("read the revoked certificates");
    let rows = sqlx::query(
        "SELECT id::text, serial_number::text, cert_pem::text, \
             GREATEST(LEAST(COALESCE(revoked_at, updated_at, now())::timestamptz, now()), '1970-01-01 00:00:00+00'), revoked_reason::text \
         FROM device_certificates WHERE status = 'REVOKED' ORDER BY id",
    )
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    let (mut list, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let text: Option<String> = row.try_get(1).map_err(tried())?;
        let pem: Option<String> = row.try_get(2).map_err(tried())?;
        match serial(pem.as_deref(), text.as_deref()) {
            Ok(serial) => list.push(Revoked {
                serial,
                at: row.try_get::<jiff_sqlx::Timestamp, _>(3).map_err(tried())?.to_jiff(),
                reason: row.try_get(4).map_err(tried())?,
            }),
            Err(reason) => {
                let id: String = row.try_get(0).map_err(tried())?;
                unreadable.push(format!("{id}: {reason}"));
            }
        }
    }
    Ok((list, unreadable))
}

/// The number of the next list: higher than every one before, also after the database was restored from a backup, because it is never
/// below the seconds since 1970.
pub(super) async fn next_number(pool: &PgPool, issuer: &str) -> Result<u64, PlatformError> {
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO ops.revocation_lists AS l (issuer, number) VALUES ($1, extract(epoch FROM clock_timestamp())::bigint) \
         ON CONFLICT (issuer) DO UPDATE SET published_at = clock_timestamp(), \
             number = GREATEST(l.number + 1, extract(epoch FROM clock_timestamp())::bigint) \
         RETURNING number",
    )
    .bind(issuer)
    .fetch_one(pool)
    .await
    .map_err(PlatformError::database("number the revocation list"))?;
    Ok(number.unsigned_abs())
}

/// Notes that the list with this number is in place.
pub(super) async fn placed(
    pool: &PgPool,
    issuer: &str,
    number: u64,
    next_update: Timestamp,
    revoked: usize,
) -> Result<(), PlatformError> {
    // Of two that are put in place at the same moment the newer one counts.
    sqlx::query(
        "UPDATE ops.revocation_lists SET placed_at = clock_timestamp(), next_update = $3, revoked = $4 \
         WHERE issuer = $1 AND number <= $2",
    )
    .bind(issuer)
    .bind(i64::try_from(number).unwrap_or(i64::MAX))
    .bind(next_update.to_sqlx())
    .bind(i64::try_from(revoked).unwrap_or(i64::MAX))
    .execute(pool)
    .await
    .map(drop)
    .map_err(PlatformError::database("note that the revocation list is in place"))
}

/// The list that was begun last.
pub(super) async fn newest_list(pool: &PgPool) -> Result<Option<RevocationList>, PlatformError> {
    let tried = || PlatformError::database("read how the revocation list stands");
    let row = sqlx::query(
        "SELECT issuer, published_at, placed_at, next_update FROM ops.revocation_lists ORDER BY published_at DESC LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(tried())?;
    let Some(row) = row else { return Ok(None) };
    let at = |column| -> Result<Option<Timestamp>, PlatformError> {
        let at: Option<jiff_sqlx::Timestamp> = row.try_get(column).map_err(tried())?;
        Ok(at.map(jiff_sqlx::Timestamp::to_jiff))
    };
    let begun = at("published_at")?.unwrap_or(Timestamp::UNIX_EPOCH);
    Ok(Some(RevocationList {
        issuer: row.try_get("issuer").map_err(tried())?,
        placed_at: at("placed_at")?,
        // Begun and never put in place: there is none that is good.
        next_update: at("next_update")?.unwrap_or(begun),
    }))
}

/// How many device certificates are good and end within `days`.
pub(super) async fn count_ending(pool: &PgPool, days: u32) -> Result<u64, PlatformError> {
    let count: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM device_certificates \
         WHERE status = 'ACTIVE' AND not_after > now() AND not_after <= now() + make_interval(days => $1)",
    )
    .bind(i32::try_from(days).unwrap_or(i32::MAX))
    .fetch_one(pool)
    .await
    .map_err(PlatformError::database("count the certificates that end soon"))?;
    Ok(count.unsigned_abs())
}

/// Device certificates that end within `days`, of which nobody was told yet.
pub(super) async fn ending(pool: &PgPool, days: u32) -> Result<Vec<Ending>, PlatformError> {
    let tried = || PlatformError::database("read the certificates that end soon");
    let rows = sqlx::query(
        "SELECT COALESCE(lower(c.fingerprint_sha256::text), 'row-' || c.id), COALESCE(c.tenant_id::text, ''), \
             COALESCE(c.device_id::text, ''), c.issuer::text, c.not_after::timestamptz \
         FROM device_certificates c \
         WHERE c.status = 'ACTIVE' AND c.not_after > now() AND c.not_after <= now() + make_interval(days => $1) \
           AND NOT EXISTS (SELECT FROM ops.certificate_warnings w \
                           WHERE w.fingerprint = COALESCE(lower(c.fingerprint_sha256::text), 'row-' || c.id) AND NOT w.ended) \
         ORDER BY c.not_after, c.id LIMIT 10000",
    )
    .bind(i32::try_from(days).unwrap_or(i32::MAX))
    .fetch_all(pool)
    .await
    .map_err(tried())?;
    rows.iter()
        .map(|row| {
            let (tenant, device): (String, String) =
                (row.try_get(1).map_err(tried())?, row.try_get(2).map_err(tried())?);
            Ok(Ending {
                fingerprint: row.try_get(0).map_err(tried())?,
                group: tenant.clone(),
                host: device.clone(),
                issuer: row.try_get::<Option<String>, _>(3).map_err(tried())?.unwrap_or_default(),
                not_after: row.try_get::<jiff_sqlx::Timestamp, _>(4).map_err(tried())?.to_jiff(),
                device: Some((tenant, device)),
            })
        })
        .collect()
}

/// Writes down that people are told: the warning, the notice and, where `alerts`, the platform's alert, in one transaction. False when
/// they had been told.
pub(super) async fn warn(
    pool: &PgPool,
    ending: &Ending,
    now: Timestamp,
    alerts: bool,
) -> Result<bool, PlatformError> {
    let tried = || PlatformError::database("warn of a certificate");
    let left = ending.not_after.duration_since(now);
    let ended = left.is_negative();
    let days = left.as_secs().div_euclid(86_400);
    let mut tx = pool.begin().await.map_err(tried())?;
    let new = sqlx::query(
        "INSERT INTO ops.certificate_warnings (fingerprint, ended, host, not_after) VALUES ($1, $2, $3, $4) \
         ON CONFLICT DO NOTHING",
    )
    .bind(&ending.fingerprint)
    .bind(ended)
    .bind(&ending.host)
    .bind(ending.not_after.to_sqlx())
    .execute(&mut *tx)
    .await
    .map_err(tried())?
    .rows_affected();
    if new == 0 {
        return Ok(false);
    }
    let end = ending.not_after.strftime("%Y-%m-%d %H:%M UTC");
    let reason = if ended {
        format!("its certificate ended at {end}")
    } else {
        format!("its certificate ends at {end}, in {days} days")
    };
    let payload = json!({
        "event": "certificate_expiring",
        "group": ending.group,
        "server": ending.host,
        "reason": reason,
        "at": now,
        "template": "ops.certificate_expiring",
        "variables": {
            "host": ending.host,
            "expires_at": ending.not_after,
            "days_left": days,
            "issuer": ending.issuer,
        },
    });
    sqlx::query(
        "INSERT INTO ops.outbox (id, queue, kind, payload) VALUES ($1, 'email-queue', 'notification.send', $2::json) \
         ON CONFLICT DO NOTHING",
    )
    .bind(format!("certificate:{}:{}", if ended { "ended" } else { "ending" }, ending.fingerprint))
    .bind(payload.to_string())
    .execute(&mut *tx)
    .await
    .map_err(tried())?;
    if let (true, Some((tenant, device))) = (alerts, &ending.device)
        && !tenant.is_empty()
    {
        let sql = format!(
            "INSERT INTO fleet_alert (tenant_id, device_id, alert_type, fingerprint, status, severity, summary, details) \
             SELECT {owner}, {}, 'CERT_EXPIRING', $3, 'OPEN', 4, $4, $5 \
             WHERE NOT EXISTS (SELECT FROM fleet_alert WHERE tenant_id = {owner} AND fingerprint = $3 \
                               AND status IN ('OPEN', 'ACKNOWLEDGED')) \
             ON CONFLICT DO NOTHING",
            typed("fleet_alert", "device_id", "$2::text"),
            owner = typed("fleet_alert", "tenant_id", "$1::text"),
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(tenant)
        .bind(device)
        .bind(fingerprint_of_alert(&ending.fingerprint))
        .bind(&reason)
        .bind(json!({ "fingerprint": ending.fingerprint, "not_after": ending.not_after, "issuer": ending.issuer }))
        .execute(&mut *tx)
        .await
        .map_err(tried())?;
    }
    tx.commit().await.map_err(tried())?;
    Ok(true)
}

fn fingerprint_of_alert(certificate: &str) -> String {
    format!("cert-expiring:{certificate}")
}

/// Closes the alerts of certificates that were revoked: nobody waits for them to be renewed. How many.
pub(super) async fn close_alerts(pool: &PgPool) -> Result<u64, PlatformError> {
    sqlx::query(
        "UPDATE fleet_alert a SET status = 'CLOSED', closed_at = now() \
         FROM device_certificates c \
         WHERE a.alert_type = 'CERT_EXPIRING' AND a.status IN ('OPEN', 'ACKNOWLEDGED') AND a.tenant_id::text = c.tenant_id::text \
           AND a.fingerprint = 'cert-expiring:' || lower(c.fingerprint_sha256::text) AND c.status = 'REVOKED'",
    )
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
    .map_err(PlatformError::database("close the alerts of revoked certificates"))
}

/// Forgets warnings of certificates that ended two years ago.
pub(super) async fn prune(pool: &PgPool) -> Result<(), PlatformError> {
    sqlx::query("DELETE FROM ops.certificate_warnings WHERE not_after < now() - interval '2 years'")
        .execute(pool)
        .await
        .map(drop)
        .map_err(PlatformError::database("forget old warnings of certificates"))
}
