use voiceai_postgres::sqlx;

/// Something that was tried in watching and did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The database failed.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// The database did not answer in time. What was tried may have been done.
    #[error("{tried}: no answer within {limit:?}")]
    TimedOut {
        /// What was tried.
        tried: &'static str,
        /// The limit that passed.
        limit: std::time::Duration,
    },
    /// This process does not lead any more: nothing was written.
    #[error("{tried}: another process leads by now")]
    Replaced {
        /// What was tried.
        tried: &'static str,
    },
}

impl MonitorError {
    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
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
