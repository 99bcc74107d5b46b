use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

/// How the servers behind a URL are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Standalone,
    /// A primary found through Sentinel.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

/// The address cannot be understood. Never repeats the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// It is no URL.
    #[error("REDIS_URL is not a URL ({0}); expected for instance redis://host:6379/0")]
    NotAUrl(String),
    /// The scheme is unknown.
    #[error(
        "REDIS_URL has the scheme `{0}`; expected redis, rediss, redis-sentinel, redis-cluster or redis+unix"
    )]
    Scheme(String),
    /// A list of Sentinels needs the name of the primary.
    #[error("REDIS_URL lists several servers: set REDIS_SENTINEL_NAME (Sentinel) or REDIS_CLUSTER_MODE=true")]
    ListNeedsSentinelName,
    /// The path is no database number.
    #[error("REDIS_URL names database `{0}`; expected a number from 0 to 255")]
    Database(String),
    /// Cluster has only database 0.
    #[error("REDIS_URL names database {0}, but Redis Cluster has only database 0")]
    ClusterDatabase(String),
}

/// Where Redis is and how long calls may take.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    url: Secret,
    topology: Topology,
    /// Longest wait for the answer to an ordinary command. Default 5 s.
    pub command_timeout: Duration,
    /// How long [`crate::Redis::connect`] goes on trying before it gives up. Default 30 s.
    pub connect_deadline: Duration,
}

impl RedisSettings {
    /// Reads an address: one URL of any supported scheme, or a comma list of `host:port` or URLs, which needs
    /// `sentinel_name` or `cluster`.
    ///
    /// # Errors
    /// When it cannot be understood; the text names the setting and what was expected.
    pub fn parse(
        address: &Secret,
        sentinel_name: Option<&str>,
        cluster: bool,
    ) -> Result<Self, SettingsError> {
        let (url, topology) = compose(address.expose(), sentinel_name.filter(|n| !n.is_empty()), cluster)?;
        Ok(Self {
            url: Secret::new(url),
            topology,
            command_timeout: Duration::from_secs(5),
            connect_deadline: Duration::from_secs(30),
        })
    }

    /// One URL.
    ///
    /// # Errors
    /// As [`RedisSettings::parse`].
    pub fn from_url(url: impl Into<String>) -> Result<Self, SettingsError> {
        Self::parse(&Secret::new(url), None, false)
    }

    /// Standalone, Sentinel or Cluster.
    #[must_use]
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// The URL in fred's form, password included.
    pub(crate) fn url(&self) -> &str {
        self.url.expose()
    }

    /// Host, port and database for people: no user, no password.
    #[must_use]
    pub fn display(&self) -> String {
        let Ok(url) = Url::parse(self.url.expose()) else { return "redis".into() };
        let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
        format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
    }
}

fn compose(
    address: &str,
    sentinel_name: Option<&str>,
    cluster: bool,
) -> Result<(String, Topology), SettingsError> {
    let mut parts = address.split(',').map(str::trim).filter(|p| !p.is_empty());
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let first = if first.contains("://") { first.to_owned() } else { format!("redis://{first}") };
    let mut url = Url::parse(&first).map_err(|e| SettingsError::NotAUrl(e.to_string()))?;
    let tls = url.scheme().starts_with("rediss");
    let scheme = url.scheme().to_owned();
    let topology = match scheme.as_str() {
        "redis+unix" | "rediss+unix" => Topology::Standalone,
        "redis" | "rediss" if cluster => Topology::Cluster,
        "redis" | "rediss" if sentinel_name.is_some() => Topology::Sentinel,
        "redis" | "rediss" if rest.is_empty() => Topology::Standalone,
        "redis" | "rediss" => return Err(SettingsError::ListNeedsSentinelName),
        "redis-sentinel" | "rediss-sentinel" => Topology::Sentinel,
        "redis-cluster" | "rediss-cluster" => Topology::Cluster,
        other => return Err(SettingsError::Scheme(other.to_owned())),
    };
    if scheme.ends_with("unix") {
        return Ok((url.into(), topology));
    }
    let database = url.path().trim_start_matches('/');
    // The client library counts databases in one byte.
    if !database.is_empty() && database.parse::<u8>().is_err() {
        return Err(SettingsError::Database(database.to_owned()));
    }
    if topology == Topology::Cluster && !matches!(url.path(), "" | "/" | "/0") {
        return Err(SettingsError::ClusterDatabase(url.path().trim_start_matches('/').to_owned()));
    }
    if !rest.is_empty() || sentinel_name.is_some() {
        let mut query = url.query_pairs_mut();
        for node in &rest {
            let node = if node.contains("://") { (*node).to_owned() } else { format!("redis://{node}") };
            let node = Url::parse(&node).map_err(|e| SettingsError::NotAUrl(e.to_string()))?;
            let port = node.port().unwrap_or(if topology == Topology::Sentinel { 26379 } else { 6379 });
            query.append_pair("node", &format!("{}:{port}", node.host_str().unwrap_or_default()));
        }
        if let Some(name) = sentinel_name {
            query.append_pair("sentinelServiceName", name);
        }
    }
    let base = match topology {
        Topology::Standalone => "redis",
        Topology::Sentinel => "redis-sentinel",
        Topology::Cluster => "redis-cluster",
    };
    let scheme = if tls { base.replacen("redis", "rediss", 1) } else { base.to_owned() };
    // `Url::set_scheme` refuses some changes of scheme, so the text is put together.
    let text = url.as_str();
    let rest_of_url = text.find("://").map_or(text, |at| &text[at..]);
    Ok((format!("{scheme}{rest_of_url}"), topology))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(address: &str, sentinel: Option<&str>, cluster: bool) -> (String, Topology) {
        compose(address, sentinel, cluster).unwrap()
    }

    #[test]
    fn all_documented_forms_are_read() {
        assert_eq!(url("redis://h:1/2", None, false), ("redis://h:1/2".into(), Topology::Standalone));
        assert_eq!(
            url("redis://a:1,b:2,redis://c", Some("mymaster"), false),
            (
                "redis-sentinel://a:1?node=b%3A2&node=c%3A26379&sentinelServiceName=mymaster".into(),
                Topology::Sentinel
            )
        );
        assert_eq!(
            url("rediss://u:p@a:1,b:2", None, true),
            ("rediss-cluster://u:p@a:1?node=b%3A2".into(), Topology::Cluster)
        );
        assert_eq!(url("redis-sentinel://a:1?sentinelServiceName=m", None, false).1, Topology::Sentinel);
        assert_eq!(url("redis-cluster://a:1", None, false).1, Topology::Cluster);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(compose("a:1,b:2", None, false), Err(SettingsError::ListNeedsSentinelName));
        assert_eq!(compose("http://a", None, false), Err(SettingsError::Scheme("http".into())));
        assert_eq!(compose("redis://a/256", None, false), Err(SettingsError::Database("256".into())));
        assert_eq!(compose("redis://a/x", None, false), Err(SettingsError::Database("x".into())));
        assert_eq!(compose("redis://a/3", None, true), Err(SettingsError::ClusterDatabase("3".into())));
        let shown = format!("{}", compose("redis://:s3cret-canary@ho st", None, false).unwrap_err());
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn display_and_debug_hide_the_password() {
        let settings = RedisSettings::from_url("redis://u:canary@h:1/2").unwrap();
        assert_eq!(settings.display(), "redis://h:1/2");
        assert!(!format!("{settings:?}").contains("canary"));
    }
}
