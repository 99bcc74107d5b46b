use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes_utils::Str;
use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike, EventInterface, FunctionInterface, HashesInterface, KeysInterface};
use fred::prelude::ReconnectPolicy;
use fred::types::config::{Config, Options, ReconnectError, TcpConfig, UnresponsiveConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, FromValue, Key, Value};
use tokio::sync::broadcast;
use voiceai_runtime::{Backoff, boot_now, random_unit};

use crate::error::{RedisError, RedisErrorKind};
use crate::settings::{RedisSettings, Topology};
use crate::{Blocking, Script, Subscriber};

/// How one call, or all calls of a handle, are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// How often the client may write the command. `None`: until the call's time limit. 1: never twice.
    pub attempts: Option<u32>,
    /// Time limit for one call. `None`: [`RedisSettings::command_timeout`].
    pub timeout: Option<Duration>,
    /// Fail at once while there is no connection, instead of waiting for one.
    pub fail_fast: bool,
}

/// A shared, multiplexed connection to Redis. Cheap to clone; commands of all clones are pipelined.
#[derive(Clone)]
pub struct Redis {
    pub(crate) client: Client,
    settings: Arc<RedisSettings>,
    pub(crate) options: Options,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.settings.display()).finish_non_exhaustive()
    }
}

pub(crate) fn builder(settings: &RedisSettings) -> Result<Builder, RedisError> {
    let config = Config::from_url(settings.url())
        .map_err(|_| RedisError::new(RedisErrorKind::Other, "read REDIS_URL", "the address is not usable"))?;
    let mut builder = Builder::from_config(config);
    // Attempts are unlimited: our own deadline around the first connection decides when to give up.
    builder.set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2));
    let command_timeout = settings.command_timeout;
    builder.with_performance_config(|c| c.default_command_timeout = command_timeout);
    builder.with_connection_config(|c| {
        c.connection_timeout = Duration::from_secs(2);
        c.internal_command_timeout = Duration::from_secs(2);
        c.max_command_attempts = 20;
        c.max_command_buffer_len = 100_000;
        c.reconnect_on_auth_error = true;
        c.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        c.unresponsive = UnresponsiveConfig {
            max_timeout: Some(Duration::from_secs(4)),
            interval: Duration::from_secs(1),
        };
        c.reconnect_errors = vec![
            ReconnectError::ClusterDown,
            ReconnectError::Loading,
            ReconnectError::MasterDown,
            ReconnectError::ReadOnly,
            ReconnectError::NoReplicas,
        ];
    });
    Ok(builder)
}

