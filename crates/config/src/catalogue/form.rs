//! Forms of values that settings of several topics share.

use url::Url;

pub(super) const HTTP_URL: &str =
    "an http:// or https:// URL with a host, such as https://hooks.example.com/path";
pub(super) const HTTP_ORIGIN: &str = "an http:// or https:// address without user, password, query and fragment, such as https://api.example.com";
const PLACES: [&str; 3] = ["{tenant}", "{device}", "{campaign}"];

/// True where a request can be sent to. URL parsers forgive `https:///path` and `http:path` and take the path's first part for the host:
/// whoever left the host out would find out from the first request that goes astray.
pub(super) fn is_http(raw: &str) -> bool {
    let Some((scheme, rest)) = raw.split_once("://") else { return false };
    ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && !rest.starts_with(['/', '\\', '?', '#', ':', '@'])
        && Url::parse(raw).is_ok_and(|url| url.has_host())
}

/// The same for an address that paths are added to.
pub(super) fn is_http_origin(raw: &str) -> bool {
    let bare = |url: Url| {
        url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    is_http(raw) && Url::parse(raw).is_ok_and(bare)
}

/// The same for an address in which `{tenant}`, `{device}` and `{campaign}` are filled in before it is used.
pub(super) fn is_http_template(raw: &str) -> bool {
    is_http(&PLACES.iter().fold(raw.to_owned(), |filled, place| filled.replace(place, "x")))
}

/// True for what can be the name of a region of AWS, in whichever of its partitions: `eu-central-1`, `us-gov-west-1`. An availability
/// zone (`eu-central-1a`) is none.
#[must_use]
pub fn is_aws_region(raw: &str) -> bool {
    let parts: Vec<&str> = raw.split('-').collect();
    let Some((number, words)) = parts.split_last() else { return false };
    let is_word = |word: &&str| word.len() >= 2 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_number = (1..=2).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (2..=4).contains(&words.len()) && words.iter().all(is_word) && is_number
}

/// True for what can be the name of a region of any S3 store: those call theirs `fsn1`, `auto` or `us-east-1`. It becomes a part of every
/// signature, in which a slash or a blank has a meaning of its own.
pub(super) fn is_region(raw: &str) -> bool {
    let is_known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let is_edge =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = raw.as_bytes();
    bytes.len() <= 63
        && bytes.iter().copied().all(is_known)
        && is_edge(bytes.first())
        && is_edge(bytes.last())
}

/// True for the folder of an environment's settings. A part of dots alone names nothing in SSM, and in a path another folder.
pub(super) fn is_namespace(raw: &str) -> bool {
    let is_name = |part: &str| {
        part.bytes().any(|byte| byte != b'.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    raw.trim_matches('/').split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        for good in [
            "https://hooks.example.com/services/T0/B0?x=1#f",
            "HTTP://user:p%40ss@10.0.0.5:1880/",
            "http://[2001:db8::1]:9",
            "http://broker",
        ] {
            assert!(is_http(good), "{good}");
        }
        for bad in [
            "",
            "https://",
            "https:///services/T0/B0",
            "http://?x",
            "http://#x",
            "http://:8080/x",
            "http://@/x",
            "http:broker/x",
            "http:/broker/x",
            "https:\\\\broker",
            "https://\\broker",
            "hooks.example.com/x",
            "mqtt://broker:1883",
            "file:///etc/passwd",
            "unix:///run/x.sock",
            "https://a b/",
            "https://h:99999/",
        ] {
            assert!(!is_http(bad), "{bad}");
        }
        assert!(is_http_origin("https://s3.example.com:9000/base"));
        for bad in ["https://u@h", "https://u:p@h", "https://h?x", "https://h#x", "https:///h"] {
            assert!(!is_http_origin(bad), "{bad}");
        }
        assert!(is_http_template("https://{tenant}.example.com/{device}/{campaign}"));
        assert!(!is_http_template("https:///{tenant}") && !is_http_template("{tenant}"));
    }

    #[test]
    fn a_region_is_no_zone_and_no_city() {
        for good in [
            "eu-central-1",
            "us-gov-west-1",
            "us-isob-east-1",
            "eusc-de-east-1",
            "cn-north-1",
            "ap-southeast-12",
        ] {
            assert!(is_aws_region(good) && is_region(good), "{good}");
        }
        for bad in [
            "",
            "eu-central-1a",
            "eu-central",
            "eu_central_1",
            "EU-CENTRAL-1",
            "eu-central-",
            "-1",
            "frankfurt",
            "eu-central-123",
            "eu-central-1 ",
            "eu--1",
            "fsn1",
            "auto",
            "a-b-1",
        ] {
            assert!(!is_aws_region(bad), "{bad}");
        }
        for good in ["fsn1", "auto", "garage", "nl-ams", "us-east-1", "a_b"] {
            assert!(is_region(good), "{good}");
        }
        for bad in ["", "-", "a/b", "..", "a b", "https://x", "Frankfurt", "eu-", "ä"] {
            assert!(!is_region(bad), "{bad}");
        }
    }

    #[test]
    fn a_namespace_leads_nowhere_else() {
        for good in ["voiceai/staging", "/voiceai/staging/", "a", "a.b/c_d-e", "..a"] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["", "/", "..", "a/..", "../a", "a/./b", "a/.../b", "a//b", "a b", "a/%2e%2e"] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
