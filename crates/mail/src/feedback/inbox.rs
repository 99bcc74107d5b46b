use jiff::Timestamp;
use serde_json::{Value, json};
use voiceai_postgres::sqlx::{self, PgPool, Postgres, Transaction};

use super::report::{Effect, Report};
use crate::error::MailError;
use crate::suppression::{Entry, Reason, record};

/// So many soft bounces in a row, with no delivery between them, suppress an address.
const SOFT_BOUNCES: i32 = 5;

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was new; so many addresses were suppressed by it.
    New {
        /// How many.
        suppressed: u32,
    },
    /// It had come before.
    Known,
}

/// Takes reports in, each once.
#[derive(Debug, Clone)]
pub struct Inbox {
    pool: PgPool,
}

impl Inbox {
    /// Writes to this database.
    #[must_use]
    pub const fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Writes a report down with all that follows from it, in one transaction: `message_id` is SNS's, and tells a repeated
    /// delivery.
    ///
    /// # Errors
    /// As the database says; nothing is written then.
    pub async fn take(&self, message_id: &str, report: &Report) -> Result<Taken, MailError> {
        let tried = "take feedback in";
        let mut transaction = self.pool.begin().await.map_err(MailError::database(tried))?;
        let taken = write(&mut transaction, message_id, report).await?;
        transaction.commit().await.map_err(MailError::database(tried))?;
        Ok(taken)
    }
}

async fn write(
    transaction: &mut Transaction<'static, Postgres>,
    message_id: &str,
    report: &Report,
) -> Result<Taken, MailError> {
    let database = || MailError::database("take feedback in");
    let recipients: Vec<Value> = report
        .recipients
        .iter()
        .map(|(address, effect, detail)| json!({"address": address, "effect": effect, "detail": detail}))
        .collect();
    let content = json!({"recipients": recipients, "taken_at": Timestamp::now().to_string()});
    let new = sqlx::query(
        "INSERT INTO mail.feedback (message_id, kind, provider_id, content) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (message_id) DO NOTHING",
    )
    .bind(message_id)
    .bind(&report.kind)
    .bind(&report.provider_id)
    .bind(content)
    .execute(&mut **transaction)
    .await
    .map_err(database())?;
    if new.rows_affected() == 0 {
        return Ok(Taken::Known);
    }
    let mut suppressed = 0;
    for (address, effect, detail) in &report.recipients {
        let reason = match effect {
            Effect::HardBounce => Some(Reason::HardBounce),
            Effect::Complaint => Some(Reason::Complaint),
            Effect::SoftBounce => {
                (count(transaction, address).await? >= SOFT_BOUNCES).then_some(Reason::SoftBounce)
            }
            Effect::Delivered => {
                forget(transaction, address).await?;
                None
            }
            Effect::Ignored => None,
        };
        if *effect != Effect::Delivered {
            note(transaction, report, address, *effect, detail).await?;
        }
        if let Some(reason) = reason {
            let entry = Entry {
                address,
                tenant: None,
                class: None,
                reason,
                detail,
                origin: message_id,
                lasts: reason.lasts(),
            };
            record(&mut **transaction, &entry).await?;
            suppressed += 1;
        }
    }
    Ok(Taken::New { suppressed })
}

/// Counts one more soft bounce in a row.
async fn count(transaction: &mut Transaction<'static, Postgres>, address: &str) -> Result<i32, MailError> {
    sqlx::query_scalar(
        "INSERT INTO mail.soft_bounces AS s (address, count) VALUES ($1, 1) ON CONFLICT (address) DO UPDATE \
         SET count = CASE WHEN s.last_at < clock_timestamp() - interval '30 days' THEN 1 ELSE s.count + 1 END, \
             last_at = clock_timestamp() RETURNING count",
    )
    .bind(address)
    .fetch_one(&mut **transaction)
    .await
    .map_err(MailError::database("count a soft bounce"))
}

async fn forget(transaction: &mut Transaction<'static, Postgres>, address: &str) -> Result<(), MailError> {
    sqlx::query("DELETE FROM mail.soft_bounces WHERE address = $1")
        .bind(address)
        .execute(&mut **transaction)
        .await
        .map(drop)
        .map_err(MailError::database("forget soft bounces"))
}

/// Shows the report where the delivery is shown.
async fn note(
    transaction: &mut Transaction<'static, Postgres>,
    report: &Report,
    address: &str,
    effect: Effect,
    detail: &str,
) -> Result<(), MailError> {
    let Some(provider_id) = &report.provider_id else { return Ok(()) };
    let word = match effect {
        Effect::HardBounce | Effect::SoftBounce | Effect::Ignored => "bounced after it was accepted",
        Effect::Complaint => "its reader complained",
        Effect::Delivered => "delivered",
    };
    sqlx::query(
        "UPDATE mail.delivery_recipients SET last_result = left($3, 500) WHERE provider_id = $1 AND lower(address) = $2",
    )
    .bind(provider_id)
    .bind(address)
    .bind(format!("{word}: {detail}"))
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(MailError::database("note feedback at its delivery"))
}
