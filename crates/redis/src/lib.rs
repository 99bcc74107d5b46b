//! The one door to Redis. Nothing else in the workspace depends on fred, so that the client library could be changed
//! here, in a day.
//!
//! Guarantees, whatever the server does (standalone, Sentinel or Cluster):
//! - every call ends: it has a time limit, and an unresponsive connection is closed and reopened;
//! - reconnecting goes on for ever, and a demoted or restarting server (`READONLY`, `LOADING`, `MASTERDOWN`,
//!   `CLUSTERDOWN`, `NOREPLICAS`) makes the client look for the new one;
//! - an error says whether the command may have been applied ([`RedisError::outcome_unknown`]).
//!
//! A command that is retried by the client after a lost connection may run twice. Callers for whom that matters set
//! [`CallOptions::attempts`] to 1.

mod blocking;
mod client;
mod error;
mod script;
mod server;
mod settings;
mod walk;

pub use blocking::{Blocking, StreamEntry, Subscriber};
/// Argument and reply types, re-exported so that callers need no dependency of their own.
pub use bytes_utils::Str;
pub use client::{CallOptions, Redis};
pub use error::{RedisError, RedisErrorKind};
pub use fred::types::{FromValue, Key, Map, Value};
pub use script::Script;
pub use server::ServerInfo;
pub use settings::{RedisSettings, SettingsError, Topology};
pub use walk::Primary;
