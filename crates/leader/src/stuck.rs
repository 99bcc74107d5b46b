//! Finds a lease that nobody renews and that will not run out by itself.

use std::time::Duration;

use voiceai_runtime::BootTime;

use crate::lease::Text;

/// What to do about the value that was just seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It runs out by itself, or it has not been watched for long enough.
    Wait {
        /// It would not run out by itself.
        odd: bool,
    },
    /// Nobody has renewed it for as long as a lease lasts: let it run out.
    Mend {
        /// Longest remaining time that is not odd.
        not_stuck: Duration,
    },
}

/// A follower's memory of an odd lease: one without a time limit, or with more time left than its holder ever gives it
/// (PERSIST, EXPIRE, a wall clock that was set back). A holder that lives sets the right time at its next renewal, so
/// one that stays odd for its whole length has no holder.
#[derive(Debug, Default)]
pub(crate) struct Watched(Option<(Vec<u8>, i64, BootTime)>);

impl Watched {
    pub(crate) fn look(&mut self, text: &Text, own_ttl: Duration, now: BootTime) -> Verdict {
        let given = text.written().map(|w| Duration::from_millis(w.ttl_ms));
        let not_stuck = given.unwrap_or(own_ttl * 2).max(own_ttl);
        let odd = match (text.left, given) {
            (None, _) => true,
            (Some(left), Some(_)) => left > not_stuck,
            // Not ours, but it ends: whoever wrote it knew for how long.
            (Some(_), None) => false,
        };
        if !odd {
            self.0 = None;
            return Verdict::Wait { odd };
        }
        match &self.0 {
            Some((value, length, since)) if *value == text.value && *length == text.length => {
                if now.duration_since(*since) > not_stuck {
                    Verdict::Mend { not_stuck }
                } else {
                    Verdict::Wait { odd }
                }
            }
            _ => {
                self.0 = Some((text.value.clone(), text.length, now));
                Verdict::Wait { odd }
            }
        }
    }

    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{LeaderRecord, Written};

    const TTL: Duration = Duration::from_secs(10);

    fn at(second: u64) -> BootTime {
        BootTime::from_millis(second * 1_000)
    }

    fn text(value: Vec<u8>, left: Option<u64>) -> Text {
        let length = i64::try_from(value.len()).unwrap();
        Text { value, length, left: left.map(Duration::from_secs) }
    }

    fn lease(pid: u32, ttl_ms: u64, left: Option<u64>) -> Text {
        let record = LeaderRecord {
            instance_id: "a".into(),
            host: "h".into(),
            pid,
            term: 1,
            elected_at: jiff::Timestamp::UNIX_EPOCH,
        };
        text(serde_json::to_vec(&Written { record, nonce: uuid::Uuid::nil(), ttl_ms }).unwrap(), left)
    }

    #[test]
    fn a_lease_without_a_limit_is_mended_after_its_own_length() {
        let mut watched = Watched::default();
        assert_eq!(watched.look(&lease(1, 10_000, None), TTL, at(100)), Verdict::Wait { odd: true });
        assert_eq!(watched.look(&lease(1, 10_000, None), TTL, at(110)), Verdict::Wait { odd: true });
        assert_eq!(watched.look(&lease(1, 10_000, None), TTL, at(111)), Verdict::Mend { not_stuck: TTL });
    }

    #[test]
    fn one_that_is_renewed_or_replaced_meanwhile_is_left_alone() {
        let mut watched = Watched::default();
        watched.look(&lease(1, 10_000, None), TTL, at(100));
        assert_eq!(watched.look(&lease(1, 10_000, Some(10)), TTL, at(105)), Verdict::Wait { odd: false });
        assert_eq!(watched.look(&lease(1, 10_000, None), TTL, at(111)), Verdict::Wait { odd: true });
        assert_eq!(watched.look(&lease(2, 10_000, None), TTL, at(122)), Verdict::Wait { odd: true });
    }

    #[test]
    fn more_time_than_the_holder_gives_is_odd_but_a_longer_setting_is_not() {
        let mut watched = Watched::default();
        assert_eq!(watched.look(&lease(1, 10_000, Some(3_600)), TTL, at(1)), Verdict::Wait { odd: true });
        assert_eq!(
            watched.look(&lease(1, 10_000, Some(3_589)), TTL, at(12)),
            Verdict::Mend { not_stuck: TTL }
        );
        assert_eq!(watched.look(&lease(1, 60_000, Some(60)), TTL, at(13)), Verdict::Wait { odd: false });
    }

    #[test]
    fn a_foreign_text_is_given_twice_the_time_and_only_when_it_would_stay_for_ever() {
        let mut watched = Watched::default();
        let foreign = |left| text(b"maintenance".to_vec(), left);
        assert_eq!(watched.look(&foreign(Some(86_400)), TTL, at(1)), Verdict::Wait { odd: false });
        assert_eq!(watched.look(&foreign(None), TTL, at(2)), Verdict::Wait { odd: true });
        assert_eq!(watched.look(&foreign(None), TTL, at(22)), Verdict::Wait { odd: true });
        assert_eq!(watched.look(&foreign(None), TTL, at(23)), Verdict::Mend { not_stuck: TTL * 2 });
    }
}
