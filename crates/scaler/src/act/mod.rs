//! Carrying operations out: each step looks at the world, acts, and writes only if the row is still as it was read.

mod calls;
mod delete;
mod down;
mod failed;
mod ledger;
mod provider;
mod routing;
mod up;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_postgres::{NotTrusted, Tenure};
use voiceai_redis::RedisError;
use voiceai_scaler_core::{Event, Kind};

use crate::cloud_init::CloudInit;
use crate::dispatcher::{Dispatcher, DispatcherError};
use crate::failpoint::{self, Side};
use crate::heartbeats::HeartbeatReader;
use crate::notices::Notice;
use crate::routing::proxies::Proxies;
use crate::script::Answer;
use crate::store::{OperationRow, ServerRow, Step, StepOutcome, Store, StoreError};

pub(crate) use down::is_absent;
pub use ledger::{Ledger, Mark};
pub use provider::{Providers, ScriptKind};

/// From the decision to a server that runs; then it is given up.
pub const BOOT_CAP: SignedDuration = SignedDuration::from_mins(15);

/// Longest pause after a step that a store did not let happen.
const STORE_RETRY_MAX: Duration = Duration::from_secs(5);

/// How long a provider may take to delete a server before people are told, and after that before they are told again.
pub(crate) const DELETED_WITHIN: SignedDuration = SignedDuration::from_mins(30);
const TOLD_AGAIN: SignedDuration = SignedDuration::from_hours(6);

/// The reason of a removal that only clears up after a server that the provider no longer has.
pub const GHOST: &str = "ghost";

/// How long operations may wait for things.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between two looks at the provider.
    pub status_poll: Duration,
    /// From running to the first heartbeat.
    pub heartbeat_wait: SignedDuration,
    /// For running calls to end.
    pub drain: SignedDuration,
    /// A heartbeat older than this says nothing.
    pub stale_after: SignedDuration,
    /// For Kamailio to notice a change of its records, and to probe a new one.
    pub settle: SignedDuration,
}

/// What operations are carried out with.
#[derive(Debug)]
pub struct Engine {
    /// Rows.
    pub store: Store,
    /// Heartbeats.
    pub heartbeats: HeartbeatReader,
    /// Routing records.
    pub dispatcher: Dispatcher,
    /// The proxies that load them, as far as they have an address.
    pub proxies: Arc<Proxies>,
    /// Provider scripts.
    pub providers: Providers,
    /// Start-up documents.
    pub cloud_init: CloudInit,
    /// Waits.
    pub patience: Patience,
    /// Held from reading the rows to writing the state they lead to, so that no publication undoes another's change.
    pub routing: tokio::sync::Mutex<Ledger>,
    /// Held from looking who has a provider's id to writing it down: two servers are never given one id at the same moment.
    pub ids: tokio::sync::Mutex<()>,
}

/// A step that could not be made now.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// Rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Heartbeats.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Routing records.
    #[error(transparent)]
    Dispatcher(#[from] DispatcherError),
    /// The own term may no longer be trusted.
    #[error(transparent)]
    NotTrusted(#[from] NotTrusted),
}

impl ActError {
    /// True when this process has to stop leading.
    #[must_use]
    pub const fn ends_leadership(&self) -> bool {
        match self {
            Self::Store(error) => error.ends_leadership(),
            Self::Dispatcher(error) => error.ends_leadership(),
            Self::NotTrusted(_) => true,
            Self::Redis(_) => false,
        }
    }
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Read the row again at once.
    Again,
    /// Look again after this.
    Wait(Duration),
}

/// What a task knows of its operation that no row needs to hold: losing it costs only time.
#[derive(Debug, Default)]
struct Memory {
    /// The intent was written by this task and its script not started yet.
    may_call: bool,
    /// The last write of this task was written, and not overtaken.
    written: bool,
    /// The last script of this task has ended, so nothing is still at work for us.
    ended: bool,
    /// The provider said that it made nothing, and the wait it asked for is over at the next look.
    nothing_made: bool,
    /// Answers `absent` in a row after a call whose outcome is unknown.
    absent: u32,
    /// What the last call's exit code meant, when only its output was unreadable.
    hint: Option<crate::script::Class>,
    /// The answer that said `ready` already.
    ready: Option<Answer>,
    /// The first of two reads without calls.
    idle_since: Option<Timestamp>,
    /// When the heartbeat was first missing in a drain.
    silent_since: Option<Timestamp>,
    /// How often in a row a proxy did not say whether it still has calls of a server without any.
    unheard: u32,
    /// Looks at the provider since the last call to delete.
    looks: u32,
    /// Failed tries in a row, for the wait between them.
    failures: u32,
}

/// One look at one operation.
struct Look<'a> {
    server: &'a ServerRow,
    operation: &'a OperationRow,
    tenure: &'a Tenure,
    /// Ends running scripts.
    kill: &'a CancellationToken,
    /// The database's clock: the one that every scaler shares.
    now: Timestamp,
}

impl Look<'_> {
    /// What people are told of an event that an operation has once.
    fn notice(&self, event: &'static str, reason: &str) -> Notice {
        self.keyed(event, reason, self.operation.id.to_string())
    }

    /// What they are told of one that it may have more than once; `which` makes the same one the same.
    fn notice_of(&self, event: &'static str, reason: &str, which: impl std::fmt::Display) -> Notice {
        self.keyed(event, reason, format!("{}:{which}", self.operation.id))
    }

    fn keyed(&self, event: &'static str, reason: &str, key: String) -> Notice {
        Notice {
            event,
            group: self.server.group_name.clone(),
            server: Some(self.server.name.clone()),
            reason: reason.to_owned(),
            at: self.now,
            key,
        }
    }
}

