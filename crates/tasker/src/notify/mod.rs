//! Notices: from events of the services to mail and webhooks for those whom they concern.
//!
//! Whoever has something to tell enqueues a job of the kind `notification.send` ([`Notice`]), in its own transaction by the
//! outbox; [`NotificationService`] tells each notice once. It goes to those who run the platform, to the addresses that it names, or to
//! a tenant by that tenant's preferences. After a mail about an event of a group, further ones are held back for `ALERT_THROTTLE` and
//! then come in one mail: a bad night makes a few mails, and no notice is lost. What is posted beside the mail is posted by jobs of
//! their own ([`NoticePost`]), with attempts of their own.

mod audience;
mod job;
mod mail;
mod post;
mod service;
mod store;

pub use job::Notice;
pub use post::{NoticePost, PostContext};
pub use service::{NotificationService, NotifyError, Told};
