//! The way out: the proxy answers, lets through what the service needs, and is not asked what only this host can know.

use std::error::Error;
use std::time::Duration;

use tokio::task::JoinSet;
use url::Url;
use voiceai_cli::doctor::{Doctor, Finding, Verdict};
use voiceai_config::catalogue::platform::{AWS_REGION, AWS_USE_INSTANCE_PROFILE, NAMESPACE};
use voiceai_config::catalogue::scaler::{HCLOUD_ENDPOINT, HETZNER_API_TOKEN};
use voiceai_config::catalogue::storage::{S3_BUCKET, S3_ENDPOINT};
use voiceai_config::catalogue::transport::{
    EMAIL_TRANSPORT, EmailTransport, SES_ENDPOINT, SMTP_HOST, SMTP_PORT,
};
use voiceai_config::{Binary, Reader};
use voiceai_egress::{METADATA, Purpose, Rule, connect};

use crate::BOUND;
use crate::host::listening;

const TUNNEL_WITHIN: Duration = Duration::from_secs(7);

/// A server that the service must reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    purpose: Purpose,
    host: String,
    port: u16,
}

/// The settings of the way out, and where it must lead.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) rule: Rule,
    instance_profile: bool,
    targets: Vec<Target>,
}

impl Way {
    pub(crate) fn read(reader: &Reader<'_>) -> Self {
        Self {
            rule: Rule::read(reader),
            instance_profile: reader.get(&AWS_USE_INSTANCE_PROFILE),
            targets: targets(reader),
        }
    }
}

/// What can be asked for a tunnel. Plain HTTP is left out: it goes through without one, and the check of the service itself
/// sees whether it does.
fn targets(reader: &Reader<'_>) -> Vec<Target> {
    let region: String = reader.get(&AWS_REGION);
    let of_aws = |service: &str| format!("https://{service}.{region}.amazonaws.com");
    let moved = std::env::var("AWS_ENDPOINT_URL").ok().filter(|url| !url.is_empty());
    let mut urls: Vec<String> = Vec::new();
    if reader.is_given(&NAMESPACE) {
        urls.push(moved.clone().unwrap_or_else(|| of_aws("ssm")));
    }
    let text = |url: Option<Url>| url.map(|url| url.to_string());
    let mut found = Vec::new();
    match reader.binary() {
        Binary::Scaler if reader.is_given(&HETZNER_API_TOKEN) => {
            let own = text(reader.optional(&HCLOUD_ENDPOINT));
            urls.push(own.unwrap_or_else(|| "https://api.hetzner.cloud".to_owned()));
        }
        Binary::Scaler => {}
        Binary::Tasker => {
            if reader.is_given(&S3_BUCKET) {
                let own = text(reader.optional(&S3_ENDPOINT)).or_else(|| moved.clone());
                urls.push(own.unwrap_or_else(|| of_aws("s3")));
            }
            match (reader.get(&EMAIL_TRANSPORT), reader.optional(&SMTP_HOST)) {
                (EmailTransport::Ses, _) => {
                    let own = text(reader.optional(&SES_ENDPOINT)).or(moved);
                    urls.push(own.unwrap_or_else(|| of_aws("email")));
                }
                (EmailTransport::Smtp, Some(host)) => {
                    found.push(Target { purpose: Purpose::Tunnel, host, port: reader.get(&SMTP_PORT) });
                }
                _ => {}
            }
        }
    }
    for url in urls.iter().filter_map(|text| Url::parse(text).ok()).filter(|url| url.scheme() == "https") {
        if let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) {
            let target = Target { purpose: Purpose::Https, host: host.to_owned(), port };
            if !found.contains(&target) {
                found.push(target);
            }
        }
    }
    found
}

pub(crate) fn add(doctor: &mut Doctor, way: Way) {
    doctor.check("proxy.metadata", BOUND, std::future::ready(metadata(&way)));
    doctor.check("proxy.reachable", BOUND, reachable(way.rule.clone()));
    doctor.check("proxy.allows", BOUND, allows(way));
}

/// A proxy answers for another host's role, or for none.
fn metadata(way: &Way) -> Finding {
    let address = METADATA[0];
    let proxy = way.rule.http.as_ref().or(way.rule.https.as_ref());
    match proxy {
        _ if !way.instance_profile => Finding::skipped("AWS_USE_INSTANCE_PROFILE is false"),
        Some(proxy) if !way.rule.direct.matches(address) => Finding::failed(
            format!(
                "NO_PROXY does not name {address}: this service asks it directly all the same, but every other program with these variables asks the proxy {proxy}, which cannot know this instance's role"
            ),
            format!("Add {address} to NO_PROXY."),
        ),
        _ => Finding::ok(format!("{address} is reached directly")),
    }
}

