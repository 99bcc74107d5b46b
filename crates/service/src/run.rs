use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use voiceai_cli::{ExitCode, Failure};
use voiceai_config::catalogue::http;
use voiceai_config::{Reader, Report};
use voiceai_leader::{Election, InstallationError, TermMirror, check_installation};
use voiceai_postgres::{MigrateError, PgPool, Tenure, migrate};
use voiceai_redis::Redis;
use voiceai_runtime::{Shutdown, Vitals, vitals};
use voiceai_telemetry::{REVISION, Telemetry, TelemetrySettings};

use crate::notify::Supervisor;
use crate::{Backends, Identity, Secrets, Shared, connect, failures, patiently, readiness, resolve};

/// Kept back from SHUTDOWN_TIMEOUT for resigning and flushing.
const RESERVE: Duration = Duration::from_secs(3);

/// A service that has started: what its own loops are built from.
#[derive(Debug)]
pub struct Context<S> {
    /// The settings both services share.
    pub shared: Shared,
    /// The service's own settings.
    pub settings: S,
    /// Redis.
    pub redis: Redis,
    /// PostgreSQL, migrated.
    pub pool: PgPool,
    /// Progress and readiness.
    pub vitals: Vitals,
    /// The values of settings that rotate, kept fresh while the service runs.
    pub secrets: Secrets,
    /// How the process stops. Loops are spawned here, so that the drain waits for them.
    pub shutdown: Shutdown,
    election: Option<Election>,
}

impl<S> Context<S> {
    /// Joins the service's election. `mirrors`: further copies of the term, raised before the new leader acts.
    /// The lease is given up after the drain, so that work in progress can still be written.
    pub fn elect(&mut self, mirrors: Vec<Arc<dyn TermMirror>>) -> watch::Receiver<Option<Tenure>> {
        let settings = self.shared.leader.clone();
        let election =
            Election::start(settings, self.redis.clone(), self.pool.clone(), mirrors, &self.vitals);
        let watch = election.watch();
        self.election = Some(election);
        watch
    }
}

/// Runs a service from its settings to its exit code. `read` reads the service's own settings; `start` builds and spawns its
/// loops on [`Context::shutdown`] and returns once they run.
pub async fn run<S, F, Fut>(identity: Identity, read: impl FnOnce(&Reader<'_>) -> S, start: F) -> ExitCode
where
    F: FnOnce(Context<S>) -> Fut,
    Fut: Future<Output = Result<Context<S>, Failure>>,
{
    // Redis, PostgreSQL, S3 and OTLP clients use the process-wide default; a second call is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let resolved = match resolve(identity.binary).await {
        Ok(resolved) => resolved,
        Err(failure) => return failure.report(false),
    };
    let read = |reader: &Reader<'_>| (Shared::read(reader), read(reader), reader.get(&http::METRICS_HTTP));
    let loaded = match resolved.read_whole(read) {
        Ok(loaded) => loaded,
        Err(report) => return invalid_settings(&report),
    };
    let (shared, settings, scrape) = loaded.settings;
    let telemetry_settings = TelemetrySettings { scrape, ..telemetry_settings(identity, &shared) };
    let telemetry = match voiceai_telemetry::init(&telemetry_settings) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            return Failure::refused("telemetry_settings", error.to_string(), "Correct the OTEL_ variable.")
                .report(false);
        }
    };
    let shown: Vec<_> = resolved.print().into_iter().filter_map(|p| p.start_line()).collect();
    telemetry.log_start(&shown);
    for warning in &loaded.warnings {
        tracing::warn!(setting = warning.name, "{}", warning.message);
    }
    let secrets = Secrets::new(resolved, move || resolve(identity.binary));
    let code = supervise(identity, shared, settings, secrets, &telemetry, start).await;
    tracing::info!(exit_code = code.code(), "service stopped");
    telemetry.shutdown().await;
    code
}

fn telemetry_settings(identity: Identity, shared: &Shared) -> TelemetrySettings {
    TelemetrySettings {
        service: identity.name().to_owned(),
        version: identity.version.to_owned(),
        revision: REVISION.to_owned(),
        instance_id: shared.general.instance_id.clone(),
        environment: shared.general.environment.clone(),
        log_level: shared.general.log_level.clone(),
        scrape: false,
    }
}

fn invalid_settings(report: &Report) -> ExitCode {
    Failure::refused("invalid_configuration", report.to_string(), "Correct every setting named above.")
        .report(false)
}

