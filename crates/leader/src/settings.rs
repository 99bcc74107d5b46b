use std::time::Duration;

use voiceai_runtime::BootTime;

/// Shortest heartbeat: below it, ordinary scheduling delays would look like lost renewals.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// However long the lease: an answer that takes longer than these is no answer.
const CALL_MAX: Duration = Duration::from_secs(5);
const ISSUE_MAX: Duration = Duration::from_secs(30);

/// What an election is about and how fast it is.
#[derive(Clone, Debug)]
pub struct LeaderSettings {
    /// `LEADER_ELECTION_KEY` or `TASKER_LEADER_ELECTION_KEY`: the Redis key, and the election's name in PostgreSQL.
    pub key: String,
    /// `LEADER_HEARTBEAT_INTERVAL_MS`. The leader renews and followers poll this often. Default 5 s.
    pub heartbeat: Duration,
    /// `LEADER_LOCK_TTL_MS`. How long the lease lasts unless renewed. Default 10 s; at least twice the heartbeat.
    pub lock_ttl: Duration,
    /// `INSTANCE_ID`.
    pub instance_id: String,
    /// Host name.
    pub host: String,
}

/// The settings contradict each other or make no election.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// One lost renewal would already end a healthy leader.
    #[error(
        "LEADER_LOCK_TTL_MS ({ttl_ms}) is less than twice LEADER_HEARTBEAT_INTERVAL_MS ({heartbeat_ms}): \
         raise the first to at least {least_ms} or lower the second"
    )]
    TtlTooShort {
        /// LEADER_LOCK_TTL_MS.
        ttl_ms: u128,
        /// LEADER_HEARTBEAT_INTERVAL_MS.
        heartbeat_ms: u128,
        /// The least LEADER_LOCK_TTL_MS for this heartbeat.
        least_ms: u128,
    },
    /// Too short to be kept.
    #[error("LEADER_HEARTBEAT_INTERVAL_MS ({0}) is less than 50: raise it")]
    HeartbeatTooShort(u128),
    /// There is no key.
    #[error("the leader election key is empty: set LEADER_ELECTION_KEY (TASKER_LEADER_ELECTION_KEY)")]
    NoKey,
}

impl LeaderSettings {
    /// Checks the rules between the settings.
    ///
    /// # Errors
    /// Names both settings and what would be right.
    pub fn validate(&self) -> Result<(), SettingsError> {
        if self.key.is_empty() {
            return Err(SettingsError::NoKey);
        }
        if self.heartbeat < HEARTBEAT_MIN {
            return Err(SettingsError::HeartbeatTooShort(self.heartbeat.as_millis()));
        }
        if self.lock_ttl < self.heartbeat * 2 {
            return Err(SettingsError::TtlTooShort {
                ttl_ms: self.lock_ttl.as_millis(),
                heartbeat_ms: self.heartbeat.as_millis(),
                least_ms: self.heartbeat.as_millis() * 2,
            });
        }
        Ok(())
    }

    /// Where the copy of the term beside the lease stands: in the leader key's own Cluster slot.
    #[must_use]
    pub fn term_key(&self) -> String {
        term_key(&self.key)
    }
}

/// `{<key>}:term`; a key that already carries a hash tag keeps that tag, else the two would be in different slots.
pub(crate) fn term_key(key: &str) -> String {
    let tagged = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .is_some_and(|(tag, _)| !tag.is_empty());
    if tagged { format!("{key}:term") } else { format!("{{{key}}}:term") }
}

/// Every span of time of an election, derived from heartbeat and TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
    pub(crate) ttl: Duration,
    /// How long after a renewal was *sent* the lease may be trusted: the TTL less a tenth, for clocks that run at
    /// different rates.
    pub(crate) window: Duration,
    /// Limit of one Redis call. Two calls fit between a missed heartbeat and the end of the window, so that one lost
    /// reply never ends a tenure.
    pub(crate) call: Duration,
    /// Wait between renewals while the outcome of the last one is unknown.
    pub(crate) retry: Duration,
    /// Limit of the statement that issues a term: it has to end while the lease is still ours.
    pub(crate) issue: Duration,
}

