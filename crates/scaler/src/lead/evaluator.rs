//! One evaluation after the other, as the leader makes them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use opentelemetry::KeyValue;
use voiceai_postgres::Tenure;
use voiceai_scaler_core::name::next_free;
use voiceai_scaler_core::policy::{AtDeadline, Policy};
use voiceai_scaler_core::{Action, Decision, PolicyError, State};

use super::LeadSettings;
use super::orphans::{Places, places};
use crate::act::{ActError, Engine, chain};
use crate::evaluate::{Evaluation, Recollection, Snapshot};
use crate::failpoint::{self, Side};
use crate::notices::Notice;
use crate::store::{
    CreateHold, Created, DecisionRow, DownSettings, NewRemoval, NewServer, Raised, StoreError,
};

/// Of more groups than this a new leader's first evaluation tells only what it does and what is wrong.
const FIRST_TOLD: usize = 100;
/// Failures within half an hour that open a group's circuit.
const CIRCUIT_FAILURES: i64 = 3;

/// Evaluations of one tenure.
#[derive(Debug)]
pub struct Evaluator {
    engine: Arc<Engine>,
    settings: LeadSettings,
    tenure: Tenure,
    recollection: Recollection,
    remembered: bool,
    reasons: HashMap<String, String>,
}

/// What an evaluation saw besides the groups.
#[derive(Debug)]
pub struct Evaluated {
    /// Groups that were decided about.
    pub groups: usize,
    /// Servers of ours.
    pub servers: usize,
    /// Where servers of ours may be.
    pub places: Places,
    /// Servers that are failed and on which no operation works.
    pub left_to_a_person: Vec<String>,
    /// Where the time went.
    pub took: Took,
}

/// How long each part of an evaluation took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// Reading rows and heartbeats.
    pub read: Duration,
    /// Deciding.
    pub decide: Duration,
    /// Writing the decisions down, and the intents that follow from them.
    pub write: Duration,
    /// Bringing the routing records to what the rows say.
    pub route: Duration,
}

impl Evaluator {
    /// For one tenure; nothing is remembered yet.
    #[must_use]
    pub fn new(engine: Arc<Engine>, settings: LeadSettings, tenure: Tenure) -> Self {
        Self {
            engine,
            settings,
            tenure,
            recollection: Recollection::default(),
            remembered: false,
            reasons: HashMap::new(),
        }
    }

    /// Servers in service from which nothing was heard for at least `since`, by the last evaluation.
    #[must_use]
    pub fn silent(&self, now: Timestamp, since: SignedDuration) -> Vec<String> {
        self.recollection.silent(now, since)
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

    /// Looks at every group, decides, writes down what was decided and why, plans what is to be done, and keeps routing true.
    ///
    /// # Errors
    /// As the stores say; a publication that fails is tried again at the next evaluation and is no error.
    pub async fn evaluate(&mut self) -> Result<Evaluated, ActError> {
        self.tenure.check()?;
        let (mut took, mut began) = (Took::default(), Instant::now());
        let mut lap = || std::mem::replace(&mut began, Instant::now()).elapsed();
        let engine = Arc::clone(&self.engine);
        let mark = engine.routing_mark().await;
        let mut snapshot = Snapshot::read(&engine.store, &engine.heartbeats).await?;
        if !std::mem::replace(&mut self.remembered, true) {
            self.remember(&snapshot).await;
        }
        took.read = lap();
        engine.providers.adopt(&snapshot.holds);
        self.open_circuits(&mut snapshot).await?;
        let held = self.tenure.is_held().then_some(
            "held: the database went back in time; see the audit trail, then run `voiceai-scaler resume --all`",
        );
        let stale_after = engine.patience.stale_after;
        let evaluations = self.recollection.evaluate(&snapshot, stale_after, self.settings.fleet_max, held);
        let mut rows: Vec<DecisionRow> = evaluations.iter().map(row).collect();
        rows.extend(snapshot.invalid.iter().map(invalid_row));
        // A new leader's first look at many groups is no news of each of them.
        let quiet = self.reasons.is_empty() && rows.len() > FIRST_TOLD;
        for row in &rows {
            self.tell(row, quiet);
        }
        took.decide = lap();
        if !rows.is_empty() {
            engine.store.write_decisions(&self.tenure, snapshot.now, &rows).await?;
        }
        let mut taken = BTreeSet::new();
        if evaluations.iter().any(|one| matches!(one.decision.action, Action::Add { create: 1.., .. })) {
            taken = snapshot.taken();
        }
        for evaluation in &evaluations {
            self.apply(evaluation, &snapshot, &mut taken).await?;
        }
        took.write = lap();
        if !self.tenure.is_held() {
            let kept = engine.keep_routing(&self.tenure, mark, &snapshot.fleet, &snapshot.resting).await;
            not_published(kept);
        }
        took.route = lap();
        let (groups, servers) = (evaluations.len(), snapshot.fleet.len());
        Ok(Evaluated {
            took,
            groups,
            servers,
            places: places(&snapshot),
            left_to_a_person: snapshot.left_to_a_person(),
        })
    }

    /// A line for each decision that differs from the one before; the others at debug.
    fn tell(&mut self, row: &DecisionRow, quiet: bool) {
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
        } else if row.action != "hold" || (before.as_ref() != Some(reason) && !quiet) {
            tracing::info!(group, action, reason, summary, "decision");
        } else {
            tracing::debug!(group, action, reason, summary, "decision");
        }
    }

    async fn apply(
        &self,
        evaluation: &Evaluation,
        snapshot: &Snapshot,
        taken: &mut BTreeSet<String>,
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
                        notice: None,
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
        taken: &mut BTreeSet<String>,
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
            let notice = Notice {
                event: "degraded",
                group: policy.name.clone(),
                server: None,
                reason: why.clone(),
                at: snapshot.now,
                key: format!("{}:{}", policy.id, until.as_second()),
            };
            let hold = CreateHold {
                group_id: &policy.id,
                group_name: &policy.name,
                until,
                why: &why,
                circuit: true,
                notice: Some(notice),
            };
            self.engine.store.hold_creates(&self.tenure, &hold).await?;
            tracing::error!(group = policy.name, why, "circuit opened");
            standing.no_creates = Some((until, why));
        }
        Ok(())
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

pub(super) fn not_published(kept: Result<(), ActError>) {
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
