//! What `run` does: composes workers, scheduler, outbox relay, history, mail and the leader's chores.

mod chores;
mod http;
mod mail;
pub mod monitor;
mod orchestration;
mod pools;
mod standing;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use voiceai_cli::Failure;
use voiceai_config::catalogue::{platform, storage as stores};
use voiceai_leader::{RedisTerm, TermMirror};
use voiceai_listener::axum::Router;
use voiceai_mail::intake::Intake;
use voiceai_mail::rest::Rest;
use voiceai_orchestration::OrchestrationContext;
use voiceai_postgres::Tenure;
use voiceai_queue::cron::{self, ScheduleError, Scheduler, SchedulerSettings};
use voiceai_queue::history::{History, HistorySettings, Retention, RetentionSettings, Writer};
use voiceai_queue::outbox::{self, Relay, RelaySettings, Wakeups};
use voiceai_queue::{Client, QueueError};
use voiceai_redis::Redis;
use voiceai_runtime::Vitals;
use voiceai_service::{Context, Secrets, patiently, while_leading};

use crate::admin::{Admin, CheckContexts};
use crate::jobs::backup::{self, BackupContext};
use crate::jobs::duty::DutyContexts;
use crate::jobs::housekeeping;
use crate::jobs::recording::{self, CallContexts};
use crate::jobs::registry::{self, Contexts, Kinds};
use crate::jobs::storage;
use crate::jobs::webhook_event::WebhookContext;
use crate::notify::NotificationService;
use crate::operate::queue_failure;
use crate::operate::queues::BUILT_IN;
use crate::operate::schedules::schedule_failure;
use crate::operate::trail;
use crate::settings::TaskerSettings;
use chores::Chores;
use http::Http;
use pools::Pools;

/// Longest time for which a loop that talks to a store may be silent, beside its own interval: several calls at their limit.
const STORE_BOUND: Duration = Duration::from_secs(120);

/// Starts every loop and comes back. They end with [`Context::shutdown`]: the listeners first, then everything that their
/// requests may need.
///
/// # Errors
/// When a store refuses what the loops need.
pub async fn start(mut context: Context<TaskerSettings>) -> Result<Context<TaskerSettings>, Failure> {
    let (http, stopping) = http::open(&context, &context.settings.http)?;
    let (history, writer) = History::new(context.pool.clone(), HistorySettings::default());
    let client = queues(&context, &context.redis, history).await?;
    keep_keys_fresh(&mut context.settings, &context.secrets);
    let settings = context.settings.clone();
    let backup = Box::pin(backup_context(&context)).await?;
    declare_schedules(&context).await?;

    let tenure = context.elect(term_mirrors(&context.redis, &settings));
    let mail = mail::start(&context, &tenure, &stopping)?;
    let posts = crate::operate::webhook::client(&settings)?;
    webhook::start(&context, posts.clone(), &tenure, &stopping);
    let bytes_max = settings.webhook.event_bytes_max;
    let webhook = WebhookContext { pool: context.pool.clone(), bytes_max };
    let calls = recording::contexts(&settings, context.pool.clone()).await;
    if settings.recording.is_enabled() {
        // What a killed process has left; what others are working on stays.
        voiceai_recording::clear_work_folder(&settings.recording.work_dir).await;
    }
    let token = crate::jobs::orchestration::rotating_token(context.secrets.clone());
    let agents = crate::jobs::orchestration::context(&settings, context.pool.clone(), token)?;
    let contexts = Contexts {
        redis: context.redis.clone(),
        backup: backup.clone(),
        exports: Box::pin(storage::export_contexts(
            &settings,
            &context.shared.general,
            context.pool.clone(),
            posts.clone(),
        ))
        .await,
        webhook,
        mail: mail.clone(),
        notices: notices(&context, &mail)?,
        orchestration: agents.clone(),
        calls: calls.clone(),
        upkeep: housekeeping::upkeep(&settings, context.pool.clone())?,
        duties: DutyContexts::new(&settings, &context.pool, posts, &context.shared.general.environment)?,
    };
    let handlers = registry::handlers(&settings, &contexts);
    tracing::info!(kinds = handlers.kinds().join(","), "job kinds registered");

    let wakeups = Wakeups::new();
    start_outbox(&context, &client, &wakeups, &stopping);
    start_scheduler(&context, &client, &wakeups, &tenure, &stopping);
    orchestration::start(&context, &tenure, &wakeups, &stopping);
    let pools = Pools::new(client.clone(), handlers, &context);
    start_workers(&context, pools, writer, &stopping);
    monitor::start(&context, &client, &tenure, &stopping)?;
    start_leader_chores(&context, client, tenure.clone(), &stopping);
    standing::start(&context, &tenure, &stopping);
    if backup.is_some() {
        start_backup_watch(&context, tenure.clone(), &stopping);
    }
    let internal = internal_routes(&context, &http, (backup, calls, agents), mail, tenure).await?;
    http.serve(&context, internal, crate::mail::public_routes(&context.pool, &context.settings)?);
    Ok(context)
}

