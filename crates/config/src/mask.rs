use crate::setting::Declaration;
use crate::value::Kind;

/// What stands in the place of a secret.
pub const MASK: &str = "***";

const SHOWN_MOST: usize = 120;

/// Scheme, hosts and path of a connection URL; user, password and query are left out. A text that is not plainly such a
/// URL is masked whole: half of a malformed URL may be half of a password.
#[must_use]
pub fn mask_url(raw: &str) -> String {
    shown_url(raw).unwrap_or_else(|| MASK.to_owned())
}

fn shown_url(raw: &str) -> Option<String> {
    let (scheme, rest) = raw.split_once("://")?;
    let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
    if user.is_some_and(|user| user.contains(['/', '?', '#'])) {
        return None;
    }
    let shown = rest.split(['?', '#']).next()?;
    let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    if !plain(scheme, "+-.") || !plain(shown, ".-_:,[]/%") || shown.is_empty() {
        return None;
    }
    Some(match user {
        Some(_) => format!("{scheme}://{MASK}@{shown}"),
        None => format!("{scheme}://{shown}"),
    })
}

/// A value as it may stand in a log, a report or a table.
pub(crate) fn shown(declaration: &Declaration, raw: &str) -> String {
    match declaration.kind {
        Kind::Secret => MASK.to_owned(),
        Kind::SecretUrl => without_hook(&mask_url(raw)),
        Kind::Url => mask_url(raw),
        _ => raw.to_owned(),
    }
}

/// The same without the path of an HTTP address: chat services put the whole secret of a hook there.
fn without_hook(shown: &str) -> String {
    let host_at = match shown.split_once("://") {
        Some(("http" | "https", rest)) => shown.len() - rest.len(),
        _ => return shown.to_owned(),
    };
    let host = shown[host_at..].split('/').next().unwrap_or_default();
    let (before, path) = shown.split_at(host_at + host.len());
    if path.len() > 1 { format!("{before}/{MASK}") } else { shown.to_owned() }
}

/// The same inside a sentence: quoted, control characters escaped, cut.
pub(crate) fn quoted(declaration: &Declaration, raw: &str) -> String {
    let shown = shown(declaration, raw);
    if shown == MASK {
        return shown;
    }
    let mut cut: String = shown.chars().take(SHOWN_MOST).collect();
    if cut.len() < shown.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_hook_is_part_of_its_secret_and_a_databases_name_is_not() {
        for (url, shown) in [
            ("https://hooks.example.com/services/T0/hunter2", "https://hooks.example.com/***"),
            ("https://ops:hunter2@hooks.example.com/a", "https://***@hooks.example.com/***"),
            ("https:///hunter2", "https:///***"),
            ("http://10.0.0.5:8080/", "http://10.0.0.5:8080/"),
            ("http://10.0.0.5:8080", "http://10.0.0.5:8080"),
            ("postgres://db/voiceai", "postgres://db/voiceai"),
            (MASK, MASK),
        ] {
            assert_eq!(without_hook(&mask_url(url)), shown, "{url}");
        }
    }

    #[test]
    fn a_url_keeps_what_helps_and_loses_what_is_secret() {
        for (raw, shown) in [
            ("postgres://ops:hunter2@db:5432/voiceai", "postgres://***@db:5432/voiceai"),
            ("postgres://db/voiceai?password=hunter2", "postgres://db/voiceai"),
            ("redis-sentinel://:hunter2@a:26379,b:26379/0", "redis-sentinel://***@a:26379,b:26379/0"),
            ("rediss://[::1]:6380/1", "rediss://[::1]:6380/1"),
            // Unescaped characters in a password: nothing after the scheme can be trusted to be a host.
            ("redis://:hun/ter2@db:6379", MASK),
            ("redis://:hun?ter2@db:6379", MASK),
            ("redis://u:hunter2@db/?x=a@b", MASK),
            ("redis://:hunter2 @", MASK),
            ("hunter2", MASK),
        ] {
            assert_eq!(mask_url(raw), shown, "{raw}");
        }
    }
}
