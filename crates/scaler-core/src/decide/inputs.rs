//! What the decision measures of a group.

use serde::Serialize;

use super::LOST_AFTER;
use crate::fleet::{GroupState, Phase, Server};
use crate::heartbeat::{Beat, Reading, Unknown};
use crate::policy::Policy;

/// Why a group is blind: too little is known to change anything but a missing minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blind {
    /// The heartbeats could not be read.
    Unreadable,
    /// Fewer than half of the servers in service are known.
    TooFewKnown,
}

/// The measurements of one evaluation. Counts are servers; load is calls or connections.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inputs {
    /// In service with a believable heartbeat.
    pub active: u32,
    /// In service, but what it carries is unknown.
    pub suspect: u32,
    /// In service by its row, yet silent for so long that it serves no longer.
    pub lost: u32,
    /// Asked for, not yet in service.
    pub booting: u32,
    /// Out of routing, with calls to end.
    pub draining: u32,
    /// Being deleted.
    pub leaving: u32,
    /// Exists and serves nothing.
    pub failed: u32,
    /// Beating under names we did not create.
    pub unmanaged: u32,
    /// Calls on servers in service and on draining ones.
    pub load: u64,
    /// What the servers in service with a known load can carry.
    pub capacity: u64,
    /// What the booting servers are expected to carry.
    pub capacity_coming: u64,
    /// What the servers whose load is unknown are assumed to be able to carry.
    pub capacity_unknown: u64,
    /// `load / capacity`; `None` when nothing is in service and known.
    pub utilisation: Option<f64>,
    /// The same with unknown servers counted as empty: what adding is judged by.
    pub utilisation_up: Option<f64>,
    /// The same with unknown servers counted as full: what removing is judged by.
    pub utilisation_down: Option<f64>,
    /// Set when too little is known.
    pub blind: Option<Blind>,
}

impl Inputs {
    pub(super) fn measure(group: &GroupState, policy: &Policy) -> Self {
        let mut inputs = Self {
            active: 0,
            suspect: 0,
            lost: 0,
            booting: 0,
            draining: 0,
            leaving: 0,
            failed: 0,
            unmanaged: u32::try_from(group.unmanaged.len()).unwrap_or(u32::MAX),
            load: 0,
            capacity: 0,
            capacity_coming: 0,
            capacity_unknown: 0,
            utilisation: None,
            utilisation_up: None,
            utilisation_down: None,
            blind: None,
        };
        for server in &group.servers {
            inputs.count(server, policy, group.unreadable);
        }
        for unmanaged in &group.unmanaged {
            inputs.carry(&unmanaged.beat, policy);
        }
        inputs.rate(group, policy);
        inputs
    }

    fn count(&mut self, server: &Server, policy: &Policy, unreadable: bool) {
        match (server.phase, &server.reading) {
            (Phase::Booting, _) => self.booting += 1,
            (Phase::Leaving, _) => self.leaving += 1,
            (Phase::Failed, _) => self.failed += 1,
            (Phase::Draining { .. }, reading) => {
                self.draining += 1;
                // Its calls are demand that the others would have to carry; its capacity is on the way out.
                self.load += reading.known().map_or(0, |beat| beat.active);
            }
            (Phase::Active, Reading::Known(beat)) => {
                self.active += 1;
                self.carry(beat, policy);
            }
            (Phase::Active, Reading::Unknown(why)) => {
                if !unreadable && is_silence(why) && server.silent_for >= LOST_AFTER {
                    self.lost += 1;
                } else {
                    self.suspect += 1;
                }
            }
        }
    }

    fn carry(&mut self, beat: &Beat, policy: &Policy) {
        self.load += beat.active;
        self.capacity += policy.capacity_of(beat.capacity);
    }

    fn rate(&mut self, group: &GroupState, policy: &Policy) {
        let known = self.active + self.unmanaged;
        let missing = self.suspect + self.lost;
        if group.unreadable {
            self.blind = Some(Blind::Unreadable);
        } else if missing > known {
            self.blind = Some(Blind::TooFewKnown);
        }
        let each = match known {
            0 => policy.capacity_of(None),
            known => self.capacity / u64::from(known),
        };
        self.capacity_coming = each * u64::from(self.booting);
        let unknown = each * u64::from(missing);
        self.capacity_unknown = unknown;
        if self.capacity > 0 {
            self.utilisation = Some(ratio(self.load, self.capacity));
            self.utilisation_up = Some(ratio(self.load, self.capacity + unknown));
            self.utilisation_down = Some(ratio(self.load + unknown, self.capacity + unknown));
        }
    }

    /// Servers that are or will be there: what the maximum and the wish are compared with.
    #[must_use]
    pub const fn counted(&self) -> u32 {
        self.active + self.suspect + self.lost + self.booting + self.unmanaged
    }

    /// Servers that serve the minimum.
    #[must_use]
    pub const fn serving(&self) -> u32 {
        self.active + self.suspect + self.booting + self.unmanaged
    }

    /// Servers that exist at the provider, or may.
    #[must_use]
    pub const fn existing(&self) -> u32 {
        self.counted() + self.draining + self.leaving + self.failed
    }

    /// Utilisation once the booting servers carry their share.
    #[must_use]
    pub fn utilisation_with_booting(&self) -> Option<f64> {
        let capacity = self.capacity + self.capacity_coming;
        (capacity > 0).then(|| ratio(self.load, capacity))
    }

    /// How many servers of the present average size keep the load at or below `utilisation`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded just before
    pub(super) fn servers_for(&self, utilisation: f64) -> u32 {
        let known = self.active + self.unmanaged;
        if known == 0 || utilisation <= 0.0 {
            return self.counted();
        }
        let each = to_f64(self.capacity) / f64::from(known);
        // A hair below, so that 0.7 × 10 is not 11 servers by rounding.
        let wished = (to_f64(self.load) / (utilisation * each) - 1e-9).ceil();
        wished.clamp(0.0, 1_000_000.0) as u32
    }
}

/// A server that says something unbelievable is alive; one that says nothing may be dead.
const fn is_silence(why: &Unknown) -> bool {
    matches!(why, Unknown::Missing | Unknown::Stale { .. })
}

pub(super) fn ratio(load: u64, capacity: u64) -> f64 {
    to_f64(load) / to_f64(capacity)
}

#[allow(clippy::cast_precision_loss)] // counts of calls: far below 2^53
fn to_f64(number: u64) -> f64 {
    number as f64
}
