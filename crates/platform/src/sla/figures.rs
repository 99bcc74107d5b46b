//! The figures of a tenant, and how they are shown.

use jiff::Timestamp;
use jiff::civil::Date;
use minijinja::Environment;
use serde::Serialize;
use serde_json::{Value, json};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, Row as _};

use crate::PlatformError;
use crate::tables::typed;

/// Devices that are listed.
const TOP: i64 = 5;

/// A device with its alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopDevice {
    /// The device.
    pub device_id: String,
    /// Alerts that it raised.
    pub alerts: i64,
}

/// The figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Devices in all.
    pub total_devices: i64,
    /// Those that are online now.
    pub online_devices: i64,
    /// Alerts that opened within the days of the report.
    pub total_alerts: i64,
    /// Those of them that are not closed.
    pub unresolved_alerts: i64,
    /// Mean time from opening to closing, of those that closed within the days; absent where none did.
    pub mttr_minutes: Option<f64>,
    /// Those with the most alerts.
    pub top_devices: Vec<TopDevice>,
}

pub(super) async fn read(
    pool: &PgPool,
    tenant: &str,
    days: u32,
    has_registry: bool,
) -> Result<Figures, PlatformError> {
    let tried = || PlatformError::database("read the figures of a service level report");
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    let [registry, state, alert] =
        ["device_registry", "device_state", "fleet_alert"].map(|table| typed(table, "tenant_id", "$1::text"));
    let devices = if has_registry {
        format!(
            "SELECT count(*) FROM (SELECT device_id::text FROM device_registry WHERE tenant_id = {registry} \
             UNION SELECT device_id::text FROM device_state WHERE tenant_id = {state}) d"
        )
    } else {
        format!("SELECT count(*) FROM device_state WHERE tenant_id = {state}")
    };
    let statement = format!(
        "SELECT ({devices}), (SELECT count(*) FROM device_state WHERE tenant_id = {state} AND status = 'ONLINE'), \
             count(*) FILTER (WHERE created_at > now() - make_interval(days => $2)), \
             count(*) FILTER (WHERE created_at > now() - make_interval(days => $2) AND status IS DISTINCT FROM 'CLOSED'), \
             (avg(extract(epoch FROM closed_at - created_at)) FILTER ( \
                 WHERE status = 'CLOSED' AND closed_at > now() - make_interval(days => $2) AND closed_at >= created_at \
                   AND isfinite(closed_at) AND isfinite(created_at)) / 60)::float8 \
         FROM fleet_alert WHERE tenant_id = {alert}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenant)
        .bind(days)
        .fetch_one(pool)
        .await
        .map_err(tried())?;
    let count = |column: usize| row.try_get::<i64, _>(column).map_err(tried());
    let statement = format!(
        "SELECT device_id::text, count(*) FROM fleet_alert \
         WHERE tenant_id = {alert} AND created_at > now() - make_interval(days => $2) AND COALESCE(device_id::text, '') <> '' \
         GROUP BY device_id ORDER BY count(*) DESC, device_id LIMIT $3"
    );
    let top: Vec<(String, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(tenant)
        .bind(days)
        .bind(TOP)
        .fetch_all(pool)
        .await
        .map_err(tried())?;
    Ok(Figures {
        total_devices: count(0)?,
        online_devices: count(1)?,
        total_alerts: count(2)?,
        unresolved_alerts: count(3)?,
        mttr_minutes: row.try_get(4).map_err(tried())?,
        top_devices: top.into_iter().map(|(device_id, alerts)| TopDevice { device_id, alerts }).collect(),
    })
}

impl Figures {
    /// Share of devices that are online, in percent; absent where there are none.
    #[must_use]
    pub fn online_pct(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "devices are far fewer than 2^52")]
        let share = self.online_devices as f64 / self.total_devices.max(1) as f64;
        (self.total_devices > 0).then(|| rounded(share * 100.0, 100.0))
    }

    /// As it is kept.
    #[must_use]
    pub fn report(&self, tenant: &str, name: &str, day: Date, days: u32, now: Timestamp) -> Value {
        let from = now.saturating_sub(jiff::SignedDuration::from_hours(24 * i64::from(days)));
        json!({
            "tenant_id": tenant,
            "tenant_name": name,
            "day": day.to_string(),
            "period_days": days,
            "from": from.map_or(now, |from| from).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "to": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "total_devices": self.total_devices,
            "online_devices": self.online_devices,
            "online_pct": self.online_pct(),
            "total_alerts": self.total_alerts,
            "unresolved_alerts": self.unresolved_alerts,
            "mttr_minutes": self.mttr_minutes.map(|minutes| rounded(minutes, 10.0)),
            "top_devices": self.top_devices,
        })
    }

    /// In one line.
    pub(super) fn line(&self) -> String {
        let online =
            self.online_pct().map_or_else(|| "no devices".to_owned(), |pct| format!("{pct} % online"));
        format!("{online}, {} alerts, {} not resolved", self.total_alerts, self.unresolved_alerts)
    }

    /// For the template of its mail.
    pub(super) fn variables(&self, name: &str, day: Date, days: u32) -> Value {
        let mut variables = json!({
            "tenant": name,
            "day": day.to_string(),
            "period_days": days,
            "total_devices": self.total_devices,
            "online_devices": self.online_devices,
            "total_alerts": self.total_alerts,
            "unresolved_alerts": self.unresolved_alerts,
            "top_devices": self.top_devices.iter().map(|top| json!({ "device": top.device_id, "alerts": top.alerts })).collect::<Vec<_>>(),
        });
        if let Some(pct) = self.online_pct() {
            variables["online_pct"] = json!(pct.to_string());
        }
        if let Some(minutes) = self.mttr_minutes {
            variables["mttr_minutes"] = json!(rounded(minutes, 10.0).to_string());
        }
        variables
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// The report as a page.
pub(super) fn page(report: &Value) -> Result<String, PlatformError> {
    const NAME: &str = "report.html";
    let mut environment = Environment::new();
    let made = environment
        .add_template(NAME, include_str!("report.html.j2"))
        .and_then(|()| environment.get_template(NAME))
        .and_then(|template| template.render(minijinja::Value::from(minijinja::value::Serde(report))));
    made.map_err(|error| PlatformError::invalid("report", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            total_devices: 3,
            online_devices: 2,
            total_alerts: 7,
            unresolved_alerts: 1,
            mttr_minutes: Some(12.345),
            top_devices: vec![TopDevice { device_id: "<b>d1</b>".to_owned(), alerts: 4 }],
        }
    }

    #[test]
    fn figures_are_rounded_and_missing_ones_are_absent_not_zero() {
        let day = "2026-11-22".parse().expect("a day");
        let now = "2026-11-22T06:00:00Z".parse().expect("a time");
        let report = figures().report("t1", "Acme", day, 30, now);
        assert_eq!((&report["online_pct"], &report["mttr_minutes"]), (&json!(66.67), &json!(12.3)));
        assert_eq!(report["from"], "2026-10-23T06:00:00Z");
        let none = Figures { total_devices: 0, online_devices: 0, mttr_minutes: None, ..figures() };
        let report = none.report("t1", "Acme", day, 30, now);
        assert!(report["online_pct"].is_null() && report["mttr_minutes"].is_null());
        assert!(none.variables("Acme", day, 30).get("online_pct").is_none());
    }

    #[test]
    fn the_page_shows_names_as_text() {
        let report = figures().report(
            "t1",
            "A & <script>",
            "2026-11-22".parse().expect("a day"),
            30,
            Timestamp::UNIX_EPOCH,
        );
        let page = page(&report).expect("a page");
        assert!(page.contains("A &amp; &lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(
            page.contains("&lt;b&gt;d1") && page.contains("66.67 %") && page.contains("12.3 min"),
            "{page}"
        );
    }
}
