//! What may go wrong with an export.

use parquet::errors::ParquetError;
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
    /// The rows do not fit the format.
    #[error("write rows as Parquet: {0}")]
    Encode(String),
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

impl From<ParquetError> for ExportError {
    fn from(error: ParquetError) -> Self {
        Self::Encode(error.to_string())
    }
}

impl ExportError {
    /// True when trying again changes nothing.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Order(_) | Self::Encode(_) => true,
            // 42: a table or column is gone, or a right is missing; 22: a value does not fit, a filter's or a column's;
            // 54: more columns than the database can give.
            Self::Database(error) => {
                let code = error
                    .as_database_error()
                    .and_then(|error| error.code().map(std::borrow::Cow::into_owned));
                code.is_some_and(|code| ["42", "22", "54"].iter().any(|class| code.starts_with(class)))
            }
            Self::Store(_) | Self::Lost | Self::Cancelled => false,
        }
    }
}
