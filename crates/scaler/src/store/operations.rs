//! Steps of an operation.

use jiff::Timestamp;
use voiceai_postgres::{Tenure, sqlx, term};
use voiceai_scaler_core::{Event, Operation, State};

use super::rows::{OperationRow, get};
use super::{Store, StoreError};
use crate::notices::{Columns, Notice, enqueue_notices};

/// What a step changes besides the state. `None` leaves a column as it is.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// The event, `None` for a note that leaves the state as it is.
    pub event: Option<Event>,
    /// The provider's id.
    pub provider_id: Option<String>,
    /// The public address.
    pub ip: Option<String>,
    /// The private address.
    pub private_ip: Option<String>,
    /// The machine type.
    pub machine: Option<String>,
    /// The location.
    pub location: Option<String>,
    /// Which candidate is tried.
    pub candidate_index: Option<usize>,
    /// Tries in this state; a change of state sets it to 0 unless given.
    pub attempt: Option<u32>,
    /// The provider is about to be asked.
    pub intent_at: Option<Timestamp>,
    /// The newest `atMs` before the provider is asked; `Some(None)` clears it.
    pub heartbeat_floor_ms: Option<Option<i64>>,
    /// End of the new state's wait; a change of state clears it unless given.
    pub deadline: Option<Timestamp>,
    /// The state's wait has no end any more.
    pub no_deadline: bool,
    /// Nothing is tried before; every step clears it unless given.
    pub not_before: Option<Timestamp>,
    /// The error's code and text. Without one, an event that is progress clears that of earlier tries.
    pub error: Option<(String, String)>,
    /// One line for the history.
    pub note: Option<String>,
    /// What people are told of it, in the same statement.
    pub notices: Vec<Notice>,
}

impl Step {
    /// A plain change of state.
    #[must_use]
    pub fn event(event: Event) -> Self {
        Self { event: Some(event), ..Self::default() }
    }

    /// A failure with its reason.
    #[must_use]
    pub fn failed(code: &str, text: impl Into<String>) -> Self {
        Self { event: Some(Event::Failed), error: Some((code.to_owned(), text.into())), ..Self::default() }
    }
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// It was written.
    Written,
    /// The row is no longer as it was read: read again.
    Changed,
}

impl Store {
    /// Writes one step: the operation's state, the server's status, the history and the notices, all or nothing, and only by the newest
    /// leader and on the row as it was read.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer leader has taken over; [`StoreError::Unreadable`] when the event is illegal in
    /// the row's state; else as the database says.
    pub async fn step(
        &self,
        tenure: &Tenure,
        row: &OperationRow,
        step: &Step,
    ) -> Result<StepOutcome, StoreError> {
        const TRIED: &str = "write a step of an operation";
        let from = row.operation;
        let to = match step.event {
            None => from,
            Some(event) => from.next(event).ok_or_else(|| illegal(row, event))?,
        };
        let term = tenure.check()?;
        let (code, text) = step.error.clone().unzip();
        let moved = step.event.is_some();
        let notices: Columns = step.notices.iter().collect();
        let answer = sqlx::query(STEP)
            .bind(&*term.name)
            .bind(term.number)
            .bind(row.id)
            .bind(row.version)
            .bind(from.state.as_str())
            .bind(to.state.as_str())
            .bind(step.event.map_or("noted", Event::as_str))
            .bind(to.is_final())
            .bind(to.server_status().as_str())
            .bind(step.provider_id.as_deref())
            .bind(step.ip.as_deref())
            .bind(step.private_ip.as_deref())
            .bind(step.machine.as_deref())
            .bind(step.location.as_deref())
            .bind(step.candidate_index.and_then(|index| i32::try_from(index).ok()))
            .bind(attempt(row, step, moved))
            .bind(step.intent_at.map(jiff_sqlx::ToSqlx::to_sqlx))
            .bind(step.heartbeat_floor_ms.is_some())
            .bind(step.heartbeat_floor_ms.flatten())
            .bind(deadline(row, step, moved).map(jiff_sqlx::ToSqlx::to_sqlx))
            .bind(step.not_before.map(jiff_sqlx::ToSqlx::to_sqlx))
            .bind(code)
            .bind(text)
            .bind(step.note.as_deref())
            .bind(leaves_a_line(step))
            .bind(step.error.is_none() && step.event.is_some_and(Event::is_progress))
            .bind(notices.ids)
            .bind(notices.payloads)
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database(TRIED))?;
        if !get::<bool>(&answer, 0)? {
            term::refused(term, "operation.step");
            return Err(StoreError::Fenced { tried: TRIED });
        }
        Ok(if get(&answer, 1)? { StepOutcome::Written } else { StepOutcome::Changed })
    }
}