impl Timing {
    pub(crate) fn of(settings: &LeaderSettings) -> Self {
        let (heartbeat, ttl) = (settings.heartbeat, settings.lock_ttl);
        let window = ttl - ttl / 10;
        let call = (heartbeat * 4 / 5)
            .min(window.saturating_sub(heartbeat) / 2)
            .clamp(Duration::from_millis(10), CALL_MAX);
        Self {
            heartbeat,
            ttl,
            window,
            call,
            retry: (heartbeat / 10).clamp(Duration::from_millis(10), Duration::from_millis(500)),
            issue: window.saturating_sub(call * 2).clamp(call, ISSUE_MAX.max(call)),
        }
    }

    /// Until when a lease is trusted that was asked for at `sent`.
    pub(crate) const fn trusted_until(&self, sent: BootTime) -> BootTime {
        sent.saturating_add(self.window)
    }

    /// When a follower looks again: at the heartbeat, jittered downward so that candidates do not come in step; earlier
    /// when the lease it saw runs out earlier, which only a missing leader lets happen.
    pub(crate) fn poll(&self, left: Option<Duration>, unit: f64) -> Duration {
        let unit = unit.clamp(0.0, 1.0);
        let usual = self.heartbeat.mul_f64(0.8 + 0.2 * unit);
        left.map_or(usual, |left| {
            usual.min(left + Duration::from_millis(1) + self.heartbeat.mul_f64(0.1 * unit))
        })
    }

    /// The longest one turn of the loop may take. A loop without progress for longer is stuck.
    pub(crate) fn turn_max(&self) -> Duration {
        self.ttl * 3 + Duration::from_secs(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(heartbeat_ms: u64, ttl_ms: u64) -> LeaderSettings {
        LeaderSettings {
            key: "voiceai:scaler:leader".into(),
            heartbeat: Duration::from_millis(heartbeat_ms),
            lock_ttl: Duration::from_millis(ttl_ms),
            instance_id: "a".into(),
            host: "h".into(),
        }
    }

    #[test]
    fn the_rules_name_both_settings() {
        assert_eq!(settings(5_000, 10_000).validate(), Ok(()));
        let text = settings(5_000, 9_999).validate().unwrap_err().to_string();
        for part in ["LEADER_LOCK_TTL_MS (9999)", "LEADER_HEARTBEAT_INTERVAL_MS (5000)", "10000"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(matches!(settings(49, 10_000).validate(), Err(SettingsError::HeartbeatTooShort(49))));
        let nameless = LeaderSettings { key: String::new(), ..settings(100, 1_000) };
        assert_eq!(nameless.validate(), Err(SettingsError::NoKey));
    }

    #[test]
    fn two_calls_fit_between_a_missed_heartbeat_and_the_end_of_trust() {
        for (heartbeat, ttl) in
            [(50, 100), (250, 1_000), (5_000, 10_000), (5_000, 60_000), (600_000, 3_600_000)]
        {
            let t = Timing::of(&settings(heartbeat, ttl));
            assert!(t.heartbeat + t.call * 2 <= t.window, "{t:?}");
            assert!(t.call < t.heartbeat && t.window < t.ttl, "{t:?}");
            assert!(t.issue + t.call * 2 <= t.window, "{t:?}");
        }
    }

    #[test]
    fn a_follower_looks_again_when_the_lease_it_saw_ends_and_never_later_than_the_heartbeat() {
        let t = Timing::of(&settings(5_000, 10_000));
        assert_eq!(t.poll(None, 0.0), Duration::from_millis(4_000));
        assert_eq!(t.poll(Some(Duration::from_millis(9_000)), 1.0), Duration::from_millis(5_000));
        assert_eq!(t.poll(Some(Duration::from_millis(300)), 0.0), Duration::from_millis(301));
        assert_eq!(t.poll(Some(Duration::from_millis(300)), 1.0), Duration::from_millis(801));
    }

    #[test]
    fn the_copy_of_the_term_shares_the_keys_slot() {
        assert_eq!(term_key("voiceai:scaler:leader"), "{voiceai:scaler:leader}:term");
        assert_eq!(term_key("{eu}:leader"), "{eu}:leader:term");
    }
}
