//! How fast handlers and calls are, and what follows for fetching ahead. Pure.

use std::time::Duration;

/// Most jobs that one take asks for beyond the free slots.
pub(super) const LOT: usize = 512;
/// Most jobs in this process that have not begun. The stock is filled up from half of this, so one lot is worked off while
/// the envelopes of the next are read and the server makes up a third: with less, both sides wait for each other by turns.
const PREFETCH_MAX: usize = 4 * LOT;
/// Handlers that never wait share the cores rather than the slots, so of them no more is fetched ahead than one core works off
/// in this time.
const STOCK_MAX: Duration = Duration::from_millis(20);
/// Kinds slower than this are never prefetched: their jobs would wait here while another worker idles.
const PREFETCH_BELOW: Duration = Duration::from_millis(5);

/// How fast handlers and calls are, as moving means.
pub(super) struct Pace {
    run: Duration,
    /// The same over many more runs: one that was held up by the machine does not show in it.
    steady: Duration,
    call: Duration,
    samples: u32,
}

impl Pace {
    pub(super) const fn unknown() -> Self {
        let run = Duration::from_secs(1);
        Self { run, steady: run, call: Duration::from_micros(500), samples: 0 }
    }

    pub(super) fn ran(&mut self, took: Duration) {
        self.samples = self.samples.saturating_add(1);
        if self.samples == 1 {
            (self.run, self.steady) = (took, took);
        }
        self.run = (self.run * 15 + took) / 16;
        self.steady = (self.steady * 1_023 + took) / 1_024;
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
        let run = self.run.as_nanos().max(200);
        let per_slot = (self.call * 2).as_nanos() / run;
        let ahead = usize::try_from(per_slot).unwrap_or(PREFETCH_MAX).saturating_mul(slots);
        let most = if self.is_instant() {
            STOCK_MAX.as_nanos() / self.steady.as_nanos().max(200)
        } else {
            u128::MAX
        };
        ahead.min(usize::try_from(most).unwrap_or(PREFETCH_MAX)).min(PREFETCH_MAX)
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
        pace.ran(Duration::from_millis(2));
        for _ in 0..50 {
            pace.ran(Duration::from_micros(5));
        }
        assert_eq!(pace.prefetch(100), PREFETCH_MAX, "one was held up by the machine");
        for _ in 0..10_000 {
            pace.ran(Duration::from_micros(80));
        }
        assert!((200..300).contains(&pace.prefetch(100)), "20 ms of one core: {}", pace.prefetch(100));
        for _ in 0..100 {
            pace.ran(Duration::from_millis(1));
        }
        assert_eq!(pace.prefetch(100), 100, "those that wait use every slot");
        for _ in 0..100 {
            pace.ran(Duration::from_millis(50));
        }
        assert_eq!(pace.prefetch(500), 0);
    }
}
