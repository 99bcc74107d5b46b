use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgExecutor, PgPool, Row};

use crate::error::WebhookError;

/// Something that happened to a tenant.
#[derive(Debug, Clone, Copy)]
pub struct NewEvent<'a> {
    /// To whom.
    pub tenant: &'a str,
    /// What, in words with dots: `call.ended`.
    pub event_type: &'a str,
    /// Once for each event, whoever tells of it and however often; it becomes `webhook-id`.
    pub id: &'a str,
    /// Whatever the receiver is to know.
    pub data: &'a Value,
    /// When.
    pub at: Timestamp,
}

/// What came of telling of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Emitted {
    /// The endpoints that it goes to now.
    pub deliveries: u64,
    /// True when the event had been told before: nothing was written.
    pub known: bool,
}

/// Largest event where no setting says otherwise, in bytes as it is posted.
const BYTES_MAX: usize = 262_144;

/// Writes the event of now, with a delivery for every endpoint of its tenant that is active and wants it: one statement, so that it may
/// stand in another's transaction. Told again under the same id it changes nothing.
///
/// # Errors
/// [`WebhookError::Invalid`] when a part of it cannot be used; else as the database says.
pub async fn emit(
    pool: &PgPool,
    tenant: &str,
    event_type: &str,
    id: &str,
    data: &Value,
) -> Result<Emitted, WebhookError> {
    let event = NewEvent { tenant, event_type, id, data, at: Timestamp::now() };
    emit_within(pool, &event, BYTES_MAX).await
}

/// The same over any executor, such as a transaction, and with a limit of the caller's.
///
/// # Errors
/// As [`emit`].
pub async fn emit_within(
    executor: impl PgExecutor<'_>,
    event: &NewEvent<'_>,
    bytes_max: usize,
) -> Result<Emitted, WebhookError> {
    let body = body(event, bytes_max)?;
    let tried = "write down a webhook event";
    let row = sqlx::query(EMIT)
        .bind(event.tenant)
        .bind(event.id)
        .bind(event.event_type)
        .bind(body)
        .fetch_one(executor)
        .await
        .map_err(WebhookError::database(tried))?;
    let deliveries: i64 = row.try_get("deliveries").map_err(WebhookError::database(tried))?;
    let known: bool = row.try_get("known").map_err(WebhookError::database(tried))?;
    Ok(Emitted { deliveries: u64::try_from(deliveries).unwrap_or(0), known })
}

// A pattern's * stands for anything; everything else in it stands for itself. A delivery's id is a UUID of version 7: its time first,
// so that indexes grow at one end.
const EMIT: &str = "\
WITH event AS (
    INSERT INTO ops.webhook_events (tenant, id, type, body) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING RETURNING seq, tenant, id, type, body
), delivery AS (
    INSERT INTO ops.webhook_open (id, endpoint_id, event_seq, tenant, event_id, event_type, bytes, due_at)
    SELECT (lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
            || right(gen_random_uuid()::text, 21))::uuid,
        e.id, v.seq, v.tenant, v.id, v.type, octet_length(v.body), clock_timestamp()
    FROM event v JOIN ops.webhook_endpoints e ON e.tenant = v.tenant AND e.state = 'active'
    WHERE EXISTS (
        SELECT FROM unnest(e.events) AS p (pattern)
        WHERE v.type LIKE replace(replace(replace(replace(pattern, '\\', '\\\\'), '%', '\\%'), '_', '\\_'), '*', '%'))
    RETURNING 1
), counted AS (
    SELECT count(*) AS deliveries FROM delivery
), woken AS (
    SELECT pg_notify('voiceai_webhook', '') FROM counted WHERE deliveries > 0
)
SELECT deliveries, NOT EXISTS (SELECT FROM event) AS known, (SELECT count(*) FROM woken) AS woken FROM counted";

/// The text that is signed and posted. Made once: every attempt sends the same bytes.
fn body(event: &NewEvent<'_>, bytes_max: usize) -> Result<String, WebhookError> {
    if event.tenant.is_empty() || event.tenant.chars().count() > 200 || event.tenant.contains('\0') {
        return Err(WebhookError::invalid("tenant", "1 to 200 characters are wanted"));
    }
    if !is_type(event.event_type) {
        return Err(WebhookError::invalid(
            "type",
            "words of a-z, 0-9, _ and - joined by dots, such as call.ended, are wanted",
        ));
    }
    check_id(event.id)?;
    let body = json!({ "type": event.event_type, "timestamp": event.at.to_string(), "data": event.data })
        .to_string();
    if body.len() > bytes_max {
        let reason = format!(
            "{} bytes are more than the {bytes_max} of WEBHOOK_EVENT_BYTES_MAX; post a link instead",
            body.len()
        );
        return Err(WebhookError::invalid("data", reason));
    }
    Ok(body)
}

fn is_word(word: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    !word.is_empty() && word.bytes().all(known)
}

fn is_type(text: &str) -> bool {
    text.len() <= 200 && text.split('.').all(is_word)
}

/// A dot would make the signed text ambiguous, and anything else may not stand in a header.
fn check_id(id: &str) -> Result<(), WebhookError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
    if (1..=200).contains(&id.len()) && id.bytes().all(known) {
        return Ok(());
    }
    Err(WebhookError::invalid("id", "1 to 200 letters, digits, _, - and : are wanted"))
}

/// Checks the pattern of an endpoint: an event's type in which `*` may stand for anything.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), WebhookError> {
    if is_type(&pattern.replace('*', "x")) {
        return Ok(());
    }
    let reason = format!("`{pattern}` is no pattern such as call.ended, call.* or *");
    Err(WebhookError::invalid("events", reason))
}

/// A probe: told to one endpoint by an operator, and written nowhere.
pub(crate) fn probe_body(endpoint: Uuid, at: Timestamp) -> String {
    let data = json!({ "endpoint_id": endpoint });
    json!({ "type": "webhook.test", "timestamp": at.to_string(), "data": data }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(event_type: &str, id: &str, data: &Value) -> Result<String, String> {
        let at = "2026-11-22T03:00:00Z".parse().unwrap();
        let event = NewEvent { tenant: "t", event_type, id, data, at };
        body(&event, 1_000).map_err(|error| error.to_string())
    }

    #[test]
    fn the_body_is_the_schemes() {
        let body: Value =
            serde_json::from_str(&made("call.ended", "evt_1", &json!({"id": 7})).unwrap()).unwrap();
        assert_eq!(
            body,
            json!({"type": "call.ended", "timestamp": "2026-11-22T03:00:00Z", "data": {"id": 7}})
        );
    }

    #[test]
    fn what_cannot_be_posted_is_refused_by_name() {
        for (event_type, id) in [("Call.Ended", "a"), ("call..ended", "a"), ("", "a"), ("*", "a")] {
            assert!(made(event_type, id, &json!({})).unwrap_err().starts_with("type"), "{event_type}");
        }
        for id in ["", "a.b", "a b", "a\r\nb", "é"] {
            assert!(made("call.ended", id, &json!({})).unwrap_err().starts_with("id"), "{id}");
        }
        let large = made("call.ended", "a", &json!("x".repeat(2_000))).unwrap_err();
        assert!(large.contains("WEBHOOK_EVENT_BYTES_MAX"), "{large}");
    }

    #[test]
    fn patterns() {
        for good in ["*", "call.*", "call.ended", "*.ended", "call.e*"] {
            assert!(check_pattern(good).is_ok(), "{good}");
        }
        for bad in ["", "Call.*", "call.", "%", "call ended"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }
}
