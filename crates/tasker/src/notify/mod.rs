//! Notices: from events of the services to mail for those who run the platform.
//!
//! Whoever has something to tell enqueues a job of the kind `notification.send` ([`Notice`]), in its own transaction by the
//! outbox; [`NotificationService`] tells each notice once. After a mail about an event of a group, further ones are held back
//! for `ALERT_THROTTLE` and then come in one mail: a bad night makes a few mails, and no notice is lost.

mod job;
mod mail;
mod service;
mod store;

pub use job::Notice;
pub use service::{NotificationService, NotifyError, Told};
