//! The newsletter's lists: who is on them, in which segments, at which step of a sequence.

mod criteria;
mod segments;
mod sequences;
mod sync;

pub use segments::NewsletterSegments;
pub use sequences::NewsletterSequences;
pub use sync::NewsletterSync;
