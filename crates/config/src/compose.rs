//! Settings that are built from others: connection URLs from their parts.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::report::{Violation, Warning};

/// Everything but what RFC 3986 leaves unreserved is escaped: a password may hold any byte.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How a setting is composed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compose {
    /// For documents and the manifest.
    pub(crate) template: &'static str,
    /// Builds the value, or says what is missing.
    pub(crate) build: fn(&Parts<'_>) -> Result<Composed, Violation>,
}

/// The values a composition may look at.
pub(crate) struct Parts<'p> {
    /// What a layer gives.
    pub(crate) given: &'p dyn Fn(&str) -> Option<&'p str>,
    /// The same, or the default.
    pub(crate) value: &'p dyn Fn(&str) -> Option<&'p str>,
}

#[derive(Debug, Default)]
pub(crate) struct Composed {
    /// `None` leaves what the layers gave.
    pub(crate) value: Option<String>,
    pub(crate) warnings: Vec<Warning>,
}

pub(crate) const DATABASE_URL: Compose = Compose {
    template: "postgres://{DATABASE_USERNAME}:{DATABASE_PASSWORD}@{DATABASE_HOST}:{DATABASE_PORT}/{DATABASE_NAME}?sslmode={DATABASE_SSLMODE}",
    build: database_url,
};

pub(crate) const REDIS_URL: Compose = Compose {
    template: "redis://{REDIS_USERNAME}:{REDIS_PASSWORD}@{REDIS_HOST}:{REDIS_PORT}",
    build: redis_url,
};

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// `user:password@`, each part escaped; empty when there is neither.
fn userinfo(user: Option<&str>, password: Option<&str>) -> String {
    match (user, password) {
        (None, None) => String::new(),
        (user, None) => format!("{}@", escaped(user.unwrap_or_default())),
        (user, Some(password)) => format!("{}:{}@", escaped(user.unwrap_or_default()), escaped(password)),
    }
}

/// A host as it stands in a URL: IPv6 in brackets, the folder of a Unix socket escaped.
fn host_in_url(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else if host.starts_with('/') {
        escaped(host)
    } else {
        host.to_owned()
    }
}

/// Parts that a given URL leaves without effect: an operator who changes one of them would wonder.
fn ignored(url: &'static str, given: &str, parts: &Parts<'_>, hosts: &[&'static str]) -> Vec<Warning> {
    let differing = hosts.iter().filter(|name| (parts.given)(name).is_some_and(|host| !given.contains(host)));
    differing
        .map(|name| Warning {
            name: (*name).to_owned(),
            message: format!("has no effect, because {url} is set and names another host; unset one of them"),
            nearest: None,
        })
        .collect()
}

fn incomplete(name: &str, because: &str, instead: &str) -> Violation {
    Violation {
        name: name.to_owned(),
        layer: None,
        given: None,
        expected: format!("a value, because {because} is set"),
        remedy: format!("Set {name}, or {instead} in place of all the parts."),
    }
}

fn database_url(parts: &Parts<'_>) -> Result<Composed, Violation> {
    if let Some(url) = (parts.given)("DATABASE_URL") {
        return Ok(Composed {
            value: None,
            warnings: ignored("DATABASE_URL", url, parts, &["DATABASE_HOST"]),
        });
    }
    let Some(host) = (parts.given)("DATABASE_HOST") else { return Ok(Composed::default()) };
    let needed = |name| (parts.given)(name).ok_or_else(|| incomplete(name, "DATABASE_HOST", "DATABASE_URL"));
    let user = needed("DATABASE_USERNAME")?;
    let name = needed("DATABASE_NAME")?;
    let port = (parts.value)("DATABASE_PORT").unwrap_or("5432");
    let userinfo = userinfo(Some(user), (parts.given)("DATABASE_PASSWORD"));
    let mode = (parts.given)("DATABASE_SSLMODE")
        .map_or_else(String::new, |mode| format!("?sslmode={}", escaped(mode)));
    let value = format!("postgres://{userinfo}{}:{port}/{}{mode}", host_in_url(host), escaped(name));
    Ok(Composed { value: Some(value), warnings: Vec::new() })
}

/// The one Redis URL. How a list of hosts is reached (Sentinel, Cluster) is for the Redis client; it is given the list as it is.
fn redis_url(parts: &Parts<'_>) -> Result<Composed, Violation> {
    let several = several(parts)?;
    let userinfo = userinfo((parts.given)("REDIS_USERNAME"), (parts.given)("REDIS_PASSWORD"));
    let Some(url) = (parts.given)("REDIS_URL") else {
        let Some(host) = (parts.given)("REDIS_HOST") else { return Ok(Composed::default()) };
        let port = (parts.value)("REDIS_PORT").unwrap_or("6379");
        let value = format!("redis://{userinfo}{}:{port}", host_in_url(host));
        return Ok(Composed { value: Some(value), warnings: Vec::new() });
    };
    let warnings = ignored("REDIS_URL", url, parts, &["REDIS_HOST"]);
    // A list of Sentinels or Cluster nodes seldom carries the password, which is one for all of them.
    let value =
        (several && !userinfo.is_empty() && !url.contains('@')).then(|| match url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{userinfo}{rest}"),
            None => format!("redis://{userinfo}{url}"),
        });
    Ok(Composed { value, warnings })
}

