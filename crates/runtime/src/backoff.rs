use std::time::Duration;

/// Exponential waiting times for retries inside a process: reconnecting, re-electing, re-reading.
///
/// The wait before retry `n` (0 is the first) is `base · factor^n`, at most `cap`, moved by up to ± `jitter` (a share
/// of 0 to 1) so that many instances do not return in step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Wait before the first retry.
    pub base: Duration,
    /// Growth from one retry to the next.
    pub factor: f64,
    /// Longest wait before jitter.
    pub cap: Duration,
    /// Largest relative deviation, 0 to 1.
    pub jitter: f64,
}

impl Backoff {
    /// 100 ms doubling to 5 s, ± 20 %: for backends that come back by themselves.
    pub const RECONNECT: Self =
        Self { base: Duration::from_millis(100), factor: 2.0, cap: Duration::from_secs(5), jitter: 0.2 };

    /// The wait before retry `n`, with `unit` a random number in 0..1 (0.5 gives the middle).
    #[must_use]
    pub fn delay(&self, n: u32, unit: f64) -> Duration {
        let exponent = i32::try_from(n.min(1000)).unwrap_or(1000);
        let cap = self.cap.as_secs_f64();
        // `powi` may reach infinity, which `min` brings back to the cap.
        let middle = (self.base.as_secs_f64() * self.factor.powi(exponent)).min(cap);
        let jitter = self.jitter.clamp(0.0, 1.0);
        Duration::from_secs_f64((middle * (1.0 + jitter * (2.0 * unit.clamp(0.0, 1.0) - 1.0))).max(0.0))
    }
}

/// A random number in 0..1, for [`Backoff::delay`].
#[must_use]
pub fn random_unit() -> f64 {
    rand::random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_jitter_stays_in_its_share() {
        let b = Backoff {
            base: Duration::from_millis(100),
            factor: 2.0,
            cap: Duration::from_secs(1),
            jitter: 0.5,
        };
        assert_eq!(b.delay(0, 0.5), Duration::from_millis(100));
        assert_eq!(b.delay(2, 0.5), Duration::from_millis(400));
        assert_eq!(b.delay(u32::MAX, 0.5), Duration::from_secs(1));
        assert_eq!(b.delay(2, 0.0), Duration::from_millis(200));
        assert_eq!(b.delay(2, 1.0), Duration::from_millis(600));
    }
}
