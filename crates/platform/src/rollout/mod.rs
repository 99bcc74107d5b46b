//! Staged rollouts: so many targets at a time, the first ones alone where it is wanted, and stopped when too many fail.
//!
//! A campaign and its targets are rows of the platform; whoever carries an order out reports by the target's row. The order itself is
//! a post, claimed in a row of `ops.rollout_orders` before it leaves: what a killed process had claimed is posted again after a
//! minute, under the same id, so that a target can tell that it is the same order.

mod decide;
mod rows;
mod settings;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, HistoryMode, Job, JobError, Outcome};
use voiceai_webhook::{Client, Keys, Request};

pub use decide::{Counts, Pace, Step, Why, decide, is_failing};
pub use settings::RolloutSettings;

use crate::outgoing::{Outgoing, Verdict, judge};
use crate::{Needs, PlatformError, missing};
use rows::{ATTEMPTS_MAX, Campaign, Looked, Order};

const NEEDS: Needs = Needs(&[
    (
        "ota_campaigns",
        &[
            "id",
            "tenant_id",
            "name",
            "rollout_strategy",
            "rollout_rate",
            "abort_threshold",
            "status",
            "total_devices",
            "succeeded",
            "failed",
            "started_at",
            "completed_at",
        ],
    ),
    (
        "ota_device_status",
        &[
            "id",
            "tenant_id",
            "campaign_id",
            "device_id",
            "status",
            "error_message",
            "started_at",
            "completed_at",
            "created_at",
        ],
    ),
]);
/// Longest time to an answer, and how many are waited for at the same time.
const POST_MAX: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 10;
/// A run takes steps for so long; the schedule starts the next one.
const RUN_MAX: SignedDuration = SignedDuration::from_secs(50);

/// What the job works with.
#[derive(Clone, Debug)]
pub struct RolloutContext {
    /// Where the rows are.
    pub pool: PgPool,
    /// The ways out.
    pub outgoing: Outgoing,
    /// Where orders go, how often steps are taken.
    pub settings: RolloutSettings,
}

/// `rollouts.step`: the next step of every rollout that runs, again every `ROLLOUT_INTERVAL` for the better part of a minute.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutStep {
    /// Takes one step only.
    #[serde(default)]
    pub once: bool,
}

impl Job for RolloutStep {
    const KIND: &'static str = "rollouts.step";
    const QUEUE: &'static str = crate::escalation::DUTY_QUEUE;
    const HISTORY: HistoryMode = HistoryMode::Failures;
    type Context = RolloutContext;

    async fn run(&self, context: &RolloutContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        match missing(&context.pool, NEEDS).await {
            Ok(None) => {}
            Ok(Some(missing)) => {
                tracing::info!(kind = Self::KIND, table = missing.table, "table absent, skipped");
                return Ok(Outcome::DoneWith(missing.result()));
            }
            Err(error) => return error.into_outcome(Self::KIND),
        }
        let result = match step(context).await {
            Ok(result) => result,
            Err(error) => return error.into_outcome(Self::KIND),
        };
        let goes_on = result["running"].as_u64().unwrap_or(0) > 0 && !self.once;
        let wait =
            SignedDuration::try_from(context.settings.interval).unwrap_or(SignedDuration::from_secs(10));
        // Waiting costs neither a slot nor an attempt.
        if goes_on && Timestamp::now() + wait < attempt.enqueued_at() + RUN_MAX {
            return Ok(Outcome::Snooze(context.settings.interval));
        }
        Ok(Outcome::DoneWith(result))
    }
}

async fn step(context: &RolloutContext) -> Result<Value, PlatformError> {
    let (mut ordered, mut refused, mut ended, mut running, mut stuck) = (0, 0, Vec::new(), 0, Vec::new());
    let (campaigns, nobodys) = rows::running(&context.pool).await?;
    for campaign in nobodys {
        let reason = "its tenant_id is empty";
        tracing::warn!(campaign, reason, "a rollout cannot take its step");
        stuck.push(json!({ "campaign": campaign, "reason": reason }));
    }
    for campaign in campaigns {
        let way = way(context, &campaign);
        if let Err(reason) = &way {
            tracing::warn!(campaign = campaign.id, reason, "a rollout has nowhere to post its orders");
            stuck.push(json!({ "campaign": campaign.id, "reason": reason }));
        }
        if campaign.pace.rate == 0 {
            let reason = "its rollout_rate is not above 0, so that nothing is ordered";
            tracing::warn!(campaign = campaign.id, reason, "a rollout cannot go on");
            stuck.push(json!({ "campaign": campaign.id, "reason": reason }));
        }
        let timeout = context.settings.report_timeout;
        let looked = match rows::look(&context.pool, &campaign, timeout, way.is_ok()).await {
            Ok(looked) => looked,
            Err(error) if error.is_unavailable() => return Err(error),
            // One campaign's rows keep no other from its step.
            Err(error) => {
                let reason = crate::text(&error);
                tracing::error!(campaign = campaign.id, reason, "a rollout cannot take its step");
                stuck.push(json!({ "campaign": campaign.id, "reason": reason }));
                continue;
            }
        };
        match looked {
            Looked::Elsewhere => {}
            Looked::Waiting => running += 1,
            Looked::Ended(status) => {
                tracing::info!(campaign = campaign.id, status, "a rollout has ended");
                ended.push(json!({ "campaign": campaign.id, "status": status }));
            }
            Looked::Claimed(orders) => {
                running += 1;
                let Ok(way) = &way else { continue };
                let count = orders.len();
                let posts = stream::iter(orders).map(|order| give(context, way, &campaign, order));
                let ends: Vec<_> = posts.buffer_unordered(AT_ONCE).collect().await;
                let taken = ends
                    .into_iter()
                    .collect::<Result<Vec<bool>, _>>()?
                    .into_iter()
                    .filter(|taken| *taken)
                    .count();
                ordered += taken;
                refused += count - taken;
            }
        }
    }
    Ok(json!({ "running": running, "ordered": ordered, "refused": refused, "ended": ended, "stuck": stuck }))
}

