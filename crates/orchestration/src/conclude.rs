//! What becomes of a job's attempt, once each of its agents has ended. Pure.

use std::time::Duration;

/// How one agent ended in this attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentEnd {
    /// It did its work, now or before.
    Succeeded,
    /// It was passed over, on purpose.
    Skipped,
    /// It failed; `final`: it will not be asked again by this job.
    Failed { error: String, is_final: bool },
    /// It asked to be left alone for so long.
    Resting(Duration),
}

/// What becomes of the attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Conclusion {
    /// Every agent succeeded or was passed over.
    Done,
    /// Some failed and may succeed next time.
    Again(String),
    /// Some failed, and none of those will succeed.
    Dead(String),
    /// Nothing to do but wait, without spending an attempt.
    Wait(Duration),
}

/// Longest time for which a job only waits: then its waiting counts as failing.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Sums up. `age`: since the job was enqueued.
pub(crate) fn conclude(agents: &[(String, AgentEnd)], age: Duration) -> Conclusion {
    let failures = |wanted_final: Option<bool>| -> Vec<String> {
        let failed = agents.iter().filter_map(|(agent, end)| match end {
            AgentEnd::Failed { error, is_final } if wanted_final.is_none_or(|wanted| wanted == *is_final) => {
                Some(format!("{agent}: {error}"))
            }
            _ => None,
        });
        failed.collect()
    };
    let told = |failed: &[String]| {
        let words = failed.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        format!("{} of {} agents failed: {words}", failed.len(), agents.len())
    };
    if !failures(Some(false)).is_empty() {
        return Conclusion::Again(told(&failures(None)));
    }
    let rests = agents.iter().filter_map(|(agent, end)| match end {
        AgentEnd::Resting(span) => Some((*span, agent)),
        _ => None,
    });
    if let Some((span, agent)) = rests.min() {
        if age >= WAIT_MAX {
            return Conclusion::Again(format!(
                "agent {agent} has asked for time ever since the job was enqueued"
            ));
        }
        return Conclusion::Wait(span.max(Duration::from_secs(1)));
    }
    let failed = failures(None);
    if failed.is_empty() { Conclusion::Done } else { Conclusion::Dead(told(&failed)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_hopeful_way_is_gone_first() {
        let named = |ends: &[AgentEnd]| -> Vec<(String, AgentEnd)> {
            ends.iter().enumerate().map(|(at, end)| (format!("a{at}"), end.clone())).collect()
        };
        let no = AgentEnd::Failed { error: "HTTP 400".to_owned(), is_final: true };
        let later = AgentEnd::Failed { error: "HTTP 500".to_owned(), is_final: false };
        let rest = |seconds| AgentEnd::Resting(Duration::from_secs(seconds));
        let (ok, skipped) = (AgentEnd::Succeeded, AgentEnd::Skipped);
        let young = Duration::from_secs(60);
        let of = |ends: &[AgentEnd]| conclude(&named(ends), young);
        assert_eq!(of(&[ok.clone(), skipped.clone()]), Conclusion::Done);
        assert_eq!(of(&[]), Conclusion::Done);
        assert_eq!(
            of(&[ok.clone(), no.clone()]),
            Conclusion::Dead("1 of 2 agents failed: a1: HTTP 400".to_owned())
        );
        assert_eq!(
            of(&[no.clone(), later, rest(9)]),
            Conclusion::Again("2 of 3 agents failed: a0: HTTP 400; a1: HTTP 500".to_owned())
        );
        assert_eq!(of(&[no, rest(90), rest(60), ok]), Conclusion::Wait(Duration::from_secs(60)));
        assert_eq!(of(&[rest(0)]), Conclusion::Wait(Duration::from_secs(1)), "never a busy loop");
        let old = conclude(&named(&[rest(9)]), WAIT_MAX);
        assert!(matches!(old, Conclusion::Again(_)), "{old:?}");
    }
}
