//! Mail: intake, the stream's consumer, sending and retention, composed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_cli::Failure;
use voiceai_config::HostName;
use voiceai_leader::{RedisTerm, TermMirror as _};
use voiceai_mail::Wake;
use voiceai_mail::intake::Intake;
use voiceai_mail::retention::Retention;
use voiceai_mail::sending::{Gate, Sending, SendingSettings};
use voiceai_mail::stream::{self, Consumer};
use voiceai_postgres::{PgPool, Tenure, term};
use voiceai_redis::Redis;
use voiceai_service::Context;

use super::STORE_BOUND;
use super::pools::drain_time;
use crate::mail::{self, Route};
use crate::settings::TaskerSettings;

/// The key of the term that is kept beside the stream's offset.
pub(super) fn term_mirror(redis: &Redis, settings: &TaskerSettings) -> RedisTerm {
    RedisTerm::new(redis.clone(), stream::term_key(&settings.mail.stream))
}

/// Reads the templates, opens the intake and starts everything that mail needs.
///
/// # Errors
/// Refused (4) when a template or the transport's settings are broken.
pub(super) fn start(
    context: &Context<TaskerSettings>,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) -> Result<Intake, Failure> {
    let settings = &context.settings.mail;
    let route = mail::route(context)?;
    let wake = Wake::new();
    let intake = mail::intake(&context.pool, settings, wake.clone())?;
    let (pool, woken, stop) = (context.pool.clone(), wake.clone(), stopping.clone());
    context.shutdown.spawn_restarting("mail wake-ups", move || {
        voiceai_mail::listen(pool.clone(), woken.clone(), stop.clone())
    });
    match route {
        Some(route) => start_sending(context, route, wake, stopping),
        None => tracing::warn!(
            "no mail is sent: set SMTP_HOST, or EMAIL_TRANSPORT to ses; what is accepted waits"
        ),
    }
    let (redis, taken, vitals) = (context.redis.clone(), intake.clone(), context.vitals.clone());
    let (stream, kept) = (settings.stream.clone(), settings.keep.deliveries);
    let (told, stop) = (tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("mail command consumer", move || {
        let pulse = vitals.register("mail command consumer", STORE_BOUND);
        let consumer = Consumer::new(redis.clone(), taken.clone(), stream.clone(), kept);
        consumer.run(told.clone(), stop.clone(), pulse)
    });
    let (pool, vitals, kept) = (context.pool.clone(), context.vitals.clone(), settings.keep);
    let (told, stop) = (tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("mail retention worker", move || {
        let pulse = vitals.register("mail retention worker", STORE_BOUND);
        Retention::new(pool.clone(), kept).run(told.clone(), stop.clone(), pulse)
    });
    Ok(intake)
}

fn start_sending(context: &Context<TaskerSettings>, route: Route, wake: Wake, stopping: &CancellationToken) {
    let settings = &context.settings.mail;
    let sending = SendingSettings {
        concurrency: settings.concurrency,
        rate: settings.rate,
        policy: settings.policy.clone(),
        poll_interval: context.settings.worker_poll,
        attempt_max: route.attempt_max,
        drain: drain_time(context.shared.general.shutdown_timeout),
        instance_id: context.shared.general.instance_id.clone(),
        host: HostName::read().0,
        election: context.shared.leader.key.clone(),
    };
    let gate = gate(&context.redis, &context.pool, &context.shared.leader.key);
    let (pool, vitals) = (context.pool.clone(), context.vitals.clone());
    let (stopping, forced) = (stopping.clone(), context.shutdown.forced());
    context.shutdown.spawn_restarting("mail worker pool", move || {
        let transport = Arc::clone(&route.transport);
        let sending = Sending::new(pool.clone(), transport, sending.clone(), wake.clone(), Arc::clone(&gate));
        let (stopping, forced, vitals) = (stopping.clone(), forced.clone(), vitals.clone());
        async move { sending.run(stopping, forced, &vitals).await }
    });
}

/// Nothing is sent from a database that is older than the terms in Redis until the election has seen it: what it holds may have been
/// sent long ago. Without Redis nobody can tell, and mail goes on.
fn gate(redis: &Redis, pool: &PgPool, election: &str) -> Gate {
    let mirror = Arc::new(RedisTerm::new(redis.clone(), format!("{{{election}}}:term")));
    let (pool, election) = (pool.clone(), election.to_owned());
    Arc::new(move || {
        let (mirror, pool, election) = (Arc::clone(&mirror), pool.clone(), election.clone());
        Box::pin(async move {
            let Ok(Ok(highest)) = tokio::time::timeout(Duration::from_secs(2), mirror.highest()).await else {
                return Ok(());
            };
            let standing = term::standing(&pool, &election).await.map_err(|error| error.to_string())?;
            let own = standing.map_or(0, |standing| standing.term);
            if own < highest {
                return Err(format!(
                    "term regressed: the database's term is {own} and Redis has seen {highest}; an election must come first"
                ));
            }
            Ok(())
        })
    })
}