impl Engine {
    /// Carries one operation as far as it goes. After `stop` no further step is begun, but a running script may end and its
    /// outcome is written; `kill` ends the script as well.
    pub async fn carry(
        self: Arc<Self>,
        id: Uuid,
        tenure: Tenure,
        stop: CancellationToken,
        kill: CancellationToken,
    ) {
        let mut memory = Memory::default();
        // An intent that was just written is followed by its call: else a successor would have to wait for one that nobody
        // makes.
        while !stop.is_cancelled() || (memory.may_call && !kill.is_cancelled()) {
            let wait = match self.look(id, &tenure, &kill, &mut memory).await {
                Ok(Some(Next::Again)) => {
                    memory.failures = 0;
                    continue;
                }
                Ok(Some(Next::Wait(wait))) => {
                    memory.failures = 0;
                    wait
                }
                Ok(None) => return,
                Err(error) if error.ends_leadership() && !tenure.is_trusted() => {
                    // A lease that is only late goes on; one that has ended cancels this task.
                    Duration::from_millis(200)
                }
                Err(error) if error.ends_leadership() => {
                    tracing::warn!(operation = %id, error = %chain(&error), "operation left to the new leader");
                    return;
                }
                Err(error) => {
                    tracing::warn!(operation = %id, error = %chain(&error), "step not made; trying again");
                    memory.failures = memory.failures.saturating_add(1);
                    // A store that is back is not kept waiting for: asking it costs next to nothing.
                    backoff(memory.failures).min(STORE_RETRY_MAX)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// `None`: it is finished, or gone.
    async fn look(
        &self,
        id: Uuid,
        tenure: &Tenure,
        kill: &CancellationToken,
        memory: &mut Memory,
    ) -> Result<Option<Next>, ActError> {
        tenure.check()?;
        let Some((now, server, operation)) = self.store.operation(id).await? else { return Ok(None) };
        if operation.finished_at.is_some() {
            return Ok(None);
        }
        if let Some(until) = operation.not_before.filter(|until| *until > now) {
            return Ok(Some(Next::Wait(until_then(now, until))));
        }
        let look = Look { server: &server, operation: &operation, tenure, kill, now };
        let next = match operation.operation.kind {
            Kind::Up => self.up(&look, memory).await?,
            Kind::Down => self.down(&look, memory).await?,
        };
        Ok(Some(next))
    }

    /// Writes a step. The next look reads the row again, whether it was written or somebody was faster.
    async fn write(&self, look: &Look<'_>, memory: &mut Memory, step: Step) -> Result<Next, ActError> {
        let to = step.event.and_then(|event| look.operation.operation.next(event)).map(|next| next.state);
        if let Some(state) = to {
            failpoint::reached(state, Side::Before);
        }
        let outcome = self.store.step(look.tenure, look.operation, &step).await?;
        if outcome == StepOutcome::Written {
            if let Some(state) = to {
                failpoint::reached(state, Side::After);
                tracing::info!(
                    operation = %look.operation.id,
                    server = look.server.name,
                    group = look.server.group_name,
                    state = state.as_str(),
                    error = step.error.as_ref().map(|(_, text)| text.as_str()),
                    "operation step"
                );
            }
            *memory = Memory { ready: memory.ready.take(), written: true, ..Memory::default() };
        } else {
            // Somebody else moved the row: nothing this task remembers holds for sure.
            *memory = Memory::default();
        }
        Ok(Next::Again)
    }

    async fn write_event(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        event: Event,
    ) -> Result<Next, ActError> {
        self.write(look, memory, Step::event(event)).await
    }

    /// Notes a failed try and waits longer after each.
    async fn try_later(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        code: &str,
        text: String,
        after: Option<u64>,
    ) -> Result<Next, ActError> {
        let attempt = look.operation.attempt.saturating_add(1);
        let wait =
            after.map_or_else(|| backoff(attempt), |seconds| Duration::from_secs(seconds.clamp(1, 7200)));
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::from_mins(1));
        let step = Step {
            attempt: Some(attempt),
            not_before: Some(look.now + wait),
            note: (look.operation.error_text.as_deref() != Some(text.as_str())).then(|| text.clone()),
            error: Some((code.to_owned(), text)),
            ..Step::default()
        };
        self.write(look, memory, step).await
    }

    /// How long routing may need to follow a change of this server's record.
    fn settle_time(&self, look: &Look<'_>) -> SignedDuration {
        look.server.spec.routing_settle_ms.map_or(self.patience.settle, SignedDuration::from_millis)
    }

    fn poll(&self) -> Next {
        Next::Wait(self.patience.status_poll)
    }
}

/// 1 s doubling to 60 s, a little uneven so that many do not come at once.
fn backoff(tries: u32) -> Duration {
    let policy = voiceai_runtime::Backoff {
        base: Duration::from_secs(1),
        factor: 2.0,
        cap: Duration::from_secs(60),
        jitter: 0.2,
    };
    policy.delay(tries.saturating_sub(1), voiceai_runtime::random_unit())
}

/// At most a second: a person may call something off meanwhile.
fn until_then(now: Timestamp, then: Timestamp) -> Duration {
    let left = then.duration_since(now).unsigned_abs();
    left.clamp(Duration::from_millis(20), Duration::from_secs(1))
}

/// An error with its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}
