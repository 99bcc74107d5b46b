//! The proxies that have an address: told to load at each change, verified, and asked for the calls of a server.
//!
//! Nothing here holds scaling up. A proxy that does not answer is told again, longer apart each time, and shown in `status`; its
//! word is missing in a drain, where the server's own heartbeat then has to do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use voiceai_postgres::Tenure;
use voiceai_runtime::{Backoff, Secret, random_unit};

use super::dispatcher::{Dispatcher, DispatcherSet};
use super::listing::{self, Target, differences};
use super::rpc::{Rpc, RpcError};
pub use super::verdict::{Callee, Carried, Verdict, verdict};

/// Between two looks at a proxy to which nothing has changed: it may have been restarted, or told something else.
const VERIFY_EVERY: Duration = Duration::from_secs(30);
/// Between two looks for records that Kamailio could not load.
const DISARM_EVERY: Duration = Duration::from_secs(10);
/// How long a note for `status` lives: longer than the longest pause between two.
pub const NOTE_LIFETIME: Duration = Duration::from_secs(180);
/// Kamailio refuses a second load within its `reload_delta`; this often it is asked again at once.
const RELOADS: u32 = 8;
const RELOAD_PAUSE: Duration = Duration::from_millis(400);
/// For ending the calls of one server at one proxy.
const END_CALLS_WITHIN: Duration = Duration::from_secs(15);
/// A proxy that stays away is looked for this often in the end.
const RETRY: Backoff =
    Backoff { base: Duration::from_millis(500), factor: 2.0, cap: Duration::from_secs(30), jitter: 0.2 };

/// How the proxies are reached.
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// `KAMAILIO_RPC_URLS`, one each.
    pub urls: Vec<Secret>,
    /// `KAMAILIO_RPC_TIMEOUT_MS`: for one answer.
    pub limit: Duration,
    /// `KAMAILIO_DIALOG_PROFILE`.
    pub profile: String,
}

/// What the leader last heard of one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyView {
    /// Its address, without user and password.
    pub proxy: String,
    /// True when it has loaded what the records say.
    pub verified: bool,
    /// The generation that it was last found to have.
    pub verified_generation: Option<i64>,
    /// When it was last found to have it.
    pub verified_at: Option<Timestamp>,
    /// Since when it is verified, or is not.
    pub since: Timestamp,
    /// Destinations that it has loaded, when it said so.
    pub destinations: Option<usize>,
    /// How what it has loaded differs from the records.
    pub differences: Vec<String>,
    /// Why it could not be verified.
    pub error: Option<String>,
}

/// One proxy.
#[derive(Debug)]
struct Proxy {
    rpc: Rpc,
    profile: String,
    view: Mutex<ProxyView>,
    /// The generation for which it was last told to load.
    loaded: Mutex<Option<i64>>,
}

/// Every proxy that has an address. Without any, there is nothing to do, and nobody to ask.
#[derive(Debug, Default)]
pub struct Proxies {
    proxies: Vec<Arc<Proxy>>,
}

impl Proxies {
    /// Makes them known; nothing is asked yet.
    ///
    /// # Errors
    /// In words, when an address is none.
    pub fn new(settings: &ProxySettings) -> Result<Self, String> {
        let proxies = settings.urls.iter().map(|url| {
            let rpc = Rpc::new(url.expose(), settings.limit)?;
            let view = ProxyView {
                proxy: rpc.address().to_owned(),
                verified: false,
                verified_generation: None,
                verified_at: None,
                since: Timestamp::now(),
                destinations: None,
                differences: Vec::new(),
                error: Some("not asked yet".to_owned()),
            };
            let profile = settings.profile.clone();
            Ok(Arc::new(Proxy { rpc, profile, view: Mutex::new(view), loaded: Mutex::default() }))
        });
        Ok(Self { proxies: proxies.collect::<Result<_, String>>()? })
    }