async fn reachable(rule: Rule) -> Finding {
    let mut proxies: Vec<_> = [&rule.http, &rule.https].into_iter().flatten().collect();
    proxies.dedup_by_key(|proxy| (proxy.host.clone(), proxy.port));
    if proxies.is_empty() {
        return Finding::skipped("neither HTTP_PROXY nor HTTPS_PROXY is set");
    }
    let mut seen = Vec::new();
    for proxy in proxies {
        let found =
            listening(&proxy.host, proxy.port, "Start the proxy, or correct HTTP_PROXY and HTTPS_PROXY.")
                .await;
        if found.verdict() == Verdict::Failed {
            return found;
        }
        seen.push(found.evidence().to_owned());
    }
    Finding::ok(seen.join("; "))
}

/// Asks for a tunnel to each server that is reached through the proxy, and closes it again.
async fn allows(way: Way) -> Finding {
    let through: Vec<_> = way
        .targets
        .into_iter()
        .filter(|target| way.rule.proxy_for(target.purpose, &target.host).is_some())
        .collect();
    if through.is_empty() {
        return Finding::skipped("nothing that is set up goes through a proxy");
    }
    let mut asking = JoinSet::new();
    for target in through {
        let rule = way.rule.clone();
        asking.spawn(async move {
            let asked = connect(&rule, target.purpose, &target.host, target.port, TUNNEL_WITHIN).await;
            let name = format!("{}:{}", target.host, target.port);
            asked.map(|_| name).map_err(|error| match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })
        });
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for answer in asking.join_all().await {
        match answer {
            Ok(name) => open.push(name),
            Err(why) => closed.push(why),
        }
    }
    open.sort_unstable();
    closed.sort_unstable();
    if closed.is_empty() {
        return Finding::ok(format!("tunnels to {}", open.join(", ")));
    }
    Finding::failed(
        closed.join("; "),
        "Allow these servers and ports in the proxy's access list, or name them in NO_PROXY where there is another way.",
    )
}

#[cfg(test)]
mod tests {
    use voiceai_config::Resolved;
    use voiceai_testkit::{Squid, SquidOptions};

    use super::*;

    fn way(pairs: &[(&str, &str)]) -> Way {
        Resolved::from_pairs(Binary::Tasker, pairs.iter().copied()).read(Way::read).unwrap().settings
    }

    #[test]
    fn the_instances_role_is_never_asked_for_through_a_proxy() {
        let profile = ("AWS_USE_INSTANCE_PROFILE", "true");
        let proxy = ("HTTP_PROXY", "http://squid:3128");
        let verdict = |pairs: &[_]| metadata(&way(pairs)).verdict();
        assert_eq!(verdict(&[proxy]), Verdict::Skipped);
        assert_eq!(verdict(&[profile]), Verdict::Ok);
        assert_eq!(verdict(&[profile, proxy]), Verdict::Failed);
        assert_eq!(verdict(&[profile, proxy, ("NO_PROXY", "169.254.0.0/16")]), Verdict::Ok);
    }

    #[tokio::test]
    async fn a_proxy_that_is_away_is_found() {
        assert_eq!(reachable(way(&[]).rule).await.verdict(), Verdict::Skipped);
        let found = reachable(way(&[("HTTPS_PROXY", "http://127.0.0.1:1")]).rule).await;
        assert_eq!(found.verdict(), Verdict::Failed);
        assert!(found.evidence().contains("127.0.0.1:1: nobody listens"), "{found:?}");
    }

    #[tokio::test]
    async fn what_the_proxy_does_not_let_through_is_named() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let squid = Squid::start(SquidOptions { ports: vec![port], login: None }).await;
        let proxy = squid.url();
        let smtp = port.to_string();
        let of = |port: &str, more: &[(&str, &str)]| {
            let pairs = [("HTTPS_PROXY", proxy.as_str()), ("SMTP_HOST", "127.0.0.1"), ("SMTP_PORT", port)];
            allows(way(&pairs.iter().chain(more).copied().collect::<Vec<_>>()))
        };
        let found = of(&smtp, &[]).await;
        assert!(found.verdict() == Verdict::Ok && found.evidence().contains(&smtp), "{found:?}");
        let found = of("26", &[]).await;
        assert!(found.evidence().contains("403") && found.evidence().contains("127.0.0.1:26"), "{found:?}");
        assert_eq!(of("26", &[("NO_PROXY", "127.0.0.1")]).await.verdict(), Verdict::Skipped);
        let found = of(&smtp, &[("NAMESPACE", "a/b"), ("AWS_REGION", "eu-north-1")]).await;
        assert!(found.evidence().contains("ssm.eu-north-1.amazonaws.com:443"), "{found:?}");
    }
}