/// Keys of stores and of AWS that change while the service runs are used from the next request on.
fn keep_keys_fresh(settings: &mut TaskerSettings, secrets: &Secrets) {
    let of_aws = (&platform::AWS_ACCESS_KEY_ID, &platform::AWS_SECRET_ACCESS_KEY);
    let of_store = (&stores::S3_ACCESS_KEY, &stores::S3_SECRET_KEY);
    settings.aws.renewed = Some(secrets.keys([of_aws]));
    let stores = [&mut settings.store, &mut settings.export_store, &mut settings.recording.store];
    for store in stores.into_iter().flatten() {
        store.renewed = Some(secrets.keys([of_store, of_aws]));
    }
}

/// What the internal listener serves, where there is one.
async fn internal_routes(
    context: &Context<TaskerSettings>,
    http: &Http,
    (backup, calls, agents): (Option<BackupContext>, CallContexts, Option<OrchestrationContext>),
    intake: Intake,
    tenure: watch::Receiver<Option<Tenure>>,
) -> Result<Router, Failure> {
    if !http.is_internal_open() {
        return Ok(Router::new());
    }
    let kinds = Kinds::of(&context.settings);
    let checks = CheckContexts { backup, calls, agents, stripe: housekeeping::stripe(&context.settings)? };
    // Without a writer behind it: operators' acts are written at once, never batched.
    let (history, _) = History::new(context.pool.clone(), HistorySettings::default());
    let client = queues(context, &Admin::connection(&context.redis), history).await?;
    let admin = Admin::new(client, &context.pool, kinds, checks);
    let metrics = if context.settings.http.metrics { admin.metrics(tenure) } else { Router::new() };
    let catalogue = Arc::new(crate::mail::catalogue(&context.settings.mail)?);
    let mail = Rest::new(intake, catalogue, trail::SERVICE).routes();
    let exports = storage::exports(&context.settings, context.pool.clone()).await;
    Ok(admin.routes().merge(metrics).merge(mail).merge(crate::admin::export::routes(exports)))
}

/// The queues on `redis`, whose ends are told to `history`.
async fn queues(
    context: &Context<TaskerSettings>,
    redis: &Redis,
    history: History,
) -> Result<Client, Failure> {
    let history = Arc::new(history);
    let connect = async || Client::with_history(redis.clone(), Arc::clone(&history) as _).await;
    let client = patiently(context.shared.start_timeout, "Redis", QueueError::is_unavailable, connect).await;
    client.map_err(|error| queue_failure(&error))
}

async fn backup_context(context: &Context<TaskerSettings>) -> Result<Option<BackupContext>, Failure> {
    let shared = &context.shared;
    let pool = Some(context.pool.clone());
    storage::backup_context(&context.settings, &shared.general, &shared.postgres.url, pool).await
}

fn notices(context: &Context<TaskerSettings>, intake: &Intake) -> Result<NotificationService, Failure> {
    let mail = &context.settings.mail;
    NotificationService::new(
        intake.clone(),
        context.settings.notices.clone(),
        mail.limits.recipients,
        context.shared.general.environment.clone(),
        mail.default_locale.clone(),
    )
}

/// Copies of the term beside the data that is fenced with it: the queues, and the offset of the mail stream.
fn term_mirrors(redis: &Redis, settings: &TaskerSettings) -> Vec<Arc<dyn TermMirror>> {
    let mirror = |queue: &str| -> Arc<dyn TermMirror> {
        Arc::new(RedisTerm::new(redis.clone(), format!("voiceai:queue:{{{queue}}}:term")))
    };
    let mut mirrors: Vec<_> = BUILT_IN.map(mirror).into();
    mirrors.push(Arc::new(mail::term_mirror(redis, settings)));
    mirrors
}

/// The schedules that come with the kinds. One that is there is left as the operators have it.
async fn declare_schedules(context: &Context<TaskerSettings>) -> Result<(), Failure> {
    let schedules = registry::schedules(&context.settings);
    let declare = async || cron::declare(&context.pool, &schedules).await;
    let within = context.shared.start_timeout;
    let created = patiently(within, "PostgreSQL", ScheduleError::is_unavailable, declare).await;
    let created = created.map_err(|error| schedule_failure(&error))?;
    for schedule in schedules.iter().filter(|schedule| created.contains(&schedule.name)) {
        tracing::info!(schedule = schedule.name, enabled = schedule.enabled, "schedule created");
    }
    Ok(())
}

fn start_outbox(
    context: &Context<TaskerSettings>,
    client: &Client,
    wakeups: &Wakeups,
    stopping: &CancellationToken,
) {
    let poll_interval = context.settings.worker_poll;
    let settings = RelaySettings { poll_interval, ..RelaySettings::default() };
    let (pool, client, vitals) = (context.pool.clone(), client.clone(), context.vitals.clone());
    let (woken, stop) = (wakeups.clone(), stopping.clone());
    context.shutdown.spawn_restarting("outbox relay", move || {
        let pulse = vitals.register("outbox relay", poll_interval + STORE_BOUND);
        Relay::new(pool.clone(), client.clone(), settings).run(woken.clone(), stop.clone(), pulse)
    });
    let (pool, woken, stop) = (context.pool.clone(), wakeups.clone(), stopping.clone());
    // Ends with the process: nothing is lost when it is dropped.
    context
        .shutdown
        .spawn_restarting("wake-ups", move || outbox::listen(pool.clone(), woken.clone(), stop.clone()));
}