const STEP: &str = concat!(
    "\
    WITH leader AS (SELECT 1 FROM ops.leader_terms WHERE name = $1 AND term = $2 FOR SHARE), \
    moved AS ( \
        UPDATE ops.operations o SET state = $6, version = o.version + 1, term = $2, \
            candidate_index = COALESCE($15, o.candidate_index), attempt = $16, intent_at = COALESCE($17, o.intent_at), \
            heartbeat_floor_ms = CASE WHEN $18 THEN $19 ELSE o.heartbeat_floor_ms END, deadline = $20, not_before = $21, \
            error_code = CASE WHEN $26 THEN NULL ELSE COALESCE($22, o.error_code) END, \
            error_text = CASE WHEN $26 THEN NULL ELSE COALESCE($23, o.error_text) END, \
            state_at = CASE WHEN $6 = o.state THEN o.state_at ELSE clock_timestamp() END, \
            finished_at = CASE WHEN $8 THEN clock_timestamp() END \
        FROM leader WHERE o.id = $3 AND o.version = $4 AND o.state = $5 \
        RETURNING o.id, o.server_id), \
    step AS ( \
        INSERT INTO ops.operation_steps (operation_id, at, term, from_state, event, to_state, note) \
        SELECT id, clock_timestamp(), $2, $5, $7, $6, COALESCE($24, $23) FROM moved WHERE $25), \
    server AS ( \
        UPDATE ops.servers s SET status = $9, provider_id = COALESCE($10, s.provider_id), ip = COALESCE($11, s.ip), \
            private_ip = COALESCE($12, s.private_ip), machine_type = COALESCE($13, s.machine_type), \
            location = COALESCE($14, s.location), \
            in_service_at = CASE WHEN $9 = 'active' THEN COALESCE(s.in_service_at, clock_timestamp()) \
                                 ELSE s.in_service_at END, \
            gone_at = CASE WHEN $9 = 'gone' THEN clock_timestamp() END \
        FROM moved WHERE s.id = moved.server_id), \
    healthy AS ( \
        UPDATE ops.scaling_groups g SET circuit_opened = 0 \
        FROM moved JOIN ops.servers s ON s.id = moved.server_id WHERE $6 = 'heartbeat' AND g.group_id = s.group_id), ",
    enqueue_notices!("moved", "$27", "$28"),
    "SELECT EXISTS (SELECT FROM leader), EXISTS (SELECT FROM moved)"
);

fn illegal(row: &OperationRow, event: Event) -> StoreError {
    let Operation { kind, state } = row.operation;
    StoreError::Unreadable {
        what: "state",
        row: format!("operation {}", row.id),
        why: format!("`{}` cannot happen to {} in `{}`", event.as_str(), kind.as_str(), State::as_str(state)),
    }
}

fn attempt(row: &OperationRow, step: &Step, moved: bool) -> i32 {
    let attempt = step.attempt.unwrap_or(if moved { 0 } else { row.attempt });
    i32::try_from(attempt).unwrap_or(i32::MAX)
}

fn deadline(row: &OperationRow, step: &Step, moved: bool) -> Option<Timestamp> {
    step.deadline.or(if moved || step.no_deadline { None } else { row.deadline })
}

/// Changes of state and what has something to say are history; the count of tries is not.
fn leaves_a_line(step: &Step) -> bool {
    step.event.is_some() || step.note.is_some()
}
