//! What others are told of a change. Who they are, and how they are told, is the service's that runs the monitor.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, PgConnection};

use crate::decide::State;
use crate::store::Judged;

/// A service went down, or came back.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEvent {
    /// Its alert: the same for both events.
    pub alert: Uuid,
    /// Its name.
    pub service: String,
    /// Where it was asked, without login.
    pub url: String,
    /// True when it came back.
    pub recovered: bool,
    /// How it is now.
    pub state: State,
    /// Why, for people.
    pub note: Option<String>,
    /// When the trouble began.
    pub since: Timestamp,
    /// When it was asked.
    pub at: Timestamp,
}

impl ServiceEvent {
    pub(crate) fn of(judged: &Judged, alert: Uuid, since: Timestamp, recovered: bool) -> Self {
        Self {
            alert,
            service: judged.service.clone(),
            url: judged.url.clone(),
            recovered,
            state: judged.seen.state,
            note: judged.seen.note.clone(),
            since,
            at: judged.at,
        }
    }

    /// What happened, in words with dots.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.recovered { "service.recovered" } else { "service.down" }
    }

    /// It in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        if self.recovered {
            return format!("answers again; in trouble since {:.0}", self.since);
        }
        let note = self.note.as_deref().unwrap_or("no reason is known");
        format!("{}: {note} ({}, since {:.0})", self.state.word(), self.url, self.since)
    }
}

/// Tells of events in the very transaction that makes them: they are told if and only if it is committed. Events that come together
/// are many services at once.
pub type Announcer = Arc<
    dyn for<'c> Fn(&'c mut PgConnection, &'c [ServiceEvent]) -> BoxFuture<'c, Result<(), sqlx::Error>>
        + Send
        + Sync,
>;

/// Tells nobody.
#[must_use]
pub fn nobody() -> Announcer {
    Arc::new(|_, _| Box::pin(std::future::ready(Ok(()))))
}
