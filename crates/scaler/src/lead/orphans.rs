//! Orphans: servers at a provider that bear our labels and that no row stands for.
//!
//! They are found by the provider's `list.sh`, where it has one. What a list lacks is never acted on: only a server that was
//! seen is judged, and only one is deleted whose own operation deleted it before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::Tenure;
use voiceai_scaler_core::name::{is_host_name, is_label_value};
use voiceai_scaler_core::orphan::{Maker, Sighting, Verdict, judge};

use super::Lead;
use crate::act::{ActError, Engine, ScriptKind, chain};
use crate::evaluate::Snapshot;
use crate::notices::Notice;
use crate::script::{Class, Listed, MANAGED_BY, Outcome, Status};
use crate::store::{Judgement, NewOrphan};

/// Deletions of orphans a sweep: a fault of ours must not run away with a fleet.
const DELETIONS_MAX: u32 = 2;
/// Orphans noted a sweep.
const NOTED_MAX: usize = 500;

/// Where servers may be: a provider and the region of one of its groups, each with the configuration of one such group.
pub type Places = BTreeMap<(String, Option<String>), Map<String, Value>>;

/// The places to list.
pub(super) fn places(snapshot: &Snapshot) -> Places {
    let of_groups = snapshot
        .policies
        .iter()
        .filter_map(|policy| Some((policy.provider.clone()?, policy.provider_config.clone())));
    let mut places = BTreeMap::new();
    for (provider, config) in of_groups {
        let region = config.get("region").and_then(Value::as_str).map(str::to_owned);
        places.entry((provider, region)).or_insert(config);
    }
    places
}

impl Lead {
    /// Starts a sweep, unless one is under way: a provider that does not answer holds nothing else up.
    pub(super) fn sweep_orphans(&mut self) {
        let busy = self.sweeping.as_ref().is_some_and(|task| !task.is_finished());
        if busy || self.places.is_empty() || self.tenure.is_held() || !self.tenure.is_trusted() {
            return;
        }
        let sweep = Sweep {
            engine: Arc::clone(&self.engine),
            tenure: self.tenure.clone(),
            kill: self.kill.clone(),
            environment: self.engine.providers.environment().to_owned(),
            every: self.settings.orphan_sweep,
        };
        let places = self.places.clone();
        self.sweeping = Some(self.shutdown.spawn("orphan sweep", async move { sweep.run(places).await }));
    }
}

struct Sweep {
    engine: Arc<Engine>,
    tenure: Tenure,
    kill: CancellationToken,
    environment: String,
    every: Duration,
}

/// One place's list, and whether it is whole.
type Seen = (Map<String, Value>, Vec<Listed>);

impl Sweep {
    async fn run(self, places: Places) {
        let providers: BTreeSet<String> = places.keys().map(|(provider, _)| provider.clone()).collect();
        for provider in providers {
            if !self.engine.providers.has(&provider, ScriptKind::List) {
                continue;
            }
            let configs: Vec<_> = places
                .iter()
                .filter(|((of, _), _)| *of == provider)
                .map(|(_, config)| config.clone())
                .collect();
            if let Err(error) = self.provider(&provider, configs).await {
                tracing::warn!(provider, error = %chain(&error), "orphans not looked for; trying again later");
            }
        }
    }

    async fn provider(&self, provider: &str, configs: Vec<Map<String, Value>>) -> Result<(), ActError> {
        let began = self.engine.store.now().await?;
        let mut whole = true;
        let mut seen: Vec<Seen> = Vec::new();
        for config in configs {
            match self.engine.providers.list(provider, &config, &self.kill).await {
                Ok(servers) => seen.push((config, servers)),
                Err(why) => {
                    whole = false;
                    tracing::warn!(provider, why, "servers of a provider cannot be listed");
                }
            }
        }
        let mut deletions = DELETIONS_MAX;
        for (config, mut servers) in seen {
            servers.retain(|server| self.bears_our_labels(server));
            self.judge(provider, &config, servers, began, &mut deletions).await?;
        }
        if whole {
            self.engine.store.forget_orphans(provider, began).await?;
        }
        Ok(())
    }

    fn bears_our_labels(&self, server: &Listed) -> bool {
        let says = |label: &str, value: &str| server.labels.get(label).is_some_and(|said| said == value);
        says("managed-by", MANAGED_BY)
            && says("environment", &self.environment)
            && !matches!(server.status, Status::Deleting | Status::Absent)
    }