fn start_scheduler(
    context: &Context<TaskerSettings>,
    client: &Client,
    wakeups: &Wakeups,
    tenure: &watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let poll_interval = context.settings.scheduler_poll;
    let settings = SchedulerSettings { poll_interval, ..SchedulerSettings::default() };
    let (pool, client, vitals) = (context.pool.clone(), client.clone(), context.vitals.clone());
    let (woken, told, stop) = (wakeups.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("scheduler", move || {
        let pulse = vitals.register("scheduler", poll_interval + STORE_BOUND);
        let scheduler = Scheduler::new(pool.clone(), client.clone(), settings, woken.clone());
        scheduler.run(told.clone(), stop.clone(), pulse)
    });
}

/// The workers, and the history behind them: it is written to the end only once no worker records any more.
fn start_workers(
    context: &Context<TaskerSettings>,
    pools: Pools,
    writer: Writer,
    stopping: &CancellationToken,
) {
    let finished = CancellationToken::new();
    let (ended, vitals) = (finished.clone(), context.vitals.clone());
    // Its records wait in the channel that it holds, and must outlive a panic.
    let writer = Arc::new(Mutex::new(writer));
    context.shutdown.spawn_restarting("history writer", move || {
        let pulse = vitals.register("history writer", STORE_BOUND);
        let (writer, ended) = (Arc::clone(&writer), ended.clone());
        async move { writer.lock().await.run_on(ended, pulse).await }
    });
    let (stopping, forced) = (stopping.clone(), context.shutdown.forced());
    let vitals = context.vitals.clone();
    context.shutdown.spawn("workers", async move {
        // Also when the pools panic: the writer must not wait for ever.
        let _finished = finished.drop_guard();
        let work = || {
            let (pools, stopping, forced, vitals) =
                (pools.clone(), stopping.clone(), forced.clone(), vitals.clone());
            async move { Box::pin(pools.run(stopping, forced, vitals)).await }
        };
        voiceai_runtime::restarting("workers", &stopping, work).await;
    });
}

fn start_leader_chores(
    context: &Context<TaskerSettings>,
    client: Client,
    tenure: watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let kept = RetentionSettings {
        ordinary: context.settings.history_ordinary,
        notable: context.settings.history_notable,
        ..RetentionSettings::default()
    };
    let (pool, vitals) = (context.pool.clone(), context.vitals.clone());
    let (told, stop) = (tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("history retention", move || {
        let pulse = vitals.register("history retention", STORE_BOUND);
        Retention::new(pool.clone(), kept).run(told.clone(), stop.clone(), pulse)
    });
    let chores = Chores::new(client, context.pool.clone(), context.settings.clone());
    let (vitals, told, stop) = (context.vitals.clone(), tenure.clone(), stopping.clone());
    context.shutdown.spawn_restarting("leader chores", move || {
        let pulse = vitals.register("leader chores", STORE_BOUND);
        while_leading(chores.clone(), told.clone(), stop.clone(), pulse, chores::EVERY)
    });
    let (vitals, stop) = (context.vitals.clone(), stopping.clone());
    context
        .shutdown
        .spawn_restarting("status line", move || tell_status(tenure.clone(), vitals.clone(), stop.clone()));
}

/// Tells people when no backup was proved for too long.
fn start_backup_watch(
    context: &Context<TaskerSettings>,
    tenure: watch::Receiver<Option<Tenure>>,
    stopping: &CancellationToken,
) {
    let further = context.settings.backup_databases.keys().cloned();
    let watch = backup::Watch::new(context.pool.clone(), context.settings.backup.proved_max_age, further);
    let (vitals, stop) = (context.vitals.clone(), stopping.clone());
    context.shutdown.spawn_restarting("backup watch", move || {
        let pulse = vitals.register("backup watch", backup::WATCH_EVERY + STORE_BOUND);
        while_leading(watch.clone(), tenure.clone(), stop.clone(), pulse, backup::WATCH_EVERY)
    });
}

/// Keeps the line that `healthcheck` shows.
async fn tell_status(
    mut tenure: watch::Receiver<Option<Tenure>>,
    vitals: Vitals,
    stopping: CancellationToken,
) {
    loop {
        let line = match tenure.borrow_and_update().as_ref() {
            Some(tenure) if tenure.is_held() => format!("leader, term {}, held", tenure.term().number),
            Some(tenure) => format!("leader, term {}", tenure.term().number),
            None => "follower".to_owned(),
        };
        vitals.set_status(line);
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = tenure.changed() => if changed.is_err() { return },
        }
    }
}
