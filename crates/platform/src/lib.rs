//! Jobs on the platform's own tables. The platform owns them and its migrations make them; an installation may have any part of
//! them. Each job says which tables and columns it needs ([`Needs`]): where one is absent the job is done, skipped and says so.
//!
//! Names of tables are resolved as the connection resolves them (`search_path`, by default schema `public`).

mod analytics;
pub mod certificates;
mod cohorts;
mod credits;
mod error;
pub mod escalation;
mod expiry;
mod funnels;
mod llm_alerts;
mod llm_costs;
mod newsletter;
pub mod oncall;
pub mod outgoing;
mod period;
pub mod rollout;
mod settings;
pub mod sla;
mod stripe;
mod subscriptions;
mod sweep;
mod sweep_rules;
mod tables;
mod upkeep;
mod usage;

pub(crate) use error::text;

pub use analytics::AnalyticsAggregate;
pub use cohorts::Cohorts;
pub use credits::CreditsReset;
pub use error::PlatformError;
pub use expiry::{CommandsExpire, ExecutionsExpire};
pub use funnels::Funnels;
pub use llm_alerts::LlmAlerts;
pub use llm_costs::LlmAggregate;
pub use newsletter::{NewsletterSegments, NewsletterSequences, NewsletterSync};
pub use period::{Period, Window};
pub use settings::{HousekeepingSettings, Retention, StripeSettings};
pub use stripe::Stripe;
pub use subscriptions::{BillingPause, SubscriptionsExpire, SubscriptionsMaintain};
pub use sweep::RetentionSweep;
pub use sweep_rules::SweepSet;
pub use tables::{Missing, Needs, finish, missing};
pub use upkeep::{HOUSEKEEPING_QUEUE, Upkeep};
pub use usage::UsageAggregate;
