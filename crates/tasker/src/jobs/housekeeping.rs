//! The family of upkeep: jobs on the platform's own tables. They are registered everywhere, because each of them skips a table that is
//! absent; their schedules are made everywhere too, and switched on where a run can do no harm.

use std::sync::Arc;

use serde_json::{Value, json};
use voiceai_cli::Failure;
use voiceai_platform::{
    AnalyticsAggregate, BillingPause, Cohorts, CommandsExpire, CreditsReset, ExecutionsExpire, Funnels,
    LlmAggregate, LlmAlerts, NewsletterSegments, NewsletterSequences, NewsletterSync, RetentionSweep, Stripe,
    SubscriptionsExpire, SubscriptionsMaintain, Upkeep, UsageAggregate,
};
use voiceai_postgres::PgPool;
use voiceai_queue::cron::Definition;
use voiceai_queue::{Job, Registry};

use super::registry::Kind;
use crate::settings::TaskerSettings;

/// The kinds of the family.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::of::<AnalyticsAggregate>(),
        Kind::of::<BillingPause>(),
        Kind::of::<Cohorts>(),
        Kind::of::<CommandsExpire>(),
        Kind::of::<CreditsReset>(),
        Kind::of::<ExecutionsExpire>(),
        Kind::of::<Funnels>(),
        Kind::of::<LlmAggregate>(),
        Kind::of::<LlmAlerts>(),
        Kind::of::<NewsletterSegments>(),
        Kind::of::<NewsletterSequences>(),
        Kind::of::<NewsletterSync>(),
        Kind::of::<RetentionSweep>(),
        Kind::of::<SubscriptionsExpire>(),
        Kind::of::<SubscriptionsMaintain>(),
        Kind::of::<UsageAggregate>(),
    ]
}

/// Their handlers.
#[must_use]
pub fn register(registry: Registry, upkeep: &Upkeep) -> Registry {
    registry
        .register::<AnalyticsAggregate>(upkeep.clone())
        .register::<BillingPause>(upkeep.clone())
        .register::<Cohorts>(upkeep.clone())
        .register::<CommandsExpire>(upkeep.clone())
        .register::<CreditsReset>(upkeep.clone())
        .register::<ExecutionsExpire>(upkeep.clone())
        .register::<Funnels>(upkeep.clone())
        .register::<LlmAggregate>(upkeep.clone())
        .register::<LlmAlerts>(upkeep.clone())
        .register::<NewsletterSegments>(upkeep.clone())
        .register::<NewsletterSequences>(upkeep.clone())
        .register::<NewsletterSync>(upkeep.clone())
        .register::<RetentionSweep>(upkeep.clone())
        .register::<SubscriptionsExpire>(upkeep.clone())
        .register::<SubscriptionsMaintain>(upkeep.clone())
        .register::<UsageAggregate>(upkeep.clone())
}

/// The way to Stripe; `None` where no key is set. Nothing is sent.
///
/// # Errors
/// Refused (4) when TLS cannot be set up at all.
pub fn stripe(settings: &TaskerSettings) -> Result<Option<Stripe>, Failure> {
    let stripe = settings.housekeeping.stripe.as_ref().map(|stripe| Stripe::new(stripe, &settings.egress));
    stripe.transpose().map_err(|error| {
        Failure::refused("invalid_configuration", error.to_string(), "Check the certificates of this host.")
    })
}

/// What they work with.
///
/// # Errors
/// As [`stripe`].
pub fn upkeep(settings: &TaskerSettings, pool: PgPool) -> Result<Upkeep, Failure> {
    Ok(Upkeep {
        pool,
        settings: Arc::new(settings.housekeeping.clone()),
        stripe: stripe(settings)?,
        event_bytes_max: settings.webhook.event_bytes_max,
    })
}

/// Whether a schedule fires before anybody has switched it on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// What it computes can be computed again, and what it ends is over.
    On,
    /// It deletes, grants, takes away or writes to customers: a person decides whether it is ours to do, or still the platform's.
    Off,
}

