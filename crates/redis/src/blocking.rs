use std::fmt;
use std::time::Duration;

use bytes_utils::Str;
use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::Options;
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::sync::broadcast;

use crate::error::{RedisError, RedisErrorKind};

/// A connection that one loop uses for one blocking command at a time.
pub struct Blocking(Client);

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blocking")
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        let client = self.0.clone();
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move { client.quit().await });
        }
    }
}

impl Blocking {
    pub(crate) const fn new(client: Client) -> Self {
        Self(client)
    }

    /// Waits for a member of the sorted set `key`, lowest score first, at most `block`. `None`: nothing came.
    ///
    /// A server that does not answer within `block` + 1 s is taken for gone: the connection is made anew and the call
    /// fails, since a connection that is blocked is exempt from the client's own watchdog.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn bzpopmin(&self, key: &str, block: Duration) -> Result<Option<(String, f64)>, RedisError> {
        let command = CustomCommand::new_static("BZPOPMIN", ClusterHash::FirstKey, true);
        let args: Vec<Value> = vec![key.into(), Value::from(block.as_secs_f64())];
        match self.call("BZPOPMIN", command, args, block).await? {
            Value::Null => Ok(None),
            value => {
                let (_key, member, score): (Str, String, f64) =
                    value.convert().map_err(|e| RedisError::from_fred("BZPOPMIN", &e))?;
                Ok(Some((member, score)))
            }
        }
    }

    /// Waits for entries of the stream `key` behind the entry `after`, at most `block`, and takes at most `count` of them, oldest
    /// first. Empty: nothing came. The same watchdog as for [`Self::bzpopmin`].
    ///
    /// # Errors
    /// As the server or the connection says; `WRONGTYPE` when there is something else under the key.
    pub async fn xread(
        &self,
        key: &str,
        after: &str,
        count: u32,
        block: Duration,
    ) -> Result<Vec<StreamEntry>, RedisError> {
        // The key stands behind `COUNT n BLOCK ms STREAMS`: of a custom command fred takes no word but the slot itself.
        let command = CustomCommand::new_static("XREAD", ClusterHash::from(key.as_bytes()), true);
        let millis = i64::try_from(block.as_millis()).unwrap_or(i64::MAX).max(1);
        let args: Vec<Value> = vec![
            "COUNT".into(),
            i64::from(count).into(),
            "BLOCK".into(),
            millis.into(),
            "STREAMS".into(),
            key.into(),
            after.into(),
        ];
        let reply = self.call("XREAD", command, args, block).await?;
        entries(reply).ok_or_else(|| {
            RedisError::new(RedisErrorKind::Other, "XREAD", "the reply is no list of stream entries")
        })
    }

    /// One blocking command. A server that does not answer within `block` + 1 s is taken for gone.
    async fn call(
        &self,
        name: &'static str,
        command: CustomCommand,
        args: Vec<Value>,
        block: Duration,
    ) -> Result<Value, RedisError> {
        let limit = block + Duration::from_secs(1);
        let options = Options { timeout: Some(limit), max_attempts: Some(1), ..Options::default() };
        let call = async {
            let frame = self.0.with_options(&options).custom_raw(command, args).await?;
            let value: Value = frame.try_into()?;
            Ok::<_, fred::error::Error>(value)
        };
        match tokio::time::timeout(limit + Duration::from_millis(500), call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let error = RedisError::from_fred(name, &error);
                if error.kind() == RedisErrorKind::TimedOut {
                    let _ = self.0.force_reconnection().await;
                }
                Err(error)
            }
            Err(_) => {
                let _ = self.0.force_reconnection().await;
                Err(RedisError::new(RedisErrorKind::TimedOut, name, "no answer in time"))
            }
        }
    }
}

/// An entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its id, `<milliseconds>-<number>`.
    pub id: String,
    /// Its fields in their order, as bytes: whoever writes a stream may write anything.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads the reply to `XREAD` on one key, in either version of the protocol.
fn entries(reply: Value) -> Option<Vec<StreamEntry>> {
    let list = match reply {
        Value::Null => return Some(Vec::new()),
        // One pair of key and entries: nested in RESP2, a map in RESP3.
        Value::Map(map) => map.inner().into_iter().next()?.1,
        Value::Array(streams) => match streams.into_iter().next()? {
            Value::Array(pair) => pair.into_iter().nth(1)?,
            _ => return None,
        },
        _ => return None,
    };
    let Value::Array(entries) = list else { return None };
    entries.into_iter().map(entry).collect()
}

fn entry(entry: Value) -> Option<StreamEntry> {
    let Value::Array(parts) = entry else { return None };
    let mut parts = parts.into_iter();
    let id = parts.next()?.into_string()?;
    let Value::Array(flat) = parts.next()? else { return None };
    let mut flat = flat.into_iter();
    let mut fields = Vec::with_capacity(flat.len() / 2);
    while let Some(name) = flat.next() {
        fields.push((bytes(&name)?, bytes(&flat.next()?)?));
    }
    Some(StreamEntry { id, fields })
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        other => other.as_bytes().map(<[u8]>::to_vec).or_else(|| other.as_string().map(String::into_bytes)),
    }
}

/// A connection for subscriptions.
pub struct Subscriber(SubscriberClient);

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscriber")
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let client = self.0.clone();
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move { client.quit().await });
        }
    }
}

impl Subscriber {
    pub(crate) fn new(client: SubscriberClient) -> Self {
        drop(client.manage_subscriptions());
        Self(client)
    }

    /// Subscribes to `channels` and returns what arrives as (channel, text). Messages sent while the connection is
    /// away are lost, as pub/sub promises no more: never the only way to learn something.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn subscribe(
        &self,
        channels: Vec<String>,
    ) -> Result<tokio::sync::mpsc::Receiver<(String, String)>, RedisError> {
        let mut messages = self.0.message_rx();
        self.0
            .subscribe::<Vec<String>>(channels)
            .await
            .map_err(|e| RedisError::from_fred("SUBSCRIBE", &e))?;
        let (tell, told) = tokio::sync::mpsc::channel(1024);
        tokio::spawn(async move {
            loop {
                match messages.recv().await {
                    Ok(message) => {
                        let text = message.value.convert::<String>().unwrap_or_default();
                        if tell.send((message.channel.to_string(), text)).await.is_err() {
                            break;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        });
        Ok(told)
    }
}
