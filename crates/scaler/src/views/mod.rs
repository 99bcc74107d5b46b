//! What `plan`, `status` and `history` show: plain data with stable names, from the very code that decides.

mod history;
mod timers;

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_scaler_core::heartbeat::{Beat, Unknown};
use voiceai_scaler_core::name::next_free;
use voiceai_scaler_core::{Action, Decision, PolicyError, Reading, Violation};

use crate::act::{Providers, ScriptKind};
use crate::evaluate::{Evaluation, Snapshot};
use crate::lead::action_word;
use crate::routing::proxies::ProxyView;
use crate::store::{FleetRow, OrphanRow, Store, StoreError};

pub use history::{Cursor, HistoryQuery, HistoryView};

/// One group's plan.
#[derive(Debug, Serialize)]
pub struct PlanView {
    /// The group.
    pub group: String,
    /// `voice` or `api`; absent for a group that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'static str>,
    /// `hold`, `add`, `remove`, or `invalid` for a group that is skipped.
    pub action: &'static str,
    /// The reason's stable word.
    pub reason: String,
    /// One line for a person.
    pub summary: String,
    /// Inputs, bounds, wish, clamps, timers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The script calls it would lead to, first ones first.
    pub script_calls: Vec<ScriptCall>,
    /// Why the group is skipped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// One call of a script that a plan would lead to.
#[derive(Debug, Serialize)]
pub struct ScriptCall {
    /// The script's file.
    pub script: String,
    /// The server it would be about.
    pub server: String,
    /// The machine type and location that would be tried first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Value>,
}

/// The plan of every group.
#[must_use]
pub fn plan(
    evaluations: Vec<Evaluation>,
    snapshot: &Snapshot,
    providers: &Providers,
    environment: &str,
) -> Vec<PlanView> {
    let mut taken = snapshot.taken();
    let mut views: Vec<PlanView> = evaluations
        .into_iter()
        .map(|evaluation| {
            let Evaluation { policy, decision, .. } = evaluation;
            let provider = policy.provider.clone().unwrap_or_default();
            let file = |kind| providers.file(&provider, kind).display().to_string();
            let mut calls = Vec::new();
            match &decision.action {
                Action::Hold => {}
                Action::Add { create, .. } => {
                    for _ in 0..*create {
                        let Some(server) = next_free(environment, policy.service, &taken) else { break };
                        taken.insert(server.clone());
                        let candidate = policy
                            .candidates
                            .first()
                            .and_then(|candidate| serde_json::to_value(candidate).ok());
                        calls.push(ScriptCall { script: file(ScriptKind::ScaleUp), server, candidate });
                    }
                }
                Action::Remove { drain } => {
                    for server in drain {
                        calls.push(ScriptCall {
                            script: file(ScriptKind::ScaleDown),
                            server: server.clone(),
                            candidate: None,
                        });
                    }
                }
            }
            PlanView {
                group: policy.name,
                service: Some(policy.service.as_str()),
                action: action_word(&decision),
                reason: decision.reason.as_str().to_owned(),
                summary: decision.text.clone(),
                decision: Some(decision),
                script_calls: calls,
                violations: Vec::new(),
            }
        })
        .collect();
    views.extend(snapshot.invalid.iter().map(invalid));
    views.sort_by(|a, b| a.group.cmp(&b.group));
    views
}

fn invalid(error: &PolicyError) -> PlanView {
    PlanView {
        group: error.group.clone(),
        service: None,
        action: "invalid",
        reason: "invalid".to_owned(),
        summary: error.to_string(),
        decision: None,
        script_calls: Vec::new(),
        violations: error.violations.clone(),
    }
}

/// Everything `status` shows.
#[derive(Debug, Serialize)]
pub struct StatusView {
    /// When it was read, by the database's clock.
    pub at: Timestamp,
    /// Who leads.
    pub leader: Option<LeaderView>,
    /// Every group.
    pub groups: Vec<GroupView>,
    /// Every server that is not gone, and those of others.
    pub servers: Vec<ServerView>,
    /// Servers by status.
    pub servers_by_state: HashMap<&'static str, u32>,
    /// Every operation that is not finished.
    pub operations: Vec<OperationView>,
    /// Everything that holds a group, with its end.
    pub timers: Vec<TimerView>,
    /// The Kamailio proxies that have an address, as the leader last heard of them.
    pub proxies: Vec<ProxyView>,
    /// Servers at a provider that bear our labels and that no row stands for.
    pub orphans: Vec<OrphanRow>,
}

/// The newest leader, as the database knows it.
#[derive(Debug, Serialize)]
pub struct LeaderView {
    /// INSTANCE_ID.
    pub instance_id: String,
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: i32,
    /// Its term.
    pub term: i64,
    /// When it was elected.
    pub elected_at: Timestamp,
    /// Why it may not act, while it may not.
    pub held_reason: Option<String>,
    /// True while its lease stands in Redis.
    pub lease_held: bool,
}

/// One group.
#[derive(Debug, Serialize)]
pub struct GroupView {
    /// Its name.
    pub group: String,
    /// `voice` or `api`; absent for a group that is skipped.
    pub service: Option<&'static str>,
    /// Fewest servers now.
    pub min: Option<u32>,
    /// Most servers now.
    pub max: Option<u32>,
    /// In service with a known load.
    pub active: u32,
    /// In service with an unknown load.
    pub suspect: u32,
    /// Being made.
    pub booting: u32,
    /// Being drained.
    pub draining: u32,
    /// Of others.
    pub unmanaged: u32,
    /// Running calls or connections.
    pub load: u64,
    /// What the known servers in service can carry.
    pub capacity: u64,
    /// Load over capacity; absent when unknown.
    pub utilisation: Option<f64>,
    /// What an evaluation now would say.
    pub reason: String,
    /// The same in one line.
    pub summary: String,
}

/// One server.
#[derive(Debug, Serialize)]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// `booting`, `active`, `draining`, `leaving`, `failed` or `unmanaged`.
    pub state: &'static str,
    /// Running calls or connections; absent when unknown.
    pub calls: Option<u64>,
    /// What it takes at most, when it says so.
    pub capacity: Option<u64>,
    /// Why its load is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unknown>,
    /// The provider's folder.
    pub provider: Option<String>,
    /// The provider's id.
    pub provider_id: Option<String>,
    /// Its public address.
    pub ip: Option<String>,
    /// Its private address.
    pub private_ip: Option<String>,
    /// Not removed before.
    pub protected_until: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Option<Timestamp>,
}

