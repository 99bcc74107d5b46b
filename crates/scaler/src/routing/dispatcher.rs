//! Kamailio's dispatcher records.
//!
//! What should be there follows from PostgreSQL alone ([`records`]); [`Dispatcher::publish`] brings Redis to it in one script
//! that writes whole records, counts the generation up and refuses a stale leader. A Redis that came back empty is thereby
//! filled again before Kamailio reads it the next time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::watch;
use voiceai_postgres::{Tenure, term};
use voiceai_redis::{Key, Redis, RedisError, RedisErrorKind, Script, Value};

pub use super::records::{Flags, Record, Records, flags, is_unaddressed, record, records, wanted};
use crate::store::StoreError;

/// Where the newest term is kept beside the records.
pub const TERM_KEY: &str = "voiceai:dispatcher:term";
/// What Kamailio polls.
pub const GENERATION_KEY: &str = "voiceai:dispatcher:generation";

/// What the leader last heard of the proxies, for `status`.
pub const PROXIES_KEY: &str = "voiceai:dispatcher:proxies";
/// Beginning of the keys to which records are moved that Kamailio could not load.
pub const SHELF: &str = "voiceai:dispatcher:set-aside:";

static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    let source = concat!(include_str!("../lua/disarm.lua"), include_str!("../lua/publish.lua"));
    Script::new("dispatcher publish", source)
});
static SNAPSHOT: LazyLock<Script> = LazyLock::new(|| {
    let source = concat!(include_str!("../lua/disarm.lua"), include_str!("../lua/snapshot.lua"));
    Script::new("dispatcher snapshot", source)
});
static NOTE: LazyLock<Script> =
    LazyLock::new(|| Script::new("dispatcher note", include_str!("../lua/note.lua")));

/// Most records in one script, but for a set that was lost: that one has to be there at once or not at all.
const PART_MAX: usize = 2_000;

/// What a publication changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Records written.
    pub written: i64,
    /// Records removed.
    pub removed: i64,
    /// The generation that stands for them.
    pub generation: i64,
}

/// A record as it stands in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The tail of its key.
    pub name: String,
    /// The dispatcher set; what is no number counts as 0, as it does for Kamailio.
    pub setid: u32,
    /// The SIP URI.
    pub destination: String,
    /// Kamailio's flags.
    pub flags: u32,
    /// The name that its attributes give it, which Kamailio lists.
    pub duid: Option<String>,
}

impl Stored {
    /// True when Kamailio sends no new call there whatever its probes say.
    #[must_use]
    pub const fn is_disabled(&self) -> bool {
        self.flags & 4 != 0
    }
}

/// Everything that Kamailio would load.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DispatcherSet {
    /// The generation that stands for it; 0 when it is lost.
    pub generation: i64,
    /// The records, those of others included.
    pub records: Vec<Stored>,
}

