use voiceai_postgres::sqlx;

/// Something that was tried with deliveries and did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The database failed.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// A row holds what no version writes.
    #[error("read a row of {table}: `{value}` is no {what}")]
    Row {
        /// Which table.
        table: &'static str,
        /// What the column holds.
        what: &'static str,
        /// What was found in it.
        value: String,
    },
}

impl MailError {
    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_unavailable(source))
    }

    /// True when the database will never take what it was given: a value that no column can hold, or that breaks a rule.
    #[must_use]
    pub fn is_about_the_data(&self) -> bool {
        let Self::Database { source: sqlx::Error::Database(error), .. } = self else { return false };
        error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
    }

    /// True when two processes stood in each other's way: the same call succeeds when it is made again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        let Self::Database { source: sqlx::Error::Database(error), .. } = self else { return false };
        error.code().is_some_and(|code| code == "40P01" || code == "40001")
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
