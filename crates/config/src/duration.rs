use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

/// Reads a duration as people write it: `15s`, `1h30m`, `2 minutes`, `30d`; a day has 24 hours. A bare number has no unit
/// and is refused.
///
/// # Errors
/// In words: what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || "a duration with a unit, such as 15s, 5m, 1h30m or 30d".to_owned();
    let span: Span = text.trim().parse().map_err(|_| refused())?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| refused())?;
    Duration::try_from(signed).map_err(|_| "a duration that is not negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write_and_refuses_what_has_no_unit() {
        for (text, seconds) in [
            ("15s", 15),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("2 minutes", 120),
            ("30d", 2_592_000),
            (" 1w ", 604_800),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["15", "", "soon", "-5s", "5 s ago", "1y", "1.5.5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
