//! A mail's bytes: composed once, checked before every attempt.

mod check;
mod compose;
mod error;

pub use check::{Unfit, check};
pub use compose::{Attachment, Composition, Mailbox, compose, new_message_id};
pub use error::ComposeError;
