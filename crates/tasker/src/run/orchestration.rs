//! Orchestration: the loop that fires its schedules.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_orchestration::schedule::Evaluator;
use voiceai_postgres::Tenure;
use voiceai_queue::outbox::Wakeups;
use voiceai_service::Context;

use super::STORE_BOUND;
use crate::settings::TaskerSettings;

/// Starts it, where there are agents to call.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    tenure: &watch::Receiver<Option<Tenure>>,
    wakeups: &Wakeups,
    stopping: &CancellationToken,
) {
    let settings = &context.settings;
    if settings.orchestration.agents_url.is_none() {
        tracing::info!("no orchestration schedule fires: ORCHESTRATION_AGENTS_URL is not set");
        return;
    }
    let evaluator = Evaluator::new(context.pool.clone(), settings.scheduler_poll, wakeups.clone());
    let bound = settings.scheduler_poll + STORE_BOUND;
    let (vitals, told, stop) = (context.vitals.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("orchestration scheduler", move || {
        let pulse = vitals.register("orchestration scheduler", bound);
        evaluator.clone().run(told.clone(), stop.clone(), pulse)
    });
}
