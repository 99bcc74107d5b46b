//! What may go wrong with an export.

use voiceai_aws::S3Error;
use voiceai_postgres::sqlx;

/// An export did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The order cannot be carried out as it is written: trying again changes nothing.
    #[error("export order: {0}")]
    Order(String),
    /// The database.
    #[error("read rows to export: {0}")]
    Database(#[from] sqlx::Error),
    /// The bucket.
    #[error("store export: {0}")]
    Store(#[from] S3Error),
    /// Another worker has taken the order over.
    #[error("the export's lease was lost to another worker")]
    Lost,
    /// The process is ending.
    #[error("cancelled; the export is taken up again")]
    Cancelled,
}

impl ExportError {
    /// True when trying again changes nothing.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Order(_) => true,
            // 42: a table or column is gone, or a right is missing; 22: a filter's value does not fit its column.
            Self::Database(error) => {
                let code = error
                    .as_database_error()
                    .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
                code.is_some_and(|code| code.starts_with("42") || code.starts_with("22"))
            }
            Self::Store(_) | Self::Lost | Self::Cancelled => false,
        }
    }
}
