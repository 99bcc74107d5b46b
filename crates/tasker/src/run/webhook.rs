//! Webhooks: the workers that post, and retention, composed.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_service::Context;
use voiceai_webhook::sending::Sending;
use voiceai_webhook::{Client, Retention, Wake};

use super::STORE_BOUND;
use crate::settings::TaskerSettings;

/// Starts everything that webhooks need; `client` posts.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    client: Client,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let settings = &context.settings;
    let wake = Wake::new();
    let (pool, woken, stop) = (context.pool.clone(), wake.clone(), stopping.clone());
    context.shutdown.spawn_restarting("webhook wake-ups", move || {
        voiceai_webhook::listen(pool.clone(), woken.clone(), stop.clone())
    });
    let (pool, vitals) = (context.pool.clone(), context.vitals.clone());
    let (stop, forced) = (stopping.clone(), context.shutdown.forced());
    let (own, poll) = (settings.webhook.clone(), settings.worker_poll);
    let election = context.shared.leader.key.clone();
    context.shutdown.spawn_restarting("webhook worker pool", move || {
        let pulse = vitals.register("webhook worker pool", STORE_BOUND);
        let (pool, client, election) = (pool.clone(), client.clone(), election.clone());
        let sending = Sending::new(pool, client, own.clone(), election, wake.clone(), poll);
        sending.run(stop.clone(), forced.clone(), pulse)
    });
    let (pool, vitals, kept) = (context.pool.clone(), context.vitals.clone(), settings.webhook.retention);
    let (told, stop) = (tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("webhook retention worker", move || {
        let pulse = vitals.register("webhook retention worker", STORE_BOUND);
        Retention::new(pool.clone(), kept).run(told.clone(), stop.clone(), pulse)
    });
}
