//! The lease in Redis: one Rust function per script.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use uuid::Uuid;
use voiceai_redis::{CallOptions, Key, Redis, RedisError, RedisErrorKind, Script, Value};

use crate::record::{LeaderRecord, Written};
use crate::settings::{LeaderSettings, Timing};

macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!("leader ", $file), include_str!(concat!("lua/", $file, ".lua")))
        });
    };
}
script!(ACQUIRE, "acquire");
script!(CONFIRM, "confirm");
script!(RENEW, "renew");
script!(RELEASE, "release");
script!(MEND, "mend");

/// What the leader key holds when it is not our lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// Text: another's record, or anything.
    Text(Text),
    /// Another type of value: no lease at all, but somebody's data under our key.
    OtherType(String),
}

/// A text value that is not our lease, as far as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// Bytes, as anything may stand there.
    pub(crate) value: Vec<u8>,
    /// Whole length in bytes: only the beginning of a long value is read.
    pub(crate) length: i64,
    /// Remaining time; `None`: it has no time limit.
    pub(crate) left: Option<Duration>,
}

impl Text {
    pub(crate) fn record(&self) -> Option<LeaderRecord> {
        serde_json::from_slice(&self.value).ok()
    }

    pub(crate) fn written(&self) -> Option<Written> {
        serde_json::from_slice(&self.value).ok()
    }
}

impl Held {
    /// For people: who or what it is.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Nothing => "the lease is gone: it ran out, was deleted, or Redis lost its data".into(),
            Self::OtherType(kind) => format!("the leader key holds a {kind} instead of a lease"),
            Self::Text(text) => match text.record() {
                Some(r) => format!("{} (host {}, pid {}) holds the lease", r.instance_id, r.host, r.pid),
                None => "the leader key holds a text that is no leader record".into(),
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    Taken,
    Not(Held),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// Written. `replaced`: what the copy of the term held, if it was no term.
    Ok {
        replaced: Option<String>,
    },
    /// The copy of the term is higher: somebody was elected since it was read.
    Behind(String),
    NotOurs(Held),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    Ok,
    NotOurs(Held),
}

/// This process's hand on the leader key.
pub(crate) struct Lease {
    redis: Redis,
    key: String,
    term_key: String,
    nonce: Uuid,
    ttl: Duration,
    instance_id: String,
    host: String,
}

impl Lease {
    pub(crate) fn new(settings: &LeaderSettings, timing: &Timing, redis: &Redis) -> Self {
        // Written once, at once or not at all: a command that waited for a connection would count from the wrong time.
        let options = CallOptions { attempts: Some(1), timeout: Some(timing.call), fail_fast: true };
        Self {
            redis: redis.with(options),
            key: settings.key.clone(),
            term_key: settings.term_key(),
            nonce: Uuid::new_v4(),
            ttl: timing.ttl,
            instance_id: settings.instance_id.clone(),
            host: settings.host.clone(),
        }
    }

    /// The connection with this election's call options.
    pub(crate) const fn redis(&self) -> &Redis {
        &self.redis
    }

    pub(crate) async fn acquire(&self) -> Result<Acquired, RedisError> {
        let args = vec![self.nonce(), self.record(0)?, ms(self.ttl)];
        let reply = self.call(&ACQUIRE, vec![self.key()], args).await?;
        match &*reply.word() {
            "taken" => Ok(Acquired::Taken),
            _ => Ok(Acquired::Not(reply.held()?)),
        }
    }

    pub(crate) async fn confirm(&self, term: i64) -> Result<Confirmed, RedisError> {
        let args = vec![self.nonce(), self.record(term)?, ms(self.ttl), term.into()];
        let reply = self.call(&CONFIRM, vec![self.key(), self.term_key.as_str().into()], args).await?;
        match &*reply.word() {
            "ok" => {
                let copy = reply.text(1)?;
                let is_term = copy.bytes().all(|b| b.is_ascii_digit()) && copy.len() <= 15;
                Ok(Confirmed::Ok { replaced: (!is_term).then_some(copy) })
            }
            "behind" => Ok(Confirmed::Behind(reply.text(1)?)),
            _ => Ok(Confirmed::NotOurs(reply.held()?)),
        }
    }

