//! The queue's function library in Redis, and the one way to call it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{Mutex, broadcast};
use voiceai_redis::{CallOptions, FromValue, Redis, RedisError, RedisErrorKind, Str, Topology, Value};
use voiceai_runtime::{Backoff, boot_now, random_unit};

use crate::envelope::received;
use crate::id::JobId;

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

/// The library's name, and how its text begins.
const NAME: &str = "voiceai_v1";
const LIBRARY: &str = "#!lua name=voiceai_v1\n";

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

/// Longest wait for the answer to one call. A call takes the server a few milliseconds at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a call that may be repeated is repeated.
const REPEAT_LIMIT: Duration = Duration::from_secs(10);

/// Calls functions of the library on a connection of its own, one call at a time: replies are matched to commands by
/// their order alone, so only a connection without other traffic can be trusted after an answer went missing. It is then
/// made anew. Loads the library where it is missing: a fresh, emptied or failed-over server has none.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    shared: Redis,
    line: Arc<Mutex<Redis>>,
    /// Reads envelopes beside the line, so that the next call need not wait for them. Opened when first needed: small
    /// lots bring theirs along.
    reader: Arc<Mutex<Option<Redis>>>,
}

impl Library {
    /// Opens the connection.
    pub(crate) async fn open(redis: &Redis) -> Result<Self, RedisError> {
        Ok(Self {
            shared: redis.clone(),
            line: Arc::new(Mutex::new(dedicated(redis).await?)),
            reader: Arc::default(),
        })
    }

    /// The connection shared with the rest of the process.
    pub(crate) const fn redis(&self) -> &Redis {
        &self.shared
    }

    /// Tells each time the line was made anew: the server may be another one by then, or an older state of the same.
    pub(crate) async fn reconnected(&self) -> broadcast::Receiver<()> {
        self.line.lock().await.reconnected()
    }

    /// Puts the library there unless the server has this very text: loading is a write, which a server at its memory
    /// limit refuses, and workers that could make room must be able to start then.
    pub(crate) async fn load(&self) -> Result<(), RedisError> {
        // In Cluster one node's answer says nothing about the others.
        if self.shared.settings().topology() != Topology::Cluster && self.has(SOURCE).await {
            return Ok(());
        }
        match self.shared.load_functions(SOURCE).await {
            Err(error) if error.kind() == RedisErrorKind::OutOfMemory && self.has(LIBRARY).await => {
                tracing::warn!(%error, "redis is full: the queue works on with the function library of another version");
                Ok(())
            }
            other => other,
        }
    }

    /// True when the server's library contains `text`.
    async fn has(&self, text: &str) -> bool {
        let listed: Result<Value, _> =
            self.shared.command("FUNCTION", vec!["LIST", "LIBRARYNAME", NAME, "WITHCODE"]).await;
        listed.is_ok_and(|listed| contains(&listed, text))
    }

