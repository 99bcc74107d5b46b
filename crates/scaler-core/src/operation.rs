//! The life of one operation on one server, as one transition function.
//!
//! ```text
//! up:   planned -> secrets -> rendered -> requested -> created -> running -> heartbeat -> routed -> done
//!       any of these before `done`   --Failed-->        failed -> cleaning -> failed_clean
//!       requested                    --OutOfStock-->    rendered        (the next candidate)
//! down: planned -> preflight -> unrouted -> draining -> drained | forced -> unlisted -> deleting -> deleted
//!                                                                        -> cleaned -> done
//!       planned .. drained | forced  --CancelRequested--> cancelling -> cancelled
//!       deleting                     --Failed-->          failed        (refused by the provider; a person looks)
//! ```
//!
//! A state says what *has* happened; it is written before the next effect begins, so that a successor that finds the row
//! knows which effect may have been under way. A server's status is a pure map of its operation's state
//! ([`Operation::server_status`]) and is written in the same statement.

use serde::{Deserialize, Serialize};

use crate::fleet::Phase;

/// Whether a server is being made or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A server is being made.
    Up,
    /// A server is being taken away.
    Down,
}

impl Kind {
    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// The kind a word stands for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Up, Self::Down].into_iter().find(|kind| kind.as_str() == text)
    }
}

macro_rules! words {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident => $word:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl $name {
            /// Every variant, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the database, in logs and in the names of failpoints.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The variant a word stands for.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text)
            }
        }
    };
}

words! {
    /// What has happened to an operation so far.
    State {
        /// Up and down: the row exists, nothing else has happened. Up: the server's name is fixed.
        Planned => "planned",
        /// Up: bootstrap secrets were fetched, or none are needed.
        Secrets => "secrets",
        /// Up: the start-up document was made and checked, or none is needed.
        Rendered => "rendered",
        /// Up: the provider is about to be asked, or was.
        Requested => "requested",
        /// Up: the provider has the server and told its id.
        Created => "created",
        /// Up: the provider says it runs, with an address.
        Running => "running",
        /// Up: it beat after it was made.
        Heartbeat => "heartbeat",
        /// Up: new calls may reach it.
        Routed => "routed",
        /// Up: given up. Down: refused for good.
        Failed => "failed",
        /// Up: what was made is being taken away.
        Cleaning => "cleaning",
        /// Up, final: given up, and nothing of it is left.
        FailedClean => "failed_clean",
        /// Down: the server may be removed, as far as could be checked.
        Preflight => "preflight",
        /// Down: no new call is routed to it.
        Unrouted => "unrouted",
        /// Down: its calls are waited for, until a stored deadline.
        Draining => "draining",
        /// Down: it has no calls.
        Drained => "drained",
        /// Down: the deadline passed and its calls are ended.
        Forced => "forced",
        /// Down: its routing record is gone. From here on there is no way back.
        Unlisted => "unlisted",
        /// Down: the provider is about to be asked to delete it, or was.
        Deleting => "deleting",
        /// Down: the provider no longer has it.
        Deleted => "deleted",
        /// Down: its heartbeat and what else was left of it are gone.
        Cleaned => "cleaned",
        /// Down: on its way back into routing.
        Cancelling => "cancelling",
        /// Down, final: back in service.
        Cancelled => "cancelled",
        /// Final: finished.
        Done => "done",
    }
}

words! {
    /// What can happen to an operation.
    Event {
        /// Bootstrap secrets are there, or none are needed.
        SecretsFetched => "secrets_fetched",
        /// The start-up document is there, or none is needed.
        DocumentRendered => "document_rendered",
        /// The intent to call the provider is about to be written.
        IntentWritten => "intent_written",
        /// The provider has the server.
        ProviderAccepted => "provider_accepted",
        /// The provider has no such machine there; the next candidate is tried.
        OutOfStock => "out_of_stock",
        /// The provider says the server runs.
        ProviderRunning => "provider_running",
        /// A heartbeat newer than the one before the call was seen.
        HeartbeatSeen => "heartbeat_seen",
        /// The server was put (back) into routing.
        RoutedIn => "routed_in",
        /// The last row was written.
        Finished => "finished",
        /// A deadline passed, a limit was reached or a call was refused for good.
        Failed => "failed",
        /// What is left of a failure is about to be taken away.
        CleanupStarted => "cleanup_started",
        /// The checks before a removal passed.
        PreflightPassed => "preflight_passed",
        /// The server was taken out of routing for new calls.
        RoutedOut => "routed_out",
        /// The wait for its calls began.
        DrainStarted => "drain_started",
        /// Its calls have ended.
        CallsEnded => "calls_ended",
        /// The deadline passed and the policy says to end them.
        DeadlinePassed => "deadline_passed",
        /// Its routing record was deleted.
        Unlisted => "unlisted",
        /// The provider is about to be asked to delete it.
        DeleteRequested => "delete_requested",
        /// The provider says that there is no such server.
        ProviderGone => "provider_gone",
        /// Heartbeat and leftovers were removed.
        LeftoversRemoved => "leftovers_removed",
        /// A decision or a person calls the removal off.
        CancelRequested => "cancel_requested",
    }
}

impl Event {
    /// True for what can only happen once the tries before it have come to something: whatever error they met no longer
    /// holds. An error that is the reason of what follows (a failure, a server found gone) stays to the end.
    #[must_use]
    pub const fn is_progress(self) -> bool {
        matches!(
            self,
            Self::SecretsFetched
                | Self::DocumentRendered
                | Self::ProviderAccepted
                | Self::ProviderRunning
                | Self::HeartbeatSeen
                | Self::PreflightPassed
                | Self::RoutedOut
                | Self::DrainStarted
                | Self::CallsEnded
                | Self::DeadlinePassed
                | Self::CancelRequested
        )
    }
}

