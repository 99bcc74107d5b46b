//! Calls of a provider's scripts for one server, and the limits that all calls of a provider share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use opentelemetry::KeyValue;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_scaler_core::Service;
use voiceai_scaler_core::candidate::{self, OutOfStock};

use voiceai_service::Secrets;

use crate::script::{self, Call, Class, Labels, Listed, Outcome, Run, ScriptRunner, Surroundings};
use crate::store::{HoldKind, OperationRow, ProviderHold, ServerRow};

/// A pair that was out of stock is not asked again for this long.
pub(super) const OUT_OF_STOCK_REST: SignedDuration = SignedDuration::from_mins(10);
/// After a rate limit that names no time.
const RATE_LIMIT_REST: SignedDuration = SignedDuration::from_secs(60);
/// Scripts of one provider at work at a time: one that hangs keeps no other one waiting.
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
    /// Lists every server of ours; optional.
    List,
}

impl ScriptKind {
    const fn file(self) -> &'static str {
        match self {
            Self::ScaleUp => "scaleUp.sh",
            Self::Status => "scalingStatus.sh",
            Self::ScaleDown => "scaleDown.sh",
            Self::RouteIn => "routeIn.sh",
            Self::RouteOut => "routeOut.sh",
            Self::List => "list.sh",
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
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
    holds: Mutex<Vec<ProviderHold>>,
}

/// Refused for good, and because of who asked.
fn is_about_credentials(outcome: &Outcome) -> bool {
    let Outcome::Said(Class::Refused, answer) = outcome else { return false };
    let code = answer.error.as_ref().map_or("", |error| error.code.as_str());
    ["unauthorized", "forbidden", "token_readonly", "http_401", "http_403"].contains(&code)
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
            slots: Mutex::default(),
            holds: Mutex::default(),
        }))
    }

    /// What scripts run by.
    pub(super) fn runner(&self) -> &ScriptRunner {
        &self.0.runner
    }

    /// A script's time limit.
    #[must_use]
    pub fn limit(&self) -> SignedDuration {
        SignedDuration::try_from(self.0.limit).unwrap_or(SignedDuration::MAX)
    }

    fn slots(&self, provider: &str) -> Arc<Semaphore> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let of_provider = slots.entry(provider.to_owned());
        Arc::clone(of_provider.or_insert_with(|| Arc::new(Semaphore::new(SCRIPTS_MAX))))
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

    /// ENVIRONMENT, as the servers' labels have it.
    #[must_use]
    pub fn environment(&self) -> &str {
        &self.0.surroundings.environment
    }

    /// Asks where a server stands that no operation works on. `candidate`: the one of its making.
    pub async fn look(&self, server: &ServerRow, candidate: usize, kill: &CancellationToken) -> Outcome {
        let call = self.describe(ScriptKind::Status, server, server.made_by, candidate);
        self.run(ScriptKind::Status, call, kill).await
    }

    /// Calls a script for an operation and waits for its end.
    pub async fn call(
        &self,
        kind: ScriptKind,
        server: &ServerRow,
        operation: &OperationRow,
        kill: &CancellationToken,
    ) -> Outcome {
        let call = self.describe(kind, server, operation.id, operation.candidate_index);
        self.run(kind, call, kill).await
    }

    /// Every server of ours at a provider, or why it cannot be known.
    ///
    /// # Errors
    /// The reason; nothing may be concluded then.
    pub async fn list(
        &self,
        provider: &str,
        config: &Map<String, Value>,
        kill: &CancellationToken,
    ) -> Result<Vec<Listed>, String> {
        let stopping = || "the service is stopping".to_owned();
        let slots = self.slots(provider);
        let _slot = slots.acquire().await.map_err(|_| stopping())?;
        if kill.is_cancelled() {
            return Err(stopping());
        }
        let run = Run {
            script: self.file(provider, ScriptKind::List),
            environment: self.0.surroundings.of_list(provider, config)?,
            server: String::new(),
            limit: self.0.limit,
        };
        let ran = self.0.runner.list(run, kill.clone()).await;
        let stderr = self.0.surroundings.mask(ran.stderr.trim_end());
        let servers = ran.servers.as_ref().map(Vec::len).ok();
        tracing::debug!(provider, servers, stderr, "provider listed");
        ran.servers.map_err(|why| self.0.surroundings.mask(&why))
    }

    /// Calls scaleDown.sh for a listed server that no row stands for.
    pub async fn delete_orphan(
        &self,
        provider: &str,
        config: &Map<String, Value>,
        server: &Listed,
        operation: Uuid,
        kill: &CancellationToken,
    ) -> Outcome {
        let label = |name: &str| server.labels.get(name).map_or("", String::as_str);
        let service = Service::parse(label("role")).unwrap_or(Service::Voice);
        let call = Call {
            operation,
            server: server.name.clone(),
            group: label("group").to_owned(),
            service,
            provider: provider.to_owned(),
            config: config.clone(),
            candidate: Map::new(),
            labels: Labels::new(label("group"), service, self.environment(), operation),
            cloud_init: None,
            provider_id: Some(server.id.clone()),
        };
        self.run(ScriptKind::ScaleDown, call, kill).await
    }

    /// Calls scaleUp.sh with a start-up document, where there is one.
    pub async fn create(
        &self,
        server: &ServerRow,
        operation: &OperationRow,
        cloud_init: Option<&Path>,
        kill: &CancellationToken,
    ) -> Outcome {
        let mut call = self.describe(ScriptKind::ScaleUp, server, operation.id, operation.candidate_index);
        call.cloud_init = cloud_init.map(Path::to_path_buf);
        self.run(ScriptKind::ScaleUp, call, kill).await
    }

    async fn run(&self, kind: ScriptKind, call: Call, kill: &CancellationToken) -> Outcome {
        let slots = self.slots(&call.provider);
        let Ok(_slot) = slots.acquire().await else {
            return Outcome::NotStarted("the service is stopping".to_owned());
        };
        if kill.is_cancelled() {
            return Outcome::NotStarted("the service is stopping".to_owned());
        }
        let used = self.0.surroundings.secrets.as_ref().map(Secrets::current);
        let outcome = self.run_once(kind, &call, kill).await;
        if !is_about_credentials(&outcome) || kill.is_cancelled() {
            return outcome;
        }
        // The token may have been changed since it was read; the provider did nothing for the old one.
        let (Some(secrets), Some(used)) = (&self.0.surroundings.secrets, used) else { return outcome };
        match secrets.newer_than(&used).await {
            Some(_) => self.run_once(kind, &call, kill).await,
            None => outcome,
        }
    }

    async fn run_once(&self, kind: ScriptKind, call: &Call, kill: &CancellationToken) -> Outcome {
        let environment = match self.0.surroundings.of(call) {
            Ok(environment) => environment,
            Err(why) => return Outcome::NotStarted(why),
        };
        let run = Run {
            script: self.file(&call.provider, kind),
            environment,
            server: call.server.clone(),
            limit: self.0.limit,
        };
        let mut ran = self.0.runner.run(run, kill.clone()).await;
        // What it says is logged and written down: a script that repeats its token must not spread it.
        self.mask(&mut ran.outcome);
        self.tell(kind, call, &ran);
        ran.outcome
    }

    fn mask(&self, outcome: &mut Outcome) {
        let mask = |text: &mut String| *text = self.0.surroundings.mask(text);
        match outcome {
            Outcome::Unknown(why, _) | Outcome::NotStarted(why) => mask(why),
            Outcome::Said(_, answer) => {
                if let Some(error) = &mut answer.error {
                    mask(&mut error.code);
                    mask(&mut error.message);
                }
            }
        }
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

    fn tell(&self, kind: ScriptKind, call: &Call, ran: &script::Ran) {
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
                    KeyValue::new("provider", call.provider.clone()),
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
        let (script, server, took_ms) = (kind.file(), &call.server, ran.took.as_millis());
        let operation = call.operation.to_string();
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
        let holds = self.holds();
        let of_provider =
            |hold: &&ProviderHold| hold.kind == HoldKind::RateLimit && hold.provider == provider;
        holds.iter().filter(of_provider).map(|hold| hold.until).filter(|until| *until > now).max()
    }

    /// The hold that an answer asks for, if it does: a rate limit is told by exit 13.
    #[must_use]
    pub fn rate_limit(&self, provider: &str, outcome: &Outcome, now: Timestamp) -> Option<ProviderHold> {
        let Outcome::Said(Class::RateLimited, answer) = outcome else { return None };
        let rest =
            answer.error.as_ref().and_then(|error| error.retry_after_s).map_or(RATE_LIMIT_REST, |seconds| {
                SignedDuration::from_secs(i64::try_from(seconds.clamp(1, 7200)).unwrap_or(7200))
            });
        let why = answer.error.as_ref().map_or_else(String::new, |error| format!(" ({})", error.code));
        Some(ProviderHold {
            kind: HoldKind::RateLimit,
            provider: provider.to_owned(),
            machine: String::new(),
            location: String::new(),
            until: now + rest,
            why: format!("rate limit{why}"),
        })
    }

    /// The hold on a candidate that is out of stock; `None` when there is no such candidate, or when it names neither machine
    /// type nor location: what it then buys stands in the group's own configuration, and says nothing of other groups.
    #[must_use]
    pub fn out_of_stock(&self, server: &ServerRow, index: usize, now: Timestamp) -> Option<ProviderHold> {
        let candidate = server.spec.candidates.get(index)?;
        if candidate.machine().is_empty() && candidate.location().is_empty() {
            return None;
        }
        Some(ProviderHold {
            kind: HoldKind::OutOfStock,
            provider: server.provider.clone(),
            machine: candidate.machine().to_owned(),
            location: candidate.location().to_owned(),
            until: now + OUT_OF_STOCK_REST,
            why: "out of stock".to_owned(),
        })
    }

    /// Takes over what this or another leader learned.
    pub fn adopt(&self, learned: &[ProviderHold]) {
        let mut holds = self.holds();
        for hold in learned {
            let same = |have: &ProviderHold| {
                (have.kind, &have.provider, &have.machine, &have.location)
                    == (hold.kind, &hold.provider, &hold.machine, &hold.location)
            };
            let until = holds.iter().filter(|have| same(have)).map(|have| have.until).max();
            holds.retain(|have| !same(have));
            holds.push(ProviderHold { until: hold.until.max(until.unwrap_or(hold.until)), ..hold.clone() });
        }
        let newest = holds.iter().map(|hold| hold.until).max();
        // What ended long before the newest one will not be asked for again.
        let long_ago = newest.map(|newest| newest - SignedDuration::from_hours(24));
        holds.retain(|hold| long_ago.is_none_or(|long_ago| hold.until > long_ago));
    }

    /// The next candidate at or after `from` that may be in stock.
    #[must_use]
    pub fn choose(&self, server: &ServerRow, from: usize, now: Timestamp) -> Option<usize> {
        let pairs: Vec<OutOfStock> = self
            .holds()
            .iter()
            .filter(|hold| hold.kind == HoldKind::OutOfStock)
            .map(|hold| OutOfStock {
                provider: hold.provider.clone(),
                machine: hold.machine.clone(),
                location: hold.location.clone(),
                until: hold.until,
            })
            .collect();
        candidate::choose(&server.provider, &server.spec.candidates, from, &pairs, now)
    }

    fn holds(&self) -> std::sync::MutexGuard<'_, Vec<ProviderHold>> {
        self.0.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
