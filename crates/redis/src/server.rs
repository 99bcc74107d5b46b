use std::collections::HashMap;

use crate::{Redis, RedisError, RedisErrorKind, Value};

/// What a server says of itself, as far as our promises depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis_version`, or `valkey_version` where it is given.
    pub version: String,
    /// `run_id`: changes with every restart.
    pub run_id: String,
    /// `maxmemory_policy`.
    pub maxmemory_policy: String,
    /// `maxmemory` in bytes; 0 means no limit.
    pub maxmemory_bytes: u64,
    /// `used_memory` in bytes.
    pub used_memory_bytes: u64,
    /// `aof_enabled`.
    pub aof_enabled: bool,
    /// `master` or `replica`.
    pub role: String,
}

impl ServerInfo {
    fn parse(text: &str) -> Self {
        let fields: HashMap<&str, &str> =
            text.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let text = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
        let number = |name: &str| fields.get(name).and_then(|v| v.parse().ok()).unwrap_or(0);
        Self {
            version: text("redis_version"),
            run_id: text("run_id"),
            maxmemory_policy: text("maxmemory_policy"),
            maxmemory_bytes: number("maxmemory"),
            used_memory_bytes: number("used_memory"),
            aof_enabled: number("aof_enabled") == 1,
            role: if text("role") == "slave" { "replica".into() } else { text("role") },
        }
    }

    /// Why this server must not be used, if so: with any policy but `noeviction` it may delete a leader's lease or a
    /// queue's jobs when memory is short; before 7.0 it has no function libraries.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let major: u32 = self.version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Some(format!("Redis {} is too old: 7.0 or newer is needed", self.version));
        }
        (self.maxmemory_policy != "noeviction").then(|| {
            format!(
                "maxmemory-policy is `{}`: Redis may then delete leases and jobs. Set `maxmemory-policy noeviction`",
                self.maxmemory_policy
            )
        })
    }
}

impl Redis {
    /// Reads INFO (never CONFIG, which is often forbidden).
    ///
    /// # Errors
    /// As the server or the connection says.
    pub async fn server_info(&self) -> Result<ServerInfo, RedisError> {
        let text: String = self.command("INFO", Vec::<Value>::new()).await?;
        Ok(ServerInfo::parse(&text))
    }

    /// Refuses a server that could lose leases or jobs by its settings.
    ///
    /// # Errors
    /// [`RedisErrorKind::Other`] with the reason and the remedy, or as the connection says.
    pub async fn refuse_unsafe_server(&self) -> Result<ServerInfo, RedisError> {
        let info = self.server_info().await?;
        match info.refusal() {
            Some(why) => Err(RedisError::new(RedisErrorKind::Other, "check the server's settings", why)),
            None => Ok(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_and_unsafe_policies_are_refused() {
        let text = "# Server\r\nredis_version:7.0.15\r\nrun_id:ab\r\n# Memory\r\nused_memory:10\r\nmaxmemory:0\r\n\
                    maxmemory_policy:volatile-lru\r\naof_enabled:1\r\nrole:master\r\n";
        let mut info = ServerInfo::parse(text);
        assert!(info.aof_enabled);
        assert!(info.refusal().unwrap().contains("volatile-lru"));
        info.maxmemory_policy = "noeviction".into();
        assert_eq!(info.refusal(), None);
        info.version = "6.2.1".into();
        assert!(info.refusal().unwrap().contains("too old"));
    }
}
