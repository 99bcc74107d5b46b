//! Taking a server away.

use std::collections::HashSet;
use std::time::Duration;

use jiff::SignedDuration;
use voiceai_scaler_core::heartbeat::{Reading, Unknown};
use voiceai_scaler_core::policy::AtDeadline;
use voiceai_scaler_core::{Event, ServerStatus, State};

use super::delete::Deletion;
use super::routing::Routed;
use super::{ActError, DELETED_WITHIN, Engine, GHOST, Look, Memory, Next, ScriptKind};
use crate::script::{Class, Outcome, Status};
use crate::store::Step;

/// The error code of a removal whose server turned out to be gone already.
const VANISHED: &str = "vanished";
/// However short a drain's wait: extending it tells people each time.
const EXTENDED_AT_LEAST: SignedDuration = SignedDuration::from_secs(5);

/// True when the provider says that it has no such server. Anything unclear is no such word.
pub(crate) fn is_absent(said: &Outcome) -> bool {
    match said {
        Outcome::Said(Class::NotFound, _) => true,
        Outcome::Said(Class::Done, answer) => answer.status == Status::Absent,
        _ => false,
    }
}

impl Engine {
    pub(super) async fn down(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if look.operation.cancel_requested && look.operation.operation.is_cancellable() {
            return self.write_event(look, memory, Event::CancelRequested).await;
        }
        match look.operation.operation.state {
            State::Planned => self.preflight(look, memory).await,
            State::Preflight => self.leave_routing(look, memory).await,
            State::Unrouted => self.begin_drain(look, memory).await,
            State::Draining => self.await_calls(look, memory).await,
            State::Drained | State::Forced => {
                if look.operation.operation.state == State::Forced {
                    self.end_calls(look).await;
                }
                self.publish_and_write(look, memory, Step::event(Event::Unlisted)).await
            }
            State::Unlisted => {
                let step = Step {
                    intent_at: Some(look.now),
                    deadline: Some(look.now + DELETED_WITHIN),
                    ..Step::event(Event::DeleteRequested)
                };
                self.write(look, memory, step).await
            }
            State::Deleting => self.remove(look, memory).await,
            State::Deleted => {
                self.heartbeats.forget(&look.server.name).await?;
                self.write_event(look, memory, Event::LeftoversRemoved).await
            }
            State::Cleaned => {
                let notices = vec![look.notice("scaled", "the server was removed")];
                self.publish_and_write(look, memory, Step { notices, ..Step::event(Event::Finished) }).await
            }
            State::Cancelling => self.go_back(look, memory).await,
            // Final, or of the other kind: the look before this one ends such an operation.
            _ => Ok(Next::Wait(Duration::from_secs(60))),
        }
    }

    /// What would make the removal fail half-way is found before anything is taken out of routing.
    async fn preflight(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let said = self.call(look, ScriptKind::Status).await;
        let absent = is_absent(&said);
        // One that no longer exists serves nobody, last or not.
        if !absent && self.is_last_in_service(look).await? {
            return self.call_off(look, memory, "last_active", "it is the last server in service").await;
        }
        if look.operation.reason == GHOST && !absent {
            return self.call_off(look, memory, "not_a_ghost", "the provider has it after all").await;
        }
        match said {
            Outcome::Said(Class::Done | Class::NotFound, _) => {
                self.write_event(look, memory, Event::PreflightPassed).await
            }
            Outcome::Said(Class::Refused, answer) => {
                let text =
                    answer.error.map_or_else(|| "scalingStatus.sh refused".to_owned(), |error| error.message);
                self.call_off(look, memory, "refused", &text).await
            }
            Outcome::Said(class, answer) => {
                let after = answer.error.as_ref().and_then(|error| error.retry_after_s);
                let text = answer.error.map_or_else(|| class.as_str().to_owned(), |error| error.message);
                self.try_later(look, memory, class.as_str(), text, after).await
            }
            Outcome::Unknown(why, _) => self.try_later(look, memory, "unknown", why, None).await,
            Outcome::NotStarted(why) if look.kill.is_cancelled() => {
                tracing::debug!(why, "removal left to the next leader");
                Ok(self.poll())
            }
            Outcome::NotStarted(why) => self.call_off(look, memory, "not_started", &why).await,
        }
    }

