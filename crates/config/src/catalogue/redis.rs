//! Redis: queue, leases, heartbeats.

use voiceai_runtime::Secret;

use crate::compose;
use crate::setting::settings;
use crate::value::Address;
use crate::value::kinds::{address, boolean, port, secret, secret_url, text};

settings! {
    "Redis", "One address: `REDIS_URL`, or the parts. The URL wins over its parts.";

    /// Address with its password: `redis://`, `rediss://` (TLS), `redis-sentinel://`, `redis-cluster://`, `redis+unix://`; or a comma list of hosts beside `REDIS_SENTINEL_NAME` or `REDIS_CLUSTER_MODE`.
    REDIS_URL: Secret = secret_url().required().composed(compose::REDIS_URL)
        .check("one redis://, rediss://, redis-sentinel://, redis-cluster:// or redis+unix:// URL, or a comma list of hosts", is_redis);
    /// Host, when there is no `REDIS_URL`.
    REDIS_HOST: String = text();
    /// Port beside `REDIS_HOST`.
    REDIS_PORT: u16 = port().default("6379");
    /// User of the Redis ACL beside `REDIS_HOST`; unset for the default user.
    REDIS_USERNAME: String = text();
    /// Password beside `REDIS_HOST`, and for a list of hosts that carries none.
    REDIS_PASSWORD: Secret = secret().aliases(&["MAIL_REDIS_PASSWORD"]);
    /// Host and port in one variable, for installations of the mail service: stands for `REDIS_HOST` and `REDIS_PORT`.
    MAIL_REDIS_MASTER_ADDR: Address = address().splits_into("REDIS_HOST", "REDIS_PORT");
    /// Name of the primary, when `REDIS_URL` lists Sentinels.
    REDIS_SENTINEL_NAME: String = text();
    /// True when `REDIS_URL` lists nodes of a Redis Cluster.
    REDIS_CLUSTER_MODE: bool = boolean().default("false");
}

const SCHEMES: [&str; 8] = [
    "redis",
    "rediss",
    "redis-sentinel",
    "rediss-sentinel",
    "redis-cluster",
    "rediss-cluster",
    "redis+unix",
    "rediss+unix",
];

fn is_redis(raw: &str) -> bool {
    match raw.split_once("://") {
        Some((scheme, rest)) => SCHEMES.contains(&scheme) && !rest.is_empty(),
        None => raw.contains(','),
    }
}
