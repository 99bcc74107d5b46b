//! Rows as types.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use voiceai_postgres::sqlx::postgres::PgRow;
use voiceai_postgres::sqlx::{self, Row as _};
use voiceai_scaler_core::candidate::Candidate;
use voiceai_scaler_core::policy::{AtDeadline, Dispatcher};
use voiceai_scaler_core::{Kind, Operation, Policy, ServerStatus, Service, State};

use super::StoreError;

/// What the group's policy said when a server was asked for: its operations end by it, whatever becomes of the group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Machine types and locations, in order.
    pub candidates: Vec<Candidate>,
    /// The group's configuration, for the provider's scripts.
    pub provider_config: Map<String, Value>,
    /// Where the routing record points.
    pub dispatcher: Dispatcher,
    /// The group's priority in routing.
    #[serde(default)]
    pub priority: i64,
    /// How long routing may need to follow; `None`: the service's own time.
    #[serde(default)]
    pub routing_settle_ms: Option<i64>,
    /// The secret with bootstrap values.
    #[serde(default)]
    pub secrets_name: Option<String>,
    /// From running to the first heartbeat; `None`: the service's setting.
    #[serde(default)]
    pub heartbeat_timeout_ms: Option<i64>,
    /// How long a failure is kept for inspection.
    #[serde(default)]
    pub keep_failed_ms: Option<i64>,
    /// Capacity cap set by the platform.
    #[serde(default)]
    pub calls_max: Option<u32>,
}

impl ServerSpec {
    /// What `policy` says now.
    #[must_use]
    pub fn of(policy: &Policy) -> Self {
        let ms = |duration: SignedDuration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self {
            candidates: policy.candidates.clone(),
            provider_config: policy.provider_config.clone(),
            dispatcher: policy.dispatcher.clone(),
            priority: i64::from(policy.priority),
            routing_settle_ms: policy.routing_settle.map(ms),
            secrets_name: policy.secrets_name.clone(),
            heartbeat_timeout_ms: policy.heartbeat_deadline.map(ms),
            keep_failed_ms: policy.keep_failed.map(ms),
            calls_max: policy.calls_max,
        }
    }
}

/// The settings of one removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownSettings {
    /// How long running calls are waited for; `None`: the service's setting.
    #[serde(default)]
    pub drain_timeout_ms: Option<i64>,
    /// What is done when they have not ended by then.
    pub at_deadline: AtDeadline,
    /// True when a person asked for it.
    #[serde(default)]
    pub by_operator: bool,
}

