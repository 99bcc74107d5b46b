//! `billing.pause`: asks Stripe to stop collecting for a subscription that was suspended.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use voiceai_queue::{Attempt, Job, JobError, Outcome};

use crate::error::PlatformError;
use crate::tables::Needs;
use crate::upkeep::{HOUSEKEEPING_QUEUE, Upkeep};

/// One subscription that was suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BillingPause {
    /// Ours.
    pub subscription: String,
    /// Stripe's.
    pub stripe_subscription: String,
    /// The end of the term that was not renewed.
    pub term_end: Timestamp,
}

impl Job for BillingPause {
    const KIND: &'static str = "billing.pause";
    const QUEUE: &'static str = HOUSEKEEPING_QUEUE;
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);
    type Context = Upkeep;

    async fn run(&self, upkeep: &Upkeep, _attempt: &Attempt) -> Result<Outcome, JobError> {
        upkeep.finish(Self::KIND, Needs(&[]), self.pause(upkeep)).await
    }
}

impl BillingPause {
    /// The same suspension is the same request, by whichever attempt, replay or process: Stripe does it once.
    fn key(&self) -> String {
        format!("voiceai:billing.pause:{}:{}", self.stripe_subscription, self.term_end.as_second())
    }

    async fn pause(&self, upkeep: &Upkeep) -> Result<Value, PlatformError> {
        let Some(stripe) = &upkeep.stripe else {
            return Err(PlatformError::invalid(
                "STRIPE_SECRET_KEY",
                "it is not set; set it and replay the job",
            ));
        };
        stripe.probe().await?;
        // A subscription that was paid meanwhile is left to collect.
        let known = stripe.subscription(&self.stripe_subscription).await?;
        if known.renewed_until(Timestamp::now()).is_some() || known.status == "canceled" {
            return Ok(json!({ "paused": false, "stripe_status": known.status }));
        }
        stripe.pause_collection(&self.stripe_subscription, &self.key()).await?;
        Ok(json!({ "paused": true, "stripe_status": known.status }))
    }
}