/// One open operation.
#[derive(Debug, Serialize)]
pub struct OperationView {
    /// Its id.
    pub id: Uuid,
    /// `up` or `down`.
    pub kind: &'static str,
    /// Its state.
    pub state: &'static str,
    /// The server.
    pub server: String,
    /// The group.
    pub group: String,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Tries so far in this state.
    pub attempt: u32,
    /// When the state was reached.
    pub since: Timestamp,
    /// End of the wait that the state is in.
    pub deadline: Option<Timestamp>,
    /// Nothing is tried before.
    pub not_before: Option<Timestamp>,
    /// The last error.
    pub error: Option<String>,
}

/// One thing that holds a group or a server.
#[derive(Debug, Serialize)]
pub struct TimerView {
    /// The group.
    pub group: String,
    /// The server, where it is about one.
    pub server: Option<String>,
    /// The rule.
    pub rule: String,
    /// Its end; absent when it does not end by itself.
    pub until: Option<Timestamp>,
    /// Why.
    pub why: String,
}

/// Puts `status` together.
#[must_use]
pub fn status(
    snapshot: &Snapshot,
    evaluations: &[Evaluation],
    leader: Option<LeaderView>,
    orphans: Vec<OrphanRow>,
    stale_after: jiff::SignedDuration,
) -> StatusView {
    let mut servers: Vec<ServerView> =
        snapshot.fleet.iter().map(|row| managed(row, snapshot, stale_after)).collect();
    for evaluation in evaluations {
        servers.extend(
            evaluation
                .state
                .unmanaged
                .iter()
                .map(|one| unmanaged(&one.name, &evaluation.policy.name, &one.beat)),
        );
    }
    let mut by_state = HashMap::new();
    for server in &servers {
        *by_state.entry(server.state).or_insert(0) += 1;
    }
    let mut groups: Vec<GroupView> = evaluations.iter().map(group).collect();
    groups.extend(snapshot.invalid.iter().map(invalid_group));
    groups.sort_by(|a, b| a.group.cmp(&b.group));
    StatusView {
        at: snapshot.now,
        leader,
        groups,
        servers,
        servers_by_state: by_state,
        operations: snapshot.fleet.iter().filter_map(operation).collect(),
        timers: timers::timers(snapshot, evaluations),
        proxies: Vec::new(),
        orphans,
    }
}

