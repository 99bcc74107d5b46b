use std::time::Duration;

use voiceai_postgres::sqlx::{self, PgPool, Row};

use super::check::Checked;
use super::command::Content;
use super::{AcceptError, Accepted, Composed, Entry};
use crate::Class;
use crate::delivery::DeliveryStatus;
use crate::error::MailError;
use crate::store::parse;

/// The delivery that has the command's key or id, if there is one: the same mail, or a conflict.
pub(super) async fn find(
    pool: &PgPool,
    checked: &Checked,
) -> Result<Option<Result<Accepted, AcceptError>>, MailError> {
    let command = &checked.command;
    // The row with the same key first: it decides.
    let row = sqlx::query(
        "SELECT delivery_id, request_fingerprint, status, (source = $1 AND idempotency_key = $2) AS same_key \
         FROM mail.deliveries WHERE (source = $1 AND idempotency_key = $2) OR delivery_id = $3 \
         ORDER BY same_key DESC LIMIT 1",
    )
    .bind(command.source.as_str())
    .bind(&command.idempotency_key)
    .bind(&command.delivery_id)
    .fetch_optional(pool)
    .await
    .map_err(MailError::database("look for an earlier delivery"))?;
    let Some(row) = row else { return Ok(None) };
    let read = || -> Result<_, sqlx::Error> {
        let (id, fingerprint): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let (status, same_key): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
        Ok((id, fingerprint, status, same_key))
    };
    let (delivery_id, fingerprint, status, same_key) =
        read().map_err(MailError::database("read an earlier delivery"))?;
    if same_key && fingerprint == checked.fingerprint {
        let status: DeliveryStatus = parse("mail.deliveries", "status", &status)?;
        return Ok(Some(Ok(Accepted { delivery_id, status, known: true })));
    }
    let what = if same_key { "idempotency_key" } else { "delivery_id" };
    Ok(Some(Err(AcceptError::Conflict { what, delivery_id })))
}

/// Writes the delivery with everything that belongs to it in one statement. `None`: its key or id is taken.
pub(super) async fn insert(
    pool: &PgPool,
    entry: &Entry<'_>,
    sender: &str,
    max_age: Duration,
    resend_of: Option<&str>,
) -> Result<Option<DeliveryStatus>, MailError> {
    let command = &entry.checked.command;
    let recipients = &entry.checked.recipients;
    let kinds: Vec<&str> = recipients.iter().map(|r| r.kind.as_str()).collect();
    let addresses: Vec<&str> = recipients.iter().map(|r| r.address.as_str()).collect();
    let domains: Vec<&str> = recipients.iter().map(|r| r.address.domain()).collect();
    let (template_id, locale) = match &command.content {
        Content::Template { template_id, locale, .. } => (Some(template_id), Some(locale)),
        Content::Rendered { .. } => (None, None),
    };
    let (ended, attempt, detail) = beginning(entry);
    let (subject, found_locale, messages) = match &entry.composed {
        Ok(composed) => {
            (shown(composed, &command.content), composed.locale.as_deref(), composed.messages.as_slice())
        }
        Err(_) => (String::new(), None, &[][..]),
    };
    let nothing: [&[u8]; 1] = [&[]];
    let messages: Vec<&[u8]> = if messages.is_empty() {
        nothing.into()
    } else {
        messages.iter().map(|message| &message[..]).collect()
    };
    let priority = i16::from(command.priority.unwrap_or_else(|| priority_of(entry.class)));
    let stored = kept(entry);
    let secret = entry.composed.as_ref().is_ok_and(|composed| !composed.sensitive.is_empty());
    let row = sqlx::query(INSERT)
        .bind(&command.delivery_id)
        .bind(command.source.as_str())
        .bind(&command.idempotency_key)
        .bind(&entry.checked.fingerprint[..])
        .bind(command.content.mode().as_str())
        .bind(template_id)
        .bind(locale)
        .bind(found_locale)
        .bind(entry.class.as_str())
        .bind(&command.tenant)
        .bind(priority)
        .bind(sender)
        .bind(&subject)
        .bind(entry.message_id)
        .bind(&command.request_id)
        .bind(&command.trace_id)
        .bind(resend_of)
        .bind(command.requested_at_ms)
        .bind(max_age.as_secs_f64())
        .bind(&kinds)
        .bind(&addresses)
        .bind(&domains)
        .bind(ended)
        .bind(attempt)
        .bind(detail)
        .bind(&messages)
        .bind(stored)
        .bind(secret)
        .fetch_optional(pool)
        .await
        .map_err(MailError::database("store a delivery"))?;
    let Some(row) = row else { return Ok(None) };
    let status: String = row.try_get(0).map_err(MailError::database("store a delivery"))?;
    parse("mail.deliveries", "status", &status).map(Some)
}

