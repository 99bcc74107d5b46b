//! What Amazon SES reports about mail after it was sent, by way of Amazon SNS.
//!
//! A message counts once ([`Inbox::take`]), and only when its signature holds, its topic is one that the operator named, and
//! the certificate comes from SNS itself. What it says is read from either of the forms that SES writes ([`read`]).

mod inbox;
mod report;
mod routes;
mod sns;

pub use inbox::{Inbox, Taken};
pub use report::{Effect, Report, read};
pub use routes::routes;
pub use sns::{Certificates, Fetch, Https, Message, Refused, Sns};