    /// True when no other server of the group is in service with a believable heartbeat.
    async fn is_last_in_service(&self, look: &Look<'_>) -> Result<bool, ActError> {
        let fleet = self.store.fleet().await?;
        let ours: Vec<String> = fleet
            .iter()
            .filter(|row| row.server.group_id == look.server.group_id && row.server.id != look.server.id)
            .filter(|row| row.server.status == ServerStatus::Active)
            .map(|row| row.server.name.clone())
            .collect();
        let names: Vec<String> = fleet.into_iter().map(|row| row.server.name).collect();
        let beats = self.heartbeats.read(names.clone()).await?;
        let group = look.server.group_name.as_str();
        let stale = self.patience.stale_after;
        let managed = ours.iter().any(|name| beats.of(name, group, look.now, stale).known().is_some());
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let unmanaged = beats.all(look.now, stale).any(|(name, reading)| {
            !names.contains(name) && reading.known().is_some_and(|beat| beat.group.as_deref() == Some(group))
        });
        Ok(!managed && !unmanaged)
    }

    async fn call_off(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        code: &str,
        text: &str,
    ) -> Result<Next, ActError> {
        tracing::warn!(server = look.server.name, code, text, "removal called off");
        let step = Step {
            error: Some((code.to_owned(), text.to_owned())),
            note: Some(text.to_owned()),
            ..Step::event(Event::CancelRequested)
        };
        self.write(look, memory, step).await
    }

    async fn leave_routing(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        match self.route_script(look, memory, ScriptKind::RouteOut).await? {
            Routed::Later(next) => Ok(next),
            Routed::Refused(why) => self.call_off(look, memory, "route_out", &why).await,
            Routed::Done => self.publish_and_write(look, memory, Step::event(Event::RoutedOut)).await,
        }
    }

    async fn begin_drain(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let wait =
            look.operation.settings.drain_timeout_ms.map_or(self.patience.drain, SignedDuration::from_millis);
        let step = Step { deadline: Some(look.now + wait), ..Step::event(Event::DrainStarted) };
        self.write(look, memory, step).await
    }

    /// Drained is a call count of zero in two heartbeats, both written after everybody had the time to stop routing here, and
    /// no proxy that answers sends calls here or knows of one.
    async fn await_calls(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let (name, group) = (&look.server.name, &look.server.group_name);
        let reading = self.heartbeats.one(name, group, look.now, self.patience.stale_after).await?;
        let settled = look.operation.state_at + self.settle_time(look) <= look.now;
        match &reading {
            Reading::Known(beat) => {
                memory.silent_since = None;
                if beat.active > 0 || !settled {
                    memory.idle_since = None;
                } else if memory.idle_since.is_some_and(|first| beat.at > first) {
                    match self.calls_at_proxies(look, memory).await? {
                        None => return self.write_event(look, memory, Event::CallsEnded).await,
                        Some(next) if look.operation.deadline.is_none_or(|deadline| deadline > look.now) => {
                            return Ok(next);
                        }
                        Some(_) => {}
                    }
                } else if memory.idle_since.is_none() {
                    memory.idle_since = Some(beat.at);
                }
            }
            Reading::Unknown(why) => {
                memory.idle_since = None;
                if let Some(next) = self.while_silent(look, memory, why).await? {
                    return Ok(next);
                }
            }
        }
        if look.operation.deadline.is_some_and(|deadline| deadline <= look.now) {
            return self.at_deadline(look, memory, &reading).await;
        }
        Ok(Next::Wait(self.patience.status_poll.min(Duration::from_secs(1))))
    }

