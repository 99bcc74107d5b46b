//! How the revocation list and the certificates stand, for who watches them.

use std::path::Path;

use jiff::Timestamp;
use voiceai_postgres::PgPool;
use x509_cert::certificate::Raw;
use x509_cert::crl::CertificateList;
use x509_cert::der::DecodePem as _;

use super::{CertificateSettings, NEEDS, rows};
use crate::{PlatformError, missing};

/// A revocation list as its row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// Whose it is.
    pub issuer: String,
    /// When one was last put in place; absent: never.
    pub placed_at: Option<Timestamp>,
    /// Until when it is good.
    pub next_update: Timestamp,
}

/// How they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest list; absent where no authority is set, or none was begun yet.
    pub list: Option<RevocationList>,
    /// Device certificates that are good and end within `CERT_EXPIRY_WARNING_DAYS`; absent without the platform's table.
    pub ending: Option<u64>,
}

/// Looks. Changes nothing.
///
/// # Errors
/// As the database says.
pub async fn look(pool: &PgPool, settings: &CertificateSettings) -> Result<Standing, PlatformError> {
    let signs = settings.ca_certificate.is_some() && settings.ca_key.is_some();
    let list = if signs { rows::newest_list(pool).await? } else { None };
    let ending = match missing(pool, NEEDS).await? {
        None => Some(rows::count_ending(pool, settings.warning_days).await?),
        Some(_) => None,
    };
    Ok(Standing { list, ending })
}

/// Until when the list in a file is good.
///
/// # Errors
/// In words: the file is not there, or holds no list that says so.
pub fn file_good_until(path: &Path) -> Result<Timestamp, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let list = CertificateList::<Raw>::from_pem(text)
        .map_err(|error| format!("it is no revocation list: {error}"))?;
    let until = list.tbs_cert_list.next_update.ok_or("it does not say until when it is good")?;
    let seconds = i64::try_from(until.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_err(|error| error.to_string())
}
