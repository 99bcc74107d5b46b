//! A schedule out of the platform's tables.

use jiff::Timestamp;
use jiff::civil::{self, DateTime};
use jiff::tz::TimeZone;
use serde_json::Value;
use voiceai_postgres::sqlx::{self, PgConnection};

use super::{Layer, Override, Responder, Schedule};
use crate::PlatformError;

/// A schedule as it was read, and what in its rows cannot be used.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What can be.
    pub schedule: Schedule,
    /// In words, for the log.
    pub flaws: Vec<String>,
}

/// Reads a schedule with its layers and the overrides that have not ended at `now`; `None` where there is none of that id. A row that
/// cannot be used is left out and named: half a schedule at night is better than none.
///
/// # Errors
/// As the database says.
pub async fn schedule(
    connection: &mut PgConnection,
    id: i64,
    now: Timestamp,
) -> Result<Option<Reading>, PlatformError> {
    let tried = || PlatformError::database("read an on-call schedule");
    // Whole rows as JSON: columns that only some installations have, such as an anchor, are then simply there or not.
    let own: Option<Value> =
        sqlx::query_scalar("SELECT to_jsonb(s) FROM oncall_schedules s WHERE s.schedule_id = $1::bigint")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await
            .map_err(tried())?;
    let Some(own) = own else { return Ok(None) };
    let layers: Vec<Value> = sqlx::query_scalar(
        "SELECT to_jsonb(l) FROM oncall_layers l WHERE l.schedule_id = $1::bigint ORDER BY l.layer_order, l.layer_id",
    )
    .bind(id)
    .fetch_all(&mut *connection)
    .await
    .map_err(tried())?;
    let overrides: Vec<Value> = sqlx::query_scalar(
        "SELECT to_jsonb(o) || jsonb_build_object('start_s', extract(epoch FROM o.start_at), 'end_s', extract(epoch FROM o.end_at)) \
         FROM oncall_overrides o WHERE o.schedule_id = $1::bigint AND o.end_at > to_timestamp($2::float8)",
    )
    .bind(id)
    .bind(now.as_duration().as_secs_f64())
    .fetch_all(&mut *connection)
    .await
    .map_err(tried())?;
    Ok(Some(read(id, &own, &layers, &overrides)))
}

fn read(id: i64, own: &Value, layers: &[Value], overrides: &[Value]) -> Reading {
    let mut flaws = Vec::new();
    let name = own["timezone"].as_str().unwrap_or("UTC");
    let zone = TimeZone::get(name).unwrap_or_else(|_| {
        flaws.push(format!("schedule {id}: there is no time zone {name:?}; UTC is used"));
        TimeZone::UTC
    });
    let layers = layers.iter().map(|row| layer(row, &zone, &mut flaws)).collect();
    let overrides = overrides.iter().filter_map(|row| stand_in(row, &mut flaws)).collect();
    Reading { schedule: Schedule { zone, layers, overrides }, flaws }
}

fn layer(row: &Value, zone: &TimeZone, flaws: &mut Vec<String>) -> Layer {
    let id = word(&row["layer_id"]);
    let number = |name: &str, otherwise: i64| row[name].as_i64().unwrap_or(otherwise);
    let responders: Vec<Responder> = match &row["responders"] {
        Value::Array(all) => all.iter().filter_map(responder).collect(),
        _ => Vec::new(),
    };
    let known = row["responders"].as_array().map_or(0, Vec::len);
    if responders.len() < known {
        flaws.push(format!(
            "layer {id}: {} of {known} responders have neither name nor address",
            known - responders.len()
        ));
    }
    let shift_hours = number("shift_duration_hours", 168);
    if shift_hours < 1 {
        flaws.push(format!("layer {id}: a shift of {shift_hours} hours is taken as one hour"));
    }
    Layer {
        order: number("layer_order", 0),
        shift_hours,
        handoff_day: number("handoff_day", 1),
        handoff_hour: number("handoff_hour", 9),
        anchor: ["anchor_date", "rotation_start", "starts_at", "created_at"]
            .iter()
            .find_map(|name| wall(&row[*name], zone)),
        responders,
        id,
    }
}

