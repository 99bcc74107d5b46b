//! Kamailio's dispatcher records.
//!
//! What should be there follows from PostgreSQL alone ([`records`]); [`Dispatcher::publish`] brings Redis to it in one script
//! that writes whole records, counts the generation up and refuses a stale leader. A Redis that came back empty is thereby
//! filled again before Kamailio reads it the next time.

use std::sync::{Arc, LazyLock};

use voiceai_postgres::{Tenure, term};
use voiceai_redis::{Key, Redis, RedisError, RedisErrorKind, Script, Value};

pub use super::records::{Flags, Record, Records, flags, record, records, wanted};
use crate::store::StoreError;

/// Where the newest term is kept beside the records.
pub const TERM_KEY: &str = "voiceai:dispatcher:term";
/// What Kamailio polls.
pub const GENERATION_KEY: &str = "voiceai:dispatcher:generation";

static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new("dispatcher publish", include_str!("../lua/publish.lua")));

/// What a publication changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Records written.
    pub written: i64,
    /// Records removed.
    pub removed: i64,
}

/// The dispatcher's Redis database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    redis: Redis,
    prefix: Arc<str>,
}

/// A publication that failed.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// A newer leader has published.
    #[error("publish dispatcher records: refused, a newer leader has taken over")]
    Fenced,
    /// The own term may no longer be trusted.
    #[error(transparent)]
    NotTrusted(#[from] voiceai_postgres::NotTrusted),
    /// Redis did not do it.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// The rows could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DispatcherError {
    /// True when this process has to stop leading.
    #[must_use]
    pub const fn ends_leadership(&self) -> bool {
        match self {
            Self::Fenced | Self::NotTrusted(_) => true,
            Self::Store(error) => error.ends_leadership(),
            Self::Redis(_) => false,
        }
    }
}

impl Dispatcher {
    /// On the Redis that Kamailio reads, its database included.
    #[must_use]
    pub fn new(redis: Redis, prefix: &str) -> Self {
        Self { redis, prefix: Arc::from(prefix) }
    }

    /// The connection.
    #[must_use]
    pub const fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Brings the records in Redis to `records`, all at once. They have to be every record of ours: a set that was lost is
    /// thereby whole again before anybody reads it.
    ///
    /// # Errors
    /// [`DispatcherError::Fenced`] when a newer leader has published; else as Redis says.
    pub async fn publish(&self, tenure: &Tenure, records: &Records) -> Result<Published, DispatcherError> {
        self.send(tenure, records, "whole").await?.ok_or_else(|| bad_reply().into())
    }

    /// Brings some of the records to `records` and leaves the others as they are. `None`: nothing was done, because the set
    /// was lost since it was published; the caller has to publish the whole.
    ///
    /// # Errors
    /// As [`Dispatcher::publish`].
    pub async fn publish_part(
        &self,
        tenure: &Tenure,
        records: &Records,
    ) -> Result<Option<Published>, DispatcherError> {
        self.send(tenure, records, "part").await
    }

    async fn send(
        &self,
        tenure: &Tenure,
        records: &Records,
        scope: &'static str,
    ) -> Result<Option<Published>, DispatcherError> {
        let term = tenure.check()?;
        let mut keys: Vec<Key> = vec![TERM_KEY.into(), GENERATION_KEY.into()];
        let mut args: Vec<Value> = vec![
            term.number.into(),
            i64::try_from(records.put.len()).unwrap_or(i64::MAX).into(),
            scope.into(),
        ];
        for record in &records.put {
            keys.push(format!("{}{}", self.prefix, record.name).into());
            args.push(record.setid.to_string().into());
            args.push(record.destination.as_str().into());
            args.push(record.flags.number().into());
            args.push(record.priority.to_string().into());
            args.push(format!("duid={}", record.name).into());
        }
        keys.extend(records.remove.iter().map(|name| Key::from(format!("{}{name}", self.prefix))));
        let reply: Vec<i64> = self.redis.eval(&PUBLISH, keys, args).await?;
        match reply[..] {
            [1, written, removed] => Ok(Some(Published { written, removed })),
            [0, _] => {
                term::refused(term, "dispatcher.publish");
                Err(DispatcherError::Fenced)
            }
            [2, _] => Ok(None),
            _ => Err(bad_reply().into()),
        }
    }
}

fn bad_reply() -> RedisError {
    RedisError::new(RedisErrorKind::BadReply, "dispatcher publish", "not the agreed reply")
}
