//! Webhooks: events posted to tenants' endpoints, signed by the Standard Webhooks scheme, until each is taken or given up.
//!
//! [`emit`] writes an event and a delivery for every endpoint that wants it, in one statement. [`sending`] posts what is due:
//! PostgreSQL alone knows what that is, so neither a crash nor the loss of Redis loses a delivery. A delivery arrives at least
//! once; its `webhook-id` is the same each time.

mod attempt;
mod backlog;
mod claim;
pub mod deliveries;
pub mod endpoints;
mod error;
mod event;
mod guard;
mod ledger;
mod metrics;
mod pace;
mod post;
mod queue;
pub mod replay;
mod retention;
mod retry;
pub mod sending;
mod settings;
mod signature;
mod store;
mod targets;
mod tls;
mod wake;

pub use backlog::{Backlog, backlog};
pub use error::WebhookError;
pub use event::{Emitted, NewEvent, emit, emit_within};
pub use guard::{Allowed, Guard, GuardError, Resolve, SystemResolver};
pub use post::{Answer, Client, Failure, Request};
pub use retention::Retention;
pub use retry::{Policy, Step, retry_after};
pub use settings::WebhookSettings;
pub use signature::{KeyError, Keys, new_secret};
pub use wake::{Wake, listen};