/// The dispatcher's Redis database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    redis: Redis,
    prefix: Arc<str>,
    /// The highest generation that this process has made.
    made: Arc<AtomicI64>,
    /// Tells the keepers of the proxies that something has changed.
    changes: watch::Sender<i64>,
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
        Self { redis, prefix: Arc::from(prefix), made: Arc::default(), changes: watch::Sender::new(0) }
    }

    /// The generation of each publication of this process that changed something.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<i64> {
        self.changes.subscribe()
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
        let mut all = Published { written: 0, removed: 0, generation: 0 };
        for part in parts(records) {
            let Some(published) = self.send(tenure, &part, "part").await? else { return Ok(None) };
            all.written += published.written;
            all.removed += published.removed;
            all.generation = published.generation;
        }
        Ok(Some(all))
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
            (&*self.prefix).into(),
            SHELF.into(),
            self.made.load(Ordering::Relaxed).into(),
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
        let (outcome, written, removed, generation, moved): (i64, i64, i64, i64, Vec<Value>) =
            self.redis.eval(&PUBLISH, keys, args).await?;
        tell_moved(&moved);
        match outcome {
            1 => {
                if written + removed > 0 {
                    self.made.fetch_max(generation, Ordering::Relaxed);
                    self.changes.send_replace(generation);
                }
                Ok(Some(Published { written, removed, generation }))
            }
            0 => {
                term::refused(term, "dispatcher.publish");
                Err(DispatcherError::Fenced)
            }
            2 => Ok(None),
            _ => Err(bad_reply().into()),
        }
    }

    /// What Kamailio would load now. What it could not load is moved away first: it would end Kamailio, or fail the load.
    ///
    /// # Errors
    /// As [`Dispatcher::publish`].
    pub async fn snapshot(&self, tenure: &Tenure) -> Result<DispatcherSet, DispatcherError> {
        self.look(tenure, "records").await
    }

    /// Moves away what Kamailio could not load.
    ///
    /// # Errors
    /// As [`Dispatcher::publish`].
    pub async fn disarm(&self, tenure: &Tenure) -> Result<(), DispatcherError> {
        self.look(tenure, "nothing").await.map(|_| ())
    }

    async fn look(&self, tenure: &Tenure, what: &'static str) -> Result<DispatcherSet, DispatcherError> {
        let term = tenure.check()?;
        let keys: Vec<Key> = vec![TERM_KEY.into(), GENERATION_KEY.into()];
        let args: Vec<Value> = vec![term.number.into(), (&*self.prefix).into(), SHELF.into(), what.into()];
        let (outcome, generation, moved, values): (i64, i64, Vec<Value>, Vec<Value>) =
            self.redis.eval(&SNAPSHOT, keys, args).await?;
        tell_moved(&moved);
        if outcome == 0 {
            term::refused(term, "dispatcher.snapshot");
            return Err(DispatcherError::Fenced);
        }
        let values: Vec<String> = values.iter().map(text).collect();
        let (records, rest) = values.as_chunks::<5>();
        if !rest.is_empty() {
            return Err(bad_reply().into());
        }
        Ok(DispatcherSet { generation, records: records.iter().map(stored).collect() })
    }

    /// Reads what [`Dispatcher::snapshot`] would, record by record, and changes nothing: for `doctor`, which has no term.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn read(&self) -> Result<DispatcherSet, RedisError> {
        let generation =
            self.redis.get(GENERATION_KEY).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut records = Vec::new();
        for name in self.names(&self.prefix).await? {
            let fields = ["setid", "destination", "flags", "attrs"].map(Key::from).to_vec();
            let values = self.redis.hmget(format!("{}{name}", self.prefix), fields).await?;
            let mut values = values.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            records.push(stored(&[name, next(), next(), next(), next()]));
        }
        Ok(DispatcherSet { generation, records })
    }

    /// Names of the records that were moved away.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn set_aside(&self) -> Result<Vec<String>, RedisError> {
        self.names(SHELF).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<String>, RedisError> {
        let pattern = format!("{}*", crate::heartbeats::escape(prefix));
        let (mut cursor, mut names) = ("0".to_owned(), std::collections::BTreeSet::new());
        loop {
            let args: Vec<Value> =
                vec![cursor.into(), "MATCH".into(), pattern.as_str().into(), "COUNT".into(), 1000.into()];
            let (next, keys): (String, Vec<Value>) = self.redis.command("SCAN", args).await?;
            names.extend(keys.iter().map(text).filter_map(|key| key.strip_prefix(prefix).map(str::to_owned)));
            if next == "0" {
                return Ok(names.into_iter().collect());
            }
            cursor = next;
        }
    }

    /// Leaves a note for `status`, which lives for `lifetime`.
    ///
    /// # Errors
    /// As [`Dispatcher::publish`].
    pub async fn note(&self, tenure: &Tenure, text: &str, lifetime: Duration) -> Result<(), DispatcherError> {
        let term = tenure.check()?;
        let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let args: Vec<Value> = vec![term.number.into(), text.into(), lifetime.into()];
        let written: i64 = self.redis.eval(&NOTE, vec![TERM_KEY.into(), PROXIES_KEY.into()], args).await?;
        if written == 0 {
            term::refused(term, "dispatcher.note");
            return Err(DispatcherError::Fenced);
        }
        Ok(())
    }
}

/// In pieces that do not keep Redis from others for long: no record depends on another one.
fn parts(records: &Records) -> Vec<Records> {
    if records.put.len() + records.remove.len() <= PART_MAX {
        return vec![records.clone()];
    }
    let put = records.put.chunks(PART_MAX).map(|put| Records { put: put.to_vec(), remove: Vec::new() });
    let remove = records.remove.chunks(PART_MAX);
    put.chain(remove.map(|remove| Records { put: Vec::new(), remove: remove.to_vec() })).collect()
}

/// Others may have written anything there.
fn text(value: &Value) -> String {
    match value {
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => other.as_string().unwrap_or_default(),
    }
}

fn stored([name, setid, destination, flags, attrs]: &[String; 5]) -> Stored {
    let duid = attrs.split(';').find_map(|attribute| attribute.trim().strip_prefix("duid="));
    Stored {
        name: name.clone(),
        setid: setid.parse().unwrap_or(0),
        destination: destination.clone(),
        flags: flags.parse().unwrap_or(0),
        duid: duid.map(str::to_owned),
    }
}

/// Whoever writes such records has to hear of it: the next one may come while no leader looks.
fn tell_moved(moved: &[Value]) {
    for name in moved.iter().map(text) {
        tracing::error!(
            record = name,
            moved_to = format!("{SHELF}{name}"),
            "a dispatcher record that Kamailio cannot load was moved away; find out who writes it"
        );
    }
}

fn bad_reply() -> RedisError {
    RedisError::new(RedisErrorKind::BadReply, "dispatcher publish", "not the agreed reply")
}