    pub(crate) async fn renew(&self) -> Result<Renewed, RedisError> {
        let reply = self.call(&RENEW, vec![self.key()], vec![self.nonce(), ms(self.ttl)]).await?;
        match &*reply.word() {
            "ok" => Ok(Renewed::Ok),
            _ => Ok(Renewed::NotOurs(reply.held()?)),
        }
    }

    /// Whether there was anything of ours to release.
    pub(crate) async fn release(&self) -> Result<bool, RedisError> {
        self.redis.eval::<i64>(&RELEASE, vec![self.key()], vec![self.nonce()]).await.map(|n| n == 1)
    }

    /// Sets a time limit on a stuck value. Whether it still was the value that was seen.
    pub(crate) async fn mend(
        &self,
        seen: &Text,
        not_stuck: Duration,
        limit: Duration,
    ) -> Result<bool, RedisError> {
        let args = vec![seen.value.as_slice().into(), seen.length.into(), ms(not_stuck), ms(limit)];
        self.redis.eval::<i64>(&MEND, vec![self.key()], args).await.map(|n| n == 1)
    }

    async fn call(
        &self,
        script: &'static Script,
        keys: Vec<Key>,
        args: Vec<Value>,
    ) -> Result<Reply, RedisError> {
        let fields: Vec<Value> = self.redis.eval(script, keys, args).await?;
        Ok(Reply { script: script.name(), fields })
    }

    fn key(&self) -> Key {
        self.key.as_str().into()
    }

    fn nonce(&self) -> Value {
        self.nonce.to_string().into()
    }

    fn record(&self, term: i64) -> Result<Value, RedisError> {
        let record = LeaderRecord {
            instance_id: self.instance_id.clone(),
            host: self.host.clone(),
            pid: std::process::id(),
            term,
            elected_at: jiff::Timestamp::now(),
        };
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let text = serde_json::to_string(&Written { record, nonce: self.nonce, ttl_ms })
            .map_err(|e| RedisError::new(RedisErrorKind::Other, "write the leader record", e.to_string()))?;
        Ok(text.into())
    }
}

fn ms(span: Duration) -> Value {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX).into()
}

/// A script's answer: a word, and what belongs to it.
struct Reply {
    script: &'static str,
    fields: Vec<Value>,
}

impl Reply {
    fn word(&self) -> Cow<'_, str> {
        self.fields.first().and_then(Value::as_str_lossy).unwrap_or_default()
    }

    fn text(&self, at: usize) -> Result<String, RedisError> {
        let text = self.fields.get(at).and_then(Value::as_str_lossy);
        text.map(Cow::into_owned).ok_or_else(|| self.bad())
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, RedisError> {
        self.fields.get(at).and_then(Value::as_bytes).map(<[u8]>::to_vec).ok_or_else(|| self.bad())
    }

    fn number(&self, at: usize) -> Result<i64, RedisError> {
        self.fields.get(at).and_then(Value::as_i64).ok_or_else(|| self.bad())
    }

    fn held(&self) -> Result<Held, RedisError> {
        match &*self.word() {
            "" => Err(self.bad()),
            "none" => Ok(Held::Nothing),
            "string" => {
                let left = u64::try_from(self.number(3)?).ok().map(Duration::from_millis);
                Ok(Held::Text(Text { value: self.bytes(1)?, length: self.number(2)?, left }))
            }
            kind => Ok(Held::OtherType(kind.to_owned())),
        }
    }

    fn bad(&self) -> RedisError {
        RedisError::new(RedisErrorKind::BadReply, self.script, "the script's answer has another form")
    }
}
