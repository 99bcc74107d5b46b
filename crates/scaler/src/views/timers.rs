//! What holds a group or a server at the moment, and until when.

use jiff::Timestamp;
use voiceai_scaler_core::State;

use super::TimerView;
use crate::evaluate::{Evaluation, Snapshot};

/// Every timer that holds a group, then those of single servers.
pub(super) fn timers(snapshot: &Snapshot, evaluations: &[Evaluation]) -> Vec<TimerView> {
    let mut timers = Vec::new();
    for evaluation in evaluations {
        let Evaluation { policy, decision, state } = evaluation;
        let mut add = |rule: &str, until: Option<Timestamp>, why: String| {
            timers.push(TimerView {
                group: policy.name.clone(),
                server: None,
                rule: rule.to_owned(),
                until,
                why,
            });
        };
        if decision.held_until.is_some() {
            add(decision.reason.as_str(), decision.held_until, decision.text.clone());
        }
        if let Some(hold) = &state.limits.paused
            && decision.held_until.is_none()
        {
            add("paused", hold.until, hold.why.clone());
        }
        if let Some(hold) =
            state.limits.no_creates.as_ref().filter(|_| decision.reason.as_str() != "provider_held")
        {
            add("provider_held", hold.until, hold.why.clone());
        }
        let last = state.last_up.max(state.last_down);
        let cooldown = policy.cooldown_up.max(policy.cooldown_down);
        let until =
            last.and_then(|last| last.checked_add(cooldown).ok()).filter(|until| *until > snapshot.now);
        if let Some(until) = until.filter(|_| decision.reason.as_str() != "cooling_down") {
            add("cooling_down", Some(until), "cooldown after the last action".to_owned());
        }
    }
    for row in &snapshot.fleet {
        // Kept after a failure: deleting it would destroy the evidence.
        if let Some(kept) = row.operation.as_ref().filter(|one| one.operation.state == State::Failed)
            && kept.deadline.is_some()
        {
            timers.push(TimerView {
                group: row.server.group_name.clone(),
                server: Some(row.server.name.clone()),
                rule: "kept_failed".to_owned(),
                until: kept.deadline,
                why: format!(
                    "kept for inspection: {}",
                    kept.error_text.as_deref().unwrap_or("it never became healthy")
                ),
            });
        }
        if let Some(until) = row.server.protected_until.filter(|until| *until > snapshot.now) {
            timers.push(TimerView {
                group: row.server.group_name.clone(),
                server: Some(row.server.name.clone()),
                rule: "protected".to_owned(),
                until: Some(until),
                why: "a person protected it".to_owned(),
            });
        }
    }
    timers
}
