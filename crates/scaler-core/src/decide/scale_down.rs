//! Removing servers.

use jiff::Timestamp;

use super::inputs::ratio;
use super::{Action, CALM_AFTER_PANIC, Decision, Draft, Reason, brakes};
use crate::fleet::{Phase, Server};

/// The wish is below the count: brakes first, then each server that goes must leave the rest able to carry the load.
pub(super) fn plan(mut draft: Draft<'_>) -> Decision {
    let counted = draft.inputs.counted();
    let wish = draft.wish;
    let floor = draft.bounds.min;
    if counted <= floor {
        draft.clamp(Reason::AtMinimum, wish, counted);
        return draft.hold(Reason::AtMinimum);
    }
    if let Some((reason, until)) = brake(&mut draft) {
        return draft.finish(Action::Hold, reason, until);
    }
    let wish = draft.wish_now();
    let target = draft.clamp(Reason::AtMinimum, wish, wish.max(floor));
    let room = draft.policy.max_drain.saturating_sub(draft.inputs.draining);
    let wanted = counted.saturating_sub(target);
    let allowed = wanted.min(room);
    draft.clamp(Reason::DrainLimit, target, counted - allowed);
    if allowed == 0 {
        return draft.hold(Reason::DrainLimit);
    }
    match pick(&draft, allowed) {
        Ok(drain) => {
            let why = draft.why;
            draft.finish(Action::Remove { drain }, why, None)
        }
        Err(reason) => draft.hold(reason),
    }
}

/// The rule that stops a removal, with the end of its timer.
fn brake(draft: &mut Draft<'_>) -> Option<(Reason, Option<Timestamp>)> {
    if draft.bounds.inhibit_scale_down {
        return Some((Reason::ScaleDownInhibited, None));
    }
    if draft.inputs.booting > 0 {
        return Some((Reason::Booting, None));
    }
    // The maximum is an order, not a measurement: it needs no lasting breach.
    if draft.why != Reason::AboveMaximum {
        let calm = draft.group.history.iter().rev().find(|sample| sample.panic).map(|sample| sample.at);
        if let Some(until) = calm.map(|at| at + CALM_AFTER_PANIC).filter(|until| *until > draft.now) {
            return Some((Reason::AfterPanic, Some(until)));
        }
        let threshold = draft.policy.breach_below();
        if !brakes::lasted(draft, draft.policy.periods_down, |utilisation| utilisation < threshold) {
            return Some((Reason::Periods, None));
        }
        let highest = brakes::wishes(draft, draft.policy.stabilise_down).max().unwrap_or(draft.wish);
        if highest >= draft.inputs.counted() {
            return Some((Reason::Stabilising, None));
        }
        let wish = draft.wish;
        draft.stable_wish = Some(draft.clamp(Reason::Stabilising, wish, highest));
    }
    let until = brakes::cooldown(draft, draft.policy.cooldown_down)?;
    Some((Reason::CoolingDown, Some(until)))
}

/// Up to `allowed` servers, the emptiest first, then the oldest.
fn pick(draft: &Draft<'_>, allowed: u32) -> Result<Vec<String>, Reason> {
    let mut candidates: Vec<(u64, &Server, u64)> = draft
        .group
        .servers
        .iter()
        .filter(|server| server.phase == Phase::Active)
        .filter(|server| server.protected_until.is_none_or(|until| until <= draft.now))
        .filter(|server| draft.now.duration_since(server.created_at) >= draft.policy.min_age)
        // A server with an unknown call count is never removed.
        .filter_map(|server| {
            let beat = server.reading.known()?;
            Some((beat.active, server, draft.policy.capacity_of(beat.capacity)))
        })
        .collect();
    candidates.sort_by(|a, b| {
        a.0.cmp(&b.0).then(a.1.created_at.cmp(&b.1.created_at)).then(a.1.name.cmp(&b.1.name))
    });
    let inputs = &draft.inputs;
    let mut left = inputs.active + inputs.unmanaged;
    let mut capacity = inputs.capacity + inputs.capacity_unknown;
    let load = inputs.load + inputs.capacity_unknown;
    let mut picked = Vec::new();
    let mut refusal = Reason::NoCandidate;
    for (_, server, its) in candidates {
        if to_u32(picked.len()) == allowed {
            break;
        }
        if left <= 1 {
            refusal = Reason::LastActive;
            break;
        }
        let rest = capacity.saturating_sub(its);
        let carried = rest > 0 && ratio(load, rest) < draft.policy.scale_up_above;
        if draft.why != Reason::AboveMaximum && !carried {
            refusal = Reason::WouldOverload;
            continue;
        }
        picked.push(server.name.clone());
        left -= 1;
        capacity = rest;
    }
    if picked.is_empty() { Err(refusal) } else { Ok(picked) }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
