//! Making a server.

use jiff::SignedDuration;
use voiceai_scaler_core::{Event, Service, State};

use super::{ActError, BOOT_CAP, Engine, Look, Memory, Next, ScriptKind};
use crate::cloud_init::CloudInitError;
use crate::notices::Notice;
use crate::script::{Answer, Class, Outcome, Status};
use crate::store::{CreateHold, Step};

/// After a quota that is used up nothing is bought for this long.
const QUOTA_REST: SignedDuration = SignedDuration::from_mins(30);
/// Answers `absent` that are believed after a call whose outcome is unknown: a listing may lag behind a creation.
const ABSENT_BELIEVED: u32 = 2;
/// The provider refused to say what became of a creation: something may have been made.
const STATUS_REFUSED: &str = "status_refused";
/// How often a secret that cannot be read is tried again.
const SECRET_TRIES: u32 = 5;
/// How long routing a healthy server in may fail before the server is given up.
const ROUTE_IN_WITHIN: SignedDuration = SignedDuration::from_mins(10);

impl Engine {
    pub(super) async fn up(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        match look.operation.operation.state {
            State::Planned => self.fetch_secrets(look, memory).await,
            State::Secrets => self.render(look, memory).await,
            State::Rendered => self.intend(look, memory).await,
            State::Requested => self.request(look, memory).await,
            State::Created => self.await_running(look, memory).await,
            State::Running => self.await_heartbeat(look, memory).await,
            State::Heartbeat => self.enter_routing(look, memory).await,
            State::Routed => self.settle(look, memory).await,
            State::Failed => self.after_failure(look, memory).await,
            State::Cleaning => self.clean(look, memory).await,
            // Final, or of the other kind: the look before this one ends such an operation.
            _ => Ok(Next::Wait(std::time::Duration::from_secs(60))),
        }
    }

    /// What the server starts with is looked at before anything is asked for: a missing variable buys nothing.
    async fn fetch_secrets(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if self.cloud_init.is_needed(&look.server.provider)
            && let Err(error) = self.cloud_init.bootstrap(look.server).await
        {
            return self.not_rendered(look, memory, &error).await;
        }
        self.write_event(look, memory, Event::SecretsFetched).await
    }

    /// Made and checked here, and made again for the call itself: it holds secrets, so no row and no file keeps it.
    async fn render(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if self.cloud_init.is_needed(&look.server.provider)
            && let Err(error) = self.document(look).await
        {
            return self.not_rendered(look, memory, &error).await;
        }
        self.write_event(look, memory, Event::DocumentRendered).await
    }

    async fn document(&self, look: &Look<'_>) -> Result<tempfile::NamedTempFile, CloudInitError> {
        self.cloud_init.render(look.server, self.providers.runner(), look.kill).await
    }

    /// A secret that cannot be read now may be readable later; everything else is a fault of the configuration.
    async fn not_rendered(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        error: &CloudInitError,
    ) -> Result<Next, ActError> {
        if matches!(error, CloudInitError::Secret(_)) && look.operation.attempt < SECRET_TRIES {
            return self.try_later(look, memory, "secret", error.to_string(), None).await;
        }
        self.fail(look, memory, "bootstrap", error.to_string()).await
    }

    /// Chooses a candidate and writes that the provider is about to be asked.
    async fn intend(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if self.is_too_late(look) {
            return self.fail(look, memory, "deadline", "the server was not made in time".to_owned()).await;
        }
        if let Some(until) = self.providers.rate_limited_until(&look.server.provider, look.now) {
            return Ok(Next::Wait(super::until_then(look.now, until)));
        }
        let from = look.operation.candidate_index;
        let Some(index) = self.providers.choose(look.server, from, look.now) else {
            return self.out_of_candidates(look, memory).await;
        };
        let floor = self.heartbeats.newest_at(&look.server.name).await?;
        let step = Step {
            event: Some(Event::IntentWritten),
            candidate_index: Some(index),
            intent_at: Some(look.now),
            heartbeat_floor_ms: Some(floor.map(jiff::Timestamp::as_millisecond)),
            attempt: Some(look.operation.attempt),
            ..Step::default()
        };
        let next = self.write(look, memory, step).await?;
        // Only the task that wrote the intent knows that no script is at work for it.
        memory.may_call = memory.written;
        Ok(next)
    }

