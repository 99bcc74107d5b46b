//! What operators see and do: deliveries, their attempts, dead letters, pauses. Every call is one or a few short statements; the audit
//! trail is the caller's.

mod cursor;
mod dead;
mod list;
mod pauses;
mod resend;
mod show;

pub use cursor::Cursor;
pub use dead::{DeadFilter, DeadLetter, DeadReplay, PLACE, check_dead, dead_letters, release};
pub use list::{DeliveryRow, Filter, list};
pub use pauses::{PAUSE_LONGEST, Pause, Scope, pause, pauses, resume};
pub use resend::{ResendError, resend};
pub use show::{AttemptRow, Delivery, RecipientRow, attempts, show};
