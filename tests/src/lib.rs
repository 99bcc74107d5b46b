//! The whole platform on real servers: what the demo and the end-to-end tests are told with.
//!
//! [`Platform`] starts the built binaries on one Redis, one PostgreSQL and one S3 bucket; [`Callers`] are the platform's
//! customers: they choose a server as Kamailio would and notice a call that is cut.

mod callers;
mod platform;

pub use callers::{Callers, Destination};
pub use platform::{Group, Output, Platform, Stores};
