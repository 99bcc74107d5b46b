//! Upkeep of the platform's own tables: what is kept how long, subscriptions, and the way to Stripe.

use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, integer, list, secret, text, url};

const RETENTION_MAX_MS: i64 = 315_360_000_000;

settings! {
    "Housekeeping", "Jobs on the platform's own tables; see docs/housekeeping.md. Nothing is done to a table that is absent.";

    /// Rows that a sweep deletes in one statement.
    HOUSEKEEPING_BATCH_SIZE: u32 = integer().default("10000").between(1, 100_000).only(Binaries::Tasker);
    /// Rest between two such statements, so that a sweep never crowds out the platform's own work.
    HOUSEKEEPING_BATCH_PAUSE: Duration = duration().default("100ms").between(0, 60_000).only(Binaries::Tasker);
    /// How long the platform's audit trail (`audit_log`) is kept.
    RETENTION_AUDIT: Duration = duration().default("365d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long changes of subscriptions (`subscription_audit`) are kept.
    RETENTION_SUBSCRIPTION_AUDIT: Duration = duration().default("730d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long sent notifications (`subscription_notifications`, `notification_jobs`, `notification_log`) are kept.
    RETENTION_NOTIFICATIONS: Duration = duration().default("90d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long processed webhooks of the payment provider (`payment_webhooks`) are kept. Unprocessed ones stay.
    RETENTION_PAYMENT_WEBHOOKS: Duration = duration().default("30d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long events (`analytics_events`, `usage_events`) are kept. Their aggregates stay.
    RETENTION_EVENTS: Duration = duration().default("90d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long the platform's log of mail (`email_logs`, ended rows of `email_queue`) is kept.
    RETENTION_MAIL_LOGS: Duration = duration().default("180d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long ended runs of agents (`orchestration_jobs`) are kept; their execution logs go with them.
    RETENTION_ORCHESTRATION_JOBS: Duration = duration().default("7d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long `orchestration_execution_logs` are kept where their run is kept longer.
    RETENTION_EXECUTION_LOGS: Duration = duration().default("30d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);
    /// How long `ops.maintenance_log` tells of sweeps and other upkeep.
    RETENTION_MAINTENANCE_LOG: Duration = duration().default("90d").between(86_400_000, RETENTION_MAX_MS).only(Binaries::Tasker);

    /// Days before the end of a subscription's term on which its tenant is reminded, each once.
    SUBSCRIPTION_NOTICE_DAYS: Vec<String> = list().default("90,60,30,14,7,1").only(Binaries::Tasker)
        .check("at most 20 whole numbers of days from 1 to 730 separated by commas, such as 30,14,7,1", are_days);
    /// How long a subscription whose term has ended is served on before it is suspended, where its row has no `grace_end`.
    SUBSCRIPTION_GRACE: Duration = duration().default("14d").between(0, 31_536_000_000).only(Binaries::Tasker);
    /// The tier that a user falls back to when a cancelled subscription has ended.
    SUBSCRIPTION_FREE_TIER: String = text().default("free").only(Binaries::Tasker);
    /// Secret key of Stripe's API (`sk_…`, `rk_…`). Without it nothing is asked of Stripe and subscriptions go by their rows alone.
    STRIPE_SECRET_KEY: Secret = secret().only(Binaries::Tasker);
    /// Where Stripe's API is. `http://` only for this host, for tests.
    STRIPE_API_URL: Url = url().default("https://api.stripe.com").only(Binaries::Tasker)
        .check("an https:// address (http:// only for a loopback address)", is_https);
    /// Longest time for one answer of Stripe.
    STRIPE_TIMEOUT: Duration = duration().default("20s").between(100, 120_000).only(Binaries::Tasker);
    /// What is asked of Stripe for a subscription that is suspended: `none`, or `pause_collection`, after which its invoices are void.
    STRIPE_ON_SUSPEND: String = text().default("none").only(Binaries::Tasker)
        .check("none or pause_collection", |raw| matches!(raw, "none" | "pause_collection"));
}

fn are_days(raw: &str) -> bool {
    let days: Vec<_> = raw.split(',').map(|day| day.trim().parse::<u32>()).collect();
    days.len() <= 20 && days.iter().all(|day| matches!(day, Ok(1..=730)))
}

/// A key must not travel in the clear.
fn is_https(raw: &str) -> bool {
    let Ok(url) = Url::parse(raw) else { return false };
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

#[cfg(test)]
mod tests {
    use super::{are_days, is_https};

    #[test]
    fn days_are_whole_and_few() {
        assert!(are_days("90,60, 30,1") && are_days("730"));
        for bad in ["", "0", "7,x", "1.5", "731", &"1,".repeat(30)] {
            assert!(!are_days(bad), "{bad}");
        }
    }

    #[test]
    fn a_key_travels_encrypted_or_stays_on_this_host() {
        for good in ["https://api.stripe.com", "http://127.0.0.1:9", "http://[::1]:9", "http://localhost:9"] {
            assert!(is_https(good), "{good}");
        }
        for bad in
            ["http://api.stripe.com", "ftp://127.0.0.1", "http://127.0.0.1.example.com", "api.stripe.com"]
        {
            assert!(!is_https(bad), "{bad}");
        }
    }
}
