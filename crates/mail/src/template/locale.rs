/// A language tag in the one form that folders and rows use: parts joined by hyphens, the language in lower case, a script
/// as `Latn`, a region as `DE`. `None` when the text is no language tag.
#[must_use]
pub fn canonical(tag: &str) -> Option<String> {
    let well_formed =
        |part: &&str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let parts: Vec<&str> = tag.trim().split(['-', '_']).collect();
    let language = parts.first()?;
    let is_language = (2..=8).contains(&language.len()) && language.bytes().all(|b| b.is_ascii_alphabetic());
    if !is_language || !parts.iter().all(well_formed) || tag.len() > 35 {
        return None;
    }
    let cased = parts.iter().enumerate().map(|(at, part)| match part.len() {
        _ if at == 0 => part.to_ascii_lowercase(),
        2 => part.to_ascii_uppercase(),
        4 if part.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            let (first, rest) = part.split_at(1);
            format!("{}{}", first.to_ascii_uppercase(), rest.to_ascii_lowercase())
        }
        _ => part.to_ascii_lowercase(),
    });
    Some(cased.collect::<Vec<_>>().join("-"))
}

/// The locales to look for, nearest first: the tag itself, the tag without its last part and so on down to the language,
/// then the default. A text that is no language tag asks for the default alone.
#[must_use]
pub fn chain(tag: &str, default: &str) -> Vec<String> {
    let mut chain = Vec::new();
    let mut rest = canonical(tag).unwrap_or_default();
    while !rest.is_empty() {
        chain.push(rest.clone());
        rest.truncate(rest.rfind('-').unwrap_or(0));
    }
    let mut default = canonical(default).unwrap_or_default();
    while !default.is_empty() {
        if !chain.contains(&default) {
            chain.push(default.clone());
        }
        default.truncate(default.rfind('-').unwrap_or(0));
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_one_form() {
        for (given, canonical_form) in [
            ("en", Some("en")),
            ("EN_us", Some("en-US")),
            ("de-at", Some("de-AT")),
            ("zh-hant-tw", Some("zh-Hant-TW")),
            ("sl-rozaj", Some("sl-rozaj")),
            ("", None),
            ("../etc", None),
            ("e", None),
            ("12", None),
            ("en--us", None),
            ("en-\r\n", None),
        ] {
            assert_eq!(canonical(given).as_deref(), canonical_form, "{given:?}");
        }
    }

    #[test]
    fn the_nearest_locale_comes_first() {
        assert_eq!(chain("zh-Hant-TW", "en"), ["zh-Hant-TW", "zh-Hant", "zh", "en"]);
        assert_eq!(chain("de_at", "en-GB"), ["de-AT", "de", "en-GB", "en"]);
        assert_eq!(chain("en", "en"), ["en"]);
        assert_eq!(chain("nonsense!", "en"), ["en"]);
    }
}
