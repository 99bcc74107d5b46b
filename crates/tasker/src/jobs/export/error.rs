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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// What a server says.
    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Said {
        code: &'static str,
        message: &'static str,
    }

    impl DatabaseError for Said {
        fn message(&self) -> &str {
            self.message
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(Cow::Borrowed(self.code))
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn what_may_pass_by_itself_is_told_from_what_a_person_must_mend() {
        for (code, message, is_final) in [
            ("40001", "canceling statement due to conflict with recovery", false),
            ("57014", "canceling statement due to statement timeout", false),
            ("57P01", "terminating connection due to administrator command", false),
            ("55P03", "canceling statement due to lock timeout", false),
            ("53100", "could not extend file \"base/1/2\": No space left on device", false),
            ("42501", "permission denied for table devices", true),
            ("42501", "query would be affected by row-level security policy for table \"devices\"", true),
            ("42P01", "relation \"public.devices\" does not exist", true),
            ("22P02", "invalid input syntax for type uuid: \"acme\"", true),
        ] {
            let error = ExportError::of_rows(sqlx::Error::Database(Box::new(Said { code, message })));
            assert_eq!(error.is_final(), is_final, "{message}");
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
