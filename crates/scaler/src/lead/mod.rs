//! The leader's loops: evaluate on a timer, carry operations out, keep routing true.

mod ghosts;
mod orphans;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::Tenure;
use voiceai_runtime::{Pulse, Shutdown, Vitals};
use voiceai_scaler_core::name::next_free;
use voiceai_scaler_core::policy::{AtDeadline, Policy};
use voiceai_scaler_core::{Action, Decision, PolicyError, State};

use crate::act::{ActError, Engine, chain};
use crate::evaluate::{Evaluation, Recollection, Snapshot};
use crate::failpoint::{self, Side};
use crate::notices::Notice;
use crate::store::{Created, DecisionRow, DownSettings, NewRemoval, NewServer, Raised, StoreError};

/// How often open operations are looked for.
const OPERATIONS_EVERY: Duration = Duration::from_millis(500);
/// How often names that beat are looked for in the key space.
const DISCOVER_EVERY: Duration = Duration::from_secs(10);
/// How long the first look for such names may hold up the first evaluation.
const DISCOVER_FIRST: Duration = Duration::from_millis(500);
/// How often old rows are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(300);
/// Failures within half an hour that open a group's circuit.
const CIRCUIT_FAILURES: i64 = 3;

/// What the loops need besides the engine.
#[derive(Debug, Clone)]
pub struct LeadSettings {
    /// ENVIRONMENT, in lower case: part of every server's name.
    pub environment: String,
    /// INSTANCE_ID: who decides.
    pub instance_id: String,
    /// Between two evaluations.
    pub evaluation_interval: Duration,
    /// Between two looks for orphans.
    pub orphan_sweep: Duration,
    /// Most servers over all groups.
    pub fleet_max: Option<u32>,
    /// How long running scripts may go on when the process stops; then they are ended.
    pub stop_patience: Duration,
}

/// Leads whenever this process is elected, until shutdown.
pub async fn run(
    engine: Arc<Engine>,
    settings: LeadSettings,
    mut tenures: watch::Receiver<Option<Tenure>>,
    shutdown: Shutdown,
    vitals: Vitals,
) {
    let stopping = shutdown.stopping();
    let pulse = vitals.register("scaler leader", Duration::from_secs(60));
    loop {
        pulse.beat();
        let tenure = tenures.borrow_and_update().clone();
        let Some(tenure) = tenure else {
            vitals.set_status("standing by");
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = tenures.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
            }
            continue;
        };
        vitals.set_status(format!("leading, term {}", tenure.term().number));
        let stop = shutdown.stopping().child_token();
        let kill = shutdown.forced().child_token();
        let _ends = (stop.clone().drop_guard(), kill.clone().drop_guard());
        let mut lead = Lead {
            engine: Arc::clone(&engine),
            settings: settings.clone(),
            tenure: tenure.clone(),
            stop: stop.clone(),
            kill: kill.clone(),
            shutdown: shutdown.clone(),
            tasks: HashMap::new(),
            recollection: Recollection::default(),
            remembered: false,
            absent: HashMap::new(),
            left: Vec::new(),
            asking: None,
            places: BTreeMap::new(),
            sweeping: None,
            reasons: HashMap::new(),
        };
        tokio::select! {
            () = lead.lead(&vitals, &pulse) => {}
            // Nothing that a script does now could be written any more: its end is the successor's to find out.
            () = ended(&mut tenures, &tenure) => kill.cancel(),
            () = stopping.cancelled() => {}
        }
        stop.cancel();
        lead.settle(&pulse).await;
        if stopping.is_cancelled() {
            return;
        }
    }
}

/// Returns once another tenure than `mine` is told, or none.
async fn ended(tenures: &mut watch::Receiver<Option<Tenure>>, mine: &Tenure) {
    loop {
        if tenures.changed().await.is_err() {
            return;
        }
        let now = tenures.borrow_and_update().clone();
        if now.is_none_or(|tenure| tenure.term() != mine.term()) {
            return;
        }
    }
}

/// One tenure.
struct Lead {
    engine: Arc<Engine>,
    settings: LeadSettings,
    tenure: Tenure,
    /// No further step is begun.
    stop: CancellationToken,
    /// Running scripts are ended.
    kill: CancellationToken,
    shutdown: Shutdown,
    tasks: HashMap<Uuid, JoinHandle<()>>,
    recollection: Recollection,
    remembered: bool,
    /// How often in a row the provider said of a silent server that it has none such.
    absent: HashMap<String, u32>,
    /// Servers that are left to a person, by the last evaluation.
    left: Vec<String>,
    /// The asking that is under way: silent servers, and whether the provider has none such.
    asking: Option<JoinHandle<Vec<(String, bool)>>>,
    /// Where servers of ours may be, by the last evaluation.
    places: BTreeMap<(String, Option<String>), serde_json::Map<String, serde_json::Value>>,
    /// The look for orphans that is under way.
    sweeping: Option<JoinHandle<()>>,
    reasons: HashMap<String, String>,
}

