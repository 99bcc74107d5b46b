//! Watching: how the platform's services are, and figures of the platform over time. Both are the leader's.
//!
//! [`Monitor`] asks every service in rounds and keeps its state in `ops.service_health`; [`judge`] decides when that is an alert.
//! Alerts are rows of `ops.system_alerts`, opened once and closed on recovery, and whoever is to be told is told in the same
//! transaction ([`Announcer`]). [`collect`] keeps figures in `ops.system_metrics`.

mod announce;
pub mod collect;
mod decide;
mod error;
mod metrics;
mod monitor;
mod probe;
mod settings;
mod store;
pub mod view;

pub use announce::{Announcer, ServiceEvent, nobody};
pub use decide::{Change, Policy, Standing, State, judge};
pub use error::MonitorError;
pub use monitor::{Monitor, Round};
pub use probe::{Observation, Prober};
pub use settings::{CollectorSettings, MonitorSettings, Service};