/// True when the settings say that several servers stand behind the URL.
fn several(parts: &Parts<'_>) -> Result<bool, Violation> {
    let cluster = (parts.given)("REDIS_CLUSTER_MODE")
        .is_some_and(|mode| ["1", "true", "yes", "on"].contains(&mode.to_ascii_lowercase().as_str()));
    match (parts.given)("REDIS_SENTINEL_NAME") {
        Some(name) if cluster => Err(Violation {
            name: "REDIS_CLUSTER_MODE".to_owned(),
            layer: None,
            given: Some("true".to_owned()),
            expected: format!(
                "false, because REDIS_SENTINEL_NAME is {name:?} and a Redis is one or the other"
            ),
            remedy: "Unset one of them.".to_owned(),
        }),
        name => Ok(cluster || name.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn built(compose: Compose, pairs: &[(&str, &str)]) -> Result<Option<String>, Violation> {
        let pairs: BTreeMap<&str, &str> = pairs.iter().copied().collect();
        let given = |name: &str| pairs.get(name).copied();
        (compose.build)(&Parts { given: &given, value: &given }).map(|composed| composed.value)
    }

    #[test]
    fn a_database_url_is_composed_and_escaped() {
        let parts = [
            ("DATABASE_HOST", "db.internal"),
            ("DATABASE_USERNAME", "ops"),
            ("DATABASE_PASSWORD", "p@ss/w:rd?#%"),
            ("DATABASE_NAME", "voice ai"),
        ];
        assert_eq!(
            built(DATABASE_URL, &parts).unwrap().unwrap(),
            "postgres://ops:p%40ss%2Fw%3Ard%3F%23%25@db.internal:5432/voice%20ai"
        );
        let mut with_url = parts.to_vec();
        with_url.push(("DATABASE_URL", "postgres://x@y/z"));
        assert_eq!(built(DATABASE_URL, &with_url).unwrap(), None, "a given URL wins over its parts");
        let missing =
            built(DATABASE_URL, &[("DATABASE_HOST", "db"), ("DATABASE_USERNAME", "ops")]).unwrap_err();
        assert_eq!(missing.name, "DATABASE_NAME");
        let socket =
            [("DATABASE_HOST", "/run/postgresql"), ("DATABASE_USERNAME", "ops"), ("DATABASE_NAME", "v")];
        assert_eq!(
            built(DATABASE_URL, &socket).unwrap().unwrap(),
            "postgres://ops@%2Frun%2Fpostgresql:5432/v"
        );
        let six = [("DATABASE_HOST", "::1"), ("DATABASE_USERNAME", "ops"), ("DATABASE_NAME", "v")];
        assert_eq!(built(DATABASE_URL, &six).unwrap().unwrap(), "postgres://ops@[::1]:5432/v");
    }

    #[test]
    fn a_redis_url_is_composed_and_a_list_gets_the_common_password() {
        for (pairs, url) in [
            (vec![("REDIS_HOST", "cache")], Some("redis://cache:6379")),
            (
                vec![("REDIS_HOST", "cache"), ("REDIS_PORT", "6380"), ("REDIS_PASSWORD", "a/b")],
                Some("redis://:a%2Fb@cache:6380"),
            ),
            (vec![("REDIS_URL", "redis://cache:1/2"), ("REDIS_PASSWORD", "other")], None),
            (vec![("REDIS_URL", "redis-sentinel://a:1?sentinelServiceName=m&node=b:2")], None),
            (vec![("REDIS_URL", "redis+unix:///run/redis.sock")], None),
            (
                vec![
                    ("REDIS_URL", "redis://a:1,b,c:3/2"),
                    ("REDIS_SENTINEL_NAME", "m"),
                    ("REDIS_PASSWORD", "p"),
                ],
                Some("redis://:p@a:1,b,c:3/2"),
            ),
            (
                vec![("REDIS_URL", "a:1,b:2"), ("REDIS_CLUSTER_MODE", "yes"), ("REDIS_PASSWORD", "p")],
                Some("redis://:p@a:1,b:2"),
            ),
            (
                vec![
                    ("REDIS_URL", "redis://:own@a:1,b"),
                    ("REDIS_SENTINEL_NAME", "m"),
                    ("REDIS_PASSWORD", "p"),
                ],
                None,
            ),
        ] {
            assert_eq!(built(REDIS_URL, &pairs).unwrap().as_deref(), url, "{pairs:?}");
        }
    }

    #[test]
    fn sentinel_and_cluster_at_once_are_refused() {
        let both = [("REDIS_SENTINEL_NAME", "m"), ("REDIS_CLUSTER_MODE", "true")];
        assert_eq!(built(REDIS_URL, &both).unwrap_err().name, "REDIS_CLUSTER_MODE");
    }

    #[test]
    fn a_part_without_effect_is_a_warning() {
        let pairs = [("DATABASE_URL", "postgres://u@a/v"), ("DATABASE_HOST", "b")];
        let given = |name: &str| pairs.iter().find(|(have, _)| *have == name).map(|(_, value)| *value);
        let composed = (DATABASE_URL.build)(&Parts { given: &given, value: &given }).unwrap();
        assert_eq!(composed.warnings.len(), 1);
        assert_eq!(composed.warnings[0].name, "DATABASE_HOST");
    }
}
