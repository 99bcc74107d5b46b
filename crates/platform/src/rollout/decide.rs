//! The next step of a rollout. Pure.

/// How fast a rollout goes, and when it is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// True: the first targets go alone, and the others wait for how they fare.
    pub is_canary: bool,
    /// Targets of one step.
    pub rate: u32,
    /// Share of failures among those that have ended, above which it is stopped.
    pub abort_above: f64,
}

/// How the targets stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nothing was done about them yet.
    pub pending: u64,
    /// Ordered, and not ended.
    pub under_way: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly.
    pub failed: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Order so many more.
    Order(u64),
    /// Nothing now.
    Wait(Why),
    /// Too many failed: leave the rest alone.
    Abort,
    /// Every target has ended.
    Complete,
}

/// Why nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The first targets have not all ended.
    Canary,
    /// All are ordered, some have not ended.
    UnderWay,
    /// The rate is zero.
    Rate,
}

/// The next step. Failures stop a rollout before anything else: also its last target may be the one too many.
#[must_use]
pub fn decide(counts: Counts, pace: Pace) -> Step {
    if is_failing(counts, pace.abort_above) {
        return Step::Abort;
    }
    if counts.pending == 0 {
        return if counts.under_way == 0 { Step::Complete } else { Step::Wait(Why::UnderWay) };
    }
    let rate = u64::from(pace.rate);
    if rate == 0 {
        return Step::Wait(Why::Rate);
    }
    let begun = counts.under_way + counts.succeeded + counts.failed;
    if pace.is_canary && begun < rate {
        return Step::Order((rate - begun).min(counts.pending));
    }
    // As many as the first step had must have ended before the others begin.
    if pace.is_canary && counts.succeeded + counts.failed < rate {
        return Step::Wait(Why::Canary);
    }
    Step::Order(rate.min(counts.pending))
}

/// Whether more than the allowed share of those that ended failed. A threshold that is no number allows none.
#[must_use]
pub fn is_failing(counts: Counts, abort_above: f64) -> bool {
    let ended = counts.succeeded + counts.failed;
    let allowed = if abort_above.is_nan() { 0.0 } else { abort_above };
    #[expect(clippy::cast_precision_loss, reason = "targets are far fewer than 2^52")]
    let share = counts.failed as f64 / ended.max(1) as f64;
    counts.failed > 0 && share > allowed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(counts: (u64, u64, u64, u64), is_canary: bool, rate: u32, abort_above: f64) -> Step {
        let (pending, under_way, succeeded, failed) = counts;
        decide(Counts { pending, under_way, succeeded, failed }, Pace { is_canary, rate, abort_above })
    }

    #[test]
    fn steps_by_the_table() {
        for (counts, is_canary, rate, threshold, wanted) in [
            ((25, 0, 0, 0), false, 10, 0.1, Step::Order(10)),
            ((5, 20, 0, 0), false, 10, 0.1, Step::Order(5)),
            ((0, 3, 7, 0), false, 10, 0.1, Step::Wait(Why::UnderWay)),
            ((0, 0, 10, 0), false, 10, 0.1, Step::Complete),
            ((0, 0, 0, 0), false, 10, 0.1, Step::Complete),
            // 1 of 10 is the threshold itself; 2 of 11 are above it.
            ((5, 0, 9, 1), false, 10, 0.1, Step::Order(5)),
            ((5, 0, 9, 2), false, 10, 0.1, Step::Abort),
            ((5, 0, 0, 1), false, 10, 0.1, Step::Abort),
            ((0, 0, 8, 2), false, 10, 0.1, Step::Abort),
            ((5, 0, 0, 9), false, 10, 1.0, Step::Order(5)),
            ((5, 0, 99, 1), false, 10, 0.0, Step::Abort),
            ((5, 0, 9, 1), false, 10, f64::NAN, Step::Abort),
            ((5, 0, 0, 0), false, 0, 0.1, Step::Wait(Why::Rate)),
            ((20, 0, 0, 0), true, 3, 0.1, Step::Order(3)),
            ((18, 2, 0, 0), true, 3, 0.1, Step::Order(1)),
            ((17, 3, 0, 0), true, 3, 0.1, Step::Wait(Why::Canary)),
            ((17, 1, 2, 0), true, 3, 0.1, Step::Wait(Why::Canary)),
            ((17, 0, 3, 0), true, 3, 0.1, Step::Order(3)),
            ((2, 0, 0, 0), true, 3, 0.1, Step::Order(2)),
        ] {
            assert_eq!(
                step(counts, is_canary, rate, threshold),
                wanted,
                "{counts:?} {is_canary} {rate} {threshold}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever targets report: a rollout orders each at most once, never more than its rate at a time, and comes to an end.
        #[test]
        fn a_rollout_ends_and_orders_each_target_once(
            total in 0_u64..200,
            is_canary: bool,
            rate in 1_u32..20,
            threshold in 0.0_f64..1.0,
            ends in prop::collection::vec(any::<bool>(), 200),
        ) {
            let pace = Pace { is_canary, rate, abort_above: threshold };
            let mut counts = Counts { pending: total, ..Counts::default() };
            let mut ordered = 0;
            for _ in 0..1_000 {
                match decide(counts, pace) {
                    Step::Order(more) => {
                        prop_assert!(more > 0 && more <= u64::from(rate) && more <= counts.pending);
                        if is_canary && ordered >= u64::from(rate) {
                            prop_assert!(counts.succeeded + counts.failed >= u64::from(rate));
                        }
                        (counts.pending, counts.under_way, ordered) = (counts.pending - more, counts.under_way + more, ordered + more);
                    }
                    Step::Wait(_) => {
                        prop_assert!(counts.under_way > 0, "nothing would ever change");
                        let index = usize::try_from(counts.succeeded + counts.failed).unwrap();
                        counts.under_way -= 1;
                        if ends[index] { counts.succeeded += 1 } else { counts.failed += 1 }
                    }
                    Step::Abort => {
                        prop_assert!(is_failing(counts, threshold));
                        return Ok(());
                    }
                    Step::Complete => {
                        prop_assert_eq!(counts.succeeded + counts.failed, total);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it does not end: {counts:?}");
        }
    }
}
