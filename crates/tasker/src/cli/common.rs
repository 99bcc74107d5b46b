//! Arguments that many commands share.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use voiceai_cli::{duration_arg, rate_arg, time_arg};

/// A page of a long list.
#[derive(Clone, Debug, Args)]
pub struct Page {
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Go on after the page that ended with this `next`
    #[arg(long, value_name = "NEXT")]
    pub cursor: Option<String>,
}

/// A moment: a time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(Timestamp),
    /// This long before now.
    Ago(Duration),
}

impl When {
    /// The moment, seen from `now`.
    #[must_use]
    pub fn timestamp(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }

    /// One written form for the same meaning: `2h` stays relative, a time becomes UTC.
    #[must_use]
    pub fn normalised(self) -> String {
        match self {
            Self::At(at) => at.to_string(),
            Self::Ago(ago) => format!("{}s", ago.as_secs_f64()),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        time_arg(text).map(Self::At).or_else(|_| duration_arg(text).map(Self::Ago)).map_err(|_| {
            "expected a time such as 2026-11-22T03:00:00Z, or how long ago, such as 2h".to_owned()
        })
    }
}

/// A bounded rate, in items a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerSecond(
    /// Items a second.
    pub f64,
);

impl FromStr for PerSecond {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = rate_arg(text)?;
        Ok(Self(f64::from(rate.count) / rate.per.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<When>().unwrap().timestamp(now).to_string();
        assert_eq!(at("2026-11-20T01:00:00+01:00"), "2026-11-20T00:00:00Z");
        assert_eq!(at("90m"), "2026-11-22T01:30:00Z");
        assert!("soon".parse::<When>().unwrap_err().contains("2h"));
    }

    #[test]
    fn the_same_moment_has_one_written_form() {
        let form = |text: &str| text.parse::<When>().unwrap().normalised();
        assert_eq!(form("120m"), form("2h"));
        assert_eq!(form("2026-11-20T01:00:00+01:00"), form("2026-11-20T00:00:00Z"));
        assert_ne!(form("2h"), form("3h"));
    }

    #[test]
    fn a_rate_is_per_second() {
        assert_eq!("5/s".parse(), Ok(PerSecond(5.0)));
        assert_eq!("30/m".parse(), Ok(PerSecond(0.5)));
        assert!("5".parse::<PerSecond>().is_err());
        assert!("0/s".parse::<PerSecond>().is_err());
    }
}
