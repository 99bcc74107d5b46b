use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use crate::duration::parse_duration;
use crate::setting::{Declaration, Setting};

/// Type and unit of a setting, for messages and documents.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Free text.
    Text,
    /// `1,true,yes,on` or `0,false,no,off`.
    Bool,
    /// A whole number.
    Integer,
    /// A whole number of milliseconds.
    Milliseconds,
    /// A duration with its unit: `15s`.
    Duration,
    /// A duration with its unit, or a bare number of seconds.
    Seconds,
    /// A TCP port.
    Port,
    /// A URL.
    Url,
    /// `host:port`.
    Address,
    /// A path of a file or folder.
    Path,
    /// Names separated by commas.
    List,
    /// `N/s`, `N/m`, `N/h` or `N/<duration>`.
    Rate,
    /// One of a few words.
    Choice(fn() -> Vec<&'static str>),
    /// Text that is never shown.
    Secret,
    /// A URL whose user, password and query are never shown.
    SecretUrl,
}

impl Kind {
    /// The type's name in documents.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Bool => "boolean".into(),
            Self::Integer => "integer".into(),
            Self::Milliseconds => "milliseconds".into(),
            Self::Duration => "duration".into(),
            Self::Seconds => "duration or seconds".into(),
            Self::Port => "port".into(),
            Self::Url => "URL".into(),
            Self::Address => "host:port".into(),
            Self::Path => "path".into(),
            Self::List => "comma list".into(),
            Self::Rate => "rate".into(),
            Self::Choice(words) => words().join(", "),
            Self::Secret => "secret".into(),
            Self::SecretUrl => "secret URL".into(),
        }
    }

    pub(crate) fn expected(self, bounds: Option<(i64, i64)>) -> String {
        let what = match self {
            Self::Text | Self::Secret => "text".into(),
            Self::Bool => "one of 1, true, yes, on, 0, false, no, off".into(),
            Self::Integer => "a whole number".into(),
            Self::Milliseconds => "a whole number of milliseconds".into(),
            Self::Duration => "a duration with a unit, such as 15s, 5m or 1h30m".into(),
            Self::Seconds => "a duration such as 60s or 5m, or a whole number of seconds".into(),
            Self::Port => "a port from 1 to 65535".into(),
            Self::Url | Self::SecretUrl => "a URL such as scheme://host:port/path".into(),
            Self::Address => "host:port".into(),
            Self::Path => "a path".into(),
            Self::List => "names separated by commas".into(),
            Self::Rate => "a rate such as 10/s, 5/m or 100/15m".into(),
            Self::Choice(words) => format!("one of {}", words().join(", ")),
        };
        let Some((least, most)) = bounds else { return what };
        match self {
            Self::Duration | Self::Seconds => format!("{what}, from {} to {}", humane(least), humane(most)),
            _ => format!("{what} from {least} to {most}"),
        }
    }
}

/// Milliseconds as a person writes them.
pub(crate) fn humane(milliseconds: i64) -> String {
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds >= size && milliseconds % size == 0 {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    format!("{milliseconds}ms")
}

/// A type that a setting can have.
pub trait Value: Sized {
    /// Reads the text of a variable, trimmed and never empty.
    ///
    /// # Errors
    /// In words: what was expected instead. Never the text itself, which may be a secret.
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String>;

    /// Stands in for a value that is missing or wrong while the other settings are still read; never leaves
    /// [`Resolved::read`](crate::Resolved::read), which gives the violations instead.
    fn placeholder() -> Self;
}

fn bounded(value: i64, declaration: &Declaration) -> Result<i64, String> {
    match declaration.bounds {
        Some((least, most)) if !(least..=most).contains(&value) => Err(declaration.expected()),
        _ => Ok(value),
    }
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
                let number = raw.parse::<i64>().map_err(|_| declaration.expected())?;
                Self::try_from(bounded(number, declaration)?).map_err(|_| {
                    format!("{} from {} to {}", declaration.kind.expected(None), Self::MIN, Self::MAX)
                })
            }

            fn placeholder() -> Self {
                1
            }
        }
    )+};
}
integers!(u8, u16, u32, u64, i64, usize);

impl Value for bool {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        match raw.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(declaration.expected()),
        }
    }

    fn placeholder() -> Self {
        false
    }
}

impl Value for Duration {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        let whole = |unit: fn(u64) -> Self| raw.parse().map(unit).map_err(|_| declaration.expected());
        let duration = match declaration.kind {
            Kind::Milliseconds => whole(Self::from_millis),
            Kind::Seconds if raw.bytes().all(|byte| byte.is_ascii_digit()) => whole(Self::from_secs),
            _ => parse_duration(raw).map_err(|_| declaration.expected()),
        }?;
        bounded(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX), declaration)?;
        Ok(duration)
    }

    fn placeholder() -> Self {
        Self::from_secs(1)
    }
}

