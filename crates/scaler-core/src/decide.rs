//! The decision about one group.
//!
//! The order of the rules is the order of their weight: switches, holds, repair below the minimum, missing data, the
//! maximum, the thresholds; then the brakes of the direction (periods, windows, cooldown), then the limits on what may be
//! done at once. Each rule that changed or stopped something is listed in the decision, so that it explains itself.

mod brakes;
mod inputs;
mod scale_down;
mod scale_up;
mod text;

use jiff::Timestamp;
use serde::Serialize;

use crate::fleet::{GroupState, Sample};
use crate::policy::{Mode, Policy};
use crate::schedule::{self, Bounds};

pub use inputs::Inputs;

/// A silent server counts toward the minimum for this long; then a replacement is due.
pub const LOST_AFTER: jiff::SignedDuration = jiff::SignedDuration::from_secs(300);

/// No server is removed for this long after a panic.
pub const CALM_AFTER_PANIC: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Action {
    /// Nothing.
    Hold,
    /// More servers: draining ones are called back first, then new ones are made.
    Add {
        /// Servers whose drain is called off, by name.
        undrain: Vec<String>,
        /// How many servers are made.
        create: u32,
    },
    /// Fewer servers.
    Remove {
        /// Servers to drain, by name, in order.
        drain: Vec<String>,
    },
}

/// Why this and nothing else. The word is stable: history, metrics and alerts use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The group's master switch is off.
    Disabled,
    /// Scaling is off for the group.
    ScalingDisabled,
    /// A pause, or a hold after a restored database.
    Paused,
    /// Fewer servers than the minimum.
    BelowMinimum,
    /// More servers than the maximum.
    AboveMaximum,
    /// Too little is known of the group's load.
    Blind,
    /// Utilisation is above the upper threshold.
    Busy,
    /// Utilisation is at the panic threshold.
    Panic,
    /// Utilisation is below the lower threshold.
    Idle,
    /// Utilisation is between the thresholds.
    OnTarget,
    /// There are neither servers nor load, and none are required.
    Empty,
    /// The number of servers is the highest allowed.
    AtMaximum,
    /// The number of servers is the lowest allowed.
    AtMinimum,
    /// A rest after the last action.
    CoolingDown,
    /// The breach has not lasted long enough.
    Periods,
    /// A recent evaluation wished otherwise.
    Stabilising,
    /// Servers that are booting will carry the load.
    CapacityComing,
    /// As many servers are booting as may at a time.
    SurgeLimit,
    /// The whole fleet has as many servers as it may.
    FleetLimit,
    /// As many servers were made within the hour as may be.
    CreateLimit,
    /// The provider cannot or may not be asked now.
    ProviderHeld,
    /// A server is booting; nothing is removed before its load is known.
    Booting,
    /// As many servers drain as may at a time.
    DrainLimit,
    /// A window keeps servers from being removed.
    ScaleDownInhibited,
    /// A panic was seen a short while ago.
    AfterPanic,
    /// Without the server the rest would be above the upper threshold.
    WouldOverload,
    /// It would be the last server in service.
    LastActive,
    /// No server may be removed: protected, too young, or its calls are unknown.
    NoCandidate,
}

impl Reason {
    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        text::word(self)
    }
}

/// One rule that changed the wished number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clamp {
    /// The rule.
    pub rule: Reason,
    /// The number of servers before it.
    pub from: u32,
    /// The number after it.
    pub to: u32,
}

/// A decision with everything needed to understand it later.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// What is to be done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// One line for a person.
    pub text: String,
    /// What was measured.
    pub inputs: Inputs,
    /// The bounds that held.
    pub bounds: Bounds,
    /// The number of servers wished before any clamp.
    pub wish: u32,
    /// The rules that changed it, in order.
    pub clamps: Vec<Clamp>,
    /// When the timer that holds the group ends, if one does.
    pub held_until: Option<Timestamp>,
    /// True when utilisation was at the panic threshold.
    pub panic: bool,
}

impl Decision {
    /// What later evaluations remember of this one.
    #[must_use]
    pub const fn sample(&self, at: Timestamp) -> Sample {
        Sample { at, utilisation: self.inputs.utilisation, wish: self.wish, panic: self.panic }
    }
}