/// An operation's kind and state together: the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operation {
    /// Up or down.
    pub kind: Kind,
    /// What has happened so far.
    pub state: State,
}

/// A server's status as its row stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    /// Being made; not in routing.
    Booting,
    /// In service.
    Active,
    /// Out of routing for new calls.
    Draining,
    /// Being deleted.
    Leaving,
    /// Exists and serves nothing; being cleaned up or kept for a person.
    Failed,
    /// No longer exists.
    Gone,
}

impl ServerStatus {
    /// Every status.
    pub const ALL: &'static [Self] =
        &[Self::Booting, Self::Active, Self::Draining, Self::Leaving, Self::Failed, Self::Gone];

    /// The word in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }

    /// The status a word stands for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str() == text)
    }
}

impl Operation {
    /// A new operation.
    #[must_use]
    pub const fn planned(kind: Kind) -> Self {
        Self { kind, state: State::Planned }
    }

    /// The only place an operation changes state. `None`: the event is illegal here.
    #[must_use]
    pub const fn next(self, event: Event) -> Option<Self> {
        let state = match self.kind {
            Kind::Up => next_up(self.state, event),
            Kind::Down => next_down(self.state, event),
        };
        match state {
            Some(state) => Some(Self { kind: self.kind, state }),
            None => None,
        }
    }

    /// True when nothing will happen any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self.state {
            State::Done | State::FailedClean | State::Cancelled => true,
            State::Failed => matches!(self.kind, Kind::Down),
            _ => false,
        }
    }

    /// True while a removal may still be called off.
    #[must_use]
    pub const fn is_cancellable(self) -> bool {
        self.next(Event::CancelRequested).is_some()
    }

    /// The status of the operation's server. A state that the kind never has is read as failed.
    #[must_use]
    pub const fn server_status(self) -> ServerStatus {
        use {ServerStatus as Status, State as S};
        match (self.kind, self.state) {
            (
                Kind::Up,
                S::Planned | S::Secrets | S::Rendered | S::Requested | S::Created | S::Running | S::Heartbeat,
            ) => Status::Booting,
            (Kind::Up, S::Routed | S::Done) | (Kind::Down, S::Cancelled) => Status::Active,
            (Kind::Up, S::FailedClean) | (Kind::Down, S::Done) => Status::Gone,
            (
                Kind::Down,
                S::Planned
                | S::Preflight
                | S::Unrouted
                | S::Draining
                | S::Drained
                | S::Forced
                | S::Cancelling,
            ) => Status::Draining,
            (Kind::Down, S::Unlisted | S::Deleting | S::Deleted | S::Cleaned) => Status::Leaving,
            _ => Status::Failed,
        }
    }

    /// What the decision sees of the server.
    #[must_use]
    pub const fn phase(self, by_operator: bool) -> Option<Phase> {
        Some(match self.server_status() {
            ServerStatus::Booting => Phase::Booting,
            ServerStatus::Active => Phase::Active,
            ServerStatus::Draining => Phase::Draining { cancellable: self.is_cancellable(), by_operator },
            ServerStatus::Leaving => Phase::Leaving,
            ServerStatus::Failed => Phase::Failed,
            ServerStatus::Gone => return None,
        })
    }
}

const fn next_up(state: State, event: Event) -> Option<State> {
    use {Event as E, State as S};
    Some(match (state, event) {
        (S::Planned, E::SecretsFetched) => S::Secrets,
        (S::Secrets, E::DocumentRendered) | (S::Requested, E::OutOfStock) => S::Rendered,
        (S::Rendered, E::IntentWritten) => S::Requested,
        (S::Requested, E::ProviderAccepted) => S::Created,
        (S::Created, E::ProviderRunning) => S::Running,
        (S::Running, E::HeartbeatSeen) => S::Heartbeat,
        (S::Heartbeat, E::RoutedIn) => S::Routed,
        (S::Routed, E::Finished) => S::Done,
        (
            S::Planned | S::Secrets | S::Rendered | S::Requested | S::Created | S::Running | S::Heartbeat,
            E::Failed,
        ) => S::Failed,
        (S::Failed, E::CleanupStarted) => S::Cleaning,
        (S::Cleaning, E::ProviderGone) => S::FailedClean,
        _ => return None,
    })
}

const fn next_down(state: State, event: Event) -> Option<State> {
    use {Event as E, State as S};
    Some(match (state, event) {
        (S::Planned, E::PreflightPassed) => S::Preflight,
        (S::Preflight, E::RoutedOut) => S::Unrouted,
        (S::Unrouted, E::DrainStarted) => S::Draining,
        (S::Draining, E::CallsEnded) => S::Drained,
        (S::Draining, E::DeadlinePassed) => S::Forced,
        (S::Drained | S::Forced, E::Unlisted) => S::Unlisted,
        (S::Unlisted, E::DeleteRequested) => S::Deleting,
        (S::Deleting, E::ProviderGone) => S::Deleted,
        (S::Deleted, E::LeftoversRemoved) => S::Cleaned,
        (S::Cleaned, E::Finished) => S::Done,
        (
            S::Planned | S::Preflight | S::Unrouted | S::Draining | S::Drained | S::Forced,
            E::CancelRequested,
        ) => S::Cancelling,
        (S::Cancelling, E::RoutedIn) => S::Cancelled,
        (S::Deleting, E::Failed) => S::Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
