//! Leader election: a Redis lease makes one instance act, a term issued by PostgreSQL makes all others harmless.
//!
//! # What is guaranteed
//!
//! - **A tenure is one unbroken lease.** It begins with a term that PostgreSQL issued to the holder of the lease, and is
//!   prolonged only by a renewal that found the lease with this process's own nonce. A renewal never makes a lease, so a
//!   lease that was gone for a moment, whatever the reason, ends the tenure. A term is given to one tenure only.
//! - **Trust counts from when the request was sent**, on the boot-time clock: sent + TTL − TTL/10. The tenth covers
//!   clocks that run at different rates; a wall clock that jumps only matters to Redis, and is covered by the term.
//! - **Any failed renewal stops new effects at once**: the tenure is *suspended* and [`Tenure::check`] refuses. If the
//!   next renewal finds the lease still ours, the same tenure goes on; if it does not, or the time is over, the tenure
//!   ends for ever. A single lost reply therefore stops effects for a moment and never costs the leadership.
//! - **The lease alone protects nothing**: a paused process may act after its lease is over. Each effect carries the
//!   term and is refused where it happens ([`voiceai_postgres::term`]); the lease only keeps the refusals rare.
//!
//! # Redis and PostgreSQL away
//!
//! Without Redis nobody can renew: tenures end by the clock, and the loop goes on trying. Without PostgreSQL no term can
//! be issued, so a candidate gives the lease back and tries again with growing waits. A leader keeps its lease while
//! PostgreSQL is away: all its effects are fenced there and fail by themselves, and no other instance could do more.
//! Once in a heartbeat it asks PostgreSQL whether its term is still the newest, and resigns when it is not (a database
//! restored from a backup, or a late statement of a candidate that had given up).
//!
//! docs/adr/0001-leadership.md has the reasons and the figures.

mod campaign;
mod candidacy;
mod election;
mod error;
mod installation;
mod lease;
mod machine;
mod metrics;
mod mirror;
mod obstacles;
mod record;
mod settings;
mod stuck;

pub use election::{Election, ElectionStatus};
pub use error::LeaderError;
pub use installation::{INSTALLATION_KEY, InstallationError, check_installation};
pub use machine::Role;
pub use mirror::{MirrorError, RedisTerm, TermMirror};
pub use record::{LeaderRecord, current};
pub use settings::{LeaderSettings, SettingsError};
/// Re-exported, as [`Election::watch`] hands it out.
pub use voiceai_postgres::{Tenure, Term};
