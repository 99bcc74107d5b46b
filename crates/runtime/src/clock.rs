use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Time since the machine booted, time in suspend included (`CLOCK_BOOTTIME`).
///
/// Leases and progress are measured on this clock: it never jumps with the wall clock, and unlike the monotonic clock
/// it goes on while the machine sleeps, so a lease cannot outlive a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(Duration);

impl BootTime {
    /// The boot itself: earlier than every reading.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// A reading of `millis` milliseconds since boot.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Whole milliseconds since boot.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// This moment plus `span`; stays at the largest value instead of overflowing.
    #[must_use]
    pub const fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// How long after `earlier` this moment is; zero when it is not after it.
    #[must_use]
    pub const fn duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Reads `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot_now() -> BootTime {
    let t = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
    BootTime(Duration::new(secs, nanos))
}

/// Where a decision gets its time from, so that a test can hand it another.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time: for people, schedules and rows. Never for a lease.
    fn now(&self) -> Timestamp;
    /// Boot time: for leases, deadlines and progress inside this process.
    fn boot(&self) -> BootTime;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boot(&self) -> BootTime {
        boot_now()
    }
}

/// A clock that a test moves by hand. Both readings move together.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Timestamp, BootTime)>);

impl ManualClock {
    /// Starts at `now`, one hour after boot.
    #[must_use]
    pub const fn at(now: Timestamp) -> Self {
        Self(Mutex::new((now, BootTime::from_millis(3_600_000))))
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut t = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        t.0 = t.0.saturating_add(by).unwrap_or(Timestamp::MAX);
        t.1 = t.1.saturating_add(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn boot(&self) -> BootTime {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_moves_forward_and_differences_saturate() {
        let a = boot_now();
        let b = boot_now();
        assert!(b >= a && a > BootTime::ZERO);
        assert_eq!(BootTime::from_millis(5).duration_since(BootTime::from_millis(9)), Duration::ZERO);
        assert_eq!(
            BootTime::from_millis(9).duration_since(BootTime::from_millis(5)),
            Duration::from_millis(4)
        );
    }

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = ManualClock::at("2026-10-25T00:59:59Z".parse().unwrap());
        let before = (clock.now(), clock.boot());
        assert_eq!(before, (clock.now(), clock.boot()));
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.now().to_string(), "2026-10-25T01:00:01Z");
        assert_eq!(clock.boot().duration_since(before.1), Duration::from_secs(2));
    }
}
