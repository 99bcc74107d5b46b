use std::time::Duration;

use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{self, PgExecutor};

use crate::error::MailError;
use crate::{Address, Class};

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
    /// An operator wrote it.
    Operator,
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
            Self::Operator => "operator",
        }
    }

    /// How long it holds where nobody says so; `None`: for good. A mailbox that was full for a while may be emptied.
    #[must_use]
    pub const fn lasts(self) -> Option<Duration> {
        match self {
            Self::SoftBounce => Some(Duration::from_secs(30 * 24 * 60 * 60)),
            Self::HardBounce | Self::Complaint | Self::Unsubscribe | Self::Operator => None,
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
    /// What it came from: a delivery, a feedback's id, the link, a person.
    pub origin: &'a str,
    /// How long it holds; `None`: for good.
    pub lasts: Option<Duration>,
}

/// What becomes of an entry that stands there (`have`): an operator's word replaces it, and whatever has expired is replaced; else the
/// one that holds longer stays, and an operator's stays. The one rule of every statement that writes the list.
macro_rules! heavier {
    () => {
        " ON CONFLICT (address, tenant, class) DO UPDATE SET reason = EXCLUDED.reason, detail = EXCLUDED.detail, \
             origin = EXCLUDED.origin, created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at \
         WHERE EXCLUDED.reason = 'operator' OR have.expires_at < clock_timestamp() \
             OR (have.reason <> 'operator' AND have.expires_at IS NOT NULL \
                 AND (EXCLUDED.expires_at IS NULL OR EXCLUDED.expires_at > have.expires_at)) "
    };
}
pub(crate) use heavier;

const RECORD: &str = concat!(
    "INSERT INTO mail.suppressions AS have (address, tenant, class, reason, detail, origin, expires_at) \
     VALUES ($1, $2, $3, $4, left($5, 500), $6, clock_timestamp() + make_interval(secs => $7))",
    heavier!()
);

/// Writes an entry. One that stands there for a longer time, or was made by an operator, stays, unless an operator writes this one.
///
/// # Errors
/// As the database says.
pub async fn record(database: impl PgExecutor<'_>, entry: &Entry<'_>) -> Result<(), MailError> {
    sqlx::query(RECORD)
        .bind(entry.address)
        .bind(entry.tenant.unwrap_or_default())
        .bind(entry.class.map_or("", Class::as_str))
        .bind(entry.reason.as_str())
        .bind(entry.detail)
        .bind(entry.origin)
        .bind(entry.lasts.map(|length| length.as_secs_f64()))
        .execute(database)
        .await
        .map(drop)
        .map_err(MailError::database("suppress an address"))
}

/// Takes every entry of `address` off the list; answers how many there were.
///
/// # Errors
/// As the database says.
pub async fn unsuppress(pool: &PgPool, address: &Address) -> Result<u64, MailError> {
    sqlx::query("DELETE FROM mail.suppressions WHERE address = $1")
        .bind(address.normalised())
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(MailError::database("take an address off the list"))
}
