//! Which addresses an endpoint may have. Judged on the address that is connected to, so that no answer of DNS slips past.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use url::{Host, Url};
use voiceai_egress::NoProxy;

/// What is let through beside public addresses and `https`. For development.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    networks: NoProxy,
    /// Whether an endpoint's URL may be `http://`.
    pub http: bool,
}

impl Allowed {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// In words: which entry is neither.
    pub fn parse(networks: &[String], http: bool) -> Result<Self, String> {
        for entry in networks {
            let address = entry.split_once('/').map_or(entry.as_str(), |(address, _)| address);
            if address.trim().parse::<IpAddr>().is_err() {
                return Err(format!("`{entry}` is no address and no network"));
            }
        }
        let networks =
            NoProxy::parse(networks.iter().map(String::as_str)).map_err(|error| error.to_string())?;
        Ok(Self { networks, http })
    }

    fn has(&self, address: IpAddr) -> bool {
        self.networks.matches(&address.to_string())
    }
}

/// Why an endpoint is not connected to.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The URL cannot be used at all.
    #[error("the URL {0}")]
    Url(&'static str),
    /// An address that is not public.
    #[error("{host} is at {address}, which is not a public address")]
    Address {
        /// The URL's host.
        host: String,
        /// The first such address.
        address: IpAddr,
    },
    /// The name has no address.
    #[error("resolve {host}")]
    Resolve {
        /// The URL's host.
        host: String,
        /// Why.
        source: io::Error,
    },
}

/// Looks names up.
pub trait Resolve: Send + Sync {
    /// Every address of `host`.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// As this host is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Judges URLs and addresses.
#[derive(Clone)]
pub struct Guard {
    allowed: Allowed,
    resolver: Arc<dyn Resolve>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Guard {
    /// With what is let through beside public addresses.
    #[must_use]
    pub fn new(allowed: Allowed, resolver: Arc<dyn Resolve>) -> Self {
        Self { allowed, resolver }
    }

    /// What can be said of a URL without looking its name up.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_url(&self, url: &Url) -> Result<(), GuardError> {
        let scheme_fits = url.scheme() == "https" || (self.allowed.http && url.scheme() == "http");
        if !scheme_fits {
            return Err(GuardError::Url("must begin with https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError::Url("must not hold a user or a password"));
        }
        if url.fragment().is_some() {
            return Err(GuardError::Url("must not hold a fragment"));
        }
        match url.host() {
            None | Some(Host::Domain("")) => Err(GuardError::Url("names no host")),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                let local = name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost");
                match local && !self.allowed.has(Ipv4Addr::LOCALHOST.into()) {
                    true => self.check(name, &[Ipv4Addr::LOCALHOST.into()]),
                    false => Ok(()),
                }
            }
            Some(Host::Ipv4(address)) => self.check(&address.to_string(), &[address.into()]),
            Some(Host::Ipv6(address)) => self.check(&address.to_string(), &[address.into()]),
        }
    }

    /// Looks the host up once and judges every address. Connect to these and to no other.
    ///
    /// # Errors
    /// When any address is not public: a name with one such address is not a name to trust.
    pub async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, GuardError> {
        self.check_url(url)?;
        let port = url.port_or_known_default().ok_or(GuardError::Url("names no port"))?;
        let (host, addresses) = match url.host() {
            Some(Host::Ipv4(address)) => (address.to_string(), vec![IpAddr::V4(address)]),
            Some(Host::Ipv6(address)) => (address.to_string(), vec![IpAddr::V6(address)]),
            Some(Host::Domain(name)) => {
                let failed = |source| GuardError::Resolve { host: name.to_owned(), source };
                let found = self.resolver.resolve(name).await.map_err(failed)?;
                if found.is_empty() {
                    return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
                }
                (name.to_owned(), found)
            }
            None => return Err(GuardError::Url("names no host")),
        };
        self.check(&host, &addresses)?;
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn check(&self, host: &str, addresses: &[IpAddr]) -> Result<(), GuardError> {
        match addresses.iter().find(|address| !is_public(**address) && !self.allowed.has(**address)) {
            None => Ok(()),
            Some(address) => Err(GuardError::Address { host: host.to_owned(), address: *address }),
        }
    }
}

/// True for an address of the public internet. An address that carries another one within it is judged by that one too.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // this network, private, loopback, shared by carriers
        (0 | 10 | 127, ..) | (100, 64..=127, _) => true,
        // link-local with the clouds' metadata, private
        (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        // protocol assignments, documentation, 6to4 relays, AS112
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) | (192, 31, 196) => true,
        (192, 52, 193) | (192, 175, 48) => true,
        // benchmarks, then multicast, reserved, broadcast
        (198, 18 | 19, _) | (224.., ..) => true,
        _ => false,
    };
    // A public address by number that stands for a cloud's own services (Azure).
    !special && address != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let part = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match part {
        // NAT64 and 6to4 lead to the address within.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(v4(high, low)),
        [0x2002, high, low, ..] => is_public_v4(v4(high, low)),
        // Teredo and other assignments, ORCHID, documentation
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Everything public is in 2000::/3: no loopback, local, site, multicast, NAT64 of one's own or SRv6 address is.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.170.2",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    fn judge(url: &str, networks: &[&str], http: bool) -> Result<(), String> {
        let networks: Vec<String> = networks.iter().map(|n| (*n).to_owned()).collect();
        let guard = Guard::new(Allowed::parse(&networks, http).unwrap(), Arc::new(SystemResolver));
        guard.check_url(&Url::parse(url).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_is_judged_before_it_is_kept() {
        assert_eq!(judge("https://example.com/hook?x=1", &[], false), Ok(()));
        for wrong in [
            "http://example.com/",
            "ftp://example.com/",
            "https://user:pw@example.com/",
            "https://example.com/#x",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
            "https://a.localhost./",
        ] {
            assert!(judge(wrong, &[], false).is_err(), "{wrong}");
        }
        assert_eq!(judge("http://127.0.0.1:80/", &["127.0.0.1"], true), Ok(()));
        assert!(judge("http://127.0.0.2:80/", &["127.0.0.1"], true).is_err());
        assert_eq!(judge("https://10.1.2.3/", &["10.0.0.0/8"], false), Ok(()));
    }
}