    async fn out_of_candidates(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let why = "every machine type and location of the group is out of stock";
        let until = look.now + super::provider::OUT_OF_STOCK_REST;
        let (id, name) = (&look.server.group_id, &look.server.group_name);
        let hold = CreateHold { group_id: id, group_name: name, until, why, circuit: false, notice: None };
        self.store.hold_creates(look.tenure, &hold).await?;
        self.fail(look, memory, "out_of_stock", why.to_owned()).await
    }

    /// The intent is written: ask, or, where it was written by somebody else, look first.
    async fn request(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if std::mem::take(&mut memory.may_call) {
            return self.create(look, memory).await;
        }
        self.inquire(look, memory).await
    }

    async fn create(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let document = if self.cloud_init.is_needed(&look.server.provider) {
            match self.document(look).await {
                Ok(file) => Some(file),
                Err(error) => return self.fail(look, memory, "bootstrap", error.to_string()).await,
            }
        } else {
            None
        };
        look.tenure.check()?;
        let file = document.as_ref().map(tempfile::NamedTempFile::path);
        let outcome = self.providers.create(look.server, look.operation, file, look.kill).await;
        self.learn(look, &outcome).await;
        memory.ended = true;
        self.requested(look, memory, outcome).await
    }

    async fn requested(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        outcome: Outcome,
    ) -> Result<Next, ActError> {
        match outcome {
            Outcome::Said(Class::Done, answer) => match answer.status {
                Status::Creating | Status::Ready if answer.id.is_some() => {
                    self.accepted(look, memory, answer).await
                }
                Status::Failed => self.fail(look, memory, "provider_failed", words(&answer)).await,
                _ => Ok(self.poll()),
            },
            Outcome::Said(class, answer) => self.denied(look, memory, class, &answer).await,
            Outcome::Unknown(why, hint) => {
                tracing::warn!(
                    server = look.server.name,
                    why,
                    "outcome of a creation unknown; asking by name"
                );
                memory.hint = hint.filter(|class| *class != Class::Done);
                Ok(Next::Wait(std::time::Duration::from_millis(100)))
            }
            Outcome::NotStarted(why) if look.kill.is_cancelled() => {
                tracing::info!(server = look.server.name, why, "creation left to the next leader");
                Ok(self.poll())
            }
            Outcome::NotStarted(why) => self.fail(look, memory, "not_started", why).await,
        }
    }

    /// The provider said that it made nothing.
    async fn denied(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        class: Class,
        answer: &Answer,
    ) -> Result<Next, ActError> {
        let after = answer.error.as_ref().and_then(|error| error.retry_after_s);
        match class {
            Class::OutOfStock => {
                let index = look.operation.candidate_index;
                if let Some(hold) = self.providers.out_of_stock(look.server, index, look.now) {
                    self.hold(look, hold).await;
                }
                let step = Step {
                    candidate_index: Some(look.operation.candidate_index + 1),
                    note: Some(words(answer)),
                    ..Step::event(Event::OutOfStock)
                };
                self.write(look, memory, step).await
            }
            Class::Quota => {
                let why = format!("the provider's quota is used up: {}", words(answer));
                let until = look.now + QUOTA_REST;
                let (id, name) = (&look.server.group_id, &look.server.group_name);
                let notice = Some(Notice {
                    // One for all of the group's servers that meet it, and again when it is still so at the next try.
                    key: format!("quota:{id}:{}", look.now.as_second() / QUOTA_REST.as_secs()),
                    server: None,
                    ..look.notice("degraded", &why)
                });
                let hold =
                    CreateHold { group_id: id, group_name: name, until, why: &why, circuit: false, notice };
                self.store.hold_creates(look.tenure, &hold).await?;
                self.fail(look, memory, "quota", why).await
            }
            Class::Retry | Class::RateLimited => {
                if self.is_too_late(look) {
                    return self.fail(look, memory, "deadline", words(answer)).await;
                }
                let next = self.try_later(look, memory, class.as_str(), words(answer), after).await?;
                // Nothing was made and nothing is at work: after the wait the provider may be asked at once.
                memory.nothing_made = true;
                Ok(next)
            }
            Class::Done | Class::NotFound | Class::Refused => {
                self.fail(look, memory, class.as_str(), words(answer)).await
            }
        }
    }

