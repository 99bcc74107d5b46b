//! Calls of a provider's scripts for one server, and the limits that all calls of a provider share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use opentelemetry::KeyValue;
use serde_json::Map;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_scaler_core::candidate::{self, OutOfStock};

use crate::script::{self, Call, Class, Labels, Outcome, Run, ScriptRunner, Surroundings};
use crate::store::{OperationRow, ServerRow};

/// A pair that was out of stock is not asked again for this long.
pub(super) const OUT_OF_STOCK_REST: SignedDuration = SignedDuration::from_mins(10);
/// After a rate limit that names no time.
const RATE_LIMIT_REST: SignedDuration = SignedDuration::from_secs(60);
/// Scripts at work at a time.
const SCRIPTS_MAX: usize = 16;

/// One of a provider's scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScriptKind {
    /// Makes the server, or adopts it.
    ScaleUp,
    /// Says where it stands.
    Status,
    /// Deletes it.
    ScaleDown,
    /// Puts it behind a load balancer; optional.
    RouteIn,
    /// Takes it out from behind a load balancer; optional.
    RouteOut,
}

impl ScriptKind {
    const fn file(self) -> &'static str {
        match self {
            Self::ScaleUp => "scaleUp.sh",
            Self::Status => "scalingStatus.sh",
            Self::ScaleDown => "scaleDown.sh",
            Self::RouteIn => "routeIn.sh",
            Self::RouteOut => "routeOut.sh",
        }
    }
}

/// The providers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Providers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runner: ScriptRunner,
    folder: PathBuf,
    surroundings: Surroundings,
    limit: Duration,
    slots: Semaphore,
    rate_limited: Mutex<HashMap<String, Timestamp>>,
    out_of_stock: Mutex<Vec<OutOfStock>>,
}

impl Providers {
    /// Scripts under `folder`, each with the time limit `limit`.
    #[must_use]
    pub fn new(runner: ScriptRunner, folder: PathBuf, surroundings: Surroundings, limit: Duration) -> Self {
        Self(Arc::new(Inner {
            runner,
            folder,
            surroundings,
            limit,
            slots: Semaphore::new(SCRIPTS_MAX),
            rate_limited: Mutex::default(),
            out_of_stock: Mutex::default(),
        }))
    }

    /// A script's time limit.
    #[must_use]
    pub fn limit(&self) -> SignedDuration {
        SignedDuration::try_from(self.0.limit).unwrap_or(SignedDuration::MAX)
    }

    /// The script's file.
    #[must_use]
    pub fn file(&self, provider: &str, kind: ScriptKind) -> PathBuf {
        script::script(&self.0.folder, provider, kind.file())
    }

    /// True when the provider has the script.
    #[must_use]
    pub fn has(&self, provider: &str, kind: ScriptKind) -> bool {
        self.file(provider, kind).is_file()
    }

    /// Asks where a server stands that no operation works on.
    pub async fn look(&self, server: &ServerRow, kill: &CancellationToken, now: Timestamp) -> Outcome {
        self.run(ScriptKind::Status, server, server.made_by, 0, None, kill, now).await
    }

    /// Calls a script for an operation and waits for its end.
    pub async fn call(
        &self,
        kind: ScriptKind,
        server: &ServerRow,
        operation: &OperationRow,
        kill: &CancellationToken,
        now: Timestamp,
    ) -> Outcome {
        self.run(kind, server, operation.id, operation.candidate_index, None, kill, now).await
    }

    /// Calls scaleUp.sh with a start-up document, where there is one.
    pub async fn create(
        &self,
        server: &ServerRow,
        operation: &OperationRow,
        cloud_init: Option<&Path>,
        kill: &CancellationToken,
        now: Timestamp,
    ) -> Outcome {
        let (kind, index) = (ScriptKind::ScaleUp, operation.candidate_index);
        self.run(kind, server, operation.id, index, cloud_init, kill, now).await
    }

