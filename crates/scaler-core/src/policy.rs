//! A server group's policy: what a row of the platform's `"ServerGroup"` says, checked before anything acts on it.
//!
//! A column of the row is read first; one that is absent or NULL is looked for in `scalingConfig` under the same name.
//! A group with a violation is not acted on at all; its violations name the field, the value found and what is allowed.

mod read;

use std::fmt;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::candidate::Candidate;
use crate::schedule::Window;

/// What the servers of a group do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Carries calls; routed by Kamailio.
    Voice,
    /// Answers HTTP; routed by a managed load balancer.
    Api,
}

impl Service {
    /// The word used in names, heartbeats and the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Voice => "voice",
            Self::Api => "api",
        }
    }

    /// The service a word stands for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "voice" => Some(Self::Voice),
            "api" => Some(Self::Api),
            _ => None,
        }
    }
}

/// How the wished number of servers is found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Adds or removes a fixed number when a threshold is crossed.
    Step {
        /// Servers added at once.
        up: u32,
        /// Servers removed at once.
        down: u32,
    },
    /// Keeps utilisation near a target.
    Target {
        /// The utilisation aimed at, between 0 and 1.
        utilisation: f64,
        /// Relative distance from the target within which nothing is done.
        tolerance: f64,
    },
}

/// What happens when calls still run at a drain's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDeadline {
    /// The server is deleted with its calls.
    End,
    /// The deadline is moved by another drain period, and the delay is told.
    Extend,
    /// The server stays out of routing until its calls end, and the delay is told.
    Leave,
}

/// How a server is taken out of service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drain {
    /// How long running calls are waited for; `None`: as long as the service's own setting says.
    pub timeout: Option<SignedDuration>,
    /// What is done when they have not ended by then.
    pub at_deadline: AtDeadline,
}

/// Where a voice server's record in Kamailio's dispatcher table points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatcher {
    /// The dispatcher set.
    pub setid: u32,
    /// The SIP port.
    pub port: u16,
    /// The SIP transport: `udp`, `tcp` or `tls`.
    pub transport: String,
}

/// A valid policy of one group.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The platform's id of the group.
    pub id: String,
    /// The group's unique name.
    pub name: String,
    /// What its servers do.
    pub service: Service,
    /// The group's master switch.
    pub enabled: bool,
    /// Whether the number of servers is ours to change.
    pub scaling_enabled: bool,
    /// Fewest servers outside every window.
    pub min: u32,
    /// Most servers outside every window.
    pub max: u32,
    /// Utilisation strictly above which servers are added.
    pub scale_up_above: f64,
    /// Utilisation strictly below which servers are removed.
    pub scale_down_below: f64,
    /// Rest after any action before servers are added again.
    pub cooldown_up: SignedDuration,
    /// Rest after any action before servers are removed.
    pub cooldown_down: SignedDuration,
    /// How the wished number is found.
    pub mode: Mode,
    /// Consecutive evaluations above the threshold before servers are added.
    pub periods_up: u32,
    /// Consecutive evaluations below the threshold before servers are removed.
    pub periods_down: u32,
    /// The lowest wish of this long is what is added.
    pub stabilise_up: SignedDuration,
    /// The highest wish of this long is what is kept.
    pub stabilise_down: SignedDuration,
    /// Utilisation at which the cooldown is passed over and the whole need is added at once. `None`: never.
    pub panic_at: Option<f64>,
    /// Most servers booting at a time.
    pub max_surge: u32,
    /// Most servers draining at a time.
    pub max_drain: u32,
    /// A server younger than this is not removed.
    pub min_age: SignedDuration,
    /// The most calls the platform sends to one server; `None` when the platform sets no cap.
    pub calls_max: Option<u32>,
    /// Most servers made per hour for this group.
    pub creates_per_hour: u32,
    /// How a server is taken out of service.
    pub drain: Drain,
    /// How long one server that never became healthy is kept for inspection; `None`: it is deleted at once.
    pub keep_failed: Option<SignedDuration>,
    /// How long a server may take from running to its first heartbeat.
    pub heartbeat_deadline: Option<SignedDuration>,
    /// Windows of the week with other bounds.
    pub windows: Vec<Window>,
    /// The provider's name; `None` only while scaling is not enabled.
    pub provider: Option<String>,
    /// Machine types and locations in the order in which they are tried; never empty.
    pub candidates: Vec<Candidate>,
    /// The secret that holds bootstrap values for the group's servers.
    pub secrets_name: Option<String>,
    /// Where a voice server's routing record points.
    pub dispatcher: Dispatcher,
    /// How long routing may need to notice a change of its records and to probe a new one; `None`: the service's own time.
    pub routing_settle: Option<SignedDuration>,
    /// Priority of the group's servers in routing; higher is preferred.
    pub priority: u32,
    /// The group's whole `scalingConfig`, handed to the provider's scripts.
    pub provider_config: Map<String, Value>,
}

/// Capacity assumed of a server that does not say its own: the platform's default per-server cap.
pub const CAPACITY_DEFAULT: u32 = 100;

impl Policy {
    /// Reads and checks one row, given as the JSON object of its columns.
    ///
    /// # Errors
    /// Every violation found, not only the first.
    pub fn read(row: &Value) -> Result<Self, PolicyError> {
        read::policy(row)
    }

    /// Utilisation strictly above which an evaluation asks for servers.
    #[must_use]
    pub fn breach_above(&self) -> f64 {
        match self.mode {
            Mode::Step { .. } => self.scale_up_above,
            Mode::Target { utilisation, tolerance } => utilisation * (1.0 + tolerance),
        }
    }

    /// Utilisation strictly below which an evaluation gives servers up.
    #[must_use]
    pub fn breach_below(&self) -> f64 {
        match self.mode {
            Mode::Step { .. } => self.scale_down_below,
            Mode::Target { utilisation, tolerance } => utilisation * (1.0 - tolerance),
        }
    }

    /// The capacity to count for a server that says `said`.
    ///
    /// The platform routes calls above its cap elsewhere, so a voice server never has more capacity than the cap.
    #[must_use]
    pub fn capacity_of(&self, said: Option<u64>) -> u64 {
        match (said, self.calls_max) {
            (Some(said), Some(cap)) => said.min(u64::from(cap)),
            (Some(said), None) => said,
            (None, cap) => u64::from(cap.unwrap_or(CAPACITY_DEFAULT)),
        }
    }
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The column or the path within `scalingConfig`.
    pub field: String,
    /// What was found and what is allowed.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// A group that cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("server group `{group}` is not usable: {}", listed(.violations))]
pub struct PolicyError {
    /// The group's name, else its id, else `?`.
    pub group: String,
    /// What is wrong with it, in the order of the fields.
    pub violations: Vec<Violation>,
}

fn listed(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