fn managed(row: &FleetRow, snapshot: &Snapshot, stale_after: jiff::SignedDuration) -> ServerView {
    let server = &row.server;
    let reading = snapshot.heartbeats.of(&server.name, &server.group_name, snapshot.now, stale_after);
    let (calls, capacity, unknown) = match reading {
        Reading::Known(beat) => (Some(beat.active), beat.capacity, None),
        Reading::Unknown(why) => (None, None, Some(why)),
    };
    ServerView {
        name: server.name.clone(),
        group: server.group_name.clone(),
        state: server.status.as_str(),
        calls,
        capacity,
        unknown,
        provider: Some(server.provider.clone()),
        provider_id: server.provider_id.clone(),
        ip: server.ip.clone(),
        private_ip: server.private_ip.clone(),
        protected_until: server.protected_until,
        created_at: Some(server.created_at),
    }
}

fn unmanaged(name: &str, group: &str, beat: &Beat) -> ServerView {
    ServerView {
        name: name.to_owned(),
        group: group.to_owned(),
        state: "unmanaged",
        calls: Some(beat.active),
        capacity: beat.capacity,
        unknown: None,
        provider: None,
        provider_id: None,
        ip: None,
        private_ip: None,
        protected_until: None,
        created_at: None,
    }
}

fn group(evaluation: &Evaluation) -> GroupView {
    let Evaluation { policy, decision, .. } = evaluation;
    let inputs = &decision.inputs;
    GroupView {
        group: policy.name.clone(),
        service: Some(policy.service.as_str()),
        min: Some(decision.bounds.min),
        max: Some(decision.bounds.max),
        active: inputs.active,
        suspect: inputs.suspect + inputs.lost,
        booting: inputs.booting,
        draining: inputs.draining,
        unmanaged: inputs.unmanaged,
        load: inputs.load,
        capacity: inputs.capacity,
        utilisation: inputs.utilisation,
        reason: decision.reason.as_str().to_owned(),
        summary: decision.text.clone(),
    }
}

fn invalid_group(error: &PolicyError) -> GroupView {
    GroupView {
        group: error.group.clone(),
        service: None,
        min: None,
        max: None,
        active: 0,
        suspect: 0,
        booting: 0,
        draining: 0,
        unmanaged: 0,
        load: 0,
        capacity: 0,
        utilisation: None,
        reason: "invalid".to_owned(),
        summary: error.to_string(),
    }
}

fn operation(row: &FleetRow) -> Option<OperationView> {
    let operation = row.operation.as_ref()?;
    Some(OperationView {
        id: operation.id,
        kind: operation.operation.kind.as_str(),
        state: operation.operation.state.as_str(),
        server: row.server.name.clone(),
        group: row.server.group_name.clone(),
        actor: operation.actor.clone(),
        reason: operation.reason.clone(),
        attempt: operation.attempt,
        since: operation.state_at,
        deadline: operation.deadline,
        not_before: operation.not_before,
        error: operation.error_text.clone(),
    })
}

impl Store {
    /// The newest leader of `election`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn leader(&self, election: &str, lease_held: bool) -> Result<Option<LeaderView>, StoreError> {
        const TRIED: &str = "read the leader";
        let row = sqlx::query(
            "SELECT holder, host, pid, term, elected_at, held_reason FROM ops.leader_terms WHERE name = $1",
        )
        .bind(election)
        .fetch_optional(self.pool())
        .await
        .map_err(StoreError::database(TRIED))?;
        let read = |row: sqlx::postgres::PgRow| -> Result<LeaderView, sqlx::Error> {
            Ok(LeaderView {
                instance_id: row.try_get(0)?,
                host: row.try_get(1)?,
                pid: row.try_get(2)?,
                term: row.try_get(3)?,
                elected_at: row.try_get::<jiff_sqlx::Timestamp, _>(4)?.to_jiff(),
                held_reason: row.try_get(5)?,
                lease_held,
            })
        };
        row.map(read).transpose().map_err(StoreError::database(TRIED))
    }
}
