//! Kamailio's dispatcher records.
//!
//! What should be there follows from PostgreSQL alone ([`records`]); [`Dispatcher::publish`] brings Redis to it in one script
//! that writes whole records, counts the generation up and refuses a stale leader. A Redis that came back empty is thereby
//! filled again before Kamailio reads it the next time.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use voiceai_postgres::{Tenure, term};
use voiceai_redis::{Key, Redis, RedisError, RedisErrorKind, Script, Value};
use voiceai_scaler_core::{Kind, Operation, ServerStatus, Service, State};

use crate::store::{FleetRow, ServerRow, StoreError};

/// Where the newest term is kept beside the records.
pub const TERM_KEY: &str = "voiceai:dispatcher:term";
/// What Kamailio polls.
pub const GENERATION_KEY: &str = "voiceai:dispatcher:generation";

static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new("dispatcher publish", include_str!("lua/publish.lua")));

/// Kamailio's flags of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    /// 9: inactive and probed. A new server gets no call before it has answered.
    Entering,
    /// 8: active and probed.
    Serving,
    /// 12: disabled and probed. Survives a reload, unlike a state set by command.
    Draining,
}

impl Flags {
    const fn number(self) -> &'static str {
        match self {
            Self::Entering => "9",
            Self::Serving => "8",
            Self::Draining => "12",
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The server's name, the tail of the key.
    pub name: String,
    /// The dispatcher set.
    pub setid: u32,
    /// The SIP URI.
    pub destination: String,
    /// Its flags.
    pub flags: Flags,
    /// Its priority.
    pub priority: i64,
}

/// What should be in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    /// Records to be there.
    pub put: Vec<Record>,
    /// Names whose records must not be there.
    pub remove: Vec<String>,
}

/// The flags of a server in a state; `None`: it has no record.
#[must_use]
pub const fn flags(operation: Option<Operation>) -> Option<Flags> {
    use State as S;
    let Some(operation) = operation else { return Some(Flags::Serving) };
    match (operation.kind, operation.state) {
        (Kind::Up, S::Routed) => Some(Flags::Entering),
        (Kind::Up, S::Done) | (Kind::Down, S::Planned | S::Preflight | S::Cancelled) => Some(Flags::Serving),
        (Kind::Down, S::Unrouted | S::Draining | S::Drained | S::Forced | S::Cancelling) => {
            Some(Flags::Draining)
        }
        _ => None,
    }
}

/// The record of a server; `None` when it is no voice server or has no address yet.
#[must_use]
pub fn record(server: &ServerRow, flags: Flags) -> Option<Record> {
    if server.service != Service::Voice {
        return None;
    }
    let address: IpAddr = server.private_ip.as_deref().or(server.ip.as_deref())?.parse().ok()?;
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let wanted = &server.spec.dispatcher;
    let mut destination = format!("sip:{host}:{}", wanted.port);
    if wanted.transport != "udp" {
        destination.push_str(";transport=");
        destination.push_str(&wanted.transport);
    }
    Some(Record {
        name: server.name.clone(),
        setid: wanted.setid,
        destination,
        flags,
        priority: server.spec.priority,
    })
}

/// The record that a row asks for; `None`: there must be none.
#[must_use]
pub fn wanted(row: &FleetRow) -> Option<Record> {
    // A server without an operation that is not in service is kept for a person, out of routing.
    let flags = match row.state() {
        None if row.server.status != ServerStatus::Active => None,
        state => flags(state),
    };
    record(&row.server, flags?)
}

/// What the rows say should be in Redis: a record for each voice server in or on its way out of service, none for the
/// others of ours. Records of names we never had are not ours to touch.
#[must_use]
pub fn records(fleet: &[FleetRow], gone: impl IntoIterator<Item = String>) -> Records {
    let mut records = Records::default();
    let names: HashSet<&str> = fleet.iter().map(|row| row.server.name.as_str()).collect();
    records.remove.extend(gone.into_iter().filter(|name| !names.contains(name.as_str())));
    for row in fleet {
        match wanted(row) {
            Some(record) => records.put.push(record),
            None => records.remove.push(row.server.name.clone()),
        }
    }
    records
}

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