    async fn judge(
        &self,
        provider: &str,
        config: &Map<String, Value>,
        servers: Vec<Listed>,
        now: Timestamp,
        deletions: &mut u32,
    ) -> Result<(), ActError> {
        let store = &self.engine.store;
        let operation = |server: &Listed| server.labels.get("operation")?.parse::<Uuid>().ok();
        let operations: Vec<Uuid> = servers.iter().filter_map(operation).collect();
        let makers = store.makers(&operations).await?;
        let maker = |server: &Listed| {
            operation(server).and_then(|id| makers.get(&id).cloned()).unwrap_or(Maker::Unknown)
        };
        let mut orphans: Vec<(Listed, Maker)> = servers
            .into_iter()
            .map(|server| {
                let maker = maker(&server);
                (server, maker)
            })
            .filter(|(server, maker)| is_orphan(&server.id, maker))
            .collect();
        orphans.truncate(NOTED_MAX);
        if orphans.is_empty() {
            return Ok(());
        }
        let noted: Vec<NewOrphan> = orphans
            .iter()
            .map(|(server, _)| NewOrphan {
                provider_id: server.id.clone(),
                name: server.name.clone(),
                group: server.labels.get("group").cloned().unwrap_or_default(),
                operation: operation(server),
            })
            .collect();
        let every = SignedDuration::try_from(self.every).unwrap_or(SignedDuration::MAX);
        let sightings = store.sight_orphans(&self.tenure, provider, now, every, &noted).await?;
        let names = orphans.iter().map(|(server, _)| server.name.clone());
        let beats = self.engine.heartbeats.read(names).await?;
        for (server, maker) in orphans {
            let reading = beats.any(&server.name, now, self.engine.patience.stale_after);
            let sighting = Sighting {
                provider_id: &server.id,
                maker,
                calls: reading.known().map(|beat| beat.active),
                sightings: sightings.get(&server.id).copied().unwrap_or(0),
                grace: self.engine.providers.limit(),
            };
            let mut verdict = judge(&sighting);
            if verdict == Verdict::Delete && *deletions == 0 {
                verdict = Verdict::Wait;
            }
            let told = verdict.is_for_a_person() && sighting.sightings >= 2;
            let judgement = Judgement {
                verdict: verdict.as_str(),
                asking: verdict == Verdict::Delete,
                notice: told.then(|| report(provider, &server, verdict, now)),
                ..Judgement::default()
            };
            store.judge_orphan(&self.tenure, (provider, &server.id), &judgement).await?;
            if verdict == Verdict::Delete {
                *deletions -= 1;
                self.delete(provider, config, &server, now).await?;
            }
        }
        Ok(())
    }

    /// The script reads the operation's label back before it deletes anything, and no row stands for that operation's
    /// server: whoever else acts at the same time, nothing that is in use can be meant.
    async fn delete(
        &self,
        provider: &str,
        config: &Map<String, Value>,
        server: &Listed,
        now: Timestamp,
    ) -> Result<(), ActError> {
        let group = server.labels.get("group").map_or("", String::as_str);
        let operation = server.labels.get("operation").and_then(|id| id.parse::<Uuid>().ok());
        let (Some(operation), true, true) = (operation, is_host_name(&server.name), is_label_value(group))
        else {
            return Ok(());
        };
        self.tenure.check()?;
        tracing::warn!(provider, server = server.name, id = server.id, %operation, "orphan is deleted");
        let said = self.engine.providers.delete_orphan(provider, config, server, operation, &self.kill).await;
        let outcome = match &said {
            Outcome::Said(Class::Done | Class::NotFound, _) => "deleted".to_owned(),
            Outcome::Said(class, answer) => {
                let error = answer.error.as_ref();
                format!("{}: {}", class.as_str(), error.map_or("", |error| error.message.as_str()))
            }
            Outcome::Unknown(why, _) => format!("unknown: {why}"),
            Outcome::NotStarted(why) => format!("not started: {why}"),
        };
        let key = (provider, server.id.as_str());
        let word = Verdict::Delete.as_str();
        let notice = Notice {
            event: "degraded",
            group: group.to_owned(),
            server: Some(server.name.clone()),
            reason: format!("orphan at {provider}, id {}: {}; {outcome}", server.id, Verdict::Delete.text()),
            at: now,
            key: format!("orphan:{provider}:{}:delete", server.id),
        };
        let judgement =
            Judgement { verdict: word, asking: false, outcome: Some(&outcome), notice: Some(notice) };
        self.engine.store.judge_orphan(&self.tenure, key, &judgement).await?;
        Ok(())
    }
}

/// What people are told of an orphan that is theirs to delete.
fn report(provider: &str, server: &Listed, verdict: Verdict, now: Timestamp) -> Notice {
    let reason = format!("orphan at {provider}, id {}: {}", server.id, verdict.text());
    let group = server.labels.get("group").cloned().unwrap_or_default();
    tracing::error!(provider, server = server.name, id = server.id, reason, "orphan");
    Notice {
        event: "degraded",
        group,
        server: Some(server.name.clone()),
        reason,
        at: now,
        key: format!("orphan:{provider}:{}:{}", server.id, verdict.as_str()),
    }
}

/// True when no row stands for the listed server.
fn is_orphan(id: &str, maker: &Maker) -> bool {
    let sighting = Sighting {
        provider_id: id,
        maker: maker.clone(),
        calls: None,
        sightings: 0,
        grace: SignedDuration::ZERO,
    };
    judge(&sighting) != Verdict::Ours
}