impl Default for DownSettings {
    fn default() -> Self {
        Self { drain_timeout_ms: None, at_deadline: AtDeadline::End, by_operator: false }
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRow {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The group's id.
    pub group_id: String,
    /// The group's name.
    pub group_name: String,
    /// What it does.
    pub service: Service,
    /// Where it stands.
    pub status: ServerStatus,
    /// The operation that made it.
    pub made_by: Uuid,
    /// The provider's folder.
    pub provider: String,
    /// The provider's id, once known.
    pub provider_id: Option<String>,
    /// Its public address.
    pub ip: Option<String>,
    /// Its private address.
    pub private_ip: Option<String>,
    /// The policy of its making. The servers of a group share it as a rule.
    pub spec: Arc<ServerSpec>,
    /// Not to be removed before.
    pub protected_until: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it first took calls.
    pub in_service_at: Option<Timestamp>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationRow {
    /// Its id.
    pub id: Uuid,
    /// Kind and state.
    pub operation: Operation,
    /// As read; a step is written only while it is still this.
    pub version: i64,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Settings of a removal.
    pub settings: DownSettings,
    /// Which candidate is tried.
    pub candidate_index: usize,
    /// Tries so far in this state.
    pub attempt: u32,
    /// When the provider was last asked to make or delete.
    pub intent_at: Option<Timestamp>,
    /// The newest `atMs` under the name before it was asked for.
    pub heartbeat_floor_ms: Option<i64>,
    /// End of the wait that the state is in.
    pub deadline: Option<Timestamp>,
    /// Nothing is tried before.
    pub not_before: Option<Timestamp>,
    /// Somebody calls the removal off.
    pub cancel_requested: bool,
    /// The last error's code.
    pub error_code: Option<String>,
    /// The last error's text.
    pub error_text: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When the state was reached.
    pub state_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// Columns of a server, in the order of [`server`].
pub(super) const SERVER: &str = "s.id, s.name, s.group_id, s.group_name, s.service, s.status, s.made_by, s.provider, \
    s.provider_id, s.ip, s.private_ip, s.spec, s.protected_until, s.created_at, s.in_service_at";
/// The same with the policy's hash in the policy's place: what many rows share is read once.
pub(super) const SERVER_BY_HASH: &str = "s.id, s.name, s.group_id, s.group_name, s.service, s.status, s.made_by, s.provider, \
    s.provider_id, s.ip, s.private_ip, s.spec_hash, s.protected_until, s.created_at, s.in_service_at";
/// Where the policy, or its hash, stands.
pub(super) const SPEC: usize = 11;
/// How many there are.
pub(super) const SERVER_COLUMNS: usize = 15;

/// Columns of an operation, in the order of [`operation`].
pub(super) const OPERATION: &str = "o.id, o.kind, o.state, o.version, o.actor, o.reason, o.settings, o.candidate_index, \
    o.attempt, o.intent_at, o.heartbeat_floor_ms, o.deadline, o.not_before, o.cancel_requested, o.error_code, \
    o.error_text, o.created_at, o.state_at, o.finished_at";

/// How many there are.
pub(super) const OPERATION_COLUMNS: usize = 19;

/// A column that must be there.
pub(super) fn get<'r, T>(row: &'r PgRow, index: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index).map_err(StoreError::database("read a column"))
}

pub(super) fn time(row: &PgRow, index: usize) -> Result<Timestamp, StoreError> {
    get::<jiff_sqlx::Timestamp>(row, index).map(jiff_sqlx::Timestamp::to_jiff)
}

pub(super) fn time_if_any(row: &PgRow, index: usize) -> Result<Option<Timestamp>, StoreError> {
    Ok(get::<Option<jiff_sqlx::Timestamp>>(row, index)?.map(jiff_sqlx::Timestamp::to_jiff))
}

fn unreadable(what: &'static str, row: &str, why: impl ToString) -> StoreError {
    StoreError::Unreadable { what, row: row.to_owned(), why: why.to_string() }
}

/// A policy as a row holds it.
pub(super) fn spec(row: &PgRow, at: usize, of: &str) -> Result<Arc<ServerSpec>, StoreError> {
    let spec: Value = get(row, at)?;
    serde_json::from_value(spec).map(Arc::new).map_err(|error| unreadable("spec", of, error))
}

/// Reads [`SERVER`] from column `at` on.
pub(super) fn server(row: &PgRow, at: usize) -> Result<ServerRow, StoreError> {
    let name: String = get(row, at + 1)?;
    let spec = spec(row, at + SPEC, &name)?;
    server_with(row, at, spec)
}

/// The same where the policy is known already.
pub(super) fn server_with(row: &PgRow, at: usize, spec: Arc<ServerSpec>) -> Result<ServerRow, StoreError> {
    let name: String = get(row, at + 1)?;
    let service: &str = get(row, at + 4)?;
    let status: &str = get(row, at + 5)?;
    Ok(ServerRow {
        id: get(row, at)?,
        group_id: get(row, at + 2)?,
        group_name: get(row, at + 3)?,
        service: Service::parse(service).ok_or_else(|| unreadable("service", &name, service))?,
        status: ServerStatus::parse(status).ok_or_else(|| unreadable("status", &name, status))?,
        made_by: get(row, at + 6)?,
        provider: get(row, at + 7)?,
        provider_id: get(row, at + 8)?,
        ip: get(row, at + 9)?,
        private_ip: get(row, at + 10)?,
        spec,
        protected_until: time_if_any(row, at + 12)?,
        created_at: time(row, at + 13)?,
        in_service_at: time_if_any(row, at + 14)?,
        name,
    })
}

/// Reads [`OPERATION`] from column `at` on. `None`: an outer join found no operation.
pub(super) fn operation(row: &PgRow, at: usize) -> Result<Option<OperationRow>, StoreError> {
    let Some(id) = get::<Option<Uuid>>(row, at)? else { return Ok(None) };
    let of = || format!("operation {id}");
    let kind: String = get(row, at + 1)?;
    let state: String = get(row, at + 2)?;
    let settings: Value = get(row, at + 6)?;
    let settings = match settings.as_object() {
        Some(map) if map.is_empty() => DownSettings::default(),
        _ => serde_json::from_value(settings).map_err(|error| unreadable("settings", &of(), error))?,
    };
    Ok(Some(OperationRow {
        id,
        operation: Operation {
            kind: Kind::parse(&kind).ok_or_else(|| unreadable("kind", &of(), &kind))?,
            state: State::parse(&state).ok_or_else(|| unreadable("state", &of(), &state))?,
        },
        version: get(row, at + 3)?,
        actor: get(row, at + 4)?,
        reason: get(row, at + 5)?,
        settings,
        candidate_index: usize::try_from(get::<i32>(row, at + 7)?).unwrap_or(0),
        attempt: u32::try_from(get::<i32>(row, at + 8)?).unwrap_or(0),
        intent_at: time_if_any(row, at + 9)?,
        heartbeat_floor_ms: get(row, at + 10)?,
        deadline: time_if_any(row, at + 11)?,
        not_before: time_if_any(row, at + 12)?,
        cancel_requested: get(row, at + 13)?,
        error_code: get(row, at + 14)?,
        error_text: get(row, at + 15)?,
        created_at: time(row, at + 16)?,
        state_at: time(row, at + 17)?,
        finished_at: time_if_any(row, at + 18)?,
    }))
}