    #[allow(clippy::too_many_arguments)] // the one place where a call is put together
    async fn run(
        &self,
        kind: ScriptKind,
        server: &ServerRow,
        operation: Uuid,
        candidate: usize,
        cloud_init: Option<&Path>,
        kill: &CancellationToken,
        now: Timestamp,
    ) -> Outcome {
        let Ok(_slot) = self.0.slots.acquire().await else {
            return Outcome::NotStarted("the service is stopping".to_owned());
        };
        if kill.is_cancelled() {
            return Outcome::NotStarted("the service is stopping".to_owned());
        }
        let mut call = self.describe(kind, server, operation, candidate);
        call.cloud_init = cloud_init.map(Path::to_path_buf);
        let environment = match self.0.surroundings.of(&call) {
            Ok(environment) => environment,
            Err(why) => return Outcome::NotStarted(why),
        };
        let run = Run {
            script: self.file(&server.provider, kind),
            environment,
            server: server.name.clone(),
            limit: self.0.limit,
        };
        let ran = self.0.runner.run(run, kill.clone()).await;
        self.tell(kind, server, operation, &ran);
        if let Outcome::Said(Class::RateLimited, answer) = &ran.outcome {
            let rest = answer
                .error
                .as_ref()
                .and_then(|error| error.retry_after_s)
                .map_or(RATE_LIMIT_REST, |seconds| {
                    SignedDuration::from_secs(i64::try_from(seconds.clamp(1, 7200)).unwrap_or(7200))
                });
            self.lock_rates().insert(server.provider.clone(), now + rest);
        }
        ran.outcome
    }

    fn describe(&self, kind: ScriptKind, server: &ServerRow, operation: Uuid, candidate: usize) -> Call {
        let candidates = &server.spec.candidates;
        let candidate = candidates.get(candidate).or_else(|| candidates.first());
        let environment = &self.0.surroundings.environment;
        Call {
            operation,
            server: server.name.clone(),
            group: server.group_name.clone(),
            service: server.service,
            provider: server.provider.clone(),
            config: server.spec.provider_config.clone(),
            candidate: candidate.map_or_else(Map::new, |candidate| candidate.0.clone()),
            labels: Labels::new(&server.group_name, server.service, environment, server.made_by),
            cloud_init: None,
            provider_id: if kind == ScriptKind::ScaleUp { None } else { server.provider_id.clone() },
        }
    }

    fn tell(&self, kind: ScriptKind, server: &ServerRow, operation: Uuid, ran: &script::Ran) {
        let outcome = match &ran.outcome {
            Outcome::Said(class, _) => class.as_str(),
            Outcome::Unknown(..) => "unknown",
            Outcome::NotStarted(_) => "not_started",
        };
        let meter = opentelemetry::global::meter("voiceai");
        meter
            .f64_histogram("voiceai.scaler.script.duration")
            .with_unit("s")
            .with_description("How long provider scripts ran.")
            .build()
            .record(
                ran.took.as_secs_f64(),
                &[
                    KeyValue::new("script", kind.file()),
                    KeyValue::new("provider", server.provider.clone()),
                    KeyValue::new("outcome", outcome),
                ],
            );
        let stderr = self.0.surroundings.mask(ran.stderr.trim_end());
        let why = match &ran.outcome {
            Outcome::Unknown(why, _) | Outcome::NotStarted(why) => why.clone(),
            Outcome::Said(_, answer) => answer
                .error
                .as_ref()
                .map(|error| format!("{}: {}", error.code, error.message))
                .unwrap_or_default(),
        };
        let (script, server, took_ms) = (kind.file(), &server.name, ran.took.as_millis());
        let operation = operation.to_string();
        if outcome == "done" {
            tracing::info!(script, server, operation, outcome, took_ms, stderr, "provider script ended");
        } else {
            let why = self.0.surroundings.mask(&why);
            tracing::warn!(script, server, operation, outcome, took_ms, why, stderr, "provider script ended");
        }
    }

    /// Until when the provider may not be asked for anything that can wait.
    #[must_use]
    pub fn rate_limited_until(&self, provider: &str, now: Timestamp) -> Option<Timestamp> {
        self.lock_rates().get(provider).copied().filter(|until| *until > now)
    }

    /// Remembers that the candidate in use is out of stock.
    pub fn rest(&self, server: &ServerRow, index: usize, now: Timestamp) {
        let Some(candidate) = server.spec.candidates.get(index) else { return };
        let mut pairs = self.0.out_of_stock.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.retain(|pair| pair.until > now);
        pairs.push(OutOfStock {
            provider: server.provider.clone(),
            machine: candidate.machine().to_owned(),
            location: candidate.location().to_owned(),
            until: now + OUT_OF_STOCK_REST,
        });
    }

    /// The next candidate at or after `from` that may be in stock.
    #[must_use]
    pub fn choose(&self, server: &ServerRow, from: usize, now: Timestamp) -> Option<usize> {
        let pairs = self.0.out_of_stock.lock().unwrap_or_else(PoisonError::into_inner);
        candidate::choose(&server.provider, &server.spec.candidates, from, &pairs, now)
    }

    fn lock_rates(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.0.rate_limited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