impl Lead {
    async fn lead(&mut self, vitals: &Vitals, leader_pulse: &Pulse) {
        let bound = self.settings.evaluation_interval * 3 + Duration::from_secs(120);
        let pulse = vitals.register("evaluation", bound);
        let discovery = self.spawn_discovery();
        let _ = tokio::time::timeout(DISCOVER_FIRST, self.engine.heartbeats.discover()).await;
        let mut evaluations = interval(self.settings.evaluation_interval);
        let mut operations = interval(OPERATIONS_EVERY);
        let mut prunes = interval(PRUNE_EVERY);
        let mut ghosts = interval(self.ghosts_every());
        let mut orphans = interval(self.settings.orphan_sweep);
        let mut reconnects = self.engine.dispatcher.redis().reconnected();
        let mut reconnected = true;
        loop {
            leader_pulse.beat();
            tokio::select! {
                _ = operations.tick() => self.resume_operations().await,
                _ = evaluations.tick() => {
                    self.evaluate().await;
                    self.resume_operations().await;
                }
                _ = prunes.tick() => self.prune().await,
                _ = ghosts.tick() => self.sweep_ghosts().await,
                _ = orphans.tick() => self.sweep_orphans(),
                told = reconnects.recv(), if reconnected => {
                    // A Redis that came back may have come back empty.
                    reconnected = !matches!(told, Err(tokio::sync::broadcast::error::RecvError::Closed));
                    self.rebuild_routing().await;
                }
            }
            pulse.beat();
            if discovery.is_finished() {
                tracing::error!("the look for unmanaged servers has ended");
                return;
            }
        }
    }

    fn spawn_discovery(&self) -> JoinHandle<()> {
        let reader = self.engine.heartbeats.clone();
        let cancel = self.stop.clone();
        self.shutdown.spawn("discovery", async move {
            loop {
                let walked = tokio::select! {
                    () = cancel.cancelled() => return,
                    walked = reader.discover() => walked,
                };
                if let Err(error) = walked {
                    tracing::debug!(%error, "names that beat cannot be looked for");
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(DISCOVER_EVERY) => {}
                }
            }
        })
    }

    /// Takes over the predecessor's memory, as far as a policy asks for it; without it, periods and windows start anew.
    async fn remember(&mut self, snapshot: &Snapshot) {
        let every =
            SignedDuration::try_from(self.settings.evaluation_interval).unwrap_or(SignedDuration::ZERO);
        let back = snapshot.looks_back(every);
        if back.is_zero() {
            return;
        }
        match self.engine.store.past_samples(snapshot.now - back).await {
            Ok(samples) => self.recollection = Recollection::from_past(samples),
            Err(error) => tracing::warn!(error = %chain(&error), "past decisions cannot be read"),
        }
    }

