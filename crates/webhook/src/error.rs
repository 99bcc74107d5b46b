use uuid::Uuid;
use voiceai_postgres::sqlx;

/// Something that was tried with webhooks and did not come about.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The database failed.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// What was given cannot be used.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such endpoint.
    #[error("webhook endpoint {0} does not exist")]
    NoEndpoint(Uuid),
    /// There is no such delivery.
    #[error("webhook delivery {0} does not exist")]
    NoDelivery(Uuid),
}

impl WebhookError {
    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }

    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_unavailable(source))
    }

    /// True when the database will never take what it was given.
    #[must_use]
    pub fn is_about_the_data(&self) -> bool {
        match self {
            Self::Invalid { .. } => true,
            Self::Database { source: sqlx::Error::Database(error), .. } => {
                error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
            }
            _ => false,
        }
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
