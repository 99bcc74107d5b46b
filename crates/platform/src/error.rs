use std::time::Duration;

use voiceai_postgres::sqlx;
use voiceai_queue::{JobError, Outcome};

/// How long a job waits while PostgreSQL is away. It costs no attempt.
const AWAY: Duration = Duration::from_secs(5);

/// Something that was tried with the platform's tables and did not come about.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
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
        what: String,
        /// What is wrong with it, and what it should be.
        reason: String,
    },
    /// The attempt is to stop; what was done is committed, and the rest is done by the next one.
    #[error("stopped on the way")]
    Stopped,
    /// Stripe does not answer, or not now.
    #[error("Stripe is not reachable: {reason}")]
    StripeAway {
        /// What was seen.
        reason: String,
        /// How long it asks to be left alone.
        wait: Option<Duration>,
    },
    /// Stripe refused: its last word.
    #[error("Stripe refuses: HTTP {status}, {message}")]
    StripeRefused {
        /// The status, 400 to 499.
        status: u16,
        /// What it said.
        message: String,
    },
}

impl PlatformError {
    /// How long a job waits that this error ends and that spends no attempt.
    fn pause(&self) -> Option<Duration> {
        match self {
            Self::Stopped => Some(Duration::from_secs(1)),
            Self::StripeAway { wait: Some(wait), .. } => Some((*wait).max(Duration::from_secs(1))),
            error if error.is_unavailable() => Some(AWAY),
            _ => None,
        }
    }

    /// For `map_err`: what was tried with the database.
    pub fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// A value that cannot be used.
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), reason: reason.into() }
    }

    /// True when the database is away, so that the same call may succeed later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database { source, .. } if voiceai_postgres::is_unavailable(source))
    }

    /// True when the same call will never succeed: bad data, or a role that may not do it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Invalid { .. } | Self::StripeRefused { .. } => true,
            Self::Stopped | Self::StripeAway { .. } => false,
            Self::Database { source, .. } => voiceai_postgres::is_refused(source),
        }
    }

    /// How a job ends that met this error: it waits while the database is away or Stripe asks it to, is parked when it can never succeed, and is tried
    /// again else.
    ///
    /// # Errors
    /// In the last two cases.
    pub fn into_outcome(self, kind: &'static str) -> Result<Outcome, JobError> {
        if let Some(pause) = self.pause() {
            tracing::warn!(kind, error = %text(&self), "a job on the platform's tables waits");
            return Ok(Outcome::Snooze(pause));
        }
        Err(if self.is_final() { JobError::discard(self) } else { JobError::retry(self) })
    }
}

/// An error and its sources in one line.
pub(crate) fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
