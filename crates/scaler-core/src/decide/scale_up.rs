//! Adding servers.

use jiff::Timestamp;

use super::{Action, Decision, Draft, Reason, brakes};
use crate::fleet::Phase;
use crate::policy::Mode;

/// The wish is above the count: brakes first, then limits, then drains are called off before anything is bought.
pub(super) fn plan(mut draft: Draft<'_>) -> Decision {
    let counted = draft.inputs.counted();
    let max = draft.bounds.max;
    // A repair of the minimum is due at once, and a panic does not wait for a timer.
    let urgent = matches!(draft.why, Reason::BelowMinimum | Reason::Panic);
    if max > counted
        && !urgent
        && let Some((reason, until)) = brake(&mut draft)
    {
        return draft.finish(Action::Hold, reason, until);
    }
    let wish = draft.wish_now();
    let target = draft.clamp(Reason::AtMaximum, wish, wish.min(max));
    if target <= counted {
        return draft.hold(Reason::AtMaximum);
    }
    let need = target - counted;
    let undrain: Vec<String> = callable_back(&draft).into_iter().take(to_usize(need)).collect();
    let missing = need - to_u32(undrain.len());
    let (create, cut) = limited(&mut draft, counted, missing);
    if create == 0 && undrain.is_empty() {
        let held = draft.group.limits.no_creates.as_ref().and_then(|hold| hold.until);
        let reason = cut.unwrap_or(Reason::AtMaximum);
        return draft.finish(Action::Hold, reason, held.filter(|_| reason == Reason::ProviderHeld));
    }
    let why = draft.why;
    draft.finish(Action::Add { undrain, create }, why, None)
}

/// The rule that stops an ordinary addition, with the end of its timer.
fn brake(draft: &mut Draft<'_>) -> Option<(Reason, Option<Timestamp>)> {
    let counted = draft.inputs.counted();
    let threshold = draft.policy.breach_above();
    let with_booting = draft.inputs.utilisation_with_booting();
    // In target mode the wish is a number, which the booting servers already count toward.
    if matches!(draft.policy.mode, Mode::Step { .. })
        && draft.inputs.booting > 0
        && with_booting.is_some_and(|utilisation| utilisation <= threshold)
    {
        return Some((Reason::CapacityComing, None));
    }
    if !brakes::lasted(draft, draft.policy.periods_up, |utilisation| utilisation > threshold) {
        return Some((Reason::Periods, None));
    }
    let lowest = brakes::wishes(draft, draft.policy.stabilise_up).min().unwrap_or(draft.wish);
    if lowest <= counted {
        return Some((Reason::Stabilising, None));
    }
    let wish = draft.wish;
    draft.stable_wish = Some(draft.clamp(Reason::Stabilising, wish, lowest));
    let until = brakes::cooldown(draft, draft.policy.cooldown_up)?;
    Some((Reason::CoolingDown, Some(until)))
}

/// Draining servers whose drain may be called off, the fullest first: they carry most of what is missing.
fn callable_back(draft: &Draft<'_>) -> Vec<String> {
    let mut names: Vec<(u64, &str)> = draft
        .group
        .servers
        .iter()
        .filter(|server| matches!(server.phase, Phase::Draining { cancellable: true, by_operator: false }))
        // A silent server is no capacity: calling it back would add nothing.
        .filter_map(|server| server.reading.known().map(|beat| (beat.active, server.name.as_str())))
        .collect();
    names.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    names.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// How many of `missing` may be made now, and the last limit that cut it.
fn limited(draft: &mut Draft<'_>, counted: u32, missing: u32) -> (u32, Option<Reason>) {
    let limits = &draft.group.limits;
    // Draining, leaving and failed servers still exist at the provider: the maximum holds for them as well.
    let existing = draft.inputs.existing();
    let rooms = [
        (Reason::AtMaximum, draft.bounds.max.saturating_sub(existing)),
        (Reason::SurgeLimit, draft.policy.max_surge.saturating_sub(draft.inputs.booting)),
        (Reason::FleetLimit, limits.fleet_room.unwrap_or(u32::MAX)),
        (Reason::CreateLimit, draft.policy.creates_per_hour.saturating_sub(limits.creates_last_hour)),
        (Reason::ProviderHeld, if limits.no_creates.is_some() { 0 } else { u32::MAX }),
    ];
    let mut create = missing;
    let mut cut = None;
    for (rule, room) in rooms {
        if room < create {
            draft.clamp(rule, counted + create, counted + room);
            create = room;
            cut = Some(rule);
        }
    }
    (create, cut)
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
