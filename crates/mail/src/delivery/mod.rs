//! What may become of a delivery, its recipients and their attempts: pure decisions, without clock, store or network.
//!
//! ```text
//! attempt    scheduled -> in_progress -> provider_accepted | provider_rejected | transport_failed | timed_out | unknown
//!            scheduled <- in_progress    (handed back before anything was sent)
//!            scheduled -> transport_failed (too old to be sent)         (nothing) -> render_failed
//!
//! recipient  open -> sent | suppressed | failed | dead_letter | unknown
//!            dead_letter -> open         (replayed)
//! delivery   derived from its recipients
//! ```

mod policy;
mod settle;
mod status;

pub use policy::Policy;
pub use settle::{DeadReason, Ended, Facts, Next, Settled, Verdict, settle};
pub(crate) use status::words;
pub use status::{
    AttemptEvent, AttemptStatus, Counts, DeliveryStatus, PayloadMode, RecipientEvent, RecipientStatus,
};
