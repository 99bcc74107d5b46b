//! Webhooks: the workers that post, and retention, composed.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_cli::Failure;
use voiceai_postgres::Tenure;
use voiceai_service::Context;
use voiceai_webhook::sending::Sending;
use voiceai_webhook::{Retention, Wake};

use super::STORE_BOUND;
use crate::operate::webhook;
use crate::settings::TaskerSettings;

/// Starts everything that webhooks need.
///
/// # Errors
/// Refused (4) when TLS cannot be set up.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) -> Result<(), Failure> {
    let settings = &context.settings;
    let client = webhook::client(settings)?;
    let wake = Wake::new();
    let listening = voiceai_webhook::listen(context.pool.clone(), wake.clone(), stopping.clone());
    context.shutdown.spawn("webhook wake-ups", listening);
    let pool = context.pool.clone();
    let sending = Sending::new(pool, client, settings.webhook.clone(), wake, settings.worker_poll);
    let pulse = context.vitals.register("webhook worker pool", STORE_BOUND);
    let running = sending.run(stopping.clone(), context.shutdown.forced(), pulse);
    context.shutdown.spawn("webhook worker pool", running);
    let retention = Retention::new(context.pool.clone(), settings.webhook.retention);
    let pulse = context.vitals.register("webhook retention worker", STORE_BOUND);
    let running = retention.run(tenure.clone(), stopping.clone(), pulse);
    context.shutdown.spawn("webhook retention worker", running);
    Ok(())
}