    /// A server that no longer exists carries no calls; whether it does, only the provider knows.
    async fn while_silent(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        why: &Unknown,
    ) -> Result<Option<Next>, ActError> {
        if !matches!(why, Unknown::Missing | Unknown::Stale { .. }) {
            return Ok(None);
        }
        let since = *memory.silent_since.get_or_insert(look.now);
        let patience =
            if look.operation.reason == GHOST { SignedDuration::ZERO } else { self.patience.stale_after };
        if since + patience > look.now {
            return Ok(None);
        }
        memory.silent_since = Some(look.now);
        let absent = is_absent(&self.call(look, ScriptKind::Status).await);
        memory.absent = if absent { memory.absent + 1 } else { 0 };
        if memory.absent < 2 {
            return Ok(None);
        }
        let text = "the provider has no such server".to_owned();
        let step = Step { error: Some((VANISHED.to_owned(), text)), ..Step::event(Event::CallsEnded) };
        Ok(Some(self.write(look, memory, step).await?))
    }

    async fn at_deadline(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        reading: &Reading,
    ) -> Result<Next, ActError> {
        let calls =
            reading.known().map_or_else(|| "an unknown number of".to_owned(), |beat| beat.active.to_string());
        // One notice for each time the wait was over.
        let which = look.operation.deadline.map_or(0, jiff::Timestamp::as_millisecond);
        match look.operation.settings.at_deadline {
            AtDeadline::End => {
                let note = format!("deadline passed with {calls} calls; they are ended");
                let notices = vec![look.notice_of("drain_overdue", &note, which)];
                let step = Step { note: Some(note), notices, ..Step::event(Event::DeadlinePassed) };
                self.write(look, memory, step).await
            }
            // Told again each time the same span has passed.
            AtDeadline::Extend => {
                let wait = look
                    .operation
                    .settings
                    .drain_timeout_ms
                    .map_or(self.patience.drain, SignedDuration::from_millis)
                    .max(EXTENDED_AT_LEAST);
                let until = look.now + wait;
                let note = format!("deadline passed with {calls} calls; waiting for them until {until}");
                let notices = vec![look.notice_of("drain_overdue", &note, which)];
                let step = Step { deadline: Some(until), note: Some(note), notices, ..Step::default() };
                self.write(look, memory, step).await
            }
            // Told once. It stays out of routing until its calls have ended or a person acts.
            AtDeadline::Leave => {
                let note =
                    format!("deadline passed with {calls} calls; it is left out of routing until they end");
                let notices = vec![look.notice_of("drain_overdue", &note, which)];
                let step = Step { no_deadline: true, note: Some(note), notices, ..Step::default() };
                self.write(look, memory, step).await
            }
        }
    }

    async fn remove(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if look.operation.error_code.as_deref() == Some(VANISHED) {
            return self.confirm_gone(look, memory).await;
        }
        if let Some(overdue) = self.overdue(look) {
            return self.write(look, memory, overdue).await;
        }
        match self.delete(look, memory).await? {
            Deletion::Gone => self.write_event(look, memory, Event::ProviderGone).await,
            Deletion::Later(next) => Ok(next),
            Deletion::Refused(why) => {
                let notices = vec![look.notice("failed", &format!("it cannot be deleted: {why}"))];
                self.write(look, memory, Step { notices, ..Step::failed("refused", why) }).await
            }
        }
    }

    /// Its calls were never known to have ended, only its absence: should the provider have it after all (a listing that was
    /// wrong for a while), it is not deleted but left to a person.
    async fn confirm_gone(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        match self.call(look, ScriptKind::Status).await {
            said if is_absent(&said) => self.write_event(look, memory, Event::ProviderGone).await,
            Outcome::Said(Class::Done, answer) => {
                let text =
                    format!("the provider has it after all, {:?}; it is left to a person", answer.status);
                let notices = vec![look.notice("failed", &text)];
                self.write(look, memory, Step { notices, ..Step::failed("not_a_ghost", text) }).await
            }
            _ => Ok(self.poll()),
        }
    }

    async fn go_back(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        match self.route_in(look, memory).await? {
            Ok(next) => Ok(next),
            // It has to go back: there is nothing else to do with it than to try on.
            Err(why) => self.try_later(look, memory, "route_in", why, Some(30)).await,
        }
    }
}
