//! The queue's function library in Redis, and the one way to call it.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use voiceai_redis::{CallOptions, FromValue, Redis, RedisError, RedisErrorKind, Value};

/// The whole library. Its name carries the wire version, so workers of two versions can run side by side.
pub(crate) const SOURCE: &str = concat!(
    "#!lua name=voiceai_v1\n",
    include_str!("lua/base.lua"),
    include_str!("lua/limits.lua"),
    include_str!("lua/life.lua"),
    include_str!("lua/produce.lua"),
    include_str!("lua/take.lua"),
    include_str!("lua/settle.lua"),
    include_str!("lua/workers.lua"),
    include_str!("lua/operate.lua"),
);

/// A queue's name and the prefix of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueName {
    pub(crate) name: Arc<str>,
    prefix: Arc<str>,
}

impl QueueName {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), prefix: format!("voiceai:queue:{{{name}}}:").into() }
    }

    /// `voiceai:queue:{<queue>}:<suffix>`
    pub(crate) fn key(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn keys(&self) -> Vec<voiceai_redis::Key> {
        vec![voiceai_redis::Key::from(&*self.prefix)]
    }
}

/// Calls functions of the library, loading it where it is missing: a fresh, emptied or failed-over server has none.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    redis: Redis,
    loading: Arc<Mutex<()>>,
}

impl Library {
    pub(crate) fn new(redis: Redis) -> Self {
        Self { redis, loading: Arc::new(Mutex::new(())) }
    }

    pub(crate) const fn redis(&self) -> &Redis {
        &self.redis
    }

    pub(crate) async fn load(&self) -> Result<(), RedisError> {
        let _one_at_a_time = self.loading.lock().await;
        self.redis.load_functions(SOURCE).await
    }

    /// Calls `function` for `queue`. The client library may send it again after a lost connection, so it must be
    /// harmless when applied twice.
    pub(crate) async fn call<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        self.call_with(queue, function, args, CallOptions::default()).await
    }

    pub(crate) async fn call_with<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        args: Vec<Value>,
        options: CallOptions,
    ) -> Result<T, RedisError> {
        let redis = self.redis.with(options);
        match redis.fcall(function, queue.keys(), args.clone()).await {
            // The function is not there, so nothing was done: sending it again is safe even for a take.
            Err(error) if error.kind() == RedisErrorKind::NotLoaded => {
                self.load().await?;
                redis.fcall(function, queue.keys(), args).await
            }
            other => other,
        }
    }
}

/// An array reply, taken apart from the front.
pub(crate) struct Fields(std::vec::IntoIter<Value>);

/// The reply does not have the expected form.
#[derive(Clone, Debug, thiserror::Error)]
#[error("expected {0}")]
pub(crate) struct Unexpected(pub(crate) &'static str);

impl Fields {
    pub(crate) fn of(value: Value) -> Result<Self, Unexpected> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(Unexpected("an array")),
        }
    }

    pub(crate) fn next(&mut self) -> Result<Value, Unexpected> {
        self.0.next().ok_or(Unexpected("one more value"))
    }

    pub(crate) fn integer(&mut self) -> Result<i64, Unexpected> {
        self.next()?.as_i64().ok_or(Unexpected("an integer"))
    }

    /// A text or nil.
    pub(crate) fn text(&mut self) -> Result<Option<String>, Unexpected> {
        Ok(text_of(&self.next()?))
    }

    pub(crate) fn texts(&mut self) -> Result<Vec<String>, Unexpected> {
        Ok(self.values()?.iter().filter_map(text_of).collect())
    }

    pub(crate) fn values(&mut self) -> Result<Vec<Value>, Unexpected> {
        match self.next()? {
            Value::Array(items) => Ok(items),
            _ => Err(Unexpected("an array")),
        }
    }

    /// A flat array of pairs.
    pub(crate) fn pairs(&mut self) -> Result<HashMap<String, String>, Unexpected> {
        let texts = self.texts()?;
        Ok(texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }
}

/// The text of a reply; bytes that are no UTF-8 are replaced, not refused.
pub(crate) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string()),
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::Integer(n) => Some(n.to_string()),
        Value::Double(n) => Some(n.to_string()),
        _ => None,
    }
}