async fn supervise<S, F, Fut>(
    identity: Identity,
    shared: Shared,
    settings: S,
    secrets: Secrets,
    telemetry: &Telemetry,
    start: F,
) -> ExitCode
where
    F: FnOnce(Context<S>) -> Fut,
    Fut: Future<Output = Result<Context<S>, Failure>>,
{
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::Failed;
        }
    };
    tokio::spawn(voiceai_telemetry::toggle_debug_on_sigusr1(telemetry.level()));
    let vitals = Vitals::new();
    let ended = CancellationToken::new();
    let instance = shared.general.instance_id.clone();
    let path = vitals::file_path(&shared.runtime_dir(), identity.name(), &instance);
    let file = vitals.clone().keep_file(path, identity.name().into(), instance, ended.clone());
    let file = tokio::spawn(file);
    if let Some(supervisor) = Supervisor::find(|name| std::env::var(name).ok()) {
        tokio::spawn(supervisor.inform(vitals.clone(), shutdown.stopping(), ended.clone()));
    }
    let started = async {
        let backends = ready_backends(identity, &shared).await?;
        let Backends { redis, pool } = backends;
        tokio::spawn(watch_readiness(vitals.clone(), redis.clone(), pool.clone(), shutdown.stopping()));
        let shutdown = shutdown.clone();
        let interval = shared.secrets_refresh;
        let (fresh, loops, stop) = (secrets.clone(), vitals.clone(), shutdown.stopping());
        shutdown.spawn_restarting("settings", move || {
            let pulse = loops.register("settings", Secrets::bound(interval));
            fresh.clone().keep_fresh(interval, stop.clone(), pulse)
        });
        let context = Context {
            shared: shared.clone(),
            settings,
            secrets,
            redis,
            pool,
            vitals: vitals.clone(),
            shutdown,
            election: None,
        };
        start(context).await
    };
    let stopping = shutdown.stopping();
    let code = tokio::select! {
        started = started => match started {
            Ok(context) => serve(context).await,
            Err(failure) => {
                tracing::error!(code = failure.code, remedy = failure.remedy, "{}", failure.message);
                // What was spawned before the failure still gets its chance to end well.
                let _ = shutdown.drain(RESERVE).await;
                failure.exit
            }
        },
        // Told to stop before it was ready: loops that were spawned already still end in order.
        () = stopping.cancelled() => match shutdown.drain(RESERVE).await {
            Ok(()) => ExitCode::Done,
            Err(error) => {
                tracing::warn!(%error, "not everything was drained");
                ExitCode::Failed
            }
        },
    };
    ended.cancel();
    let _ = file.await;
    code
}

async fn watch_readiness(vitals: Vitals, redis: Redis, pool: PgPool, stopping: CancellationToken) {
    let watch = || readiness::watch(vitals.clone(), redis.clone(), pool.clone());
    voiceai_runtime::restarting("readiness", &stopping, watch).await;
}

async fn ready_backends(identity: Identity, shared: &Shared) -> Result<Backends, Failure> {
    let backends = connect(shared, shared.start_timeout).await?;
    let within = shared.start_timeout;
    let migration = async || migrate(&backends.pool, identity.components).await;
    let migrated = patiently(within, "PostgreSQL", MigrateError::is_unavailable, migration).await;
    let migrated = migrated.map_err(|e| failures::migration(&e))?;
    if !migrated.applied.is_empty() {
        tracing::info!(applied = ?migrated.applied, "database migrated");
    }
    let environment = &shared.general.environment;
    let check = async || check_installation(&backends.redis, &backends.pool, environment).await;
    let checked = patiently(within, "both stores", InstallationError::is_unavailable, check).await;
    checked.map_err(|e| failures::installation(&e))?;
    Ok(backends)
}

/// From ready to stopped.
async fn serve<S>(context: Context<S>) -> ExitCode {
    let Context { shared, vitals, shutdown, election, .. } = context;
    vitals.set_ready("startup", Ok(()));
    tracing::info!("service ready");
    shutdown.stopping().cancelled().await;
    vitals.set_ready("startup", Err("stopping".into()));
    let limit = shared.general.shutdown_timeout.saturating_sub(RESERVE).max(RESERVE / 3);
    let drained = shutdown.drain(limit).await;
    if let Err(error) = &drained {
        tracing::warn!(%error, "not everything was drained");
    }
    if let Some(election) = election {
        election.resign().await;
    }
    if drained.is_ok() { ExitCode::Done } else { ExitCode::Failed }
}
