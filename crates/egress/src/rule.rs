use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use url::Url;
use voiceai_config::Reader;
use voiceai_config::catalogue::proxy::{HTTP_PROXY, HTTPS_PROXY, NO_PROXY};
use voiceai_runtime::Secret;

use crate::no_proxy::{NoProxy, bare, spelled_address};

/// Where a host of a cloud asks for its own role and region: IMDS, and the two of container credentials. No proxy can answer in
/// its place, so these are reached directly whatever the settings say.
pub const METADATA: [&str; 4] = ["169.254.169.254", "fd00:ec2::254", "169.254.170.2", "169.254.170.23"];

/// What a connection is for; it decides which variable names its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Plain HTTP: `HTTP_PROXY`.
    Http,
    /// HTTPS: `HTTPS_PROXY`.
    Https,
    /// Anything else that is tunnelled, such as SMTP: `HTTPS_PROXY`, else `HTTP_PROXY`.
    Tunnel,
}

/// A proxy.
#[derive(Clone)]
pub struct Proxy {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The value of `Proxy-Authorization`, where the URL holds a user.
    pub authorization: Option<Secret>,
    url: Secret,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A proxy's URL cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected http://host:port, with user and password where the proxy asks for them")]
pub struct ProxyError;

impl Proxy {
    /// Reads `http://[user:password@]host[:port]`; the port is 80 where it is not given.
    ///
    /// # Errors
    /// When it is anything else; `https://` too, since not every program can talk TLS to a proxy.
    pub fn parse(url: &Url) -> Result<Self, ProxyError> {
        let host =
            url.host_str().filter(|host| url.scheme() == "http" && !host.is_empty()).ok_or(ProxyError)?;
        let text = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let authorization = (!url.username().is_empty()).then(|| {
            let pair = format!("{}:{}", text(url.username()), text(url.password().unwrap_or_default()));
            Secret::new(format!("Basic {}", STANDARD.encode(pair)))
        });
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(80),
            authorization,
            url: Secret::new(url.as_str().trim_end_matches('/')),
        })
    }

    /// The whole URL, user and password included.
    #[must_use]
    pub const fn url(&self) -> &Secret {
        &self.url
    }
}

/// The way out of this process.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// `HTTP_PROXY`.
    pub http: Option<Proxy>,
    /// `HTTPS_PROXY`.
    pub https: Option<Proxy>,
    /// `NO_PROXY`.
    pub direct: NoProxy,
}

impl Rule {
    /// Reads the settings.
    pub fn read(reader: &Reader<'_>) -> Self {
        let proxy = |setting| {
            let url: Url = reader.optional(setting)?;
            let remedy = "Correct it; a proxy that is reached by TLS is not supported.";
            Proxy::parse(&url).map_err(|error| reader.violation(setting, wanted(error), remedy)).ok()
        };
        let (http, https) = (proxy(&HTTP_PROXY), proxy(&HTTPS_PROXY));
        let entries = reader.optional(&NO_PROXY).unwrap_or_default();
        let direct = NoProxy::parse(entries.iter().map(String::as_str)).unwrap_or_else(|error| {
            let expected = format!("names, addresses and networks, but {error}");
            reader.violation(&NO_PROXY, expected, "Correct the entry: programs disagree about it.");
            NoProxy::default()
        });
        Self { http, https, direct }
    }

    /// The proxy for a connection to `host`; `None` means directly.
    #[must_use]
    pub fn proxy_for(&self, purpose: Purpose, host: &str) -> Option<&Proxy> {
        let proxy = match purpose {
            Purpose::Http => self.http.as_ref(),
            Purpose::Https => self.https.as_ref(),
            Purpose::Tunnel => self.https.as_ref().or(self.http.as_ref()),
        };
        proxy.filter(|_| !is_link_local(host) && !self.direct.matches(host))
    }

    /// The proxy for a request to `url`; `None` means directly. Anything but `http` goes the way of `https`.
    #[must_use]
    pub fn proxy_for_url(&self, url: &Url) -> Option<&Proxy> {
        let purpose = if url.scheme() == "http" { Purpose::Http } else { Purpose::Https };
        self.proxy_for(purpose, url.host_str()?)
    }

