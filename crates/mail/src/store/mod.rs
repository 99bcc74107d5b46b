//! Rows: the statements behind claims and results.

pub(crate) mod backlog;
pub(crate) mod claim;
pub(crate) mod finish;
pub(crate) mod pauses;
pub(crate) mod recover;
pub(crate) mod workers;

use std::str::FromStr;

use crate::error::MailError;

/// Reads a column of words.
pub(crate) fn parse<T: FromStr>(
    table: &'static str,
    what: &'static str,
    value: &str,
) -> Result<T, MailError> {
    value.parse().map_err(|_| MailError::Row { table, what, value: value.to_owned() })
}
