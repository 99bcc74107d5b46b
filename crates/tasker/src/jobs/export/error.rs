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
    /// The database will not give these rows, however often it is asked.
    #[error("read rows to export: {problem}. {remedy}")]
    Refused {
        /// In the database's own words.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The database.
    #[error("read rows to export: {0}")]
    Database(#[from] sqlx::Error),
    /// The rows do not fit the format.
    #[error("write rows: {0}")]
    Encode(String),
    /// The bucket.
    #[error("store export: {error}. {}", .error.kind().remedy())]
    Store {
        /// What it said.
        #[from]
        error: S3Error,
    },
    /// Another worker has taken the order over, or somebody has cancelled it.
    #[error("the export's lease was lost to another worker, or the order was cancelled")]
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
    /// What a statement that reads the rows has met. One that a person has to do something about is told apart.
    pub(super) fn of_rows(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else { return Self::Database(error) };
        let problem = database.message().to_owned();
        match database.code().as_deref() {
            Some("42501") if problem.contains("row-level security") => Self::Refused {
                problem,
                remedy: "Order one tenant's rows, or grant the role of DATABASE_URL BYPASSRLS.",
            },
            Some("42501") => {
                Self::Refused { problem, remedy: "Grant the role of DATABASE_URL SELECT on the table." }
            }
            // 42: a table or column is gone; 22: a value does not fit, a filter's or a column's; 54: more columns than there may be.
            Some(code) if ["42", "22", "54"].iter().any(|class| code.starts_with(class)) => {
                Self::Refused { problem, remedy: "Correct the order, or the table." }
            }
            _ => Self::Database(error),
        }
    }

    /// True when trying again changes nothing.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Order(_) | Self::Refused { .. } | Self::Encode(_) => true,
            Self::Database(_) | Self::Store { .. } | Self::Lost | Self::Cancelled => false,
        }
    }
}
