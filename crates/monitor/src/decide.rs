//! When a service's state is an alert: pure.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It answered 200.
    Healthy,
    /// It answered something else.
    Degraded,
    /// Nobody could connect to it.
    Down,
    /// It was not asked yet, or what came is no answer: none in time, none that can be read, or a proxy stood between.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Down, Self::Unknown];

    /// The word in tables, documents and labels.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }

    /// The state of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }
}

/// When an alert is opened and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `HEALTH_ALERT_AFTER`. So many bad answers in a row open it.
    pub alert_after: u32,
    /// `HEALTH_RECOVER_AFTER`. So many good answers in a row close it.
    pub recover_after: u32,
    /// `SYSTEM_ALERT_ENABLED`. False opens none, and closes in silence.
    pub alerts: bool,
}

/// What is known of a service from its answers so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// By its last answer.
    pub state: State,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Bad answers since the last good one.
    pub bad_run: u32,
    /// Good answers since the last bad one.
    pub good_run: u32,
    /// When the trouble began: the first bad answer of those that opened the alert, or that may come to open one.
    pub bad_since: Option<Timestamp>,
    /// The alert that is open.
    pub alert: Option<Uuid>,
}

/// What an answer changes beside the standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An alert is opened, for trouble that began then.
    Open {
        /// When.
        since: Timestamp,
    },
    /// The alert is closed.
    Close {
        /// Which.
        alert: Uuid,
        /// When its trouble had begun.
        since: Timestamp,
        /// Whether people are told.
        told: bool,
    },
}

/// The standing after an answer, and what it changes. Anything but `healthy` is bad: who is asked at night whether a service can be
/// used does not care why it cannot.
#[must_use]
pub fn judge(
    before: Option<&Standing>,
    state: State,
    at: Timestamp,
    policy: &Policy,
) -> (Standing, Option<Change>) {
    let fresh = Standing { state, since: at, bad_run: 0, good_run: 0, bad_since: None, alert: None };
    let before = before.copied().unwrap_or(fresh);
    let mut now = Standing { state, since: if before.state == state { before.since } else { at }, ..before };
    if state == State::Healthy {
        now.good_run = before.good_run.saturating_add(1);
        now.bad_run = 0;
        let Some(alert) = before.alert else {
            now.bad_since = None;
            return (now, None);
        };
        if now.good_run < policy.recover_after {
            return (now, None);
        }
        let since = before.bad_since.unwrap_or(before.since);
        now.alert = None;
        now.bad_since = None;
        return (now, Some(Change::Close { alert, since, told: policy.alerts }));
    }
    now.bad_run = before.bad_run.saturating_add(1);
    now.good_run = 0;
    let since = before.bad_since.unwrap_or(at);
    now.bad_since = Some(since);
    let opens = policy.alerts && before.alert.is_none() && now.bad_run >= policy.alert_after;
    (now, opens.then_some(Change::Open { since }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Policy = Policy { alert_after: 2, recover_after: 2, alerts: true };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// Plays answers, one a second: h healthy, d down, g degraded, u unknown. Gives what changed, as o and c (silent: C), and the
    /// last standing.
    fn play(policy: &Policy, answers: &str) -> (String, Standing) {
        let (mut standing, mut changes): (Option<Standing>, _) = (None, String::new());
        for (second, answer) in (0..).zip(answers.chars()) {
            let state = match answer {
                'h' => State::Healthy,
                'd' => State::Down,
                'g' => State::Degraded,
                _ => State::Unknown,
            };
            let (mut now, change) = judge(standing.as_ref(), state, at(second), policy);
            match change {
                Some(Change::Open { .. }) => {
                    now.alert = Some(Uuid::nil());
                    changes.push('o');
                }
                Some(Change::Close { told, .. }) => changes.push(if told { 'c' } else { 'C' }),
                None => changes.push('.'),
            }
            standing = Some(now);
        }
        (changes, standing.expect("an answer"))
    }

    #[test]
    fn an_alert_is_opened_once_and_closed_on_recovery_with_hysteresis() {
        let once = Policy { alert_after: 1, recover_after: 1, ..ON };
        let slow = Policy { alert_after: 3, recover_after: 2, ..ON };
        let off = Policy { alerts: false, ..ON };
        for (policy, answers, changes) in [
            (ON, "hhhh", "...."),
            (ON, "d", "."),
            (ON, "dd", ".o"),
            (ON, "ddddd", ".o..."),
            // Every kind of bad counts, also mixed.
            (ON, "gg", ".o"),
            (ON, "uu", ".o"),
            (ON, "gud", ".o."),
            // One good answer between two bad ones is no alert, one bad between two good ones no recovery.
            (ON, "dhdhdh", "......"),
            (ON, "ddhdhdhh", ".o.....c"),
            (ON, "ddhhddhh", ".o.c.o.c"),
            (once, "dhdh", "ococ"),
            (once, "hd", ".o"),
            (slow, "ddhddd", ".....o"),
            (slow, "dddhh", "..o.c"),
            (off, "ddddhh", "......"),
        ] {
            assert_eq!(play(&policy, answers).0, changes, "{answers} with {policy:?}");
        }
    }

    #[test]
    fn switched_off_an_open_alert_is_closed_in_silence() {
        let open = Standing { alert: Some(Uuid::nil()), ..play(&ON, "dd").1 };
        let off = Policy { alerts: false, recover_after: 1, ..ON };
        let (now, change) = judge(Some(&open), State::Healthy, at(9), &off);
        assert_eq!(change, Some(Change::Close { alert: Uuid::nil(), since: at(0), told: false }));
        assert_eq!((now.alert, now.bad_since), (None, None));
    }

    #[test]
    fn times_say_when_the_state_and_the_trouble_began() {
        let (_, now) = play(&ON, "hhdg");
        assert_eq!((now.since, now.bad_since), (at(3), Some(at(2))), "degraded since 3, in trouble since 2");
        let (_, now) = play(&ON, "ddh");
        assert_eq!((now.since, now.bad_since), (at(2), Some(at(0))), "the alert is still open");
        let (_, now) = play(&ON, "dhd");
        assert_eq!(now.bad_since, Some(at(2)), "what opened no alert is over with the first good answer");
        let (_, now) = play(&ON, "ddhh");
        assert_eq!((now.state, now.since, now.bad_since), (State::Healthy, at(2), None));
    }

    #[test]
    fn words_and_states_are_the_same() {
        for state in State::ALL {
            assert_eq!(State::parse(state.word()), Some(state));
        }
        assert_eq!(State::parse("unhealthy"), None);
    }
}
