//! Outgoing mail: from an accepted command to a known outcome.
//!
//! A delivery is rendered once ([`template`]), composed once ([`message`]) and handed to a [`transport`] as often as its
//! attempts need, byte for byte the same each time.

pub mod address;
mod class;
pub mod message;
pub mod template;
pub mod transport;

pub use address::Address;
pub use class::Class;
