use std::net::IpAddr;
use std::str::FromStr;

/// The hosts that are reached directly.
///
/// | entry | means |
/// |---|---|
/// | `*` | every host |
/// | `corp`, `.corp` | the name `corp` and every name below it |
/// | `10.1.2.3`, `::1` | this address |
/// | `10.0.0.0/8`, `fd00::/8` | the addresses of this network |
///
/// Names are compared as they are written and never resolved: a network matches addresses, not names that point into it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Everything,
    /// Lower case, without dots at its ends.
    Name(String),
    Network(IpAddr, u8),
}

/// An entry that the programs which read `NO_PROXY` do not understand alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProxyError {
    /// Some match it and some do not.
    #[error("`{0}` has a port; name the host alone")]
    Port(String),
    /// Only a star alone and a leading dot are understood everywhere.
    #[error("`{0}` has a star; write .example.com for a name and all below it")]
    Star(String),
    /// Neither a name, nor an address, nor a network.
    #[error("`{0}` is no host name, address or network")]
    Malformed(String),
}

impl NoProxy {
    /// Reads the entries.
    ///
    /// # Errors
    /// The first entry that is not one of the forms above.
    pub fn parse<'e>(entries: impl IntoIterator<Item = &'e str>) -> Result<Self, NoProxyError> {
        let entries = entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty());
        Ok(Self { entries: entries.map(entry).collect::<Result<_, _>>()? })
    }

    /// The entries as curl, the AWS command line and other programs read them alike: names without their leading dot, in lower
    /// case; an IPv6 address with and without brackets; everything as a star alone.
    pub(crate) fn spelled(&self) -> Vec<String> {
        if self.entries.contains(&Entry::Everything) {
            return vec!["*".to_owned()];
        }
        let spelled = self.entries.iter().flat_map(|entry| match entry {
            Entry::Everything => Vec::new(),
            Entry::Name(name) => vec![name.clone()],
            Entry::Network(address, 128) if address.is_ipv6() => spelled_address(*address),
            Entry::Network(address, 32) if address.is_ipv4() => spelled_address(*address),
            Entry::Network(address, bits) => vec![format!("{address}/{bits}")],
        });
        spelled.collect()
    }

    /// True when `host`, a name or an address with or without brackets, is reached directly.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = bare(host);
        let address = IpAddr::from_str(host).ok().map(|address| address.to_canonical());
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        self.entries.iter().any(|entry| match (entry, address) {
            (Entry::Everything, _) => true,
            (Entry::Network(network, bits), Some(address)) => contains(*network, *bits, address),
            (Entry::Name(below), None) => {
                name == *below || name.strip_suffix(below).is_some_and(|rest| rest.ends_with('.'))
            }
            (Entry::Network(..), None) | (Entry::Name(_), Some(_)) => false,
        })
    }
}

/// An address as other programs compare it: some with the brackets of a URL, some without.
pub(crate) fn spelled_address(address: IpAddr) -> Vec<String> {
    match address {
        IpAddr::V4(address) => vec![address.to_string()],
        IpAddr::V6(address) => vec![address.to_string(), format!("[{address}]")],
    }
}

/// `host` without the brackets of an IPv6 address.
pub(crate) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn entry(text: &str) -> Result<Entry, NoProxyError> {
    let owned = || text.to_owned();
    if text == "*" {
        return Ok(Entry::Everything);
    }
    if text.contains('*') {
        return Err(NoProxyError::Star(owned()));
    }
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| NoProxyError::Malformed(owned()))?;
        let bits: u8 = bits.parse().map_err(|_| NoProxyError::Malformed(owned()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        return if bits <= most {
            Ok(Entry::Network(address, bits))
        } else {
            Err(NoProxyError::Malformed(owned()))
        };
    }
    if let Ok(address) = IpAddr::from_str(bare(text)) {
        let address = address.to_canonical();
        return Ok(Entry::Network(address, if address.is_ipv4() { 32 } else { 128 }));
    }
    if let Some((_, port)) = text.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(NoProxyError::Port(owned()));
    }
    let name = text.trim_matches('.').to_ascii_lowercase();
    let is_name = name.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    });
    if is_name { Ok(Entry::Name(name)) } else { Err(NoProxyError::Malformed(owned())) }
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    // The leading `bits` of both are the same: what is left after the others are shifted out.
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let host_bits = 32 - u32::from(bits);
            (u32::from(network) ^ u32::from(address)).checked_shr(host_bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let host_bits = 128 - u32::from(bits);
            (u128::from(network) ^ u128::from(address)).checked_shr(host_bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_networks() {
        let rule = NoProxy::parse(
            "localhost,127.0.0.1, 10.0.0.0/8,.corp,Example.com,169.254.169.254,fd00::/8,::1".split(','),
        )
        .unwrap();
        for direct in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1",
            "10.255.0.1",
            "corp",
            "db.corp",
            "example.com",
            "a.b.example.com",
            "169.254.169.254",
            "fd12::1",
            "[::1]",
            "::ffff:10.1.1.1",
        ] {
            assert!(rule.matches(direct), "{direct}");
        }
        for through in [
            "127.0.0.2",
            "11.0.0.1",
            "notcorp",
            "corp.net",
            "myexample.com",
            "fe80::1",
            "10.0.0.1.nip.io",
            "",
            "::",
        ] {
            assert!(!rule.matches(through), "{through}");
        }
    }

    #[test]
    fn the_edges_of_a_network() {
        let all = NoProxy::parse(["0.0.0.0/0"]).unwrap();
        assert!(all.matches("255.1.1.1") && !all.matches("::1"));
        let odd = NoProxy::parse(["172.16.0.0/12", "2001:db8::/33"]).unwrap();
        assert!(odd.matches("172.31.255.255") && !odd.matches("172.32.0.0"));
        assert!(odd.matches("2001:db8:7fff::1") && !odd.matches("2001:db8:8000::1"));
        assert!(NoProxy::parse(["*"]).unwrap().matches("anything"));
        assert!(!NoProxy::parse([""]).unwrap().matches("anything"));
    }

    #[test]
    fn what_programs_read_differently_is_refused() {
        for (text, error) in [
            ("db.corp:5432", NoProxyError::Port("db.corp:5432".into())),
            ("*.corp", NoProxyError::Star("*.corp".into())),
            ("10.0.0.0/33", NoProxyError::Malformed("10.0.0.0/33".into())),
            ("http://x", NoProxyError::Malformed("http://x".into())),
            ("a b", NoProxyError::Malformed("a b".into())),
        ] {
            assert_eq!(NoProxy::parse([text]), Err(error));
        }
    }
}