impl Value for String {
    fn parse(raw: &str, _declaration: &Declaration) -> Result<Self, String> {
        Ok(raw.to_owned())
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

impl Value for PathBuf {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        if raw.contains('\0') { Err(declaration.expected()) } else { Ok(Self::from(raw)) }
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

impl Value for Secret {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        if matches!(declaration.kind, Kind::SecretUrl) && !raw.contains("://") {
            return Err(declaration.expected());
        }
        Ok(Self::new(raw))
    }

    fn placeholder() -> Self {
        Self::new(String::new())
    }
}

impl Value for Url {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        Self::parse(raw).map_err(|_| declaration.expected())
    }

    #[expect(clippy::expect_used, reason = "a constant; the test of placeholders parses it")]
    fn placeholder() -> Self {
        Self::parse("invalid:").expect("a constant URL")
    }
}

impl Value for Vec<String> {
    fn parse(raw: &str, _declaration: &Declaration) -> Result<Self, String> {
        Ok(raw.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
    }

    fn placeholder() -> Self {
        Self::new()
    }
}

/// A host name or address with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name, IPv4 address, or IPv6 address without brackets; empty where the text began with the colon.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
}

impl Value for Address {
    fn parse(raw: &str, declaration: &Declaration) -> Result<Self, String> {
        let (host, port) = raw.rsplit_once(':').ok_or_else(|| declaration.expected())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| declaration.expected())?;
        if bare.contains(['/', '@', ' ']) || (bare.contains(':') && bare == host) {
            return Err(declaration.expected());
        }
        Ok(Self { host: bare.to_owned(), port })
    }

    fn placeholder() -> Self {
        Self { host: String::new(), port: 1 }
    }
}

/// So many in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In how long; never zero.
    pub per: Duration,
}

impl Rate {
    /// Reads `10/s`, `5/m`, `100/15m`.
    ///
    /// # Errors
    /// In words: what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || Kind::Rate.expected(None);
        let (count, per) = text.trim().split_once('/').ok_or_else(expected)?;
        let per = per.trim();
        let per =
            if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
        let per = parse_duration(&per).map_err(|_| expected())?;
        let count = count.trim().parse().map_err(|_| expected())?;
        if count == 0 || per.is_zero() { Err(expected()) } else { Ok(Self { count, per }) }
    }
}

impl Value for Rate {
    fn parse(raw: &str, _declaration: &Declaration) -> Result<Self, String> {
        Self::parse(raw)
    }

    fn placeholder() -> Self {
        Self { count: 1, per: Duration::from_secs(1) }
    }
}

/// An enum whose values are words. Implement it by `choices!`, which also makes it a [`Value`].
pub trait Choice: Sized + Copy + 'static {
    /// Every word with its meaning; words are lower case and read in any case.
    const WORDS: &'static [(&'static str, Self)];
}

/// Makes an enum a setting's type: `choices! { SslMode { Disable = "disable", Require = "require" } }`.
macro_rules! choices {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $crate::Choice for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
        impl $crate::Value for $type {
            fn parse(raw: &str, declaration: &$crate::Declaration) -> Result<Self, String> {
                let found = <Self as $crate::Choice>::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(raw));
                found.map(|(_, value)| *value).ok_or_else(|| declaration.expected())
            }

            fn placeholder() -> Self {
                <Self as $crate::Choice>::WORDS[0].1
            }
        }
    };
}
pub(crate) use choices;

/// The words a catalogue makes settings with: one constructor per [`Kind`].
pub(crate) mod kinds {
    use super::{Address, Choice, Duration, Kind, PathBuf, Rate, Secret, Setting, Url, Value};

    pub(crate) const fn text() -> Setting<String> {
        Setting::of(Kind::Text)
    }
    pub(crate) const fn boolean() -> Setting<bool> {
        Setting::of(Kind::Bool)
    }
    pub(crate) const fn integer<T: Value>() -> Setting<T> {
        Setting::of(Kind::Integer)
    }
    pub(crate) const fn millis() -> Setting<Duration> {
        Setting::of(Kind::Milliseconds)
    }
    pub(crate) const fn duration() -> Setting<Duration> {
        Setting::of(Kind::Duration)
    }
    pub(crate) const fn seconds() -> Setting<Duration> {
        Setting::of(Kind::Seconds)
    }
    pub(crate) const fn port() -> Setting<u16> {
        Setting::of(Kind::Port).between(1, 65_535)
    }
    pub(crate) const fn url() -> Setting<Url> {
        Setting::of(Kind::Url)
    }
    pub(crate) const fn address() -> Setting<Address> {
        Setting::of(Kind::Address)
    }
    pub(crate) const fn path() -> Setting<PathBuf> {
        Setting::of(Kind::Path)
    }
    pub(crate) const fn list() -> Setting<Vec<String>> {
        Setting::of(Kind::List)
    }
    pub(crate) const fn rate() -> Setting<Rate> {
        Setting::of(Kind::Rate)
    }
    pub(crate) const fn choice<T: Choice + Value>() -> Setting<T> {
        Setting::of(Kind::Choice(words::<T>))
    }
    pub(crate) const fn secret() -> Setting<Secret> {
        Setting::of(Kind::Secret).source(crate::Source::SecretsManager)
    }
    pub(crate) const fn secret_url() -> Setting<Secret> {
        Setting::of(Kind::SecretUrl).source(crate::Source::SecretsManager)
    }

    fn words<T: Choice>() -> Vec<&'static str> {
        T::WORDS.iter().map(|(word, _)| *word).collect()
    }
}
