//! What is known of one group at one moment: the input of a decision.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::heartbeat::{Beat, Reading};

/// Where one of our servers stands, as its row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Asked for or starting; not in routing yet.
    Booting,
    /// In service.
    Active,
    /// Out of routing for new calls; its running calls go on.
    Draining {
        /// True while the drain may still be called off.
        cancellable: bool,
        /// True when a person asked for it: such a drain is never called off by a decision.
        by_operator: bool,
    },
    /// Past the point of return: being deleted.
    Leaving,
    /// Never became healthy, or cannot be deleted; exists, serves nothing.
    Failed,
}

/// One server that we made.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// What its heartbeat says.
    pub reading: Reading,
    /// For how long no believable heartbeat was seen; zero when one is there.
    pub silent_for: SignedDuration,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// A person wishes it not to be removed before this.
    pub protected_until: Option<Timestamp>,
}

/// A server that beats for the group under a name we did not create. Counted, never touched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unmanaged {
    /// The name it beats under.
    pub name: String,
    /// Its fresh heartbeat.
    pub beat: Beat,
}

/// One past evaluation, for periods, stabilisation and the rest after a panic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was made.
    pub at: Timestamp,
    /// The utilisation it saw; `None` when unknown.
    pub utilisation: Option<f64>,
    /// The number of servers it wished for before any clamp.
    pub wish: u32,
    /// True when it saw a panic.
    pub panic: bool,
}

/// What holds a group for a reason outside its policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// In one line, for `status`.
    pub why: String,
    /// When it ends by itself; `None`: not by itself.
    pub until: Option<Timestamp>,
}

/// Limits that several groups share, and this group's standing with its provider.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// How many servers may still be made in the whole fleet; `None`: no cap.
    pub fleet_room: Option<u32>,
    /// How many servers were asked for in this group within the last hour.
    pub creates_last_hour: u32,
    /// Nothing at all is done: a person's pause, or a hold after a restored database.
    pub paused: Option<Hold>,
    /// Nothing is bought: an open circuit, an exhausted quota, a rate limit.
    pub no_creates: Option<Hold>,
}

/// Everything a decision about one group is made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupState {
    /// Our servers that are not gone.
    pub servers: Vec<Server>,
    /// Fresh heartbeats of the group under names we did not create.
    pub unmanaged: Vec<Unmanaged>,
    /// True when the heartbeats could not be read at all.
    pub unreadable: bool,
    /// When the last decision to add was taken.
    pub last_up: Option<Timestamp>,
    /// When the last decision to remove was taken.
    pub last_down: Option<Timestamp>,
    /// Past evaluations, oldest first.
    pub history: Vec<Sample>,
    /// Limits from outside the group.
    pub limits: Limits,
}