fn stand_in(row: &Value, flaws: &mut Vec<String>) -> Option<Override> {
    let id = word(&row["override_id"]);
    let Some(responder) = responder(&row["responder"]) else {
        flaws.push(format!("override {id}: it names nobody"));
        return None;
    };
    let at = |name: &str| {
        // To the microsecond, as PostgreSQL keeps it.
        #[expect(clippy::cast_possible_truncation, reason = "a time of PostgreSQL fits")]
        row[name].as_f64().and_then(|s| Timestamp::from_microsecond((s * 1e6).round() as i64).ok())
    };
    let layer = (!row["layer_id"].is_null()).then(|| word(&row["layer_id"]));
    // A bound that is no time, such as infinity, is no bound.
    let (start, end) = (at("start_s").unwrap_or(Timestamp::MIN), at("end_s").unwrap_or(Timestamp::MAX));
    Some(Override { layer, responder, start, end })
}

/// Somebody: an address, a name, or an object with either.
fn responder(value: &Value) -> Option<Responder> {
    let text =
        |value: &Value| value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let has_at = |text: &String| text.contains('@');
    if let Value::Object(fields) = value {
        let field = |names: &[&str]| names.iter().find_map(|name| fields.get(*name).and_then(text));
        let email = field(&["email", "address", "mail"]).filter(has_at);
        let name = field(&["name", "display_name", "id", "user_id"]).or_else(|| email.clone())?;
        return Some(Responder { name, email });
    }
    let name = text(value)?;
    Some(Responder { email: Some(name.clone()).filter(has_at), name })
}

/// A moment by the schedule's clock; of a date its end, so that a handoff on that day counts.
fn wall(value: &Value, zone: &TimeZone) -> Option<DateTime> {
    let text = value.as_str()?;
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(zone.to_datetime(at));
    }
    if text.contains('T') {
        return text.parse().ok();
    }
    text.parse::<civil::Date>().map(|date| date.at(23, 59, 59, 0)).ok()
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_read_however_people_are_named_and_flaws_are_told() {
        let layers = [json!({
            "layer_id": 7, "layer_order": 1, "shift_duration_hours": 24, "created_at": "2026-01-07T10:11:12+00:00",
            "responders": ["ann@example.com", "ben", {"name": "Cat", "email": "cat@example.com"}, {"email": "dan@example.com"}, {}, 5],
        })];
        let overrides = [
            json!({ "override_id": 1, "layer_id": null, "responder": "eve@example.com", "start_s": 10.5, "end_s": 20 }),
            json!({ "override_id": 2, "layer_id": 7, "responder": " ", "start_s": 10, "end_s": 20 }),
        ];
        let read = read(3, &json!({ "timezone": "Mars/Olympus" }), &layers, &overrides);
        let layer = &read.schedule.layers[0];
        let people: Vec<_> =
            layer.responders.iter().map(|r| (r.name.as_str(), r.email.as_deref().unwrap_or("-"))).collect();
        assert_eq!(
            people,
            [
                ("ann@example.com", "ann@example.com"),
                ("ben", "-"),
                ("Cat", "cat@example.com"),
                ("dan@example.com", "dan@example.com")
            ]
        );
        assert_eq!(
            (layer.anchor, layer.handoff_hour, layer.shift_hours),
            (Some(civil::date(2026, 1, 7).at(10, 11, 12, 0)), 9, 24)
        );
        let over = &read.schedule.overrides;
        assert_eq!((over.len(), over[0].start.as_millisecond(), over[0].layer.as_deref()), (1, 10_500, None));
        assert_eq!(read.flaws.len(), 3, "{:?}", read.flaws);
        assert!(read.flaws[0].contains("Mars/Olympus"), "{:?}", read.flaws);
        let zone = TimeZone::get("Europe/Berlin").expect("a zone");
        let at = |text: &str| wall(&json!(text), &zone).map(|at| at.to_string()).unwrap_or_default();
        assert_eq!(at("2026-01-06T23:30:00+00:00"), "2026-01-07T00:30:00");
        assert_eq!(at("2026-01-06"), "2026-01-06T23:59:59");
        assert_eq!((at("2026-01-06T09:00:00").as_str(), at("soon").as_str()), ("2026-01-06T09:00:00", ""));
    }
}