impl Redis {
    /// Connects, trying again for at most [`RedisSettings::connect_deadline`].
    ///
    /// # Errors
    /// The last failure, once the time is over; at once when the password is refused.
    pub async fn connect(settings: &RedisSettings) -> Result<Self, RedisError> {
        let until = boot_now().saturating_add(settings.connect_deadline);
        let tried = format!("connect to {}", settings.display());
        let mut attempt = 0;
        loop {
            let error = match Self::connect_once(settings, &tried).await {
                Ok(connected) => return Ok(connected),
                Err(error) if error.kind() == RedisErrorKind::Denied => return Err(error),
                Err(error) => error,
            };
            let wait = Backoff::RECONNECT.delay(attempt, random_unit());
            if boot_now().saturating_add(wait) >= until {
                return Err(error);
            }
            if attempt == 0 {
                tracing::warn!(%error, "redis is not reachable yet");
            }
            attempt += 1;
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect_once(settings: &RedisSettings, tried: &str) -> Result<Self, RedisError> {
        let client = builder(settings)?.build().map_err(|e| RedisError::from_fred(tried, &e))?;
        // fred's own limit covers the socket, not the whole hand-shake of Sentinel or Cluster.
        match tokio::time::timeout(Duration::from_secs(10), client.init()).await {
            Ok(Ok(_task)) => {
                let this = Self { client, settings: Arc::new(settings.clone()), options: Options::default() };
                let _: Value = this.command("PING", Vec::<Value>::new()).await?;
                Ok(this)
            }
            Ok(Err(error)) => {
                let _ = client.quit().await;
                Err(RedisError::from_fred(tried, &error))
            }
            Err(_) => Err(RedisError::new(RedisErrorKind::TimedOut, tried, "no answer within 10 s")),
        }
    }

    /// The same connection with other call options.
    #[must_use]
    pub fn with(&self, options: CallOptions) -> Self {
        let mut this = self.clone();
        this.options = Options {
            max_attempts: options.attempts,
            timeout: options.timeout,
            fail_fast: options.fail_fast,
            ..Options::default()
        };
        this
    }

    /// The settings it was made from.
    #[must_use]
    pub fn settings(&self) -> &RedisSettings {
        &self.settings
    }

    /// Tells each time a connection was made anew: what lives only in the server (function libraries, registrations)
    /// may have to be put there again.
    #[must_use]
    pub fn reconnected(&self) -> broadcast::Receiver<()> {
        let (tell, told) = broadcast::channel(16);
        let mut servers = self.client.reconnect_rx();
        tokio::spawn(async move {
            while let Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) = servers.recv().await {
                if tell.send(()).is_err() {
                    break;
                }
            }
        });
        told
    }

    /// Another connection to the same server, with the same settings.
    ///
    /// # Errors
    /// When it cannot be made within 10 s.
    pub async fn another(&self) -> Result<Self, RedisError> {
        let mut this = Self::connect_once(&self.settings, "open another connection").await?;
        this.options = self.options.clone();
        Ok(this)
    }

    /// Closes this connection and makes it anew. For a caller that has waited in vain for an answer: replies are matched
    /// to commands by their order alone, so a connection that lost one must not be used on.
    pub async fn reconnect(&self) {
        // Bounded: with the server away it would wait for it, and the client's own policy is already trying.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.force_reconnection()).await;
    }

    /// A connection of its own for a command that blocks. One per loop.
    ///
    /// # Errors
    /// When it cannot be made within 10 s.
    pub async fn blocking(&self) -> Result<Blocking, RedisError> {
        let inner = Self::connect_once(&self.settings, "open a blocking connection").await?;
        Ok(Blocking::new(inner.client))
    }

    /// A connection of its own for subscriptions; they are renewed after a reconnect.
    ///
    /// # Errors
    /// When it cannot be made within 10 s.
    pub async fn subscriber(&self) -> Result<Subscriber, RedisError> {
        let tried = "open a subscriber connection";
        let client: SubscriberClient = builder(&self.settings)?
            .build_subscriber_client()
            .map_err(|e| RedisError::from_fred(tried, &e))?;
        match tokio::time::timeout(Duration::from_secs(10), client.init()).await {
            Ok(Ok(_)) => Ok(Subscriber::new(client)),
            Ok(Err(error)) => Err(RedisError::from_fred(tried, &error)),
            Err(_) => Err(RedisError::new(RedisErrorKind::TimedOut, tried, "no answer within 10 s")),
        }
    }

    /// Any command. In Cluster the first argument is its key.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn command<T: FromValue>(
        &self,
        name: &'static str,
        args: Vec<impl Into<Value> + Send>,
    ) -> Result<T, RedisError> {
        let hash = if args.is_empty() { ClusterHash::Random } else { ClusterHash::FirstKey };
        let args: Vec<Value> = args.into_iter().map(Into::into).collect();
        self.client
            .with_options(&self.options)
            .custom(CustomCommand::new_static(name, hash, false), args)
            .await
            .map_err(|e| RedisError::from_fred(name, &e))
    }

