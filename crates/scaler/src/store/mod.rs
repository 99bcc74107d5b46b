//! What the scaler keeps in PostgreSQL.
//!
//! A leader's write is one statement that reads its own term `FOR SHARE`, changes a row only if it is still as it was read,
//! and answers both questions: was I the leader, and was the row mine to change.

mod create;
mod decisions;
mod groups;
mod operate;
mod operations;
mod providers;
mod retention;
mod rows;
mod servers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use voiceai_postgres::{NotTrusted, PgPool, sqlx};

pub use create::{CreateHold, Created, NewRemoval, NewServer, Raised};
pub use decisions::DecisionRow;
pub use groups::{GroupRow, GroupStanding, Pause};
pub use operate::{OperateError, Target};
pub use operations::{Step, StepOutcome};
pub use providers::{HoldKind, Judgement, NewOrphan, OrphanRow, ProviderHold};
pub use retention::Pruned;
pub use rows::{DownSettings, OperationRow, ServerRow, ServerSpec};
pub use servers::FleetRow;

/// A store's call that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database did not do it.
    #[error("{tried}")]
    Database {
        /// What was tried.
        tried: &'static str,
        /// What came back.
        source: sqlx::Error,
    },
    /// A row holds what this version cannot read.
    #[error("{what} of {row} cannot be read: {why}")]
    Unreadable {
        /// The column.
        what: &'static str,
        /// Which row.
        row: String,
        /// Why.
        why: String,
    },
    /// A newer leader has taken over.
    #[error("{tried}: refused, a newer leader has taken over")]
    Fenced {
        /// What was tried.
        tried: &'static str,
    },
    /// The own term may no longer be trusted.
    #[error(transparent)]
    NotTrusted(#[from] NotTrusted),
}

impl StoreError {
    pub(crate) fn database(tried: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { tried, source }
    }

    /// True when this process has to stop leading.
    #[must_use]
    pub const fn ends_leadership(&self) -> bool {
        matches!(self, Self::Fenced { .. } | Self::NotTrusted(_))
    }
}

/// The scaler's tables. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    /// Policies of servers by their hash, as the fleet was last read.
    specs: Arc<Mutex<HashMap<i64, Arc<ServerSpec>>>>,
}

impl Store {
    /// On a migrated database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, specs: Arc::default() }
    }

    /// The pool, for what is shared by both services.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }
}
