//! One policy type for every retry: a fixed ladder, or exponential backoff.

use std::borrow::Cow;
use std::time::Duration;

/// When a failed attempt is tried again, and when the job is given up.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryPolicy {
    /// A fixed wait after each failed attempt; when the steps are used up, the job is dead. Attempts = steps + 1.
    Ladder {
        /// The wait after the first failure, after the second, and so on.
        steps: Cow<'static, [Duration]>,
    },
    /// `base · factor^(n-1)` after the n-th failure, at most `cap`, reduced at random by up to the share `jitter`.
    Exponential {
        /// Wait after the first failure.
        base: Duration,
        /// Growth per failure; 1 keeps the wait constant.
        factor: f64,
        /// Longest wait.
        cap: Duration,
        /// 0 to 1: the largest share by which a wait is shortened at random, so that jobs which failed together do not
        /// all come back together.
        jitter: f64,
        /// Attempts in all, the first included; at least 1.
        attempts: u32,
    },
}

impl RetryPolicy {
    /// 10 attempts over about two hours: 5 s, 10 s, 20 s … capped at 30 minutes, jitter 0.2.
    pub const DEFAULT: Self = Self::Exponential {
        base: Duration::from_secs(5),
        factor: 2.0,
        cap: Duration::from_secs(1_800),
        jitter: 0.2,
        attempts: 10,
    };
    /// A single attempt: the first failure parks the job.
    pub const NEVER: Self = Self::Ladder { steps: Cow::Borrowed(&[]) };

    /// A fixed ladder of a kind.
    #[must_use]
    pub const fn ladder(steps: &'static [Duration]) -> Self {
        Self::Ladder { steps: Cow::Borrowed(steps) }
    }

    /// `attempts` attempts, doubling from `base`, at most a day apart, jitter 0.2.
    #[must_use]
    pub const fn exponential(base: Duration, attempts: u32) -> Self {
        Self::Exponential { base, factor: 2.0, cap: Duration::from_secs(86_400), jitter: 0.2, attempts }
    }

    /// Attempts in all, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match self {
            Self::Ladder { steps } => u32::try_from(steps.len()).unwrap_or(u32::MAX).saturating_add(1),
            Self::Exponential { attempts, .. } => (*attempts).max(1),
        }
    }

    /// How long to wait after the `failed`-th failed attempt (1 = the first); `None` when it was the last one.
    /// `unit` is a random number in 0..1 and decides the jitter.
    #[must_use]
    pub fn delay(&self, failed: u32, unit: f64) -> Option<Duration> {
        if failed >= self.attempts() {
            return None;
        }
        let n = failed.max(1);
        match self {
            Self::Ladder { steps } => steps.get(n as usize - 1).copied(),
            Self::Exponential { base, factor, cap, jitter, .. } => {
                let exponent = i32::try_from(n - 1).unwrap_or(i32::MAX);
                let raw = base.as_secs_f64() * factor.max(1.0).powi(exponent);
                let capped = raw.min(cap.as_secs_f64());
                let kept = 1.0 - jitter.clamp(0.0, 1.0) * unit.clamp(0.0, 1.0);
                Some(Duration::try_from_secs_f64(capped * kept).unwrap_or(*cap))
            }
        }
    }

    /// The same policy with what a queue's settings name. Only an exponential policy is changed: a ladder is a promise
    /// of its kind, not a tuning.
    #[must_use]
    pub fn overridden(&self, attempts: Option<u32>, base: Option<Duration>) -> Self {
        match self {
            Self::Exponential { base: own, factor, cap, jitter, attempts: own_attempts } => {
                let base = base.unwrap_or(*own);
                Self::Exponential {
                    base,
                    factor: *factor,
                    cap: (*cap).max(base),
                    jitter: *jitter,
                    attempts: attempts.unwrap_or(*own_attempts).max(1),
                }
            }
            Self::Ladder { .. } => self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_ladder_ends_after_its_last_step() {
        const STEPS: &[Duration] = &[s(60), s(300)];
        let ladder = RetryPolicy::ladder(STEPS);
        assert_eq!(ladder.attempts(), 3);
        assert_eq!(ladder.delay(1, 0.9), Some(s(60)));
        assert_eq!(ladder.delay(2, 0.0), Some(s(300)));
        assert_eq!(ladder.delay(3, 0.0), None);
        assert_eq!(RetryPolicy::NEVER.delay(1, 0.0), None);
    }

    #[test]
    fn exponential_grows_is_capped_and_jitters_downwards_only() {
        let policy =
            RetryPolicy::Exponential { base: s(10), factor: 3.0, cap: s(100), jitter: 0.5, attempts: 50 };
        assert_eq!(policy.delay(1, 0.0), Some(s(10)));
        assert_eq!(policy.delay(2, 0.0), Some(s(30)));
        assert_eq!(policy.delay(4, 0.0), Some(s(100)));
        assert_eq!(policy.delay(2, 1.0), Some(s(15)));
        // A power that overflows is the cap, not a panic.
        assert_eq!(policy.delay(49, 0.0), Some(s(100)));
        assert_eq!(policy.delay(50, 0.0), None);
    }

    #[test]
    fn queue_settings_change_exponential_policies_only() {
        let exponential = RetryPolicy::exponential(s(30), 3).overridden(Some(7), Some(s(60)));
        assert_eq!(exponential.attempts(), 7);
        assert_eq!(exponential.delay(1, 0.0), Some(s(60)));
        const STEPS: &[Duration] = &[s(1)];
        let ladder = RetryPolicy::ladder(STEPS);
        assert_eq!(ladder.overridden(Some(9), None), ladder);
    }
}
