//! The crate on a real PostgreSQL.

mod connecting;
mod migrating;
mod terms;
