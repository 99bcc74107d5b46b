//! How fast handlers and calls are, and what follows for fetching ahead. Pure.

use std::time::Duration;

/// Most jobs in this process that have not begun.
const PREFETCH_MAX: usize = 1_024;
/// Kinds slower than this are never prefetched: their jobs would wait here while another worker idles.
const PREFETCH_BELOW: Duration = Duration::from_millis(5);

/// How fast handlers and calls are, as moving means.
pub(super) struct Pace {
    run: Duration,
    call: Duration,
    samples: u32,
}

impl Pace {
    pub(super) const fn unknown() -> Self {
        Self { run: Duration::from_secs(1), call: Duration::from_micros(500), samples: 0 }
    }

    pub(super) fn ran(&mut self, took: Duration) {
        self.samples = self.samples.saturating_add(1);
        self.run = if self.samples == 1 { took } else { (self.run * 15 + took) / 16 };
    }

    /// Handlers are not what they were: measured anew.
    pub(super) fn forget_runs(&mut self) {
        *self = Self { call: self.call, ..Self::unknown() };
    }

    pub(super) fn called(&mut self, took: Duration) {
        self.call = (self.call * 7 + took.min(Duration::from_millis(50))) / 8;
    }

    /// Handlers end before a task for them would have begun.
    pub(super) fn is_instant(&self) -> bool {
        self.samples >= 32 && self.run < Duration::from_micros(100)
    }

    /// Jobs to hold beyond the slots, so that none of them waits for the next lot: what is worked off in two calls.
    pub(super) fn prefetch(&self, slots: usize) -> usize {
        if self.samples < 32 || self.run >= PREFETCH_BELOW {
            return 0;
        }
        let per_slot = (self.call * 2).as_nanos() / self.run.as_nanos().max(200);
        usize::try_from(per_slot).unwrap_or(PREFETCH_MAX).saturating_mul(slots).min(PREFETCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fast_handlers_are_prefetched() {
        let mut pace = Pace::unknown();
        assert_eq!(pace.prefetch(100), 0, "nothing is known yet");
        for _ in 0..100 {
            pace.ran(Duration::from_micros(5));
        }
        assert_eq!(pace.prefetch(100), PREFETCH_MAX);
        for _ in 0..100 {
            pace.ran(Duration::from_millis(50));
        }
        assert_eq!(pace.prefetch(500), 0);
    }
}
