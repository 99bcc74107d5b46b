//! In and out of routing.

use std::collections::BTreeSet;

use voiceai_postgres::Tenure;
use voiceai_scaler_core::{Event, Operation};

use super::ledger::{Ledger, Mark};
use super::{ActError, Engine, Look, Memory, Next, ScriptKind};
use crate::dispatcher::{Published, Records, flags, record, records};
use crate::script::{Class, Outcome};
use crate::store::{FleetRow, Step};

/// How an optional routing script ended.
pub(super) enum Routed {
    /// It did it, or there is none.
    Done,
    /// Not yet: the next look.
    Later(Next),
    /// Refused for good.
    Refused(String),
}

impl Engine {
    /// Publishes the server's record as it is once `event` has happened to this operation, then writes the event. Both under
    /// the routing lock: another task that publishes in between would undo it.
    pub(super) async fn publish_and_write(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        step: Step,
    ) -> Result<Next, ActError> {
        let mut ledger = self.routing.lock().await;
        if let Some(after) = step.event.and_then(|event| look.operation.operation.next(event)) {
            self.publish_with(&mut ledger, look, after).await?;
        }
        self.write(look, memory, step).await
    }

    async fn publish_with(
        &self,
        ledger: &mut Ledger,
        look: &Look<'_>,
        after: Operation,
    ) -> Result<(), ActError> {
        let name = &look.server.name;
        let record = flags(Some(after)).and_then(|flags| record(look.server, flags));
        let mut one = Records::default();
        match &record {
            Some(record) => one.put.push(record.clone()),
            None => one.remove.push(name.clone()),
        }
        let term = look.tenure.term().number;
        // Whether or not the answer comes, this is newer than any snapshot that is being looked at.
        ledger.touch(term, name, record);
        let published = self.dispatcher.publish_part(look.tenure, &one).await;
        if !matches!(published, Ok(Some(_))) {
            ledger.forget();
        }
        if published?.is_some() {
            return Ok(());
        }
        let mut fleet = self.store.fleet().await?;
        for row in &mut fleet {
            if row.server.id == look.server.id
                && let Some(operation) = &mut row.operation
            {
                operation.operation = after;
            }
        }
        self.publish_whole(ledger, look.tenure, &fleet).await
    }

    async fn publish_whole(
        &self,
        ledger: &mut Ledger,
        tenure: &Tenure,
        fleet: &[FleetRow],
    ) -> Result<(), ActError> {
        let records = records(fleet, self.store.resting_names().await?);
        ledger.forget();
        let published = self.dispatcher.publish(tenure, &records).await?;
        ledger.whole(tenure.term().number, &records);
        tell(published);
        Ok(())
    }

    /// To be taken before the rows are read that [`Engine::keep_routing`] is given.
    pub async fn routing_mark(&self) -> Mark {
        self.routing.lock().await.mark()
    }

    /// Brings routing to what the rows said at `mark`: writes what has changed since the last time, and compares a turn of
    /// the other records. A set that was lost is rebuilt as a whole.
    ///
    /// # Errors
    /// As the stores say.
    pub async fn keep_routing(
        &self,
        tenure: &Tenure,
        mark: Mark,
        fleet: &[FleetRow],
        resting: &BTreeSet<String>,
    ) -> Result<(), ActError> {
        let mut ledger = self.routing.lock().await;
        let records = ledger.due(tenure.term().number, mark, fleet, resting);
        let published = self.dispatcher.publish_part(tenure, &records).await;
        if !matches!(published, Ok(Some(_))) {
            ledger.forget();
        }
        match published? {
            Some(published) => {
                tell(published);
                Ok(())
            }
            None => {
                let fleet = self.store.fleet().await?;
                self.publish_whole(&mut ledger, tenure, &fleet).await
            }
        }
    }

    /// Brings every routing record to what the rows say now, in one step.
    ///
    /// # Errors
    /// As the stores say.
    pub async fn rebuild_routing(&self, tenure: &Tenure) -> Result<(), ActError> {
        let mut ledger = self.routing.lock().await;
        let fleet = self.store.fleet().await?;
        self.publish_whole(&mut ledger, tenure, &fleet).await
    }

    /// Runs `routeIn.sh` or `routeOut.sh`, when the provider has it.
    pub(super) async fn route_script(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
        kind: ScriptKind,
    ) -> Result<Routed, ActError> {
        if !self.providers.has(&look.server.provider, kind) {
            return Ok(Routed::Done);
        }
        look.tenure.check()?;
        let outcome = self.call(look, kind).await;
        let (code, text, after) = match outcome {
            Outcome::Said(Class::Done, _) => return Ok(Routed::Done),
            // Nothing to take out of routing where nothing is.
            Outcome::Said(Class::NotFound, _) if kind == ScriptKind::RouteOut => return Ok(Routed::Done),
            Outcome::Said(class @ (Class::Refused | Class::NotFound), answer) => {
                let text = answer.error.map_or_else(String::new, |error| error.message);
                return Ok(Routed::Refused(format!("{}: {text}", class.as_str())));
            }
            Outcome::Said(class, answer) => {
                let error = answer.error;
                let after = error.as_ref().and_then(|error| error.retry_after_s);
                (class.as_str(), error.map_or_else(String::new, |error| error.message), after)
            }
            // Both scripts may be run again: they say how it should be, not what to change.
            Outcome::Unknown(why, _) => ("unknown", why, None),
            Outcome::NotStarted(why) => ("not_started", why, None),
        };
        Ok(Routed::Later(self.try_later(look, memory, code, text, after).await?))
    }

    /// Puts the server (back) into routing and writes that.
    pub(super) async fn route_in(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
    ) -> Result<Result<Next, String>, ActError> {
        match self.route_script(look, memory, ScriptKind::RouteIn).await? {
            Routed::Later(next) => Ok(Ok(next)),
            Routed::Refused(why) => Ok(Err(why)),
            Routed::Done => {
                Ok(Ok(self.publish_and_write(look, memory, Step::event(Event::RoutedIn)).await?))
            }
        }
    }
}

fn tell(published: Published) {
    if published.written + published.removed > 0 {
        tracing::info!(
            written = published.written,
            removed = published.removed,
            "dispatcher records brought to what the database says"
        );
    }
}
