//! `run`: the control loop.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use voiceai_cli::{ExitCode, Failure};
use voiceai_leader::RedisTerm;
use voiceai_redis::Redis;
use voiceai_service::{Context, failures};

use super::IDENTITY;
use crate::act::{Engine, Patience, Providers};
use crate::dispatcher::{Dispatcher, TERM_KEY};
use crate::heartbeats::HeartbeatReader;
use crate::lead::{self, LeadSettings};
use crate::routing::proxies::Proxies;
use crate::script::{ScriptRunner, Surroundings};
use crate::settings::ScalerSettings;
use crate::store::Store;

/// For Kamailio to notice a change of its records (it polls every two seconds) and to probe a new one (every five).
const SETTLE: SignedDuration = SignedDuration::from_secs(8);

/// Of SHUTDOWN_TIMEOUT, for ending scripts, resigning and flushing.
const KEPT_BACK: Duration = Duration::from_secs(3);

/// How long the dispatcher's Redis may take to answer at start.
const DISPATCHER_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn run() -> ExitCode {
    Box::pin(voiceai_service::run(IDENTITY, ScalerSettings::read, start)).await
}

async fn start(mut context: Context<ScalerSettings>) -> Result<Context<ScalerSettings>, Failure> {
    let dispatcher = connect_dispatcher(&context.settings).await?;
    let engine = engine(&context, dispatcher.clone())?;
    let settings = LeadSettings {
        environment: context.shared.general.environment.to_ascii_lowercase(),
        instance_id: context.shared.general.instance_id.clone(),
        evaluation_interval: context.settings.evaluation_interval,
        orphan_sweep: context.settings.orphan_sweep,
        fleet_max: context.settings.fleet_max,
        history_retention: context.settings.history_retention,
        stop_patience: context.shared.general.shutdown_timeout.saturating_sub(KEPT_BACK) / 2,
    };
    let mirror = Arc::new(RedisTerm::new(dispatcher, TERM_KEY));
    let tenures = context.elect(vec![mirror]);
    let (engine, shutdown, vitals) = (Arc::new(engine), context.shutdown.clone(), context.vitals.clone());
    // A panic ends what it had begun with it: each of its tasks stops with the tenure's own tokens.
    context.shutdown.spawn_restarting("scaler leader", move || {
        lead::run(Arc::clone(&engine), settings.clone(), tenures.clone(), shutdown.clone(), vitals.clone())
    });
    Ok(context)
}

async fn connect_dispatcher(settings: &ScalerSettings) -> Result<Redis, Failure> {
    let mut redis = settings.dispatcher.clone();
    redis.connect_deadline = DISPATCHER_WITHIN;
    Redis::connect(&redis).await.map_err(|error| {
        let mut failure = failures::redis(&error);
        failure.message = format!("the dispatcher's Redis: {}", failure.message);
        failure
    })
}

fn engine(context: &Context<ScalerSettings>, dispatcher: Redis) -> Result<Engine, Failure> {
    let settings = &context.settings;
    let signed = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    let runner = ScriptRunner::start(ScriptRunner::own_binary()).map_err(|error| {
        Failure::failed(
            "script_thread",
            format!("start the thread of the provider scripts: {error}"),
            "Look at the limits of processes and threads.",
        )
    })?;
    let surroundings = Surroundings {
        environment: context.shared.general.environment.clone(),
        proxy: settings.proxy.clone(),
        passed: settings.passed.clone(),
        credentials: settings.credentials.clone(),
        secrets: Some(context.secrets.clone()),
    };
    let proxies = Proxies::new(&settings.proxies).map_err(|error| {
        Failure::refused(
            "kamailio_rpc_urls",
            format!("make a client for KAMAILIO_RPC_URLS: {error}"),
            "Correct KAMAILIO_RPC_URLS.",
        )
    })?;
    Ok(Engine {
        store: Store::new(context.pool.clone()),
        heartbeats: HeartbeatReader::new(context.redis.clone(), &settings.heartbeat_prefix),
        dispatcher: Dispatcher::new(dispatcher, &settings.dispatcher_prefix),
        proxies: Arc::new(proxies),
        providers: Providers::new(
            runner,
            settings.scripts_dir.clone(),
            surroundings,
            settings.script_timeout,
        ),
        cloud_init: settings.cloud_init.clone().kept_fresh(&context.secrets),
        patience: Patience {
            status_poll: settings.status_poll,
            heartbeat_wait: signed(settings.heartbeat_wait),
            drain: signed(settings.drain_timeout),
            stale_after: signed(settings.heartbeat_stale_after),
            settle: SETTLE,
        },
        routing: tokio::sync::Mutex::default(),
        ids: tokio::sync::Mutex::default(),
    })
}
