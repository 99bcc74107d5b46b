//! Names of servers, and the patterns every name must match before it reaches a shell script.

use std::collections::BTreeSet;

use crate::policy::Service;

/// Longest host label of RFC 1123, in bytes; providers refuse longer server names.
pub const HOST_NAME_MAX: usize = 63;

/// True for an RFC 1123 host label in lower case: what a server's name, an environment and a provider must be.
///
/// Shell arithmetic runs code found in a variable's value, so nothing else is ever handed to a script as a name.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=HOST_NAME_MAX).contains(&bytes.len())
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|&byte| edge(byte) || byte == b'-')
}

/// True for what providers take as a label's value: letters, digits, `.`, `_`, `-`, at most 63, alphanumeric at both ends.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=HOST_NAME_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// True for an id as providers issue them: visible ASCII without quotes, spaces or shell characters, at most 128 bytes, and
/// with nothing in front that a program would take for an option.
#[must_use]
pub fn is_provider_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte))
}

/// The name of the `ordinal`-th server of a service: `<environment>-voice-01`.
#[must_use]
pub fn server_name(environment: &str, service: Service, ordinal: u32) -> String {
    format!("{environment}-{}-{ordinal:02}", service.as_str())
}

/// The free name with the lowest ordinal.
///
/// `taken` holds every name that may not be given out: servers that exist, names that rest after their server's end,
/// and names under which somebody else's server beats. `None` when the name would be too long for a host.
#[must_use]
pub fn next_free(environment: &str, service: Service, taken: &BTreeSet<String>) -> Option<String> {
    (1..=u32::MAX)
        .map(|ordinal| server_name(environment, service, ordinal))
        .find(|name| !taken.contains(name))
        .filter(|name| is_host_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_lowest_free_ordinal_is_taken() {
        for (used, expected) in [
            (vec![], "dev-voice-01"),
            (vec!["dev-voice-01"], "dev-voice-02"),
            (vec!["dev-voice-02"], "dev-voice-01"),
            (vec!["dev-voice-01", "dev-voice-03"], "dev-voice-02"),
            (vec!["dev-api-01", "prod-voice-01"], "dev-voice-01"),
        ] {
            assert_eq!(next_free("dev", Service::Voice, &taken(&used)).as_deref(), Some(expected));
        }
        let many: BTreeSet<_> = (1..=99).map(|n| server_name("dev", Service::Api, n)).collect();
        assert_eq!(next_free("dev", Service::Api, &many).as_deref(), Some("dev-api-100"));
    }

    #[test]
    fn an_environment_too_long_for_a_host_name_gives_none() {
        assert_eq!(next_free(&"e".repeat(60), Service::Voice, &taken(&[])), None);
    }

    #[test]
    fn hostile_names_are_no_names() {
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "a;b", "$(id)", "a[$(id)]", "a\n", "é", "../x", "a.b"]
        {
            assert!(!is_host_name(bad), "{bad:?}");
        }
        assert!(!is_host_name(&"a".repeat(64)));
        for good in ["a", "a-b", "0", "prod-voice-01", &"a".repeat(63)] {
            assert!(is_host_name(good), "{good:?}");
        }
        for bad in ["", "a b", ".a", "a-", "a/b", "a$b", "a'b", "a\"b", "ä"] {
            assert!(!is_label_value(bad), "{bad:?}");
        }
        assert!(is_label_value("EU_voice.1"));
        for bad in ["", "a b", "a;b", "$(id)", "a'b", "a\nb", "-rf", &"1".repeat(129)] {
            assert!(!is_provider_id(bad), "{bad:?}");
        }
        assert!(is_provider_id("i-0abc:eu/1.2"));
    }
}
