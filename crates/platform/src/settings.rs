use std::time::Duration;

use url::Url;
use voiceai_config::Reader;
use voiceai_config::catalogue::housekeeping as names;
use voiceai_runtime::Secret;

/// How long the rows of a sweep's tables are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// `RETENTION_AUDIT`.
    pub audit: Duration,
    /// `RETENTION_SUBSCRIPTION_AUDIT`.
    pub subscription_audit: Duration,
    /// `RETENTION_NOTIFICATIONS`.
    pub notifications: Duration,
    /// `RETENTION_PAYMENT_WEBHOOKS`.
    pub payment_webhooks: Duration,
    /// `RETENTION_EVENTS`.
    pub events: Duration,
    /// `RETENTION_MAIL_LOGS`.
    pub mail_logs: Duration,
    /// `RETENTION_ORCHESTRATION_JOBS`.
    pub orchestration_jobs: Duration,
    /// `RETENTION_EXECUTION_LOGS`.
    pub execution_logs: Duration,
    /// `RETENTION_MAINTENANCE_LOG`.
    pub maintenance_log: Duration,
}

/// The way to Stripe.
#[derive(Debug, Clone)]
pub struct StripeSettings {
    /// `STRIPE_SECRET_KEY`.
    pub key: Secret,
    /// `STRIPE_API_URL`.
    pub url: Url,
    /// `STRIPE_TIMEOUT`.
    pub timeout: Duration,
}

/// The settings of housekeeping.
#[derive(Debug, Clone)]
pub struct HousekeepingSettings {
    /// `HOUSEKEEPING_BATCH_SIZE`. Rows.
    pub batch: u32,
    /// `HOUSEKEEPING_BATCH_PAUSE`.
    pub pause: Duration,
    /// The ages.
    pub retention: Retention,
    /// `SUBSCRIPTION_NOTICE_DAYS`, largest first, each once.
    pub notice_days: Vec<i64>,
    /// `SUBSCRIPTION_GRACE`.
    pub grace: Duration,
    /// `SUBSCRIPTION_FREE_TIER`.
    pub free_tier: String,
    /// Absent without `STRIPE_SECRET_KEY`: nothing is asked of Stripe.
    pub stripe: Option<StripeSettings>,
    /// `STRIPE_ON_SUSPEND` is `pause_collection`.
    pub pause_collection: bool,
}

impl HousekeepingSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let mut notice_days: Vec<i64> = reader
            .get(&names::SUBSCRIPTION_NOTICE_DAYS)
            .iter()
            .filter_map(|days| days.trim().parse().ok())
            .collect();
        notice_days.sort_unstable_by(|a, b| b.cmp(a));
        notice_days.dedup();
        let stripe = reader.optional(&names::STRIPE_SECRET_KEY).map(|key| StripeSettings {
            key,
            url: reader.get(&names::STRIPE_API_URL),
            timeout: reader.get(&names::STRIPE_TIMEOUT),
        });
        Self {
            batch: reader.get(&names::HOUSEKEEPING_BATCH_SIZE),
            pause: reader.get(&names::HOUSEKEEPING_BATCH_PAUSE),
            retention: Retention {
                audit: reader.get(&names::RETENTION_AUDIT),
                subscription_audit: reader.get(&names::RETENTION_SUBSCRIPTION_AUDIT),
                notifications: reader.get(&names::RETENTION_NOTIFICATIONS),
                payment_webhooks: reader.get(&names::RETENTION_PAYMENT_WEBHOOKS),
                events: reader.get(&names::RETENTION_EVENTS),
                mail_logs: reader.get(&names::RETENTION_MAIL_LOGS),
                orchestration_jobs: reader.get(&names::RETENTION_ORCHESTRATION_JOBS),
                execution_logs: reader.get(&names::RETENTION_EXECUTION_LOGS),
                maintenance_log: reader.get(&names::RETENTION_MAINTENANCE_LOG),
            },
            notice_days,
            grace: reader.get(&names::SUBSCRIPTION_GRACE),
            free_tier: reader.get(&names::SUBSCRIPTION_FREE_TIER),
            stripe,
            pause_collection: reader.get(&names::STRIPE_ON_SUSPEND) == "pause_collection",
        }
    }
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> HousekeepingSettings {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        resolved.read(HousekeepingSettings::read).unwrap().settings
    }

    #[test]
    fn the_ages_are_the_settled_ones_and_stripe_needs_its_key() {
        let settings = read(&[]);
        let days = |age: Duration| age.as_secs() / 86_400;
        let kept = settings.retention;
        assert_eq!(
            [
                kept.audit,
                kept.subscription_audit,
                kept.notifications,
                kept.payment_webhooks,
                kept.events,
                kept.mail_logs,
                kept.orchestration_jobs,
                kept.execution_logs
            ]
            .map(days),
            [365, 730, 90, 30, 90, 180, 7, 30]
        );
        assert_eq!((settings.batch, settings.pause), (10_000, Duration::from_millis(100)));
        assert_eq!(settings.notice_days, [90, 60, 30, 14, 7, 1]);
        assert!(settings.stripe.is_none() && !settings.pause_collection);
        let settings = read(&[
            ("STRIPE_SECRET_KEY", "sk_test_1"),
            ("SUBSCRIPTION_NOTICE_DAYS", "1, 7,30,7"),
            ("STRIPE_ON_SUSPEND", "pause_collection"),
        ]);
        assert_eq!(settings.notice_days, [30, 7, 1]);
        assert_eq!(settings.stripe.unwrap().url.as_str(), "https://api.stripe.com/");
        assert!(settings.pause_collection);
    }
}