    /// A command whose key is the argument at `key`, such as `XINFO STREAM <key>`.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn keyed_command<T: FromValue>(
        &self,
        name: &'static str,
        key: usize,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        // As the slot itself: see `run_script`.
        let hash = args.get(key).and_then(Value::as_bytes).map_or(ClusterHash::Random, ClusterHash::from);
        self.client
            .with_options(&self.options)
            .custom(CustomCommand::new_static(name, hash, false), args)
            .await
            .map_err(|e| RedisError::from_fred(name, &e))
    }

    /// Runs a script, loading it when the server does not have it.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn eval<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<Key>,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        let hash = script.inner().sha1().clone();
        let reply = match self.run_script("EVALSHA", hash, keys.clone(), args.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let source = script.inner().lua().cloned().unwrap_or_default();
                // EVAL also loads it, in one round trip and on the very node.
                self.run_script("EVAL", source, keys, args).await
            }
            other => other,
        };
        convert(script.name(), reply)
    }

    /// As a plain command: fred's own script methods go past `with_options`, to the client's defaults.
    async fn run_script(
        &self,
        command: &'static str,
        script: Str,
        keys: Vec<Key>,
        args: Vec<Value>,
    ) -> Result<Value, fred::error::Error> {
        // The first key decides the node; all others must share its slot. As the slot itself: of a custom command fred takes no
        // other word, and would send it to a wrong node first, which a command that is tried once does not survive.
        let hash = keys.first().map_or(ClusterHash::Random, |key| ClusterHash::from(key.as_bytes()));
        let mut all: Vec<Value> = Vec::with_capacity(2 + keys.len() + args.len());
        all.extend([Value::from(script), Value::from(i64::try_from(keys.len()).unwrap_or(i64::MAX))]);
        all.extend(keys.into_iter().map(Value::from));
        all.extend(args);
        let command = CustomCommand::new_static(command, hash, false);
        self.client.with_options(&self.options).custom(command, all).await
    }

    /// Calls a function of a loaded library.
    ///
    /// # Errors
    /// [`RedisErrorKind::NotLoaded`] when the server does not have it; else as the server or the connection says.
    pub async fn fcall<T: FromValue>(
        &self,
        function: &'static str,
        keys: Vec<Key>,
        args: Vec<Value>,
    ) -> Result<T, RedisError> {
        let reply = self.client.with_options(&self.options).fcall(function, keys, args).await;
        convert(function, reply)
    }

    /// Loads a function library, replacing one of the same name; on every primary of a cluster.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn load_functions(&self, source: &str) -> Result<(), RedisError> {
        let source = source.to_owned();
        let done: Result<Value, _> = if self.settings.topology() == Topology::Cluster {
            self.client.function_load_cluster(true, source).await
        } else {
            self.client.with_options(&self.options).function_load(true, source).await
        };
        done.map(|_| ()).map_err(|e| RedisError::from_fred("FUNCTION LOAD", &e))
    }

    /// The text under `key`, if any.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn get(&self, key: impl Into<Key> + Send) -> Result<Option<String>, RedisError> {
        convert("GET", self.client.with_options(&self.options).get(key.into()).await)
    }

    /// The texts under `keys`, in their order, in one round trip (one per node of a cluster).
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn get_many(&self, keys: Vec<Key>) -> Result<Vec<Option<String>>, RedisError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.client.with_options(&self.options);
        if self.settings.topology() != Topology::Cluster {
            return convert("MGET", client.mget(keys).await);
        }
        let pipeline = self.client.pipeline();
        for key in keys {
            let _: () = pipeline.get(key).await.map_err(|e| RedisError::from_fred("GET", &e))?;
        }
        let replies: Vec<Result<Value, _>> = pipeline.try_all().await;
        // As MGET does: something else than text under one key says nothing about the others.
        let text = |reply: Result<Value, fred::error::Error>| match reply {
            Err(error) if error.details().starts_with("WRONGTYPE") => Ok(None),
            reply => convert("GET", reply),
        };
        replies.into_iter().map(text).collect()
    }

    /// Removes `keys`; returns how many there were. In Cluster they must share one slot.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn del(&self, keys: Vec<Key>) -> Result<u64, RedisError> {
        convert("DEL", self.client.with_options(&self.options).del(keys).await)
    }

    /// The values of `fields` of a hash, in their order.
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn hmget(
        &self,
        key: impl Into<Key> + Send,
        fields: Vec<Key>,
    ) -> Result<Vec<Option<String>>, RedisError> {
        convert("HMGET", self.client.with_options(&self.options).hmget(key.into(), fields).await)
    }

    /// Closes the connection.
    pub async fn close(&self) {
        let _ = self.client.quit().await;
    }
}

fn convert<T: FromValue>(tried: &str, reply: Result<Value, fred::error::Error>) -> Result<T, RedisError> {
    reply.and_then(Value::convert).map_err(|e| RedisError::from_fred(tried, &e))
}
