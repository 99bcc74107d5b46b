use std::future::Future;
use std::time::Duration;

use voiceai_cli::{ExitCode, Failure};
use voiceai_config::{General, Reader};
use voiceai_postgres::PgPool;
use voiceai_redis::Redis;
use voiceai_telemetry::{REVISION, TelemetrySettings};

use crate::{Backends, Identity, Shared, backends, failures, resolve};

/// How long a command waits for a backend: a person is waiting.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What a one-shot command works with.
#[derive(Debug)]
pub struct Command<S> {
    /// The settings both services share.
    pub shared: Shared,
    /// The service's own settings.
    pub settings: S,
    identity: Identity,
}

impl<S> Command<S> {
    /// Both stores.
    ///
    /// # Errors
    /// Unreachable (5) after 5 s, or refused (4).
    pub async fn backends(&self) -> Result<Backends, Failure> {
        backends::connect(&self.shared, CONNECT_WITHIN).await
    }

    /// Redis alone.
    ///
    /// # Errors
    /// Unreachable (5) after 5 s, or refused (4).
    pub async fn redis(&self) -> Result<Redis, Failure> {
        backends::connect_redis(&self.shared, CONNECT_WITHIN).await
    }

    /// PostgreSQL alone.
    ///
    /// # Errors
    /// Unreachable (5) after 5 s, or refused (4).
    pub async fn pool(&self) -> Result<PgPool, Failure> {
        backends::connect_pool(&self.shared, CONNECT_WITHIN).await
    }

    /// Brings the schema up to this binary: the `migrate` command.
    ///
    /// # Errors
    /// As [`voiceai_postgres::migrate`], with the exit code that fits.
    pub async fn migrate(&self) -> Result<Vec<String>, Failure> {
        let pool = self.pool().await?;
        let done = voiceai_postgres::migrate(&pool, self.identity.components).await;
        Ok(done.map_err(|e| failures::migration(&e))?.applied)
    }
}

/// Runs one command that needs settings: reads them (exit 4 with every violation), logs warnings and errors to stderr, and
/// prints a failure as text or, with `json`, as `{"code","message","remedy"}`.
pub async fn command<S, F, Fut>(
    identity: Identity,
    json: bool,
    read: impl FnOnce(&Reader<'_>) -> S,
    body: F,
) -> ExitCode
where
    F: FnOnce(Command<S>) -> Fut,
    Fut: Future<Output = Result<ExitCode, Failure>>,
{
    let read = |reader: &Reader<'_>| (Shared::read(reader), read(reader));
    let body = |_, (shared, settings)| body(Command { shared, settings, identity });
    Box::pin(bare_command(identity, json, read, body)).await
}

/// The same for a command that works while both stores are gone: their settings may be missing.
pub async fn bare_command<S, F, Fut>(
    identity: Identity,
    json: bool,
    read: impl FnOnce(&Reader<'_>) -> S,
    body: F,
) -> ExitCode
where
    F: FnOnce(General, S) -> Fut,
    Fut: Future<Output = Result<ExitCode, Failure>>,
{
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let resolved = match resolve(identity.binary).await {
        Ok(resolved) => resolved,
        Err(failure) => return failure.report(json),
    };
    let loaded = match resolved.read(|reader| (General::read(reader), read(reader))) {
        Ok(loaded) => loaded,
        Err(report) => {
            let remedy = "Correct every setting named above.";
            return Failure::refused("invalid_configuration", report.to_string(), remedy).report(json);
        }
    };
    let (general, settings) = loaded.settings;
    // A person reads the answer: only what went wrong belongs beside it.
    let telemetry = voiceai_telemetry::init(&TelemetrySettings {
        service: identity.name().to_owned(),
        version: identity.version.to_owned(),
        revision: REVISION.to_owned(),
        instance_id: general.instance_id.clone(),
        environment: general.environment.clone(),
        log_level: "error".to_owned(),
        scrape: false,
    });
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let remedy = "Correct the OTEL_ variable.";
            return Failure::refused("telemetry_settings", error.to_string(), remedy).report(json);
        }
    };
    let code = match body(general, settings).await {
        Ok(code) => code,
        Err(failure) => failure.report(json),
    };
    telemetry.shutdown().await;
    code
}
