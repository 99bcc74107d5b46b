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
        let limit = block + Duration::from_secs(1);
        let options = Options { timeout: Some(limit), max_attempts: Some(1), ..Options::default() };
        let command = CustomCommand::new_static("BZPOPMIN", ClusterHash::FirstKey, true);
        let args: Vec<Value> = vec![key.into(), Value::from(block.as_secs_f64())];
        let call = async {
            let frame = self.0.with_options(&options).custom_raw(command, args).await?;
            let value: Value = frame.try_into()?;
            Ok::<_, fred::error::Error>(value)
        };
        match tokio::time::timeout(limit + Duration::from_millis(500), call).await {
            Ok(Ok(Value::Null)) => Ok(None),
            Ok(Ok(value)) => {
                let (_key, member, score): (Str, String, f64) =
                    value.convert().map_err(|e| RedisError::from_fred("BZPOPMIN", &e))?;
                Ok(Some((member, score)))
            }
            Ok(Err(error)) => {
                let error = RedisError::from_fred("BZPOPMIN", &error);
                if error.kind() == RedisErrorKind::TimedOut {
                    let _ = self.0.force_reconnection().await;
                }
                Err(error)
            }
            Err(_) => {
                let _ = self.0.force_reconnection().await;
                Err(RedisError::new(RedisErrorKind::TimedOut, "BZPOPMIN", "no answer in time"))
            }
        }
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