    /// Looks for the server by its name before anything is asked for again.
    async fn inquire(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if memory.nothing_made {
            return self.ask_again(look, memory).await;
        }
        let absent = match self.call(look, ScriptKind::Status).await {
            Outcome::Said(Class::NotFound, _) => true,
            Outcome::Said(Class::Done, answer) => match answer.status {
                Status::Absent => true,
                Status::Creating | Status::Ready if answer.id.is_some() => {
                    return self.accepted(look, memory, answer).await;
                }
                Status::Failed => return self.fail(look, memory, "provider_failed", words(&answer)).await,
                Status::Creating | Status::Ready | Status::Deleting => false,
            },
            // Asking again would be answered the same.
            Outcome::Said(Class::Refused, answer) => {
                let code = if is_anothers(&answer) { Class::Refused.as_str() } else { STATUS_REFUSED };
                return self.fail(look, memory, code, words(&answer)).await;
            }
            _ => false,
        };
        if absent {
            memory.absent += 1;
            // A script of a killed leader may still be at work for one time limit from the intent on.
            let all_ended = memory.ended
                || look.operation.intent_at.is_none_or(|at| at + self.providers.limit() <= look.now);
            if all_ended && memory.absent >= ABSENT_BELIEVED && memory.hint.is_some() {
                return self.ask_again(look, memory).await;
            }
            // A provider that takes every order and makes nothing is not asked twice a second for it.
            let due =
                look.operation.intent_at.is_none_or(|at| at + pause(look.operation.attempt) <= look.now);
            if all_ended && memory.absent >= ABSENT_BELIEVED && due {
                return self.ask_again(look, memory).await;
            }
        } else {
            memory.absent = 0;
        }
        if self.is_too_late(look) {
            return self
                .fail(look, memory, "deadline", "the provider did not say what became of it".to_owned())
                .await;
        }
        Ok(self.poll())
    }

    /// Nothing is there and nobody is at work: a new intent, then the call.
    async fn ask_again(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if let Some(class) = memory.hint.take() {
            let answer = Answer {
                id: None,
                name: look.server.name.clone(),
                status: Status::Failed,
                ip: None,
                private_ip: None,
                machine: None,
                location: None,
                error: None,
            };
            return self.denied(look, memory, class, &answer).await;
        }
        if self.is_too_late(look) {
            return self.fail(look, memory, "deadline", "the server was not made in time".to_owned()).await;
        }
        if let Some(until) = self.providers.rate_limited_until(&look.server.provider, look.now) {
            return Ok(Next::Wait(super::until_then(look.now, until)));
        }
        let step = Step {
            intent_at: Some(look.now),
            attempt: Some(look.operation.attempt.saturating_add(1)),
            note: Some("asked again: the provider has no such server".to_owned()),
            ..Step::default()
        };
        let next = self.write(look, memory, step).await?;
        memory.may_call = memory.written;
        Ok(next)
    }

    async fn accepted(&self, look: &Look<'_>, memory: &mut Memory, answer: Answer) -> Result<Next, ActError> {
        let _one_after_the_other = self.ids.lock().await;
        // Two rows for one machine would in the end delete it under the other's calls. The id is not written down, so that
        // cleaning up names the server by its name alone.
        if let Some(id) = &answer.id
            && let Some(other) = self.store.holder_of_id(look.server, id).await?
        {
            let text = format!("the provider gave it the id {id}, which is that of {other}");
            return self.fail(look, memory, "duplicate_id", text).await;
        }
        let step = Step {
            provider_id: answer.id.clone(),
            ip: answer.ip.clone(),
            private_ip: answer.private_ip.clone(),
            machine: answer.machine.clone(),
            location: answer.location.clone(),
            ..Step::event(Event::ProviderAccepted)
        };
        memory.ready = (answer.status == Status::Ready).then_some(answer);
        self.write(look, memory, step).await
    }

    async fn await_running(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let said = match memory.ready.take() {
            Some(answer) => Outcome::Said(Class::Done, answer),
            None => self.call(look, ScriptKind::Status).await,
        };
        match said {
            Outcome::Said(Class::Done, answer) if answer.status == Status::Ready => {
                let has_address = answer.ip.is_some() || answer.private_ip.is_some();
                if has_address || look.server.service == Service::Api {
                    return self.running(look, memory, answer).await;
                }
            }
            Outcome::Said(Class::Done, answer) if answer.status == Status::Failed => {
                return self.fail(look, memory, "provider_failed", words(&answer)).await;
            }
            Outcome::Said(Class::NotFound, _) => memory.absent += 1,
            Outcome::Said(Class::Done, answer) if answer.status == Status::Absent => memory.absent += 1,
            _ => memory.absent = 0,
        }
        if memory.absent > ABSENT_BELIEVED {
            return self
                .fail(look, memory, "vanished", "the provider no longer has the server".to_owned())
                .await;
        }
        if self.is_too_late(look) {
            return self.fail(look, memory, "not_running", "the server did not run in time".to_owned()).await;
        }
        Ok(self.poll())
    }

