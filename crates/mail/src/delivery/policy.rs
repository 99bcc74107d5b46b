use std::time::Duration;

use voiceai_config::catalogue::mail::OnUnknown;

use crate::Class;
use crate::transport::{Axis, Outcome, Reason};

/// When a mail is tried again, and when no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `MAIL_RETRY_LADDER`. Waits before the second, third, … attempt.
    pub ladder: Vec<Duration>,
    /// `MAIL_RETRY_JITTER`. Percent by which a wait is moved either way.
    pub jitter_percent: u32,
    /// `MAIL_RETRY_HINT_MAX`. Longest delay that a server's own hint is obeyed for.
    pub hint_max: Duration,
    /// `MAIL_MAX_AGE`.
    pub max_age: Duration,
    /// `MAIL_LOGIN_CODE_LIFETIME`. The same for the class `auth`.
    pub login_code_lifetime: Duration,
    /// `MAIL_PROVIDER_PAUSE`. First pause after a fault of the provider as a whole.
    pub provider_pause: Duration,
    /// `MAIL_UNKNOWN_<CLASS>`, where it is not `retry`.
    pub hold_unknown: Vec<Class>,
    /// `MAIL_HARD_BOUNCE_SUPPRESSION`. How long a mailbox that is not there is left alone; zero: it is not.
    pub hard_bounce: Duration,
}

/// Enhanced codes that speak of this one mailbox, for good: there is none, it has moved away, its domain takes no mail. A reply
/// without such a code may mean anything, and a domain that cannot be found (5.1.2) may be the relay's own trouble.
const NO_MAILBOX: [&str; 3] = ["5.1.1", "5.1.6", "5.1.10"];

/// So often a process may end in the middle of an attempt at one mail before that mail is taken for the cause.
pub(super) const CRASHES_MAX: u32 = 5;
/// An automatic pause grows to so many times its first length.
const PAUSE_GROWTH_MAX: u32 = 32;

impl Policy {
    /// How old a mail of `class` may become.
    #[must_use]
    pub fn max_age_of(&self, class: Class) -> Duration {
        match class {
            Class::Auth => self.max_age.min(self.login_code_lifetime),
            _ => self.max_age,
        }
    }

    /// What is done with a mail of `class` whose outcome is unknown.
    #[must_use]
    pub fn on_unknown(&self, class: Class) -> OnUnknown {
        if self.hold_unknown.contains(&class) { OnUnknown::Hold } else { OnUnknown::Retry }
    }

    /// The wait before the attempt after the one on `rung`; `None`: there is none. `unit` is a random number in 0..1.
    #[must_use]
    pub fn wait_after(&self, rung: u32, hint: Option<Duration>, unit: f64) -> Option<Duration> {
        let rung = usize::try_from(rung).ok()?;
        let wait = jittered(*self.ladder.get(rung)?, self.jitter_percent, unit);
        // A server that names a time knows better than the ladder, within reason; it is never asked earlier than it said.
        Some(hint.map_or(wait, |hint| wait.max(hint.min(self.hint_max))))
    }

    /// How long nobody is to write to the recipient after `outcome`; `None`: it says nothing against the address.
    #[must_use]
    pub fn suppress_after(&self, outcome: &Outcome) -> Option<Duration> {
        let Outcome::Refused { axis: Axis::Recipient, summary } = outcome else { return None };
        let gone = summary.reason == Reason::Mailbox
            && summary.enhanced.as_deref().is_some_and(|code| NO_MAILBOX.contains(&code));
        (gone && !self.hard_bounce.is_zero()).then_some(self.hard_bounce)
    }

    /// How long the provider rests after the `faults`th fault in a row (1 is the first).
    #[must_use]
    pub fn pause_after(&self, faults: u32, hint: Option<Duration>) -> Duration {
        let growth = 2_u32.saturating_pow(faults.saturating_sub(1)).min(PAUSE_GROWTH_MAX);
        let pause = self.provider_pause.saturating_mul(growth);
        hint.map_or(pause, |hint| pause.max(hint.min(self.hint_max)))
    }
}

