use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use voiceai_config::{Rate, parse_duration};

/// Arguments of every command that prints data.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OutputArgs {
    /// Print one JSON document on stdout, and errors as JSON on stderr
    #[arg(long, global = true)]
    pub json: bool,
}

/// Arguments of every command that changes something.
#[derive(Debug, Clone, Default, Args)]
pub struct Mutation {
    /// Show what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask; needed where stdin or stderr is no terminal
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT", value_parser = reason_arg)]
    pub reason: Option<String>,
    /// Who is acting, for the audit trail; in a container this or VOICEAI_OPERATOR is required
    #[arg(long = "as", value_name = "NAME")]
    pub as_name: Option<String>,
}

/// Reads `15m` or `1h30m`.
///
/// # Errors
/// In words for clap.
pub fn duration_arg(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|expected| format!("expected {expected}"))
}

/// Reads `10/s` or `100/15m`.
///
/// # Errors
/// In words for clap.
pub fn rate_arg(text: &str) -> Result<Rate, String> {
    Rate::parse(text).map_err(|expected| format!("expected {expected}"))
}

/// Reads an RFC 3339 time with its offset; a time without one would mean another moment on another host.
///
/// # Errors
/// In words for clap.
pub fn time_arg(text: &str) -> Result<Timestamp, String> {
    text.trim().parse().map_err(|_| "expected an RFC 3339 time such as 2026-09-30T14:00:00Z".to_owned())
}

fn reason_arg(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected some words".to_owned()),
        text if text.chars().count() > 1_000 => Err("expected at most 1000 characters".to_owned()),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_an_offset() {
        assert_eq!(time_arg("2026-09-30T16:00:00+02:00"), time_arg("2026-09-30T14:00:00Z"));
        for wrong in ["2026-09-30T14:00:00", "2026-09-30", "yesterday", "14:00", ""] {
            assert!(time_arg(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_reason_says_something() {
        assert!(reason_arg("  ").is_err());
        assert!(reason_arg(&"x".repeat(1_001)).is_err());
        assert_eq!(reason_arg(" queue was stuck ").unwrap(), "queue was stuck");
    }
}
