//! Telling a tenant, and the books, of what became of a subscription: rows in the transaction of the change.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx as _;
use serde_json::{Value, json};
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgConnection};
use voiceai_webhook::{NewEvent, WebhookError, emit_within};

use crate::error::PlatformError;
use crate::tables::typed;
use crate::upkeep::enqueue;

/// The template of all these mails.
const TEMPLATE: &str = "subscription-term";

/// A subscription and its tenant, as they are told of.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) subscription: String,
    pub(super) tenant: String,
    pub(super) name: Option<String>,
    pub(super) email: Option<String>,
    pub(super) locale: Option<String>,
    pub(super) plan: String,
}

/// What is told.
#[derive(Debug, Clone)]
pub(super) struct News {
    /// The last word of the event's type and the template's `state`: `renewal_due`, `grace`, `suspended`, `expired`, `renewed`.
    pub(super) word: &'static str,
    /// The day that matters: the end of the term, or of the grace.
    pub(super) at: Timestamp,
    /// Days until then, for a reminder.
    pub(super) days: Option<i64>,
    /// The type in the platform's `subscription_notifications`.
    pub(super) kind: String,
}

/// Writes the notification, the mail and the webhooks' event.
pub(super) async fn tell(
    transaction: &mut PgConnection,
    subject: &Subject,
    news: &News,
    bytes_max: usize,
    now: Timestamp,
) -> Result<(), PlatformError> {
    let email = subject.email.as_deref().map(str::trim).filter(|email| !email.is_empty());
    let error = email.is_none().then_some("the tenant has no contact_email");
    let sql = format!(
        "INSERT INTO subscription_notifications (tenant_id, notification_type, scheduled_at, sent_at, channel, status, error) \
         VALUES ({}, {}, $3::timestamptz, CASE WHEN $4::text IS NULL THEN $3::timestamptz END, 'email', {}, $4)",
        typed("subscription_notifications", "tenant_id", "$1::text"),
        typed("subscription_notifications", "notification_type", "$2::text"),
        typed(
            "subscription_notifications",
            "status",
            "CASE WHEN $4::text IS NULL THEN 'SENT' ELSE 'FAILED' END"
        )
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&subject.tenant)
        .bind(&news.kind)
        .bind(now.to_sqlx())
        .bind(error)
        .execute(&mut *transaction)
        .await
        .map_err(PlatformError::database("note a notification of a subscription"))?;
    if let Some(email) = email {
        enqueue(transaction, "email-queue", "send-email", &mail(subject, news, email)).await?;
    }
    event(transaction, subject, news, bytes_max, now).await
}

fn mail(subject: &Subject, news: &News, email: &str) -> Value {
    let mut variables = json!({ "state": news.word, "plan": subject.plan, "at": news.at.to_string() });
    if let Some(name) = subject.name.as_deref().filter(|name| !name.is_empty()) {
        variables["name"] = json!(name);
    }
    if let Some(days) = news.days {
        variables["days"] = json!(days);
    }
    let mut mail = json!({ "to": [email], "template_id": TEMPLATE, "variables": variables });
    if let Some(locale) = &subject.locale {
        mail["locale"] = json!(locale);
    }
    mail
}

async fn event(
    transaction: &mut PgConnection,
    subject: &Subject,
    news: &News,
    bytes_max: usize,
    now: Timestamp,
) -> Result<(), PlatformError> {
    let mut data = json!({ "subscription_id": subject.subscription, "plan": subject.plan, "at": news.at });
    if let Some(days) = news.days {
        data["days"] = json!(days);
    }
    let event_type = format!("subscription.{}", news.word);
    // Told once by the mark in this same transaction; the id only has to be new.
    let id = Uuid::now_v7().to_string();
    let event = NewEvent { tenant: &subject.tenant, event_type: &event_type, id: &id, data: &data, at: now };
    match emit_within(transaction, &event, bytes_max).await {
        Ok(_) => Ok(()),
        Err(WebhookError::Database { tried, source }) => Err(PlatformError::Database { tried, source }),
        // A tenant that webhooks cannot name still gets its mail.
        Err(error) => {
            tracing::warn!(tenant = subject.tenant, %error, "no webhook tells of a subscription");
            Ok(())
        }
    }
}

/// Writes the platform's trail of subscriptions.
pub(super) async fn audit(
    transaction: &mut PgConnection,
    subject: &Subject,
    event_type: &str,
    before: &Value,
    after: &Value,
    details: &Value,
) -> Result<(), PlatformError> {
    let sql = format!(
        "INSERT INTO subscription_audit (tenant_id, event_type, actor_type, actor_id, previous_state, new_state, details) \
         VALUES ({}, {}, 'system', 'voiceai-tasker', $3, $4, $5)",
        typed("subscription_audit", "tenant_id", "$1::text"),
        typed("subscription_audit", "event_type", "$2::text")
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&subject.tenant)
        .bind(event_type)
        .bind(before)
        .bind(after)
        .bind(details)
        .execute(transaction)
        .await
        .map_err(PlatformError::database("write the trail of subscriptions"))?;
    Ok(())
}