fn jittered(wait: Duration, percent: u32, unit: f64) -> Duration {
    let share = f64::from(percent.min(100)) / 100.0;
    wait.mul_f64((1.0 + share * (2.0 * unit.clamp(0.0, 1.0) - 1.0)).max(0.0))
}

#[cfg(test)]
pub(super) fn policy() -> Policy {
    let minutes = |m: u64| Duration::from_secs(m * 60);
    Policy {
        ladder: vec![minutes(1), minutes(5), minutes(30), minutes(120)],
        jitter_percent: 10,
        hint_max: minutes(240),
        max_age: minutes(24 * 60),
        login_code_lifetime: minutes(10),
        provider_pause: Duration::from_secs(30),
        hold_unknown: vec![Class::Transactional],
        hard_bounce: minutes(60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_has_an_end_and_jitter_stays_in_its_share() {
        let policy = policy();
        let seconds = |rung, unit| policy.wait_after(rung, None, unit).map(|wait| wait.as_secs());
        assert_eq!((seconds(0, 0.5), seconds(0, 0.0), seconds(0, 1.0)), (Some(60), Some(54), Some(66)));
        assert_eq!((seconds(1, 0.5), seconds(2, 0.5), seconds(3, 0.5)), (Some(300), Some(1800), Some(7200)));
        assert_eq!(seconds(4, 0.5), None);
    }

    #[test]
    fn a_hint_lengthens_a_wait_within_its_bound_and_never_shortens_it() {
        let policy = policy();
        let with = |hint| policy.wait_after(0, Some(Duration::from_secs(hint)), 0.5).unwrap().as_secs();
        assert_eq!((with(5), with(300), with(1_000_000)), (60, 300, 240 * 60));
        assert_eq!(policy.wait_after(4, Some(Duration::from_secs(1)), 0.5), None, "a hint makes no new rung");
    }

    #[test]
    fn a_pause_doubles_up_to_its_bound() {
        let policy = policy();
        let pause = |faults| policy.pause_after(faults, None).as_secs();
        assert_eq!((pause(1), pause(2), pause(6), pause(40)), (30, 60, 960, 960));
        assert_eq!(policy.pause_after(1, Some(Duration::from_secs(100))).as_secs(), 100);
    }

    #[test]
    fn a_login_code_ends_at_its_lifetime() {
        let policy = policy();
        assert_eq!(policy.max_age_of(Class::Auth), Duration::from_secs(600));
        assert_eq!(policy.max_age_of(Class::Marketing), Duration::from_secs(86_400));
        assert_eq!(policy.on_unknown(Class::Auth), OnUnknown::Retry);
        assert_eq!(policy.on_unknown(Class::Transactional), OnUnknown::Hold);
    }

    #[test]
    fn only_a_mailbox_that_is_not_there_counts_against_the_address() {
        let refused = |axis, reason, code: Option<&str>| Outcome::Refused {
            axis,
            summary: crate::transport::Summary {
                phase: crate::transport::Phase::Rcpt,
                reason,
                code: Some(550),
                enhanced: code.map(str::to_owned),
                text: "no".to_owned(),
                host: String::new(),
                tls: None,
                duration_ms: 1,
            },
        };
        let policy = policy();
        let gone = refused(Axis::Recipient, Reason::Mailbox, Some("5.1.1"));
        assert_eq!(policy.suppress_after(&gone), Some(Duration::from_secs(3600)));
        for other in [
            refused(Axis::Recipient, Reason::Mailbox, None),
            refused(Axis::Recipient, Reason::Mailbox, Some("5.1.2")),
            refused(Axis::Recipient, Reason::Mailbox, Some("5.2.1")),
            refused(Axis::Recipient, Reason::MailboxBusy, Some("5.2.2")),
            refused(Axis::Message, Reason::Policy, Some("5.7.1")),
        ] {
            assert_eq!(policy.suppress_after(&other), None, "{other:?}");
        }
        let never = Policy { hard_bounce: Duration::ZERO, ..policy };
        assert_eq!(never.suppress_after(&gone), None);
    }
}
