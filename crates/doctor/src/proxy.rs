//! The way out: the proxy answers, and what must not go through it does not.

use voiceai_cli::doctor::{Doctor, Finding, Verdict};
use voiceai_config::Reader;
use voiceai_config::catalogue::platform::AWS_USE_INSTANCE_PROFILE;
use voiceai_egress::{Purpose, Rule};

use crate::BOUND;
use crate::host::listening;

/// Where an instance asks for its own role.
const METADATA: &str = "169.254.169.254";

/// The settings of the way out.
#[derive(Debug)]
pub(crate) struct Way {
    rule: Rule,
    instance_profile: bool,
}

impl Way {
    pub(crate) fn read(reader: &Reader<'_>) -> Self {
        Self { rule: Rule::read(reader), instance_profile: reader.get(&AWS_USE_INSTANCE_PROFILE) }
    }
}

pub(crate) fn add(doctor: &mut Doctor, way: Way) {
    doctor.check("proxy.metadata", BOUND, std::future::ready(metadata(&way)));
    doctor.check("proxy.reachable", BOUND, reachable(way.rule));
}

/// A proxy answers for another host's role, or for none.
fn metadata(way: &Way) -> Finding {
    match way.rule.proxy_for(Purpose::Http, METADATA) {
        _ if !way.instance_profile => Finding::skipped("AWS_USE_INSTANCE_PROFILE is false"),
        None => Finding::ok(format!("{METADATA} is reached directly")),
        Some(proxy) => Finding::failed(
            format!(
                "{METADATA} would be asked for through the proxy {proxy}, which cannot know this instance's role"
            ),
            format!("Add {METADATA} to NO_PROXY."),
        ),
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

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

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
}