/// How recipients and their first attempts begin: open and scheduled, or ended before they began, and why.
fn beginning(entry: &Entry<'_>) -> (&'static str, &'static str, Option<String>) {
    match &entry.composed {
        Err(error) => ("failed", "render_failed", Some(crate::transport::Summary::line(&error.0))),
        Ok(_) if entry.suppress => {
            ("suppressed", "provider_rejected", Some("stub: nothing is sent".to_owned()))
        }
        Ok(_) => ("open", "scheduled", None),
    }
}

/// The command as it is kept: without what nobody may read once the mail is out.
fn kept(entry: &Entry<'_>) -> String {
    let mut command = entry.checked.command.clone();
    if let (Content::Template { variables, .. }, Ok(composed)) = (&mut command.content, &entry.composed) {
        for name in &composed.sensitive {
            if let Some(value) = variables.get_mut(name) {
                *value = REDACTED.into();
            }
        }
    }
    serde_json::to_string(&command).unwrap_or_else(|_| "null".to_owned())
}

/// The subject as lists show it, long after the mail was sent: without what nobody may read by then.
fn shown(composed: &Composed, content: &Content) -> String {
    let Content::Template { variables, .. } = content else { return composed.subject.clone() };
    let secrets = composed.sensitive.iter().filter_map(|name| variables.get(name));
    secrets.fold(composed.subject.clone(), |subject, secret| {
        let secret = secret.as_str().map_or_else(|| secret.to_string(), str::to_owned);
        if secret.is_empty() { subject } else { subject.replace(&secret, REDACTED) }
    })
}

/// Stands in a kept command for a value that is not kept.
pub(crate) const REDACTED: &str = "[redacted]";

/// A login code overtakes a backlog; what nobody waits for lets others pass.
const fn priority_of(class: Class) -> u8 {
    match class {
        Class::Auth => 10,
        Class::System => 5,
        Class::Billing | Class::Transactional | Class::Notification => 3,
        Class::Marketing => 0,
    }
}

const INSERT: &str = "\
WITH clock AS MATERIALIZED (SELECT date_trunc('milliseconds', clock_timestamp()) AS now),
delivery AS (
    INSERT INTO mail.deliveries (
        delivery_id, source, idempotency_key, request_fingerprint, payload_mode, template_id, locale, rendered_locale,
        class, tenant, priority, sender, subject, message_id, request_id, trace_id, resend_of, requested_at,
        created_at, updated_at, expires_at, next_attempt_at, finished_at, recipients,
        open_count, suppressed_count, failed_count)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
        to_timestamp($18::bigint / 1000.0), now, now, now + make_interval(secs => $19),
        CASE WHEN $23 = 'open' THEN now END, CASE WHEN $23 <> 'open' THEN now END, cardinality($20::text[]),
        CASE WHEN $23 = 'open' THEN cardinality($20::text[]) ELSE 0 END,
        CASE WHEN $23 = 'suppressed' THEN cardinality($20::text[]) ELSE 0 END,
        CASE WHEN $23 = 'failed' THEN cardinality($20::text[]) ELSE 0 END
    FROM clock
    ON CONFLICT DO NOTHING
    RETURNING delivery_id, status, created_at
), recipient AS (
    INSERT INTO mail.delivery_recipients
        (delivery_id, position, kind, address, domain, part, status, last_result, ended_at)
    SELECT d.delivery_id, r.position - 1, r.kind, r.address, r.domain,
        CASE WHEN cardinality($26::bytea[]) > 1 THEN r.position - 1 ELSE 0 END, $23, $25,
        CASE WHEN $23 <> 'open' THEN d.created_at END
    FROM delivery d, unnest($20::text[], $21::text[], $22::text[])
        WITH ORDINALITY AS r (kind, address, domain, position)
    RETURNING delivery_id, position
), attempt AS (
    INSERT INTO mail.attempts
        (delivery_id, position, attempt_no, status, priority, accepted_at, due_at, finished_at, detail)
    SELECT r.delivery_id, r.position, 1, $24, $11, d.created_at, d.created_at,
        CASE WHEN $23 <> 'open' THEN d.created_at END, $25
    FROM recipient r JOIN delivery d USING (delivery_id)
), payload AS (
    INSERT INTO mail.delivery_payloads (delivery_id, part, message, command, secret)
    SELECT d.delivery_id, p.part - 1, p.message, CASE WHEN p.part = 1 THEN $27::json END, $28
    FROM delivery d, unnest($26::bytea[]) WITH ORDINALITY AS p (message, part)
)
SELECT status FROM delivery";
