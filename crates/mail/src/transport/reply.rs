use std::time::Duration;

/// A mail server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its three digits.
    pub code: u16,
    /// Its enhanced status code (RFC 3463), where it has one that agrees with the digits.
    pub enhanced: Option<String>,
    /// Its text, all lines joined, without the codes in front of each.
    pub text: String,
}

impl Reply {
    /// Reads the lines of one reply, each with its code in front. `None` when the first has none.
    #[must_use]
    pub fn parse(lines: &[String]) -> Option<Self> {
        let code: u16 = lines.last()?.get(..3)?.parse().ok()?;
        let texts: Vec<&str> = lines.iter().map(|line| line.get(4..).unwrap_or_default()).collect();
        let enhanced = texts.iter().find_map(|text| enhanced(text, code)).map(ToOwned::to_owned);
        let bare = |text: &&str| match (&enhanced, text.split_once(' ')) {
            (Some(code), Some((first, rest))) if first == code => rest.trim().to_owned(),
            (Some(code), None) if text == code => String::new(),
            _ => text.trim().to_owned(),
        };
        let text = texts.iter().map(bare).filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        Some(Self { code, enhanced, text })
    }

    /// True when the enhanced code is `code`, or begins with it where `code` ends in a dot.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        let class_apart = |enhanced: &str| enhanced.split_once('.').map(|(_, rest)| rest.to_owned());
        match (&self.enhanced, code.strip_prefix("x.")) {
            (Some(enhanced), None) => matches_code(enhanced, code),
            (Some(enhanced), Some(code)) => {
                class_apart(enhanced).is_some_and(|rest| matches_code(&rest, code))
            }
            (None, _) => false,
        }
    }

    /// How long the server asks to wait: `try again in 300 seconds`, `greylisted for 5 minutes`, `retry after 30s`.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.text)
    }
}

fn matches_code(enhanced: &str, code: &str) -> bool {
    if code.ends_with('.') { enhanced.starts_with(code) } else { enhanced == code }
}

fn enhanced(text: &str, code: u16) -> Option<&str> {
    let word = text.split_whitespace().next()?;
    let mut parts = word.split('.');
    let class: u16 = parts.next()?.parse().ok()?;
    let number = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    let rest: Vec<&str> = parts.collect();
    (class == code / 100 && rest.len() == 2 && rest.iter().all(|part| number(part))).then_some(word)
}

/// The delay that a text asks for, where it says so in words that cannot mean something else.
fn retry_after(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let asks = ["again", "retry", "wait", "greylist", "graylist", "defer", "later", "resume", "expire"];
    if !asks.iter().any(|word| lower.contains(word)) {
        return None;
    }
    let separate = |c: char| !(c.is_ascii_alphanumeric() || c == ':');
    let words: Vec<&str> = lower.split(separate).filter(|word| !word.is_empty()).collect();
    words.iter().enumerate().find_map(|(at, word)| {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        if word.contains(':') {
            return clock(word);
        }
        let number: u64 = word[..digits].parse().ok()?;
        let unit = if digits < word.len() { &word[digits..] } else { words.get(at + 1)? };
        let seconds = match unit {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
            _ => return None,
        };
        Some(Duration::from_secs(number.checked_mul(seconds)?))
    })
}

/// `00:05:00`, as several greylisting filters write it.
fn clock(word: &str) -> Option<Duration> {
    let parts: Vec<u64> = word.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [hours, minutes, seconds] if minutes < 60 && seconds < 60 && hours < 1000 => {
            Some(Duration::from_secs(hours * 3600 + minutes * 60 + seconds))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        Reply::parse(&lines).expect("a reply")
    }

    #[test]
    fn codes_are_read_where_they_agree() {
        let read = reply("550-5.1.1 The account does not exist.\n550-5.1.1 Check it.\n550 5.1.1 gone");
        assert_eq!((read.code, read.enhanced.as_deref()), (550, Some("5.1.1")));
        assert_eq!(read.text, "The account does not exist. Check it. gone");
        assert_eq!(reply("550 no such user").enhanced, None);
        assert_eq!(reply("450 5.1.1 disagrees").enhanced, None);
        assert_eq!(reply("550 5.1.1.2 address").enhanced, None);
        assert_eq!(reply("250 ").text, "");
        assert!(
            reply("450 4.7.1 x").is("x.7.1")
                && reply("450 4.7.1 x").is("4.7.")
                && !reply("450 4.7.1 x").is("4.7.10")
        );
        assert!(Reply::parse(&[]).is_none() && Reply::parse(&["hello".into()]).is_none());
    }

    #[test]
    fn a_delay_is_read_from_words() {
        for (text, seconds) in [
            ("450 4.7.1 Greylisted, try again in 300 seconds", Some(300)),
            ("450 please retry in 5 minutes.", Some(300)),
            ("451 4.7.0 Try again later (in 2 hours)", Some(7200)),
            ("451 retry after 30s", Some(30)),
            ("450 Greylisted for 00:04:59, see http://example.com:25/", Some(299)),
            ("450 try again later", None),
            ("450 mailbox is over 300 MB, try again later", None),
            ("421 4.3.0 idle for 300 seconds", None),
            ("450 try again in 99999999999999999999 seconds", None),
        ] {
            assert_eq!(reply(text).retry_after(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
