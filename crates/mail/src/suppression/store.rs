use std::time::Duration;

use voiceai_postgres::sqlx::{self, PgExecutor};

use crate::Class;
use crate::error::MailError;

/// Why somebody is not written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The mailbox does not exist.
    HardBounce,
    /// Its server could not take mail several times in a row.
    SoftBounce,
    /// Its owner called a mail spam.
    Complaint,
    /// Its owner wants no more of a class.
    Unsubscribe,
}

impl Reason {
    /// The name in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HardBounce => "hard_bounce",
            Self::SoftBounce => "soft_bounce",
            Self::Complaint => "complaint",
            Self::Unsubscribe => "unsubscribe",
        }
    }

    /// How long it holds: a mailbox that was full for a while may be emptied.
    #[must_use]
    pub const fn lasts(self) -> Option<Duration> {
        match self {
            Self::SoftBounce => Some(Duration::from_secs(30 * 24 * 60 * 60)),
            Self::HardBounce | Self::Complaint | Self::Unsubscribe => None,
        }
    }
}

/// An entry to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// In lower case.
    pub address: &'a str,
    /// Only for this tenant's mail.
    pub tenant: Option<&'a str>,
    /// Only for this class.
    pub class: Option<Class>,
    /// Why.
    pub reason: Reason,
    /// More of it.
    pub detail: &'a str,
    /// What it came from: a delivery, a feedback's id, the link.
    pub origin: &'a str,
}

/// Writes an entry. One that stands there for a longer time, or was made by an operator, stays.
///
/// # Errors
/// As the database says.
pub async fn record(database: impl PgExecutor<'_>, entry: &Entry<'_>) -> Result<(), MailError> {
    sqlx::query(
        "INSERT INTO mail.suppressions AS have (address, tenant, class, reason, detail, origin, expires_at) \
         VALUES ($1, $2, $3, $4, left($5, 500), $6, clock_timestamp() + make_interval(secs => $7)) \
         ON CONFLICT (address, tenant, class) DO UPDATE SET reason = EXCLUDED.reason, detail = EXCLUDED.detail, \
             origin = EXCLUDED.origin, created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at \
         WHERE have.expires_at < clock_timestamp() OR (have.reason <> 'operator' AND have.expires_at IS NOT NULL \
             AND (EXCLUDED.expires_at IS NULL OR EXCLUDED.expires_at > have.expires_at))",
    )
    .bind(entry.address)
    .bind(entry.tenant.unwrap_or_default())
    .bind(entry.class.map_or("", Class::as_str))
    .bind(entry.reason.as_str())
    .bind(entry.detail)
    .bind(entry.origin)
    .bind(entry.reason.lasts().map(|length| length.as_secs_f64()))
    .execute(database)
    .await
    .map(drop)
    .map_err(MailError::database("suppress an address"))
}