/// Where a campaign's orders go, and how.
struct Way<'a> {
    client: &'a Client,
    template: String,
    keys: Option<Keys>,
}

/// Its own address by the guarded way, else the one of the settings.
fn way<'a>(context: &'a RolloutContext, campaign: &Campaign) -> Result<Way<'a>, &'static str> {
    if let Some(url) = &campaign.url {
        return Ok(Way { client: &context.outgoing.guarded, template: url.clone(), keys: None });
    }
    let Some(url) = &context.settings.url else {
        return Err("the campaign has no dispatch_url, and ROLLOUT_DISPATCH_URL is not set");
    };
    let (template, keys) = (url.expose().to_owned(), context.settings.keys.clone());
    Ok(Way { client: &context.outgoing.trusted, template, keys })
}

/// Posts one order and writes down what came of it. True when it was taken.
async fn give(
    context: &RolloutContext,
    way: &Way<'_>,
    campaign: &Campaign,
    order: Order,
) -> Result<bool, PlatformError> {
    let pool = &context.pool;
    let Ok(url) = Url::parse(&fill(&way.template, campaign, &order.target)) else {
        rows::refused(pool, campaign, &order, "the address for orders is no URL", None).await?;
        return Ok(false);
    };
    let mut data = json!({ "campaign_id": campaign.id, "campaign": campaign.name, "tenant_id": campaign.tenant,
                           "device_id": order.target, "action": "update" });
    if let (Value::Object(data), Value::Object(what)) = (&mut data, &campaign.what) {
        data.extend(what.clone());
    }
    let request = Request {
        url,
        id: order_id(campaign, &order.target),
        body: json!({ "type": "rollout.order", "timestamp": Timestamp::now(), "data": data })
            .to_string()
            .into(),
        keys: way.keys.clone(),
        timeout: POST_MAX,
    };
    match judge(&way.client.post(&request).await) {
        Verdict::Taken => {
            rows::sent(pool, campaign, &order).await?;
            return Ok(true);
        }
        Verdict::Again(error, wish) if order.attempts < ATTEMPTS_MAX => {
            let own = Duration::from_secs(5 << order.attempts.clamp(0, 8));
            let wait = wish.map_or(own, |wish| wish.clamp(own, Duration::from_secs(3_600)));
            rows::refused(pool, campaign, &order, &error, Some(wait)).await?;
        }
        Verdict::Again(error, _) | Verdict::Never(error) => {
            tracing::warn!(
                campaign = campaign.id,
                target_id = order.target,
                error,
                "a rollout's order is given up"
            );
            rows::refused(pool, campaign, &order, &error, None).await?;
        }
    }
    Ok(false)
}

fn fill(template: &str, campaign: &Campaign, target: &str) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    // URL parsers write braces as their escapes.
    let mut filled = template.replace("%7B", "{").replace("%7D", "}");
    for (name, value) in [
        ("{tenant}", campaign.tenant.as_str()),
        ("{device}", target),
        ("{campaign}", &campaign.id.to_string()),
    ] {
        filled = filled.replace(name, &encoded(value));
    }
    filled
}

/// The same for the same order, however often it is posted.
fn order_id(campaign: &Campaign, target: &str) -> String {
    crate::outgoing::plain_id(&format!("rollout:{}", campaign.id), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orders_address_and_id_are_safe_whatever_the_target_is_called() {
        let campaign = Campaign {
            id: 7,
            tenant: "t/1".to_owned(),
            name: "n".to_owned(),
            pace: Pace { is_canary: false, rate: 1, abort_above: 0.1 },
            url: None,
            what: json!({}),
        };
        let filled = fill("https://x.org/%7Btenant%7D/{device}?c={campaign}", &campaign, "a/../b c");
        assert_eq!(filled, "https://x.org/t%2F1/a%2F%2E%2E%2Fb%20c?c=7");
        assert_eq!(order_id(&campaign, "d-1"), "rollout:7:d-1");
        let odd = order_id(&campaign, "é\r\n");
        assert!(odd.starts_with("rollout:7:") && odd.is_ascii() && odd == order_id(&campaign, "é\r\n"));
        assert_ne!(odd, order_id(&campaign, "è\r\n"));
    }
}
