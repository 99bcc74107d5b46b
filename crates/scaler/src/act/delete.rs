//! Deleting at the provider: shared by removals and by the cleaning up of failures.

use super::{ActError, Engine, Look, Memory, Next, ScriptKind, TOLD_AGAIN, chain};
use crate::script::{Class, Outcome, Status};
use crate::store::{ProviderHold, Step};

/// Looks at a server that is being deleted before deletion is asked for again.
const LOOKS_MAX: u32 = 12;

/// How far a deletion has come.
pub(super) enum Deletion {
    /// The provider has no such server.
    Gone,
    /// Not yet.
    Later(Next),
    /// It will not, and a person has to look.
    Refused(String),
}

impl Engine {
    /// One step of a deletion: asks for it, then looks until the provider has no such server. Safe to repeat: deleting
    /// what is not there is success.
    pub(super) async fn delete(&self, look: &Look<'_>, memory: &mut Memory) -> Result<Deletion, ActError> {
        look.tenure.check()?;
        if memory.looks > 0 && memory.looks <= LOOKS_MAX {
            memory.looks += 1;
            return Ok(match self.call(look, ScriptKind::Status).await {
                Outcome::Said(Class::NotFound, _) => Deletion::Gone,
                Outcome::Said(Class::Done, answer) if answer.status == Status::Absent => Deletion::Gone,
                _ => Deletion::Later(self.poll()),
            });
        }
        memory.looks = 0;
        let (code, text, after) = match self.call(look, ScriptKind::ScaleDown).await {
            Outcome::Said(Class::NotFound, _) => return Ok(Deletion::Gone),
            Outcome::Said(Class::Done, answer) if answer.status == Status::Absent => {
                return Ok(Deletion::Gone);
            }
            Outcome::Said(Class::Done, _) => {
                memory.looks = 1;
                return Ok(Deletion::Later(self.poll()));
            }
            Outcome::Said(Class::Refused, answer) => {
                return Ok(Deletion::Refused(answer.error.map_or_else(
                    || "scaleDown.sh refused".to_owned(),
                    |error| format!("{}: {}", error.code, error.message),
                )));
            }
            Outcome::Said(class, answer) => {
                let error = answer.error;
                let after = error.as_ref().and_then(|error| error.retry_after_s);
                (
                    class.as_str(),
                    error.map_or_else(|| class.as_str().to_owned(), |error| error.message),
                    after,
                )
            }
            Outcome::Unknown(why, _) => {
                // It may have worked: the next look asks by name.
                memory.looks = 1;
                tracing::warn!(
                    server = look.server.name,
                    why,
                    "outcome of a deletion unknown; asking by name"
                );
                return Ok(Deletion::Later(self.poll()));
            }
            Outcome::NotStarted(why) => ("not_started", why, None),
        };
        Ok(Deletion::Later(self.try_later(look, memory, code, text, after).await?))
    }

    /// What is written, and told, each time the wait for a deletion is over: the server may cost money until a person looks.
    /// Nothing else changes; the deletion is tried on.
    pub(super) fn overdue(&self, look: &Look<'_>) -> Option<Step> {
        let deadline = look.operation.deadline.filter(|deadline| *deadline <= look.now)?;
        let since = look.operation.state_at;
        let last =
            look.operation.error_text.as_deref().map(|text| format!("; last: {text}")).unwrap_or_default();
        let note = format!("the provider still has it, which was asked to delete it since {since}{last}");
        tracing::error!(server = look.server.name, provider = look.server.provider, note, "deletion overdue");
        let notices = vec![look.notice_of("failed", &note, deadline.as_millisecond())];
        Some(Step { deadline: Some(look.now + TOLD_AGAIN), note: Some(note), notices, ..Step::default() })
    }

    pub(super) async fn call(&self, look: &Look<'_>, kind: ScriptKind) -> Outcome {
        let said = self.providers.call(kind, look.server, look.operation, look.kill).await;
        self.learn(look, &said).await;
        said
    }

    /// What an answer says about the whole provider is remembered, for the other groups and for the next leader.
    pub(super) async fn learn(&self, look: &Look<'_>, said: &Outcome) {
        if let Some(hold) = self.providers.rate_limit(&look.server.provider, said, look.now) {
            self.hold(look, hold).await;
        }
    }

    pub(super) async fn hold(&self, look: &Look<'_>, hold: ProviderHold) {
        self.providers.adopt(std::slice::from_ref(&hold));
        // Only a successor would miss the row.
        if let Err(error) = self.store.hold_provider(look.tenure, &hold).await {
            tracing::warn!(error = %chain(&error), provider = hold.provider, why = hold.why, "hold not remembered");
        }
    }
}
