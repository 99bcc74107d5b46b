use voiceai_postgres::sqlx;

/// Something that was tried with orchestration and did not come about.
#[derive(Debug, thiserror::Error)]
pub enum OrchestrationError {
    /// The database failed.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// A client of the agents cannot be made.
    #[error("set up the client of the agents")]
    Client {
        /// Why.
        source: reqwest::Error,
    },
}

impl OrchestrationError {
    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_unavailable(source))
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        // Many libraries repeat their source's text in their own.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}