/// A decision under construction: the parts that every outcome shares.
struct Draft<'a> {
    group: &'a GroupState,
    policy: &'a Policy,
    now: Timestamp,
    inputs: Inputs,
    bounds: Bounds,
    wish: u32,
    /// The wish after stabilisation; the raw one stays what later evaluations remember.
    stable_wish: Option<u32>,
    why: Reason,
    panic: bool,
    clamps: Vec<Clamp>,
}

impl Draft<'_> {
    /// Notes that `rule` brought the number of servers down (or up) to `to`.
    fn clamp(&mut self, rule: Reason, from: u32, to: u32) -> u32 {
        if from != to {
            self.clamps.push(Clamp { rule, from, to });
        }
        to
    }

    fn wish_now(&self) -> u32 {
        self.stable_wish.unwrap_or(self.wish)
    }

    fn finish(self, action: Action, reason: Reason, held_until: Option<Timestamp>) -> Decision {
        let text = text::line(&self, &action, reason, held_until);
        Decision {
            action,
            reason,
            text,
            inputs: self.inputs,
            bounds: self.bounds,
            wish: self.wish,
            clamps: self.clamps,
            held_until,
            panic: self.panic,
        }
    }

    fn hold(self, reason: Reason) -> Decision {
        self.finish(Action::Hold, reason, None)
    }
}

/// Chooses the next step of one server group. Pure: no clock, no I/O, no randomness.
#[must_use]
pub fn decide(group: &GroupState, policy: &Policy, now: Timestamp) -> Decision {
    let inputs = Inputs::measure(group, policy);
    let bounds = schedule::bounds(policy.min, policy.max, &policy.windows, now);
    let counted = inputs.counted();
    let panic = match (policy.panic_at, inputs.utilisation_up) {
        (Some(at), Some(utilisation)) => utilisation >= at && inputs.blind.is_none(),
        _ => false,
    };
    let mut draft = Draft {
        group,
        policy,
        now,
        inputs,
        bounds,
        wish: counted,
        stable_wish: None,
        why: Reason::OnTarget,
        panic,
        clamps: Vec::new(),
    };
    if !policy.enabled {
        return draft.hold(Reason::Disabled);
    }
    if !policy.scaling_enabled {
        return draft.hold(Reason::ScalingDisabled);
    }
    if let Some(pause) = &group.limits.paused {
        return draft.finish(Action::Hold, Reason::Paused, pause.until);
    }
    (draft.wish, draft.why) = wish(&draft);
    match draft.wish.cmp(&counted) {
        std::cmp::Ordering::Greater => scale_up::plan(draft),
        std::cmp::Ordering::Less => scale_down::plan(draft),
        std::cmp::Ordering::Equal => {
            let why = draft.why;
            draft.hold(why)
        }
    }
}

/// The number of servers wished for, before any brake or limit, and why.
fn wish(draft: &Draft<'_>) -> (u32, Reason) {
    let (inputs, bounds) = (&draft.inputs, &draft.bounds);
    let counted = inputs.counted();
    // Servers that are lost for good do not serve the minimum, but they may still exist.
    if inputs.serving() < bounds.min {
        return (counted + (bounds.min - inputs.serving()), Reason::BelowMinimum);
    }
    if inputs.blind.is_some() {
        return (counted, Reason::Blind);
    }
    if counted > bounds.max {
        return (bounds.max, Reason::AboveMaximum);
    }
    if counted == 0 {
        return (0, Reason::Empty);
    }
    let (Some(up), Some(down)) = (inputs.utilisation_up, inputs.utilisation_down) else {
        // Nothing in service yet, and nothing missing: the first servers are booting.
        return (counted, Reason::Booting);
    };
    if draft.panic {
        return (inputs.servers_for(draft.policy.scale_up_above).max(counted + 1), Reason::Panic);
    }
    match draft.policy.mode {
        Mode::Step { up: step, .. } if up > draft.policy.scale_up_above => (counted + step, Reason::Busy),
        Mode::Step { down: step, .. } if down < draft.policy.scale_down_below => {
            (counted.saturating_sub(step), Reason::Idle)
        }
        Mode::Step { .. } => (counted, Reason::OnTarget),
        Mode::Target { utilisation: target, .. } => {
            let wished = inputs.servers_for(target);
            if up > draft.policy.breach_above() && wished > counted {
                (wished, Reason::Busy)
            } else if down < draft.policy.breach_below() && wished < counted {
                (wished, Reason::Idle)
            } else {
                (counted, Reason::OnTarget)
            }
        }
    }
}

#[cfg(test)]
mod tests;
