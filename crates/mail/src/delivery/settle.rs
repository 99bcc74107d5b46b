use std::time::Duration;

use voiceai_config::catalogue::mail::OnUnknown;

use super::policy::{CRASHES_MAX, Policy};
use super::status::words;
use super::{AttemptEvent, AttemptStatus, RecipientEvent, RecipientStatus};
use crate::Class;
use crate::transport::{Outcome, Phase, Reason, Summary};

words! {
    /// Why a delivery became a dead letter.
    DeadReason {
        /// The ladder has no further rung.
        Exhausted = "exhausted",
        /// It is too old to be of use.
        Expired = "expired",
        /// Processes kept ending in the middle of sending it.
        Poison = "poison",
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<'o> {
    /// As the transport says.
    Sent(&'o Outcome),
    /// The recipient is on the suppression list; nothing was sent.
    OnList,
    /// It was too old when its turn came; nothing was sent.
    TooOld,
    /// Its process is gone. `content_began`: it may have been sent.
    Crashed {
        /// Whether any content had gone out.
        content_began: bool,
    },
}

/// What is known of an attempt's mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What it is for.
    pub class: Class,
    /// Where the ladder stands: 0 for the first attempt.
    pub rung: u32,
    /// How often a process ended in the middle of sending it, this time not counted.
    pub crashes: u32,
    /// Attempts that cost it nothing, as far as they can be told from the others: those that ended by the provider's fault.
    pub faults: u32,
    /// The provider has just rested, and this attempt finds out whether it works again.
    pub probing: bool,
    /// How long it may still be tried; zero when that is over.
    pub time_left: Duration,
}

/// So often a mail may meet what looks like the provider's fault before it is asked whether it is the mail's own.
const FAULTS_FREE: u32 = 2;

impl Facts {
    /// True when the fault is this mail's rather than the provider's: it comes back at the recipient or the content, although others
    /// got through since the last time, or the provider would still be at rest or on probation. Faults of the account are never the mail's.
    fn is_to_blame(&self, summary: &Summary) -> bool {
        self.faults >= FAULTS_FREE
            && !self.probing
            && summary.phase >= Phase::Rcpt
            && matches!(summary.reason, Reason::Unavailable | Reason::Protocol)
    }
}

/// Another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// From now.
    pub wait: Duration,
    /// Where the ladder stands then.
    pub rung: u32,
}

/// What becomes of the recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt is to come.
    Again(Next),
    /// The recipient has ended so.
    Over(RecipientStatus),
    /// The recipient has ended as a dead letter.
    Dead(DeadReason),
}

/// What to write down after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The attempt's last state.
    pub attempt: AttemptStatus,
    /// And the recipient's next one.
    pub verdict: Verdict,
    /// The provider is at fault: it rests, for as long as it asked to at least.
    pub pause: Option<Option<Duration>>,
}

impl Settled {
    /// The recipient's state.
    #[must_use]
    pub const fn recipient(&self) -> RecipientStatus {
        match self.verdict {
            Verdict::Again(_) => RecipientStatus::Open,
            Verdict::Over(status) => status,
            Verdict::Dead(_) => RecipientStatus::DeadLetter,
        }
    }
}

