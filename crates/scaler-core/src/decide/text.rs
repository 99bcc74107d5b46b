//! Decisions in words.

use jiff::Timestamp;

use super::inputs::Blind;
use super::{Action, Draft, Reason};
use crate::schedule::Bounds;

pub(super) const fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Disabled => "disabled",
        Reason::ScalingDisabled => "scaling_disabled",
        Reason::Paused => "paused",
        Reason::BelowMinimum => "below_minimum",
        Reason::AboveMaximum => "above_maximum",
        Reason::Blind => "blind",
        Reason::Busy => "busy",
        Reason::Panic => "panic",
        Reason::Idle => "idle",
        Reason::OnTarget => "on_target",
        Reason::Empty => "empty",
        Reason::AtMaximum => "at_maximum",
        Reason::AtMinimum => "at_minimum",
        Reason::CoolingDown => "cooling_down",
        Reason::Periods => "periods",
        Reason::Stabilising => "stabilising",
        Reason::CapacityComing => "capacity_coming",
        Reason::SurgeLimit => "surge_limit",
        Reason::FleetLimit => "fleet_limit",
        Reason::CreateLimit => "create_limit",
        Reason::ProviderHeld => "provider_held",
        Reason::Booting => "booting",
        Reason::DrainLimit => "drain_limit",
        Reason::ScaleDownInhibited => "scale_down_inhibited",
        Reason::AfterPanic => "after_panic",
        Reason::WouldOverload => "would_overload",
        Reason::LastActive => "last_active",
        Reason::NoCandidate => "no_candidate",
    }
}

/// One line: what is done, why, and what it was judged by.
pub(super) fn line(draft: &Draft<'_>, action: &Action, reason: Reason, until: Option<Timestamp>) -> String {
    let did = match action {
        Action::Hold => "hold".to_owned(),
        Action::Add { undrain, create } => match (undrain.is_empty(), create) {
            (true, create) => format!("add {create}"),
            (false, 0) => format!("call back {}", undrain.join(", ")),
            (false, create) => format!("call back {} and add {create}", undrain.join(", ")),
        },
        Action::Remove { drain } => format!("drain {}", drain.join(", ")),
    };
    let mut line = format!("{did}: {}", because(draft, reason));
    if let Some(until) = until {
        let left = until.duration_since(draft.now).as_secs().max(0);
        line.push_str(&format!("; {left} s left"));
    }
    line
}

fn because(draft: &Draft<'_>, reason: Reason) -> String {
    let inputs = &draft.inputs;
    let policy = draft.policy;
    let Bounds { min, max, .. } = draft.bounds;
    let counted = inputs.counted();
    let utilisation =
        |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.3}"));
    match reason {
        Reason::Disabled => "the group is disabled".to_owned(),
        Reason::ScalingDisabled => "scaling is disabled for the group".to_owned(),
        Reason::Paused => {
            draft.group.limits.paused.as_ref().map_or_else(|| "paused".to_owned(), |hold| hold.why.clone())
        }
        Reason::BelowMinimum => format!("{} serving, minimum {min}", inputs.serving()),
        Reason::AboveMaximum => format!("{counted} servers, maximum {max}"),
        Reason::Blind => match inputs.blind {
            Some(Blind::Unreadable) => "heartbeats cannot be read".to_owned(),
            _ => format!(
                "the load of {} of {} servers in service is unknown",
                inputs.suspect + inputs.lost,
                inputs.active + inputs.suspect + inputs.lost + inputs.unmanaged
            ),
        },
        Reason::Busy | Reason::Panic => {
            format!("utilisation {} is above {}", utilisation(inputs.utilisation_up), policy.scale_up_above)
        }
        Reason::Idle => {
            format!(
                "utilisation {} is below {}",
                utilisation(inputs.utilisation_down),
                policy.scale_down_below
            )
        }
        Reason::OnTarget => format!("utilisation {} needs no change", utilisation(inputs.utilisation)),
        Reason::Empty => "no servers, none required".to_owned(),
        Reason::AtMaximum => format!("{} servers exist, maximum {max}", inputs.existing()),
        Reason::AtMinimum => format!("{counted} servers, minimum {min}"),
        Reason::CoolingDown => "cooldown after the last action".to_owned(),
        Reason::Periods => "the breach has not lasted long enough".to_owned(),
        Reason::Stabilising => "a recent evaluation wished otherwise".to_owned(),
        Reason::CapacityComing => format!(
            "{} booting servers bring utilisation to {}",
            inputs.booting,
            utilisation(inputs.utilisation_with_booting())
        ),
        Reason::SurgeLimit => {
            format!("{} servers are booting, at most {} may", inputs.booting, policy.max_surge)
        }
        Reason::FleetLimit => "the whole fleet is at its maximum".to_owned(),
        Reason::CreateLimit => format!(
            "{} servers were asked for within the hour, at most {} may be",
            draft.group.limits.creates_last_hour, policy.creates_per_hour
        ),
        Reason::ProviderHeld => draft
            .group
            .limits
            .no_creates
            .as_ref()
            .map_or_else(|| "the provider is held".to_owned(), |hold| hold.why.clone()),
        Reason::Booting => format!("{} servers are booting", inputs.booting),
        Reason::DrainLimit => format!("{} servers drain, at most {} may", inputs.draining, policy.max_drain),
        Reason::ScaleDownInhibited => "the open window keeps servers".to_owned(),
        Reason::AfterPanic => "a panic was seen a short while ago".to_owned(),
        Reason::WouldOverload => {
            format!("one server fewer would bring utilisation to {} or above", policy.scale_up_above)
        }
        Reason::LastActive => "it is the last server in service".to_owned(),
        Reason::NoCandidate => "every server is protected, too young, or of unknown load".to_owned(),
    }
}