    /// The variables of a child process, in both spellings: curl reads `http_proxy` in lower case only.
    ///
    /// `hosts` are those that the child is known to ask: an address among them that a network of `NO_PROXY` covers is written
    /// out, because neither the AWS command line nor an older curl understands networks. Where there is a proxy, so are the
    /// addresses at which a cloud's host asks for its own role.
    #[must_use]
    pub fn environment(&self, hosts: &[&str]) -> Vec<(&'static str, Secret)> {
        let url = |proxy: &Option<Proxy>| proxy.as_ref().map(|proxy| proxy.url.clone());
        let direct = self.spelled_for(hosts);
        let direct = (!direct.is_empty()).then(|| Secret::new(direct.join(",")));
        let values = [
            (["HTTP_PROXY", "http_proxy"], url(&self.http)),
            (["HTTPS_PROXY", "https_proxy"], url(&self.https)),
            (["NO_PROXY", "no_proxy"], direct),
        ];
        let given = values.into_iter().filter_map(|(names, value)| Some((names, value?)));
        given.flat_map(|(names, value)| names.map(|name| (name, value.clone()))).collect()
    }

    fn spelled_for(&self, hosts: &[&str]) -> Vec<String> {
        let mut spelled = self.direct.spelled();
        if self.http.is_none() && self.https.is_none() || spelled.iter().any(|entry| entry == "*") {
            return spelled;
        }
        let known = METADATA.iter().chain(hosts).filter_map(|host| bare(host).parse::<IpAddr>().ok());
        for address in known.filter(|address| self.is_direct(&address.to_string())) {
            for text in spelled_address(address) {
                if !spelled.contains(&text) {
                    spelled.push(text);
                }
            }
        }
        spelled
    }

    fn is_direct(&self, host: &str) -> bool {
        is_link_local(host) || self.direct.matches(host)
    }
}

/// Addresses that belong to the very link or host that asks for them, and that of IMDS by IPv6.
fn is_link_local(host: &str) -> bool {
    match bare(host).parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.segments()[0] & 0xffc0 == 0xfe80 || address.to_string() == METADATA[1]
        }
        Err(_) => false,
    }
}