/// Decides what follows from the end of an attempt. Pure: `unit` is a random number in 0..1 for the jitter.
#[must_use]
pub fn settle(policy: &Policy, facts: &Facts, ended: Ended<'_>, unit: f64) -> Settled {
    use AttemptEvent as A;
    let over =
        |event, end| Settled { attempt: closed(event), verdict: Verdict::Over(ended_as(end)), pause: None };
    let climb = |event, hint| {
        let next = policy.wait_after(facts.rung, hint, unit).map(|wait| Next { wait, rung: facts.rung + 1 });
        Settled { attempt: closed(event), verdict: again(facts, next), pause: None }
    };
    let stay = |event, wait| {
        let next = Next { wait, rung: facts.rung };
        Settled { attempt: closed(event), verdict: again(facts, Some(next)), pause: None }
    };
    match ended {
        Ended::Sent(Outcome::Accepted { .. }) => over(A::Accepted, RecipientEvent::Accepted),
        Ended::OnList | Ended::Sent(Outcome::Suppressed { .. }) => {
            over(A::Rejected, RecipientEvent::Suppressed)
        }
        Ended::Sent(Outcome::Refused { .. }) => over(A::Rejected, RecipientEvent::Refused),
        Ended::Sent(Outcome::Deferred { retry_after, .. }) => climb(A::Failed, *retry_after),
        Ended::Sent(Outcome::TimedOut { .. }) => climb(A::TimedOut, None),
        Ended::Sent(Outcome::ProviderFault { retry_after, summary }) if facts.is_to_blame(summary) => {
            climb(A::Failed, *retry_after)
        }
        // Another mail would have fared no better, so this one loses nothing; it waits as long as the provider rests.
        Ended::Sent(Outcome::ProviderFault { retry_after, .. }) => {
            Settled { pause: Some(*retry_after), ..stay(A::Failed, policy.pause_after(1, *retry_after)) }
        }
        // Nothing went out, and not for any fault of mail or provider.
        Ended::Sent(Outcome::Withdrawn { .. }) => stay(A::Failed, Duration::from_secs(1)),
        Ended::Sent(Outcome::Unknown { .. }) | Ended::Crashed { content_began: true } => {
            match policy.on_unknown(facts.class) {
                OnUnknown::Hold => over(A::LostSight, RecipientEvent::Held),
                OnUnknown::Retry => climb(A::LostSight, None),
            }
        }
        Ended::Crashed { content_began: false } if facts.crashes >= CRASHES_MAX => {
            Settled { attempt: closed(A::TimedOut), verdict: Verdict::Dead(DeadReason::Poison), pause: None }
        }
        Ended::Crashed { content_began: false } => stay(A::TimedOut, Duration::ZERO),
        Ended::TooOld => {
            Settled { attempt: closed(A::Failed), verdict: Verdict::Dead(DeadReason::Expired), pause: None }
        }
    }
}

/// Another attempt, unless the ladder or the mail's time is over.
fn again(facts: &Facts, next: Option<Next>) -> Verdict {
    match next {
        None => Verdict::Dead(DeadReason::Exhausted),
        Some(next) if next.wait >= facts.time_left => Verdict::Dead(DeadReason::Expired),
        Some(next) => Verdict::Again(next),
    }
}

/// Every event above is legal for an attempt in progress; a test walks them all.
const fn closed(event: AttemptEvent) -> AttemptStatus {
    match AttemptStatus::InProgress.next(event) {
        Some(status) => status,
        None => AttemptStatus::Unknown,
    }
}