    /// Calls `function` for `queue`, again when no answer came: it must be harmless when applied twice.
    pub(crate) async fn call<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        self.call_made(queue, function, &|| args.clone()).await
    }

    /// The same for callers whose futures are not ours, such as handlers: the call goes to its end in a task of its own. It
    /// holds the line while it lasts, and a future may be left unpolled (`select!`, `buffer_unordered`): nobody else could use
    /// the line then, not even to keep the lease alive.
    pub(crate) async fn call_apart<T: FromValue + Send + 'static>(
        &self,
        queue: &QueueName,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        let (library, queue) = (self.clone(), queue.clone());
        let call = async move { library.call_made(&queue, function, &|| args.clone()).await };
        match tokio::spawn(call).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// The same for many arguments: `make` is asked for them at each sending, so that none are kept for a repetition
    /// that hardly ever comes.
    pub(crate) async fn call_made<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        make: &(impl Fn() -> Vec<Value> + Sync),
    ) -> Result<T, RedisError> {
        self.call_counted(queue, function, make).await.map(|(reply, _)| reply)
    }

    /// The same; also says how many earlier sendings remained without an answer.
    pub(crate) async fn call_counted<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        make: &(impl Fn() -> Vec<Value> + Sync),
    ) -> Result<(T, u32), RedisError> {
        let until = boot_now().saturating_add(REPEAT_LIMIT);
        let (mut tries, mut unanswered) = (0, 0);
        loop {
            match self.call_once_made(queue, function, make).await {
                Ok(reply) => return Ok((reply, unanswered)),
                Err(error) if may_repeat(&error) && boot_now() < until => {
                    tokio::time::sleep(Backoff::RECONNECT.delay(tries, random_unit())).await;
                    tries += 1;
                    unanswered += u32::from(error.outcome_unknown());
                }
                // The reason is left out: it is the repetition's, and reads as if nothing had been done.
                Err(error) if unanswered > 0 && !error.outcome_unknown() => {
                    tracing::debug!(%error, function, "a repetition failed after a sending without an answer");
                    let detail = "no answer to the first sending, and its repetition was refused";
                    return Err(RedisError::new(RedisErrorKind::TimedOut, function, detail));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The line answered something else than it was asked: it is made anew.
    pub(crate) async fn distrust(&self) {
        self.line.lock().await.reconnect().await;
    }

    /// The envelopes of `ids`, in their order; reading may be repeated.
    pub(crate) async fn envelopes(
        &self,
        queue: &QueueName,
        ids: &[JobId],
    ) -> Result<Vec<Option<Str>>, RedisError> {
        let until = boot_now().saturating_add(REPEAT_LIMIT);
        let mut tries = 0;
        loop {
            let mut reader = self.reader.lock().await;
            let error = match read(&mut reader, &self.shared, queue, ids).await {
                Ok(found) => {
                    if found.iter().any(Option::is_none) {
                        // After a failover the two connections may stand on different servers for a moment.
                        *reader = None;
                    }
                    return Ok(found);
                }
                Err(error) => error,
            };
            // Replies are matched to commands by their order: after a missing one the connection is not read again.
            *reader = None;
            drop(reader);
            if !may_repeat(&error) || boot_now() >= until {
                return Err(error);
            }
            tokio::time::sleep(Backoff::RECONNECT.delay(tries, random_unit())).await;
            tries += 1;
        }
    }

    /// Calls `function` for `queue` and never sends it twice, unless the server said that it did nothing.
    pub(crate) async fn call_once<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        self.call_once_made(queue, function, &|| args.clone()).await
    }

    /// The same, with arguments that are made at each sending.
    pub(crate) async fn call_once_made<T: FromValue>(
        &self,
        queue: &QueueName,
        function: &'static str,
        make: &(impl Fn() -> Vec<Value> + Sync),
    ) -> Result<T, RedisError> {
        let line = self.line.lock().await;
        // The client's own limit covers a command that was written; this one also covers waiting for a connection.
        let limit = ANSWER_LIMIT + Duration::from_millis(500);
        let attempt = async {
            match line.fcall(function, queue.keys(), make()).await {
                Err(error) if error.kind() == RedisErrorKind::NotLoaded => {
                    line.load_functions(SOURCE).await?;
                    line.fcall(function, queue.keys(), make()).await
                }
                other => other,
            }
        };
        let answer = tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| {
            Err(RedisError::new(RedisErrorKind::TimedOut, function, "no answer in time"))
        });
        if let Err(error) = &answer
            && matches!(error.kind(), RedisErrorKind::TimedOut | RedisErrorKind::BadReply)
        {
            line.reconnect().await;
        }
        answer
    }
}

/// A connection for one call at a time, none of which is repeated by the client itself.
async fn dedicated(redis: &Redis) -> Result<Redis, RedisError> {
    let options = CallOptions { attempts: Some(1), timeout: Some(ANSWER_LIMIT), fail_fast: false };
    Ok(redis.another().await?.with(options))
}

async fn read(
    reader: &mut Option<Redis>,
    shared: &Redis,
    queue: &QueueName,
    ids: &[JobId],
) -> Result<Vec<Option<Str>>, RedisError> {
    let reader = match reader {
        Some(reader) => reader,
        none => none.insert(dedicated(shared).await?),
    };
    let mut args: Vec<Value> = Vec::with_capacity(ids.len() + 1);
    args.push(queue.key("jobs").into());
    extend_texts(&mut args, ids.iter().map(JobId::as_str));
    let found: Vec<Value> = reader.command("HMGET", args).await?;
    if found.len() == ids.len() {
        return Ok(found.into_iter().map(received).collect());
    }
    Err(RedisError::new(RedisErrorKind::BadReply, "HMGET", "the answer has another length than the question"))
}

/// Appends many short texts, which then share one buffer.
pub(crate) fn extend_texts<'a>(args: &mut Vec<Value>, texts: impl Iterator<Item = &'a str> + Clone) {
    let mut buffer = BytesMut::with_capacity(texts.clone().map(str::len).sum());
    for text in texts.clone() {
        buffer.extend_from_slice(text.as_bytes());
    }
    let mut buffer = buffer.freeze();
    args.extend(texts.map(|text| Value::Bytes(buffer.split_to(text.len()))));
}

/// No answer came, or the server is a replica or loading for now.
const fn may_repeat(error: &RedisError) -> bool {
    error.outcome_unknown() || matches!(error.kind(), RedisErrorKind::NotWritable)
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

/// Looks for a text that contains `text` anywhere in a reply, whatever shape the protocol's version gives it.
fn contains(reply: &Value, text: &str) -> bool {
    match reply {
        Value::Array(items) => items.iter().any(|item| contains(item, text)),
        Value::Map(map) => map.values().any(|item| contains(item, text)),
        other => text_of(other).is_some_and(|found| found.contains(text)),
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
