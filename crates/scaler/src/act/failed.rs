//! After a server could not be made: what was made is taken away again, or kept for a while to be looked at.

use jiff::SignedDuration;
use voiceai_scaler_core::{Event, State};

use super::delete::Deletion;
use super::{ActError, DELETED_WITHIN, Engine, Look, Memory, Next};
use crate::store::Step;

/// Failures after which the provider has made nothing.
const NOTHING_MADE: [&str; 6] = ["refused", "not_found", "quota", "out_of_stock", "not_started", "bootstrap"];

impl Engine {
    /// Keeps the server for a while when the group wishes to see why it never became healthy, and none other is kept.
    pub(super) async fn after_failure(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        let keep = look.server.spec.keep_failed_ms.map(SignedDuration::from_millis);
        let worth_keeping = look.operation.error_code.as_deref() == Some("no_heartbeat");
        if let Some(keep) = keep.filter(|_| worth_keeping) {
            let until = look.operation.state_at + keep;
            if until > look.now && !self.another_is_kept(look).await? {
                if look.operation.deadline.is_none() {
                    let why = look.operation.error_text.as_deref().unwrap_or("it never became healthy");
                    let note = format!("kept for inspection until {until}: {why}");
                    let notices = vec![look.notice_of("failed", &note, "kept")];
                    let step = Step { deadline: Some(until), note: Some(note), notices, ..Step::default() };
                    return self.write(look, memory, step).await;
                }
                return Ok(Next::Wait(super::until_then(look.now, until)));
            }
        }
        let step = Step { deadline: Some(look.now + DELETED_WITHIN), ..Step::event(Event::CleanupStarted) };
        self.write(look, memory, step).await
    }

    async fn another_is_kept(&self, look: &Look<'_>) -> Result<bool, ActError> {
        let fleet = self.store.fleet().await?;
        Ok(fleet.iter().any(|row| {
            row.server.group_id == look.server.group_id
                && row.server.id != look.server.id
                && row.operation.as_ref().is_some_and(|other| {
                    other.operation.state == State::Failed
                        && other.deadline.is_some()
                        && (other.state_at, other.id) < (look.operation.state_at, look.operation.id)
                })
        }))
    }

    pub(super) async fn clean(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Next, ActError> {
        // Never asked for, or refused in so many words: nothing can be there, and what has the name is not ours.
        let code = look.operation.error_code.as_deref().unwrap_or_default();
        if look.operation.intent_at.is_some() && !NOTHING_MADE.contains(&code) {
            if let Some(overdue) = self.overdue(look) {
                return self.write(look, memory, overdue).await;
            }
            match self.delete(look, memory).await? {
                Deletion::Gone => {
                    // A killed leader's script may still make it: nothing is over before its time limit.
                    let until = look.operation.intent_at.map(|at| at + self.providers.limit());
                    let unclear = code == "deadline" && look.server.provider_id.is_none();
                    if let Some(until) = until.filter(|until| unclear && *until > look.now) {
                        memory.looks = 0;
                        let wait = super::until_then(look.now, until).max(self.patience.status_poll);
                        return Ok(Next::Wait(wait));
                    }
                }
                Deletion::Later(next) => return Ok(next),
                Deletion::Refused(why) => {
                    // Its labels are not ours, or deletion is forbidden: it stays, counted and named, for a person.
                    return self.try_later(look, memory, code, why, Some(300)).await;
                }
            }
            self.heartbeats.forget(&look.server.name).await?;
        }
        self.publish_and_write(look, memory, Step::event(Event::ProviderGone)).await
    }
}
