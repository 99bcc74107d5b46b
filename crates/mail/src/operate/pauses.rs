use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, PgPool, Row};

use crate::Address;
use crate::delivery::words;
use crate::error::MailError;
use crate::store::claim;

words! {
    /// What a pause keeps mail from.
    Scope {
        /// Everything that goes through a provider: `smtp` or `ses`.
        Provider = "provider",
        /// Recipients at one domain.
        Domain = "domain",
        /// Mail of one tenant.
        Tenant = "tenant",
    }
}

/// The longest pause: what is to rest for longer is to be configured.
pub const PAUSE_LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Scope {
    /// `text` as rows name it: a domain as recipients are grouped by it, in lower case and ASCII.
    ///
    /// # Errors
    /// What is expected instead: a pause of what does not exist would keep nothing.
    pub fn subject(self, text: &str) -> Result<String, &'static str> {
        match self {
            Self::Provider if matches!(text, "smtp" | "ses") => Ok(text.to_owned()),
            Self::Provider => Err("the provider is `smtp` or `ses`"),
            Self::Domain => Address::parse(&format!("a@{text}"))
                .map(|address| address.domain().to_owned())
                .map_err(|_| "a domain has the form example.com"),
            Self::Tenant => {
                let sound = (1..=64).contains(&text.len())
                    && !text.chars().any(|c| c.is_control() || c.is_whitespace());
                if sound { Ok(text.to_owned()) } else { Err("a tenant has 1 to 64 bytes without blanks") }
            }
        }
    }
}

/// A pause that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Pause {
    /// What it keeps mail from.
    pub scope: String,
    /// Which one.
    pub subject: String,
    /// True when a fault of the provider made it.
    pub automatic: bool,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Faults in a row, for an automatic one.
    pub faults: i32,
}

/// Keeps mail from `subject` ([`Scope::subject`]) for `length`. A pause that a person made before is replaced: what it kept waits no longer than this one lasts.
///
/// # Errors
/// As the database says.
pub async fn pause(
    pool: &PgPool,
    scope: Scope,
    subject: &str,
    reason: &str,
    by: &str,
    length: Duration,
) -> Result<(), MailError> {
    sqlx::query(
        "WITH made AS (INSERT INTO mail.pauses (scope, subject, automatic, reason, created_by, until) \
             VALUES ($1, $2, false, $3, $4, clock_timestamp() + make_interval(secs => $5)) \
             ON CONFLICT (scope, subject, automatic) DO UPDATE SET reason = EXCLUDED.reason, \
                 created_by = EXCLUDED.created_by, created_at = clock_timestamp(), until = EXCLUDED.until RETURNING until) \
         UPDATE mail.attempts a SET due_at = LEAST(a.due_at, made.until) FROM made WHERE a.parked = $1 || ':' || $2",
    )
    .bind(scope.as_str())
    .bind(subject)
    .bind(reason)
    .bind(by)
    .bind(length.as_secs_f64())
    .execute(pool)
    .await
    .map(drop)
    .map_err(MailError::database("pause mail"))
}

/// Ends every pause of `subject`, automatic ones too, and brings back at once what it had kept. False: there was none.
///
/// # Errors
/// As the database says.
pub async fn resume(pool: &PgPool, scope: Scope, subject: &str) -> Result<bool, MailError> {
    let done = sqlx::query("DELETE FROM mail.pauses WHERE scope = $1 AND subject = $2")
        .bind(scope.as_str())
        .bind(subject)
        .execute(pool)
        .await
        .map_err(MailError::database("resume mail"))?;
    if scope != Scope::Provider {
        claim::unpark(pool, &format!("{scope}:{subject}")).await?;
    }
    sqlx::query("SELECT pg_notify('voiceai_mail', '')")
        .execute(pool)
        .await
        .map_err(MailError::database("wake those who send mail"))?;
    Ok(done.rows_affected() > 0)
}

/// Every pause that is not over, the latest first.
///
/// # Errors
/// As the database says.
pub async fn pauses(pool: &PgPool) -> Result<Vec<Pause>, MailError> {
    let tried = "list pauses of mail";
    let rows = sqlx::query(
        "SELECT scope, subject, automatic, reason, created_by, created_at, until, faults FROM mail.pauses \
         WHERE until > clock_timestamp() ORDER BY created_at DESC",
    )
    .fetch_all(pool)
    .await
    .map_err(MailError::database(tried))?;
    let read = |row: &PgRow| -> Result<Pause, sqlx::Error> {
        Ok(Pause {
            scope: row.try_get(0)?,
            subject: row.try_get(1)?,
            automatic: row.try_get(2)?,
            reason: row.try_get(3)?,
            created_by: row.try_get(4)?,
            created_at: row.try_get::<SqlTimestamp, _>(5)?.to_jiff(),
            until: row.try_get::<SqlTimestamp, _>(6)?.to_jiff(),
            faults: row.try_get(7)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(MailError::database(tried))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_paused_is_named_as_its_rows_are() {
        assert_eq!(Scope::Domain.subject("Bücher.Example").as_deref(), Ok("xn--bcher-kva.example"));
        assert_eq!(Scope::Provider.subject("ses").as_deref(), Ok("ses"));
        assert_eq!(Scope::Tenant.subject("Acme").as_deref(), Ok("Acme"));
        let long = "t".repeat(65);
        for (scope, text) in [
            (Scope::Provider, "smpt"),
            (Scope::Domain, "kim@example.com"),
            (Scope::Domain, ""),
            (Scope::Tenant, "a b"),
            (Scope::Tenant, long.as_str()),
        ] {
            assert!(scope.subject(text).is_err(), "{scope} {text:?}");
        }
    }
}
