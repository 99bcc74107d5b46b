//! When a delivery is tried again. Pure.

use std::time::Duration;

use jiff::Timestamp;

/// When a delivery is tried again, and when an endpoint is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Waits before the first, second, … attempt.
    pub ladder: Vec<Duration>,
    /// Most by which a wait is lengthened or shortened, in percent.
    pub jitter_percent: u32,
    /// Longest `Retry-After` that is obeyed.
    pub retry_after_max: Duration,
    /// Failures in a row that open an endpoint's circuit.
    pub circuit_failures: u32,
    /// How long it rests at first.
    pub circuit_pause: Duration,
    /// How long at most.
    pub circuit_pause_max: Duration,
    /// How long an endpoint may only fail before it is disabled.
    pub disable_after: Duration,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next attempt, after this wait.
    Again(Duration),
    /// The ladder has no more rungs.
    Exhausted,
}

impl Policy {
    /// What follows the failure of the attempt that stood on `rung` (0: the first). `unit` is random, from 0 to 1.
    #[must_use]
    pub fn after(&self, rung: u32, retry_after: Option<Duration>, unit: f64) -> Step {
        let next = usize::try_from(rung).unwrap_or(usize::MAX).saturating_add(1);
        let Some(wait) = self.ladder.get(next) else { return Step::Exhausted };
        let spread = f64::from(self.jitter_percent) / 100.0;
        let wait = wait.mul_f64(1.0 + spread * (2.0 * unit.clamp(0.0, 1.0) - 1.0));
        // Never sooner than the ladder says: an endpoint cannot make us hurry.
        Step::Again(wait.max(self.rest(retry_after).unwrap_or_default()))
    }

    /// The endpoint's own wish, as far as it is obeyed.
    #[must_use]
    pub fn rest(&self, retry_after: Option<Duration>) -> Option<Duration> {
        retry_after.map(|wait| wait.min(self.retry_after_max))
    }

    /// The wait before the first attempt.
    #[must_use]
    pub fn first(&self) -> Duration {
        self.ladder.first().copied().unwrap_or_default()
    }
}

/// Reads `Retry-After`: seconds, or a date. A date that is past means no wait; anything else is no wish at all.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a wish for very long.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(value).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            ladder: [0, 5, 300].map(Duration::from_secs).to_vec(),
            jitter_percent: 10,
            retry_after_max: Duration::from_secs(3600),
            circuit_failures: 5,
            circuit_pause: Duration::from_secs(30),
            circuit_pause_max: Duration::from_secs(900),
            disable_after: Duration::from_secs(432_000),
        }
    }

    #[test]
    fn the_ladder_with_jitter_then_the_end() {
        let again = |seconds: f64| Step::Again(Duration::from_secs_f64(seconds));
        assert_eq!(policy().after(0, None, 0.5), again(5.0));
        assert_eq!(policy().after(0, None, 0.0), again(4.5));
        assert_eq!(policy().after(1, None, 1.0), again(330.0));
        assert_eq!(policy().after(2, None, 0.5), Step::Exhausted);
        assert_eq!(policy().after(u32::MAX, None, 0.5), Step::Exhausted);
    }

    #[test]
    fn a_wish_lengthens_a_wait_within_bounds_and_never_shortens_it() {
        let after = |seconds| policy().after(1, Some(Duration::from_secs(seconds)), 0.5);
        assert_eq!(after(1), Step::Again(Duration::from_secs(300)));
        assert_eq!(after(600), Step::Again(Duration::from_secs(600)));
        assert_eq!(after(1_000_000), Step::Again(Duration::from_secs(3600)));
    }

    #[test]
    fn seconds_and_dates_are_read() {
        let now: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
        let read = |text: &str| retry_after(text, now);
        assert_eq!(read(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 22 Nov 2026 03:02:00 GMT"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 22 Nov 2026 02:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999999999999999"), Some(Duration::from_secs(u64::from(u32::MAX))));
        for nonsense in ["", "soon", "-5", "1.5"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
