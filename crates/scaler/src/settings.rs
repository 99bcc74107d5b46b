//! The scaler's own settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use voiceai_aws::AwsAccess;
use voiceai_config::Reader;
use voiceai_config::catalogue::{general, platform, proxy, redis, scaler};
use voiceai_egress::Rule;
use voiceai_redis::{RedisSettings, Topology};
use voiceai_runtime::Secret;

use crate::cloud_init::CloudInit;
use crate::failpoint;
use crate::routing::proxies::ProxySettings;
use crate::script::is_never_passed;

/// What voiceai-scaler reads besides the settings of both services.
#[derive(Clone, Debug)]
pub struct ScalerSettings {
    /// `SCALING_EVALUATION_INTERVAL_MS`. Default 30 s.
    pub evaluation_interval: Duration,
    /// `PROVIDER_SCRIPTS_DIR`.
    pub scripts_dir: PathBuf,
    /// `PROVIDER_SCRIPT_TIMEOUT_MS`. Default 300 s.
    pub script_timeout: Duration,
    /// What PROVIDER_ENV_PASS names, as far as it is set.
    pub passed: Vec<(String, OsString)>,
    /// Proxy variables for scripts, in both spellings, as far as they are set.
    pub proxy: Vec<(&'static str, Secret)>,
    /// Each provider's own credentials and endpoint, as far as they are set.
    pub credentials: BTreeMap<String, Vec<(String, Secret)>>,
    /// What start-up documents are made from.
    pub cloud_init: CloudInit,
    /// `HEARTBEAT_KEY_PREFIX`.
    pub heartbeat_prefix: String,
    /// `HEARTBEAT_STALE_AFTER`. Default 60 s.
    pub heartbeat_stale_after: Duration,
    /// `HEARTBEAT_WAIT_TIMEOUT`. Default 5 min.
    pub heartbeat_wait: Duration,
    /// `DRAIN_TIMEOUT`. Default 60 min.
    pub drain_timeout: Duration,
    /// `SCALING_STATUS_POLL_INTERVAL_MS`. Default 5 s.
    pub status_poll: Duration,
    /// `ORPHAN_SWEEP_INTERVAL`. Default 5 min.
    pub orphan_sweep: Duration,
    /// `SCALING_HISTORY_RETENTION`. Default 90 days.
    pub history_retention: Duration,
    /// `SCALING_FLEET_MAX`. Most servers over all groups; `None`: no cap.
    pub fleet_max: Option<u32>,
    /// `DISPATCHER_KEY_PREFIX`.
    pub dispatcher_prefix: String,
    /// `DISPATCHER_REDIS_URL`, else database 1 of the main Redis.
    pub dispatcher: RedisSettings,
    /// `KAMAILIO_RPC_URLS` and what belongs to it.
    pub proxies: ProxySettings,
}

impl ScalerSettings {
    /// Reads them; violations are collected by the reader.
    pub fn read(reader: &Reader<'_>) -> Self {
        let failpoint = reader.optional(&general::VOICEAI_FAILPOINT);
        if let Err(expected) = failpoint::arm(failpoint.as_deref()) {
            reader.violation(&general::VOICEAI_FAILPOINT, expected, "Unset VOICEAI_FAILPOINT.");
        }
        Self {
            evaluation_interval: reader.get(&scaler::SCALING_EVALUATION_INTERVAL_MS),
            scripts_dir: reader.get(&scaler::PROVIDER_SCRIPTS_DIR),
            script_timeout: reader.get(&scaler::PROVIDER_SCRIPT_TIMEOUT_MS),
            passed: passed(reader),
            proxy: proxy_variables(reader),
            credentials: credentials(reader),
            cloud_init: cloud_init(reader),
            heartbeat_prefix: reader.get(&scaler::HEARTBEAT_KEY_PREFIX),
            heartbeat_stale_after: reader.get(&scaler::HEARTBEAT_STALE_AFTER),
            heartbeat_wait: reader.get(&scaler::HEARTBEAT_WAIT_TIMEOUT),
            drain_timeout: reader.get(&scaler::DRAIN_TIMEOUT),
            status_poll: reader.get(&scaler::SCALING_STATUS_POLL_INTERVAL_MS),
            orphan_sweep: reader.get(&scaler::ORPHAN_SWEEP_INTERVAL),
            history_retention: reader.get(&scaler::SCALING_HISTORY_RETENTION),
            fleet_max: reader.optional(&scaler::SCALING_FLEET_MAX),
            dispatcher_prefix: reader.get(&scaler::DISPATCHER_KEY_PREFIX),
            dispatcher: dispatcher(reader),
            proxies: proxies(reader),
        }
    }
}

fn proxies(reader: &Reader<'_>) -> ProxySettings {
    let urls = reader.optional(&scaler::KAMAILIO_RPC_URLS);
    let urls = urls.iter().flat_map(|urls| urls.expose().split(',')).map(|url| Secret::new(url.trim()));
    ProxySettings {
        urls: urls.collect(),
        limit: reader.get(&scaler::KAMAILIO_RPC_TIMEOUT_MS),
        profile: reader.get(&scaler::KAMAILIO_DIALOG_PROFILE),
    }
}

/// As the one rule says them. Scripts ask the endpoints that settings name, so an address among those is written out.
fn proxy_variables(reader: &Reader<'_>) -> Vec<(&'static str, Secret)> {
    let hetzner = reader.optional(&scaler::HCLOUD_ENDPOINT);
    let aws = std::env::var("AWS_ENDPOINT_URL").ok().and_then(|text| url::Url::parse(&text).ok());
    let hosts: Vec<_> = [hetzner, aws].into_iter().flatten().collect();
    let hosts: Vec<_> = hosts.iter().filter_map(|url| url.host_str()).collect();
    Rule::read(reader).environment(&hosts)
}

fn passed(reader: &Reader<'_>) -> Vec<(String, OsString)> {
    let names = reader.optional(&scaler::PROVIDER_ENV_PASS).unwrap_or_default();
    if let Some(bad) = names.iter().find(|name| is_never_passed(name)) {
        reader.violation(
            &scaler::PROVIDER_ENV_PASS,
            format!(
                "names of plain variables; `{bad}` would let a shell or the loader run code, or is no name"
            ),
            "Remove it from PROVIDER_ENV_PASS.",
        );
    }
    names.into_iter().filter_map(|name| std::env::var_os(&name).map(|value| (name, value))).collect()
}

fn credentials(reader: &Reader<'_>) -> BTreeMap<String, Vec<(String, Secret)>> {
    let mut hetzner = Vec::new();
    if let Some(token) = reader.optional(&scaler::HETZNER_API_TOKEN) {
        hetzner.push(("HETZNER_API_TOKEN".to_owned(), token));
    }
    if let Some(url) = reader.optional(&scaler::HCLOUD_ENDPOINT) {
        hetzner.push(("HCLOUD_ENDPOINT".to_owned(), Secret::new(url.to_string())));
    }
    BTreeMap::from([("hetzner".to_owned(), hetzner), ("aws".to_owned(), aws_credentials(reader))])
}

/// The AWS command line has a chain of its own, which is given what the process was given, under the same names. Keys and
/// region may also stand in SSM or Secrets Manager, which that chain knows nothing of.
fn aws_credentials(reader: &Reader<'_>) -> Vec<(String, Secret)> {
    let mut given = vec![("AWS_REGION".to_owned(), Secret::new(reader.get(&platform::AWS_REGION)))];
    let from_process = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let id = reader.optional(&platform::AWS_ACCESS_KEY_ID);
    // A session's token belongs to the key it came with, and to no other.
    let token_fits = id.as_ref().map(Secret::expose) == from_process("AWS_ACCESS_KEY_ID").as_deref();
    let secret = reader.optional(&platform::AWS_SECRET_ACCESS_KEY);
    given.extend(id.map(|id| ("AWS_ACCESS_KEY_ID".to_owned(), id)));
    given.extend(secret.map(|secret| ("AWS_SECRET_ACCESS_KEY".to_owned(), secret)));
    if let Some(token) = from_process("AWS_SESSION_TOKEN").filter(|_| token_fits) {
        given.push(("AWS_SESSION_TOKEN".to_owned(), Secret::new(token)));
    }
    let others = [
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_CA_BUNDLE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ];
    given.extend(
        others.into_iter().filter_map(|name| Some((name.to_owned(), Secret::new(from_process(name)?)))),
    );
    given
}

fn cloud_init(reader: &Reader<'_>) -> CloudInit {
    let given = reader.optional(&scaler::CLOUD_INIT_SCRIPT);
    let beside = || {
        let folder: PathBuf = reader.get(&scaler::PROVIDER_SCRIPTS_DIR);
        folder.parent().map_or_else(PathBuf::new, |parent| parent.join("generate-cloud-init.sh"))
    };
    let text = |value: Option<String>| value.filter(|value| !value.is_empty()).map(Secret::new);
    let instance_profile = reader.get(&platform::AWS_USE_INSTANCE_PROFILE);
    let mut variables = vec![
        ("ENVIRONMENT", Some(Secret::new(reader.get(&general::ENVIRONMENT)))),
        ("NAMESPACE", text(reader.optional(&platform::NAMESPACE))),
        ("ECR_REGISTRY", text(reader.optional(&scaler::ECR_REGISTRY))),
        ("ECR_TAG", text(reader.optional(&scaler::ECR_TAG))),
        ("CONFIG_BUCKET", text(reader.optional(&scaler::CONFIG_BUCKET))),
        ("CONFIG_REF", text(reader.optional(&scaler::CONFIG_REF))),
        ("BASTION_PUBLIC_KEY", text(reader.optional(&scaler::BASTION_PUBLIC_KEY))),
        ("AWS_REGION", text(Some(reader.get(&platform::AWS_REGION)))),
    ];
    // Static keys travel to a server only where it has no role of its own.
    if !instance_profile {
        for (name, key) in [
            ("AWS_ACCESS_KEY_ID", reader.optional(&platform::AWS_ACCESS_KEY_ID)),
            ("AWS_SECRET_ACCESS_KEY", reader.optional(&platform::AWS_SECRET_ACCESS_KEY)),
        ] {
            variables.extend(key.map(|key| (name, Some(key))));
        }
    }
    for (name, url) in [
        ("HTTP_PROXY", reader.optional(&proxy::HTTP_PROXY)),
        ("HTTPS_PROXY", reader.optional(&proxy::HTTPS_PROXY)),
    ] {
        variables.extend(url.map(|url| (name, Some(Secret::new(url.to_string())))));
    }
    let platform = AwsAccess::read(reader);
    CloudInit {
        given: given.is_some(),
        script: given.unwrap_or_else(beside),
        variables,
        platform,
        rotating: None,
    }
}

fn dispatcher(reader: &Reader<'_>) -> RedisSettings {
    if let Some(url) = reader.optional(&scaler::DISPATCHER_REDIS_URL) {
        match RedisSettings::parse(&url, None, false) {
            Ok(settings) if settings.topology() != Topology::Cluster => return settings,
            Ok(_) => reader.violation(
                &scaler::DISPATCHER_REDIS_URL,
                "a standalone Redis or one behind Sentinel: Kamailio reads no cluster",
                "Point DISPATCHER_REDIS_URL at a Redis that is no cluster.",
            ),
            Err(error) => reader.violation(
                &scaler::DISPATCHER_REDIS_URL,
                error.to_string().replace("REDIS_URL", "DISPATCHER_REDIS_URL"),
                "Correct DISPATCHER_REDIS_URL.",
            ),
        }
        return placeholder();
    }
    let main = reader.required(&redis::REDIS_URL);
    let sentinel = reader.optional(&redis::REDIS_SENTINEL_NAME);
    let cluster = reader.get(&redis::REDIS_CLUSTER_MODE);
    match RedisSettings::parse(&main, sentinel.as_deref(), cluster) {
        Ok(settings) if settings.topology() == Topology::Cluster => {
            reader.violation(
                &scaler::DISPATCHER_REDIS_URL,
                "the address of a Redis that is no cluster: Kamailio reads none, and REDIS_URL is a cluster",
                "Set DISPATCHER_REDIS_URL.",
            );
            placeholder()
        }
        Ok(_) if main.expose().contains("+unix://") => {
            reader.violation(
                &scaler::DISPATCHER_REDIS_URL,
                "the address of the Redis that Kamailio reads: a socket's address names no database",
                "Set DISPATCHER_REDIS_URL, for instance redis://127.0.0.1:6379/1.",
            );
            placeholder()
        }
        // A wrong REDIS_URL is reported where it is read for itself.
        Err(_) => placeholder(),
        Ok(_) => {
            let url = Secret::new(with_database(main.expose(), 1));
            RedisSettings::parse(&url, sentinel.as_deref(), false).unwrap_or_else(|_| placeholder())
        }
    }
}

/// The same address with another database number. In a list of hosts, the first one carries it.
fn with_database(address: &str, number: u32) -> String {
    let (first, rest) = address.split_once(',').map_or((address, None), |(first, rest)| (first, Some(rest)));
    let (first, query) = first.split_once('?').map_or((first, None), |(first, query)| (first, Some(query)));
    let host = first.find("://").map_or(0, |at| at + 3);
    let end = first[host..].find('/').map_or(first.len(), |at| host + at);
    let mut text = format!("{}/{number}", &first[..end]);
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
    if let Some(rest) = rest {
        text.push(',');
        text.push_str(rest);
    }
    text
}

/// Never used: a violation was reported, so the settings are not let out.
fn placeholder() -> RedisSettings {
    RedisSettings::from_url("redis://localhost").unwrap_or_else(|_| unreachable!("a constant address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dispatchers_database_replaces_the_addresss_own() {
        for (address, expected) in [
            ("redis://h:1", "redis://h:1/1"),
            ("redis://h:1/", "redis://h:1/1"),
            ("redis://u:p@h:1/0", "redis://u:p@h:1/1"),
            ("redis://h:1/5?x=y", "redis://h:1/1?x=y"),
            ("redis-sentinel://a:1?sentinelServiceName=m", "redis-sentinel://a:1/1?sentinelServiceName=m"),
            ("a:1,b:2", "a:1/1,b:2"),
        ] {
            assert_eq!(with_database(address, 1), expected);
        }
    }
}