fn wanted(error: ProxyError) -> String {
    let text = error.to_string();
    text.trim_start_matches("expected ").to_owned()
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Rule, Vec<String>> {
        let resolved = Resolved::from_pairs(Binary::Scaler, pairs.iter().copied());
        let read = resolved.read(Rule::read).map(|loaded| loaded.settings);
        read.map_err(|report| report.violations.into_iter().map(|violation| violation.name).collect())
    }

    #[test]
    fn each_purpose_has_its_proxy_and_no_proxy_holds_for_all() {
        let rule = read(&[
            ("HTTP_PROXY", "http://plain:3128"),
            ("HTTPS_PROXY", "http://tls:3129/"),
            ("NO_PROXY", "10.0.0.0/8,169.254.169.254,.corp"),
        ])
        .unwrap();
        let named = |purpose, host| rule.proxy_for(purpose, host).map(ToString::to_string);
        assert_eq!(named(Purpose::Http, "api.example.com").as_deref(), Some("plain:3128"));
        assert_eq!(named(Purpose::Https, "api.example.com").as_deref(), Some("tls:3129"));
        assert_eq!(named(Purpose::Tunnel, "smtp.example.com").as_deref(), Some("tls:3129"));
        for purpose in [Purpose::Http, Purpose::Https, Purpose::Tunnel] {
            for host in ["10.1.2.3", "169.254.169.254", "mail.corp"] {
                assert_eq!(named(purpose, host), None, "{host}");
            }
        }
        let only_http = read(&[("HTTP_PROXY", "http://plain:3128")]).unwrap();
        assert!(only_http.proxy_for(Purpose::Https, "a").is_none());
        assert!(only_http.proxy_for(Purpose::Tunnel, "a").is_some());
        assert!(read(&[]).unwrap().proxy_for(Purpose::Tunnel, "a").is_none());
    }

    #[test]
    fn children_get_both_spellings_and_debug_gets_no_password() {
        let rule =
            read(&[("HTTPS_PROXY", "http://ops:p%40ss-canary@[::1]:3128"), ("no_proxy", "a, b")]).unwrap();
        let proxy = rule.https.clone().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("::1", 3128));
        // ops:p@ss-canary
        assert_eq!(proxy.authorization.as_ref().unwrap().expose(), "Basic b3BzOnBAc3MtY2FuYXJ5");
        assert!(!format!("{rule:?}").contains("canary"));
        let given = rule.environment(&[]);
        let find = |name: &str| {
            given.iter().find(|(have, _)| *have == name).map(|(_, value)| value.expose().to_owned())
        };
        assert_eq!(find("https_proxy"), find("HTTPS_PROXY"));
        assert!(find("HTTPS_PROXY").unwrap().contains("p%40ss-canary@[::1]:3128"));
        assert_eq!(
            find("NO_PROXY").as_deref(),
            Some("a,b,169.254.169.254,fd00:ec2::254,[fd00:ec2::254],169.254.170.2,169.254.170.23")
        );
        assert_eq!(find("HTTP_PROXY"), None);
    }

    #[test]
    fn a_hosts_own_role_is_never_asked_for_through_a_proxy() {
        let rule = read(&[("HTTP_PROXY", "http://plain:3128"), ("HTTPS_PROXY", "http://tls:3129")]).unwrap();
        for host in
            METADATA.iter().chain(&["[fd00:ec2::254]", "169.254.1.1", "fe80::1", "::ffff:169.254.169.254"])
        {
            assert!(rule.proxy_for(Purpose::Http, host).is_none(), "{host}");
        }
        assert!(rule.proxy_for(Purpose::Http, "169.253.169.254").is_some());
        assert!(rule.proxy_for(Purpose::Http, "169.254.169.254.example.com").is_some());
        let proxy = |url: &str| rule.proxy_for_url(&Url::parse(url).unwrap()).map(ToString::to_string);
        assert_eq!(proxy("http://a/").as_deref(), Some("plain:3128"));
        assert_eq!(proxy("https://a/").as_deref(), Some("tls:3129"));
        assert_eq!(proxy("http://169.254.169.254/latest"), None);
    }

    #[test]
    fn a_child_is_told_in_words_that_every_program_understands() {
        let told = |no_proxy: &'static str, hosts: &[&str]| {
            let rule = read(&[("HTTPS_PROXY", "http://squid:3128"), ("NO_PROXY", no_proxy)]).unwrap();
            let given = rule.environment(hosts);
            let find = |name| given.iter().find(|(have, _)| *have == name).unwrap().1.expose().to_owned();
            assert_eq!(find("NO_PROXY"), find("no_proxy"));
            find("NO_PROXY")
        };
        assert_eq!(told("a,*,b", &[]), "*", "a star among others is understood by few");
        let text = told(
            ".Corp, db.example.com.,::1,10.0.0.0/8",
            &["10.1.2.3", "11.1.2.3", "host.corp", "[fd12::1]"],
        );
        let parts: Vec<_> = text.split(',').collect();
        assert_eq!(&parts[..5], ["corp", "db.example.com", "::1", "[::1]", "10.0.0.0/8"]);
        assert!(parts.contains(&"10.1.2.3") && parts.contains(&"169.254.169.254"), "{text}");
        assert!(!text.contains("11.1.2.3") && !text.contains("fd12"), "{text}");
        let without = read(&[("NO_PROXY", "10.0.0.0/8")]).unwrap().environment(&["10.1.2.3"]);
        assert_eq!(without[0].1.expose(), "10.0.0.0/8", "nothing is added where there is no proxy");
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        assert_eq!(read(&[("HTTP_PROXY", "https://proxy:3128")]).unwrap_err(), ["HTTP_PROXY"]);
        assert_eq!(read(&[("HTTPS_PROXY", "socks5://proxy")]).unwrap_err(), ["HTTPS_PROXY"]);
        assert_eq!(read(&[("NO_PROXY", "a,b:80")]).unwrap_err(), ["NO_PROXY"]);
        assert_eq!(read(&[("NO_PROXY", "a"), ("no_proxy", "b")]).unwrap_err(), ["no_proxy"]);
    }
}