    async fn running(&self, look: &Look<'_>, memory: &mut Memory, answer: Answer) -> Result<Next, ActError> {
        let wait = look
            .server
            .spec
            .heartbeat_timeout_ms
            .map_or(self.patience.heartbeat_wait, SignedDuration::from_millis);
        let step = Step {
            ip: answer.ip,
            private_ip: answer.private_ip,
            machine: answer.machine,
            location: answer.location,
            // The cap holds for the whole boot, unless the group allows its servers more than that for the heartbeat alone.
            deadline: Some((look.now + wait).min(look.operation.created_at + BOOT_CAP.max(wait))),
            ..Step::event(Event::ProviderRunning)
        };
        self.write(look, memory, step).await
    }

    /// Healthy only by a heartbeat newer than the one under the same name before the server was asked for.
    async fn await_heartbeat(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let (name, group) = (&look.server.name, &look.server.group_name);
        let reading = self.heartbeats.one(name, group, look.now, self.patience.stale_after).await?;
        let floor = look.operation.heartbeat_floor_ms;
        if let Some(beat) = reading.known()
            && floor.is_none_or(|floor| beat.at.as_millisecond() > floor)
        {
            return self.write_event(look, memory, Event::HeartbeatSeen).await;
        }
        if look.operation.deadline.is_none_or(|deadline| deadline <= look.now) {
            let text = "no heartbeat in time; see /var/log/cloud-init-output.log on the server".to_owned();
            return self.fail(look, memory, "no_heartbeat", text).await;
        }
        Ok(Next::Wait(self.patience.status_poll.min(std::time::Duration::from_millis(500))))
    }

    async fn enter_routing(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        match self.route_in(look, memory).await? {
            Ok(next) => {
                let late = look.operation.state_at + ROUTE_IN_WITHIN <= look.now;
                if late && look.operation.attempt > 0 && next != Next::Again {
                    return self.fail(look, memory, "route_in", "routeIn.sh kept failing".to_owned()).await;
                }
                Ok(next)
            }
            Err(why) => self.fail(look, memory, "route_in", why).await,
        }
    }

    /// The record stands as inactive and probed; once Kamailio had the time to probe, it is made active.
    async fn settle(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        if look.server.service == Service::Voice {
            let until = look.operation.state_at + self.settle_time(look);
            if until > look.now {
                return Ok(Next::Wait(super::until_then(look.now, until)));
            }
            if !self.is_probed(look, until).await {
                return Ok(self.poll());
            }
        }
        let step = Step {
            notices: vec![look.notice("scaled", "the server is in service")],
            ..Step::event(Event::Finished)
        };
        self.publish_and_write(look, memory, step).await
    }

    /// Gives up, and says why. What was made is taken away next.
    async fn fail(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        code: &str,
        text: String,
    ) -> Result<Next, ActError> {
        let notices = vec![look.notice("failed", &text)];
        self.write(look, memory, Step { notices, ..Step::failed(code, text) }).await
    }

    pub(super) fn is_too_late(&self, look: &Look<'_>) -> bool {
        look.operation.created_at + BOOT_CAP <= look.now
    }
}

/// From one order of a server to the next, when the provider made nothing of it: 1 s doubling to 64 s.
fn pause(attempt: u32) -> SignedDuration {
    SignedDuration::from_secs(1_i64 << attempt.min(6))
}

/// True when a script says that the name is another operation's server: then this operation made none.
fn is_anothers(answer: &Answer) -> bool {
    answer.error.as_ref().is_some_and(|error| error.code == "not_ours")
}

/// The provider's own words about a failure.
fn words(answer: &Answer) -> String {
    answer.error.as_ref().map_or_else(
        || "the provider gave no reason".to_owned(),
        |error| match (error.code.is_empty(), error.message.is_empty()) {
            (true, _) => error.message.clone(),
            (false, true) => error.code.clone(),
            (false, false) => format!("{}: {}", error.code, error.message),
        },
    )
}