    /// True when no proxy has an address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.proxies.is_empty()
    }

    /// What was last heard of each.
    #[must_use]
    pub fn views(&self) -> Vec<ProxyView> {
        self.proxies.iter().map(|proxy| proxy.view().clone()).collect()
    }

    /// Keeps every proxy at what the records say, until `stop`. Ends as well when another leads.
    pub async fn keep(self: Arc<Self>, dispatcher: Dispatcher, tenure: Tenure, stop: CancellationToken) {
        let each = self.proxies.iter().map(|proxy| async {
            let mut changes = dispatcher.changes();
            let mut failures = 0;
            while !stop.is_cancelled() && tenure.is_trusted() {
                changes.borrow_and_update();
                let verified = proxy.bring_up(&dispatcher, &tenure).await;
                failures = if verified { 0 } else { failures + 1 };
                self.tell(&dispatcher, &tenure).await;
                let wait = if verified { VERIFY_EVERY } else { RETRY.delay(failures - 1, random_unit()) };
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
        tokio::join!(join_all(each), disarm(&dispatcher, &tenure, &stop));
    }

    async fn tell(&self, dispatcher: &Dispatcher, tenure: &Tenure) {
        let text = json!({ "at": Timestamp::now(), "proxies": self.views() }).to_string();
        if let Err(error) = dispatcher.note(tenure, &text, NOTE_LIFETIME).await {
            tracing::debug!(%error, "the note about the proxies is not written");
        }
    }

    /// Asks every proxy about a server, all at a time.
    pub async fn ask(&self, callee: &Callee) -> Vec<(String, Result<Carried, RpcError>)> {
        join_all(
            self.proxies
                .iter()
                .map(|proxy| async { (proxy.rpc.address().to_owned(), proxy.carried(callee).await) }),
        )
        .await
    }

    /// Ends a server's calls at every proxy, so that both sides are told; how many, as far as proxies answer.
    pub async fn end_calls(&self, callee: &Callee) -> usize {
        let ended = self.proxies.iter().map(|proxy| async {
            let ending = tokio::time::timeout(END_CALLS_WITHIN, proxy.end_calls(callee)).await;
            match ending {
                Ok(Ok(ended)) => ended,
                Ok(Err(error)) => {
                    tracing::warn!(proxy = proxy.rpc.address(), server = callee.name, %error, "calls not ended here");
                    0
                }
                Err(_) => {
                    tracing::warn!(proxy = proxy.rpc.address(), server = callee.name, "not all calls ended in time");
                    0
                }
            }
        });
        join_all(ended).await.into_iter().sum()
    }

    /// Compares each proxy with the records now, and has nothing loaded: for `doctor`.
    pub async fn compare(&self, set: &DispatcherSet) -> Vec<(String, Result<Vec<String>, RpcError>)> {
        join_all(self.proxies.iter().map(|proxy| async {
            let differing = proxy.list().await.map(|targets| differences(set, &targets));
            (proxy.rpc.address().to_owned(), differing)
        }))
        .await
    }
}

/// Moves records away that would end a proxy, whoever tells it to load. Costs Redis a walk over its keys, so a large set is
/// looked at less often.
async fn disarm(dispatcher: &Dispatcher, tenure: &Tenure, stop: &CancellationToken) {
    while tenure.is_trusted() {
        let began = Instant::now();
        if let Err(error) = dispatcher.disarm(tenure).await {
            tracing::debug!(%error, "records not looked through");
        }
        let wait = DISARM_EVERY.max(began.elapsed() * 200);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Proxy {
    fn view(&self) -> std::sync::MutexGuard<'_, ProxyView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Option<i64>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the proxy load what it has not, and looks at what it made of it. True when it has everything.
    async fn bring_up(&self, dispatcher: &Dispatcher, tenure: &Tenure) -> bool {
        let set = match dispatcher.snapshot(tenure).await {
            Ok(set) => set,
            Err(error) => {
                // Redis is away, or somebody else leads: nothing is known against the proxy.
                self.note(Err(format!("the records cannot be read: {error}")), 0);
                return false;
            }
        };
        let outcome = self.load_and_compare(&set).await;
        let verified = matches!(&outcome, Ok((_, differing)) if differing.is_empty());
        self.note(outcome.map_err(|error| error.to_string()), set.generation);
        verified
    }

    /// How many destinations it has, and how they differ.
    async fn load_and_compare(&self, set: &DispatcherSet) -> Result<(usize, Vec<String>), RpcError> {
        if set.generation == 0 {
            // Redis came back empty. Who loads that sends no call anywhere; the leader writes the records in a moment.
            let error = "the records were lost and are not back yet".to_owned();
            return Err(RpcError::NotRpc(error));
        }
        let mut refused = None;
        if *self.loaded() != Some(set.generation) {
            refused = self.reload().await?;
        }
        let mut targets = self.list().await?;
        let mut differing = differences(set, &targets);
        if !differing.is_empty() && refused.is_none() {
            refused = self.reload().await?;
            targets = self.list().await?;
            differing = differences(set, &targets);
        }
        match refused {
            // A refusal does not mean that nothing was loaded: a record of somebody else's may have been at fault.
            Some(error) if !differing.is_empty() => Err(error),
            _ => {
                *self.loaded() = differing.is_empty().then_some(set.generation);
                Ok((targets.len(), differing))
            }
        }
    }

    /// The refusal, if it was refused.
    async fn reload(&self) -> Result<Option<RpcError>, RpcError> {
        let mut refused = None;
        for _ in 0..RELOADS {
            match self.rpc.call("dispatcher.reload", json!([])).await {
                Ok(_) => {
                    self.count("done");
                    return Ok(None);
                }
                Err(RpcError::Refused { code, message }) => {
                    let too_soon = message.contains("Ongoing");
                    refused = Some(RpcError::Refused { code, message });
                    if !too_soon {
                        break;
                    }
                    tokio::time::sleep(RELOAD_PAUSE).await;
                }
                Err(error) => {
                    self.count("no_answer");
                    return Err(error);
                }
            }
        }
        self.count("refused");
        Ok(refused)
    }

    async fn list(&self) -> Result<Vec<Target>, RpcError> {
        match self.rpc.call("dispatcher.list", json!([])).await {
            Ok(result) => listing::read(&result)
                .ok_or_else(|| RpcError::NotRpc("dispatcher.list in a form that is not known".to_owned())),
            // What Kamailio says of an empty one.
            Err(RpcError::Refused { message, .. }) if message.contains("No Destination Sets") => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    async fn carried(&self, callee: &Callee) -> Result<Carried, RpcError> {
        let targets = self.list().await?;
        let state = targets.into_iter().find(|target| {
            target.duid.as_ref() == Some(&callee.name)
                || (target.setid == callee.setid && target.destination == callee.destination)
        });
        Ok(Carried { state, dialogs: self.dialogs(callee).await? })
    }

    /// Calls of a server, under its name and, as other configurations count, under its destination.
    async fn dialogs(&self, callee: &Callee) -> Result<Option<u64>, RpcError> {
        let mut sum = 0;
        for value in [&callee.name, &callee.destination] {
            match self.rpc.call("dlg.profile_get_size", json!([self.profile, value])).await {
                Ok(size) => sum += size.as_u64().unwrap_or(0),
                // No such profile, or no module that counts.
                Err(RpcError::Refused { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(sum))
    }

    async fn end_calls(&self, callee: &Callee) -> Result<usize, RpcError> {
        let mut ended = 0;
        for value in [&callee.name, &callee.destination] {
            let calls = match self.rpc.call("dlg.profile_list", json!([self.profile, value])).await {
                Ok(Value::Array(calls)) => calls,
                Ok(_) | Err(RpcError::Refused { .. }) => continue,
                Err(error) => return Err(error),
            };
            for call in &calls {
                let (Some(entry), Some(id)) = (call.get("h_entry"), call.get("h_id")) else { continue };
                match self.rpc.call("dlg.end_dlg", json!([entry, id])).await {
                    Ok(_) => ended += 1,
                    // It has ended meanwhile.
                    Err(RpcError::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(ended)
    }

    fn count(&self, outcome: &'static str) {
        opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.scaler.proxy.reloads")
            .with_description("How often proxies were told to load the dispatcher records.")
            .build()
            .add(
                1,
                &[KeyValue::new("proxy", self.rpc.address().to_owned()), KeyValue::new("outcome", outcome)],
            );
    }

    /// Takes down what was found; a line when it differs from what was found before.
    fn note(&self, outcome: Result<(usize, Vec<String>), String>, generation: i64) {
        let now = Timestamp::now();
        let mut view = self.view();
        let before = (view.verified, view.error.clone(), view.differences.clone());
        match outcome {
            Ok((destinations, differing)) => {
                view.destinations = Some(destinations);
                view.error = None;
                view.differences = differing;
            }
            Err(error) => {
                view.destinations = None;
                view.error = Some(error);
                view.differences.clear();
            }
        }
        view.verified = view.error.is_none() && view.differences.is_empty();
        if view.verified {
            (view.verified_generation, view.verified_at) = (Some(generation), Some(now));
        }
        if view.verified != before.0 {
            view.since = now;
        }
        opentelemetry::global::meter("voiceai")
            .u64_gauge("voiceai.scaler.proxy.verified")
            .with_description("1 while the proxy has loaded what the dispatcher records say, else 0.")
            .build()
            .record(u64::from(view.verified), &[KeyValue::new("proxy", view.proxy.clone())]);
        if (view.verified, &view.error, &view.differences) == (before.0, &before.1, &before.2) {
            return;
        }
        let (proxy, error) = (&view.proxy, view.error.as_deref());
        if view.verified {
            tracing::info!(
                proxy,
                generation,
                destinations = view.destinations,
                "proxy has loaded the records"
            );
        } else {
            let differences = view.differences.join("; ");
            tracing::warn!(
                proxy,
                generation,
                error,
                differences,
                "proxy has not loaded the records; telling it again"
            );
        }
    }
}

/// What a leader's note says of the proxies; `None` when it is none.
#[must_use]
pub fn read_note(text: &str) -> Option<Vec<ProxyView>> {
    #[derive(Deserialize)]
    struct Note {
        proxies: Vec<ProxyView>,
    }
    serde_json::from_str::<Note>(text).ok().map(|note| note.proxies)
}