/// The same for an open recipient.
const fn ended_as(event: RecipientEvent) -> RecipientStatus {
    match RecipientStatus::Open.next(event) {
        Some(status) => status,
        None => RecipientStatus::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::policy;
    use super::*;
    use crate::transport::Axis;

    fn summary() -> Summary {
        Summary {
            phase: Phase::Final,
            reason: Reason::None,
            code: None,
            enhanced: None,
            text: String::new(),
            host: String::new(),
            tls: None,
            duration_ms: 1,
        }
    }

    const FACTS: Facts = Facts {
        class: Class::System,
        rung: 0,
        crashes: 0,
        faults: 0,
        probing: false,
        time_left: Duration::from_secs(86_400),
    };

    fn again(wait: u64, rung: u32) -> Verdict {
        Verdict::Again(Next { wait: Duration::from_secs(wait), rung })
    }

    #[test]
    fn every_end_of_an_attempt_has_its_consequence() {
        let (policy, summary) = (policy(), summary());
        let hour = Some(Duration::from_secs(3600));
        let s = || summary.clone();
        let rows = [
            (
                Outcome::Accepted { provider_id: None, summary: s() },
                AttemptStatus::ProviderAccepted,
                Verdict::Over(RecipientStatus::Sent),
            ),
            (
                Outcome::Suppressed { summary: s() },
                AttemptStatus::ProviderRejected,
                Verdict::Over(RecipientStatus::Suppressed),
            ),
            (
                Outcome::Refused { axis: Axis::Message, summary: s() },
                AttemptStatus::ProviderRejected,
                Verdict::Over(RecipientStatus::Failed),
            ),
            (
                Outcome::Deferred { axis: Axis::Recipient, retry_after: hour, summary: s() },
                AttemptStatus::TransportFailed,
                again(3600, 1),
            ),
            (Outcome::TimedOut { summary: s() }, AttemptStatus::TimedOut, again(60, 1)),
            (
                Outcome::ProviderFault { retry_after: None, summary: s() },
                AttemptStatus::TransportFailed,
                again(30, 0),
            ),
            (Outcome::Unknown { summary: s() }, AttemptStatus::Unknown, again(60, 1)),
            (Outcome::Withdrawn { summary: s() }, AttemptStatus::TransportFailed, again(1, 0)),
        ];
        for (outcome, attempt, verdict) in rows {
            let settled = settle(&policy, &FACTS, Ended::Sent(&outcome), 0.5);
            assert_eq!((settled.attempt, settled.verdict), (attempt, verdict), "{outcome:?}");
            assert_eq!(
                settled.pause.is_some(),
                matches!(outcome, Outcome::ProviderFault { .. }),
                "{outcome:?}"
            );
            assert!(settled.attempt.is_terminal());
        }
    }

    #[test]
    fn the_last_rung_and_the_last_minute_are_dead_letters() {
        let (policy, timed_out) = (policy(), Outcome::TimedOut { summary: summary() });
        let verdict = |facts| settle(&policy, &facts, Ended::Sent(&timed_out), 0.5).verdict;
        assert_eq!(verdict(Facts { rung: 3, ..FACTS }), again(7200, 4));
        assert_eq!(verdict(Facts { rung: 4, ..FACTS }), Verdict::Dead(DeadReason::Exhausted));
        let last = Facts { time_left: Duration::from_secs(60), ..FACTS };
        assert_eq!(verdict(last), Verdict::Dead(DeadReason::Expired));
        assert_eq!(settle(&policy, &FACTS, Ended::TooOld, 0.5).verdict, Verdict::Dead(DeadReason::Expired));
        // Also a provider's fault cannot keep a mail for ever.
        let fault = Outcome::ProviderFault { retry_after: None, summary: summary() };
        let old = Facts { time_left: Duration::from_secs(29), ..FACTS };
        assert_eq!(
            settle(&policy, &old, Ended::Sent(&fault), 0.5).verdict,
            Verdict::Dead(DeadReason::Expired)
        );
    }

    #[test]
    fn a_fault_that_follows_one_mail_about_is_its_own() {
        let policy = policy();
        let outcome = |phase, reason| Outcome::ProviderFault {
            retry_after: None,
            summary: Summary { phase, reason, ..summary() },
        };
        let settled = |facts: &Facts, outcome: &Outcome| {
            let settled = settle(&policy, facts, Ended::Sent(outcome), 0.5);
            (settled.verdict, settled.pause.is_some())
        };
        let busy = outcome(Phase::Rcpt, Reason::Unavailable);
        let often = Facts { faults: 2, ..FACTS };
        assert_eq!(settled(&Facts { faults: 1, ..FACTS }, &busy), (again(30, 0), true));
        assert_eq!(settled(&often, &busy), (again(60, 1), false));
        assert_eq!(
            settled(&Facts { probing: true, ..often }, &busy),
            (again(30, 0), true),
            "nobody else got through"
        );
        assert_eq!(settled(&often, &outcome(Phase::Mail, Reason::Unavailable)), (again(30, 0), true));
        assert_eq!(
            settled(&often, &outcome(Phase::Final, Reason::Quota)),
            (again(30, 0), true),
            "the account's"
        );
    }

    #[test]
    fn a_crash_counts_as_unknown_only_once_content_had_begun() {
        let policy = policy();
        let crash = |facts, content_began| {
            let settled = settle(&policy, &facts, Ended::Crashed { content_began }, 0.5);
            (settled.attempt, settled.verdict)
        };
        assert_eq!(crash(FACTS, false), (AttemptStatus::TimedOut, again(0, 0)));
        assert_eq!(crash(FACTS, true), (AttemptStatus::Unknown, again(60, 1)));
        let held = Facts { class: Class::Transactional, ..FACTS };
        assert_eq!(crash(held, true), (AttemptStatus::Unknown, Verdict::Over(RecipientStatus::Unknown)));
        assert_eq!(crash(held, false), (AttemptStatus::TimedOut, again(0, 0)));
        let poison = Facts { crashes: CRASHES_MAX, ..FACTS };
        assert_eq!(crash(poison, false), (AttemptStatus::TimedOut, Verdict::Dead(DeadReason::Poison)));
    }
}
