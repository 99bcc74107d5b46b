//! A mail's bytes: composed once, checked before every attempt.

mod check;
mod compose;
mod error;

pub use check::{Unfit, check};
pub use compose::{Attachment, Composition, Mailbox, SUBJECT_LONGEST, compose, new_message_id, subject_fits};
pub use error::ComposeError;
