use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::error::MailError;
use crate::intake::{AcceptError, Accepted, Command, Content, Intake, REDACTED, Source};

/// A delivery that cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    /// There is none of this id.
    #[error("there is no delivery `{0}`")]
    NotFound(String),
    /// Its content is gone, or held what is not kept.
    #[error("delivery `{delivery_id}` cannot be sent again: {why}")]
    NotKept {
        /// Which.
        delivery_id: String,
        /// Why.
        why: &'static str,
    },
    /// The new delivery was not accepted.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] MailError),
}

/// Sends the mail of `delivery_id` again, as a new delivery that names the old one and leaves it untouched. It goes to those
/// recipients that the old one did not reach; to all, when it reached all. `key`: the same key makes one resend.
///
/// # Errors
/// When the old one is not there, its content is not kept any more, or the new one cannot be accepted now.
pub async fn resend(intake: &Intake, delivery_id: &str, key: Option<&str>) -> Result<Accepted, ResendError> {
    let (mut command, unreached) = load(intake.pool(), delivery_id).await?;
    if let Content::Template { variables, .. } = &command.content
        && variables.values().any(|value| value.as_str() == Some(REDACTED))
    {
        let why =
            "it held a secret, such as a login code, which is not kept; let its caller ask for a new one";
        return Err(ResendError::NotKept { delivery_id: delivery_id.to_owned(), why });
    }
    if !unreached.is_empty() {
        for list in [&mut command.to, &mut command.cc, &mut command.bcc] {
            list.retain(|address| {
                crate::Address::parse(address)
                    .is_ok_and(|a| unreached.iter().any(|u| u.eq_ignore_ascii_case(a.as_str())))
            });
        }
    }
    let id = Uuid::now_v7().to_string();
    let key = key.map_or_else(|| format!("resend:{id}"), |key| format!("resend:{delivery_id}:{key}"));
    let command =
        Command { delivery_id: id, source: Source::OperatorResend, idempotency_key: key, ..command };
    Ok(intake.accept_resend(command, delivery_id).await?)
}

/// The kept command, and the addresses that it has not reached.
async fn load(pool: &PgPool, delivery_id: &str) -> Result<(Command, Vec<String>), ResendError> {
    let tried = "read a delivery to send again";
    let missing = || ResendError::NotFound(delivery_id.to_owned());
    if delivery_id.contains('\0') {
        return Err(missing());
    }
    let row = sqlx::query(
        "SELECT p.command::text, ARRAY(SELECT r.address FROM mail.delivery_recipients r \
             WHERE r.delivery_id = d.delivery_id AND r.status <> 'sent' ORDER BY r.position) \
         FROM mail.deliveries d LEFT JOIN mail.delivery_payloads p ON p.delivery_id = d.delivery_id AND p.part = 0 \
         WHERE d.delivery_id = $1",
    )
    .bind(delivery_id)
    .fetch_optional(pool)
    .await
    .map_err(MailError::database(tried))?
    .ok_or_else(missing)?;
    let read =
        || -> Result<(Option<String>, Vec<String>), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    let (command, unreached) = read().map_err(MailError::database(tried))?;
    let gone = |why| ResendError::NotKept { delivery_id: delivery_id.to_owned(), why };
    let command = command.ok_or_else(|| gone("its content is not kept any more (MAIL_BODY_RETENTION)"))?;
    let command = serde_json::from_str(&command)
        .map_err(|_| gone("it was accepted by a version that kept it in another form"))?;
    Ok((command, unreached))
}
