//! Outgoing mail: from an accepted command to a known outcome.
//!
//! A delivery is rendered once ([`template`]), composed once ([`message`]) and handed to a [`transport`] as often as its
//! attempts need, byte for byte the same each time.

pub mod address;
mod class;
pub mod delivery;
mod error;
pub mod feedback;
pub mod intake;
pub mod malformed;
pub mod message;
mod metrics;
pub mod operate;
pub mod rest;
pub mod retention;
pub mod sending;
pub mod settings;
mod store;
pub mod stream;
pub mod suppression;
pub mod template;
pub mod transport;
mod wake;

pub use address::Address;
pub use class::Class;
pub use error::MailError;
pub use store::backlog::{Backlog, backlog};
pub use wake::{Wake, listen};