    /// Gives every operation a task of its own that has none.
    async fn resume_operations(&mut self) {
        self.tasks.retain(|_, task| !task.is_finished());
        if self.tenure.is_held() || !self.tenure.is_trusted() {
            return;
        }
        let open = match self.engine.store.open_operations().await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "open operations cannot be read");
                return;
            }
        };
        for id in open {
            if !self.tasks.contains_key(&id) {
                let engine = Arc::clone(&self.engine);
                let carry = engine.carry(id, self.tenure.clone(), self.stop.clone(), self.kill.clone());
                let task = self.shutdown.spawn(format!("operation {id}"), carry);
                self.tasks.insert(id, task);
            }
        }
    }

    async fn evaluate(&mut self) {
        let began = std::time::Instant::now();
        if let Err(error) = self.try_evaluate().await {
            if error.ends_leadership() {
                tracing::warn!(error = %chain(&error), "evaluation left to the new leader");
            } else {
                tracing::error!(error = %chain(&error), "evaluation not made; trying again at the next one");
            }
        }
        opentelemetry::global::meter("voiceai")
            .f64_histogram("voiceai.scaler.evaluation.duration")
            .with_unit("s")
            .with_description("How long one evaluation of all groups took.")
            .build()
            .record(began.elapsed().as_secs_f64(), &[]);
    }

    async fn try_evaluate(&mut self) -> Result<(), ActError> {
        self.tenure.check()?;
        let engine = Arc::clone(&self.engine);
        let mark = engine.routing_mark().await;
        let mut snapshot = Snapshot::read(&engine.store, &engine.heartbeats).await?;
        if !std::mem::replace(&mut self.remembered, true) {
            self.remember(&snapshot).await;
        }
        engine.providers.adopt(&snapshot.holds);
        let first_places = self.places.is_empty();
        self.places = orphans::places(&snapshot);
        self.left = snapshot.left_to_a_person();
        if first_places {
            self.sweep_orphans();
        }
        self.open_circuits(&mut snapshot).await?;
        let held = self.tenure.is_held().then_some(
            "held: the database went back in time; see the audit trail, then run `voiceai-scaler resume --all`",
        );
        let stale_after = engine.patience.stale_after;
        let evaluations = self.recollection.evaluate(&snapshot, stale_after, self.settings.fleet_max, held);
        let mut rows: Vec<DecisionRow> = evaluations.iter().map(row).collect();
        rows.extend(snapshot.invalid.iter().map(invalid_row));
        for row in &rows {
            self.tell(row);
        }
        if !rows.is_empty() {
            engine.store.write_decisions(&self.tenure, snapshot.now, &rows).await?;
        }
        let mut taken = snapshot.taken(stale_after);
        for evaluation in &evaluations {
            self.apply(evaluation, &snapshot, &mut taken).await?;
        }
        if !self.tenure.is_held() {
            let kept = engine.keep_routing(&self.tenure, mark, &snapshot.fleet, &snapshot.resting).await;
            not_published(kept);
        }
        Ok(())
    }

    /// A line for each decision that differs from the one before; the others at debug.
    fn tell(&mut self, row: &DecisionRow) {
        opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.scaler.decisions")
            .with_description("Decisions about groups.")
            .build()
            .add(1, &[KeyValue::new("action", row.action), KeyValue::new("reason", row.reason.clone())]);
        let (group, action, reason, summary) = (&row.group_name, row.action, &row.reason, &row.summary);
        let before = self.reasons.insert(row.group_id.clone(), row.reason.clone());
        if row.action == "invalid" {
            if before.as_ref() != Some(reason) {
                tracing::error!(group, reason, summary, "group skipped");
            }
        } else if row.action != "hold" || before.as_ref() != Some(reason) {
            tracing::info!(group, action, reason, summary, "decision");
        } else {
            tracing::debug!(group, action, reason, summary, "decision");
        }
    }

    async fn apply(
        &self,
        evaluation: &Evaluation,
        snapshot: &Snapshot,
        taken: &mut std::collections::BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let Evaluation { policy, decision, .. } = evaluation;
        let reason = decision.reason.as_str();
        match &decision.action {
            Action::Hold => {}
            Action::Add { undrain, create } => {
                for name in undrain {
                    let called = self.engine.store.call_back(&self.tenure, name, snapshot.now).await?;
                    if called == Raised::Nothing {
                        tracing::warn!(server = name, "its drain can no longer be called off");
                    }
                }
                for _ in 0..*create {
                    self.create(policy, snapshot, reason, taken).await?;
                }
            }
            Action::Remove { drain } => {
                for name in drain {
                    let settings = drain_settings(policy);
                    let removal = NewRemoval {
                        server: name,
                        at: snapshot.now,
                        actor: &self.settings.instance_id,
                        reason,
                        settings,
                    };
                    failpoint::reached(State::Planned, Side::Before);
                    match self.engine.store.plan_removal(&self.tenure, &removal).await? {
                        Created::Operation(_) => failpoint::reached(State::Planned, Side::After),
                        Created::Taken => {
                            tracing::warn!(server = name, "not removed: it is no longer as it was read");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        policy: &Policy,
        snapshot: &Snapshot,
        reason: &str,
        taken: &mut std::collections::BTreeSet<String>,
    ) -> Result<(), StoreError> {
        // A name that somebody took since it was read is passed over; the database is the judge.
        for _ in 0..20 {
            let Some(name) = next_free(&self.settings.environment, policy.service, taken) else {
                tracing::error!(group = policy.name, "no server name is free: ENVIRONMENT is too long");
                return Ok(());
            };
            taken.insert(name.clone());
            let new = NewServer {
                name: &name,
                policy,
                at: snapshot.now,
                actor: &self.settings.instance_id,
                reason,
            };
            failpoint::reached(State::Planned, Side::Before);
            if let Created::Operation(operation) = self.engine.store.plan_server(&self.tenure, &new).await? {
                failpoint::reached(State::Planned, Side::After);
                tracing::info!(group = policy.name, server = name, %operation, reason, "server asked for");
                return Ok(());
            }
        }
        tracing::error!(group = policy.name, "no free server name found");
        Ok(())
    }

    /// A group whose servers keep failing buys nothing for a while, longer each time.
    async fn open_circuits(&self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        let failures = self.engine.store.recent_failures().await?;
        for policy in &snapshot.policies {
            if failures.get(&policy.id).is_none_or(|count| *count < CIRCUIT_FAILURES) {
                continue;
            }
            let standing = snapshot.standings.entry(policy.id.clone()).or_default();
            let opened = u32::try_from(standing.circuit_opened).unwrap_or(0).min(3);
            let minutes = (5_i64 << opened).min(30);
            let until = snapshot.now + SignedDuration::from_mins(minutes);
            let why = format!(
                "degraded: {CIRCUIT_FAILURES} servers failed within half an hour; buying rests for {minutes} min"
            );
            self.engine.store.hold_creates(&self.tenure, &policy.id, &policy.name, until, &why, true).await?;
            tracing::error!(group = policy.name, why, "circuit opened");
            let notice = Notice {
                event: "degraded",
                group: policy.name.clone(),
                server: None,
                reason: why.clone(),
                at: snapshot.now,
                key: format!("{}:{}", policy.id, until.as_second()),
            };
            self.engine.notices.send(&notice).await;
            standing.no_creates = Some((until, why));
        }
        Ok(())
    }

    async fn rebuild_routing(&self) {
        if !self.tenure.is_held() && self.tenure.is_trusted() {
            not_published(self.engine.rebuild_routing(&self.tenure).await);
        }
    }

    async fn prune(&self) {
        match self.engine.store.prune().await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "old decisions removed"),
            Err(error) => tracing::warn!(error = %chain(&error), "old decisions not removed"),
        }
    }

    /// Waits until no task of this tenure runs any more: each stops before its next effect.
    async fn settle(&mut self, pulse: &Pulse) {
        let mut tasks: Vec<JoinHandle<()>> = self.tasks.drain().map(|(_, task)| task).collect();
        let until = tokio::time::Instant::now() + self.settings.stop_patience;
        while !tasks.is_empty() {
            pulse.beat();
            if tokio::time::Instant::now() >= until {
                self.kill.cancel();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            tasks.retain(|task| !task.is_finished());
        }
        // These only look, or delete what no row stands for: their scripts may as well be ended.
        self.kill.cancel();
        if let Some(task) = self.asking.take() {
            let _ = task.await;
        }
        if let Some(task) = self.sweeping.take() {
            let _ = task.await;
        }
    }
}

/// How a removal that a decision asked for is carried out.
#[must_use]
pub fn drain_settings(policy: &Policy) -> DownSettings {
    let at_deadline: AtDeadline = policy.drain.at_deadline;
    DownSettings {
        drain_timeout_ms: policy
            .drain
            .timeout
            .map(|timeout| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)),
        at_deadline,
        by_operator: false,
    }
}

fn not_published(kept: Result<(), ActError>) {
    if let Err(error) = kept {
        tracing::warn!(error = %chain(&error), "dispatcher records not published; trying again");
    }
}

fn row(evaluation: &Evaluation) -> DecisionRow {
    let Evaluation { policy, decision, .. } = evaluation;
    DecisionRow {
        group_id: policy.id.clone(),
        group_name: policy.name.clone(),
        action: action_word(decision),
        reason: decision.reason.as_str().to_owned(),
        summary: decision.text.clone(),
        details: serde_json::to_value(decision).unwrap_or_default(),
    }
}

/// `hold`, `add` or `remove`.
#[must_use]
pub const fn action_word(decision: &Decision) -> &'static str {
    match decision.action {
        Action::Hold => "hold",
        Action::Add { .. } => "add",
        Action::Remove { .. } => "remove",
    }
}

fn invalid_row(error: &PolicyError) -> DecisionRow {
    DecisionRow {
        group_id: error.group.clone(),
        group_name: error.group.clone(),
        action: "invalid",
        reason: "invalid".to_owned(),
        summary: error.to_string(),
        details: serde_json::to_value(error).unwrap_or_default(),
    }
}

fn interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