fn schedule<J: Job>(name: &str, expression: &str, first: First, payload: Value) -> Definition {
    let definition = Definition::new(name, J::KIND, expression);
    Definition { queue: J::QUEUE.to_owned(), enabled: first == First::On, payload, ..definition }
}

/// The schedules of the family, in UTC.
#[must_use]
pub fn schedules() -> Vec<Definition> {
    use First::{Off, On};
    vec![
        schedule::<CommandsExpire>("commands-expire", "* * * * *", On, json!({})),
        schedule::<ExecutionsExpire>("executions-expire", "* * * * *", On, json!({})),
        schedule::<CreditsReset>("credits-reset", "0 0 * * *", Off, json!({})),
        schedule::<SubscriptionsExpire>("subscriptions-expire", "0 1 * * *", Off, json!({})),
        schedule::<SubscriptionsMaintain>("subscriptions-maintain", "25 * * * *", Off, json!({})),
        schedule::<AnalyticsAggregate>("analytics-hourly", "0 * * * *", On, json!({ "period": "hour" })),
        schedule::<AnalyticsAggregate>("analytics-daily", "0 2 * * *", On, json!({ "period": "day" })),
        schedule::<UsageAggregate>("usage-hourly", "3 * * * *", On, json!({ "period": "hour" })),
        schedule::<UsageAggregate>("usage-daily", "15 0 * * *", On, json!({ "period": "day" })),
        schedule::<NewsletterSync>("newsletter-sync", "0 3 * * *", Off, json!({})),
        schedule::<NewsletterSegments>("newsletter-segments", "0 4 * * *", On, json!({})),
        schedule::<NewsletterSequences>("newsletter-sequences", "0 */6 * * *", Off, json!({})),
        schedule::<Funnels>("analytics-funnels", "0 5 * * *", On, json!({})),
        schedule::<Cohorts>("analytics-cohorts", "0 6 * * 1", On, json!({})),
        schedule::<LlmAggregate>("llm-costs-hourly", "5 * * * *", On, json!({ "period": "hour" })),
        schedule::<LlmAggregate>("llm-costs-daily", "0 1 * * *", On, json!({ "period": "day" })),
        schedule::<LlmAlerts>("llm-cost-alerts", "10 * * * *", On, json!({})),
        schedule::<RetentionSweep>("retention-logs", "30 3 * * *", Off, json!({ "set": "logs" })),
        schedule::<RetentionSweep>("retention-platform", "0 7 1 * *", Off, json!({ "set": "platform" })),
        schedule::<RetentionSweep>(
            "retention-orchestration",
            "0 8 * * 0",
            Off,
            json!({ "set": "orchestration" }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_schedule_is_sound_and_fires_a_kind_that_takes_its_payload() {
        let (kinds, schedules) = (kinds(), schedules());
        for schedule in &schedules {
            schedule.check().unwrap();
            let kind = kinds.iter().find(|kind| kind.name == schedule.kind).unwrap();
            assert_eq!(kind.queue, schedule.queue, "{}", schedule.name);
            kind.check_payload(&schedule.payload.to_string()).unwrap();
        }
        let names: BTreeSet<_> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        assert_eq!(names.len(), schedules.len());
        let scheduled: BTreeSet<_> = schedules.iter().map(|schedule| schedule.kind.as_str()).collect();
        let without: Vec<_> =
            kinds.iter().filter(|kind| !scheduled.contains(kind.name)).map(|kind| kind.name).collect();
        assert_eq!(without, ["billing.pause"], "only what another job orders has no schedule");
    }

    #[test]
    fn what_deletes_grants_or_writes_to_customers_waits_for_a_person() {
        let off: Vec<_> = schedules()
            .into_iter()
            .filter(|schedule| !schedule.enabled)
            .map(|schedule| schedule.kind)
            .collect();
        let wanted = [
            "credits.reset",
            "subscriptions.expire",
            "subscriptions.maintain",
            "newsletter.sync",
            "newsletter.sequences",
            "retention.sweep",
            "retention.sweep",
            "retention.sweep",
        ];
        assert_eq!(off, wanted);
    }
}
