//! PostgreSQL: the pool, the embedded migrations, leader terms and the audit trail.
//!
//! Rules for everything that writes through this crate:
//! - a leader's write is **one statement** that reads its own term `FOR SHARE` and does nothing when it is not the
//!   newest (see [`term`]); a paused leader can then neither write late nor block its successor;
//! - no transaction is open while anything else is waited for, and `begin()` is never raced against a time limit: a
//!   cancelled `begin` may leave a pooled connection inside a transaction.

pub mod audit;
mod connect;
pub mod installation;
mod listen;
mod migrate;
mod migrations;
mod settings;
pub mod term;

pub use connect::{ConnectError, connect, reserved, takes_writes};
pub use listen::listen;
pub use migrate::{Component, MigrateError, Migrated, migrate, unapplied};
pub use migrations::{ALL, COMMON, MAIL, SCALER, TASKER};
pub use settings::PostgresSettings;
/// Re-exported so that callers use the very version of this crate.
pub use sqlx;
pub use sqlx::PgPool;
pub use term::{NotTrusted, Tenure, Term};

/// True when the same statement will never succeed with the same values: a value that cannot be kept or read, a constraint, a table of
/// another make, a right that is lacking. A table that is gone is none of these, since it may come.
#[must_use]
pub fn is_refused(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        // 22: a value of the wrong kind, 23: against a constraint, 42: names, types and rights; 42P01: no such table.
        sqlx::Error::Database(db) => db.code().is_some_and(|code| {
            ["22", "23", "42"].iter().any(|class| code.starts_with(class)) && code != "42P01"
        }),
        _ => false,
    }
}

/// True when the error says that the server is away, restarting or full, so that the same statement may succeed later.
#[must_use]
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => true,
        // 08: connection, 53: resources, 57P0x: shutdown and start-up, 25006: a demoted primary.
        sqlx::Error::Database(db) => db.code().is_some_and(|c| {
            c.starts_with("08") || c.starts_with("53") || c.starts_with("57P0") || c == "25006"
        }),
        _ => false,
    }
}
