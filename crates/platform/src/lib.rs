//! Jobs on the platform's own tables. The platform owns them and its migrations make them; an installation may have any part of
//! them. Each job says which tables and columns it needs ([`Needs`]): where one is absent the job is done, skipped and says so.
//!
//! Names of tables are resolved as the connection resolves them (`search_path`, by default schema `public`).

pub mod certificates;
mod error;
pub mod escalation;
pub mod oncall;
pub mod outgoing;
mod tables;

pub(crate) use error::text;

pub use error::PlatformError;
pub use tables::{Missing, Needs, finish, missing};
