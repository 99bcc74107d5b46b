//! Subscriptions: reminders before their end, grace after it, suspension after that.

mod announce;
mod billing;
mod decide;
mod expire;
mod maintain;

pub use billing::BillingPause;
pub use expire::SubscriptionsExpire;
pub use maintain::SubscriptionsMaintain;
