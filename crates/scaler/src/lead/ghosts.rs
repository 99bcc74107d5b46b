//! Ghosts: servers in service by their rows that the provider no longer has.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::Lead;
use crate::act::{GHOST, chain, is_absent};
use crate::notices::Notice;
use crate::store::{Created, DownSettings, NewRemoval, StoreError};

/// What the provider said of a silent server.
pub(super) struct Asked {
    name: String,
    group: String,
    /// True when it has no such server.
    absent: bool,
}

impl Lead {
    pub(super) fn ghosts_every(&self) -> Duration {
        self.engine.patience.stale_after.unsigned_abs().clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// Clears up after servers that are gone at the provider: silent for as long as a heartbeat may be old, and twice in a
    /// row unknown by name. Only rows and routing are touched; nothing is deleted at the provider.
    pub(super) async fn sweep_ghosts(&mut self) {
        if self.tenure.is_held() || !self.tenure.is_trusted() {
            return;
        }
        if let Err(error) = self.try_sweep_ghosts().await {
            tracing::warn!(error = %chain(&error), "silent servers not looked after; trying again");
        }
    }

    async fn try_sweep_ghosts(&mut self) -> Result<(), StoreError> {
        let now = self.engine.store.now().await?;
        let mut silent = self.evaluator.silent(now, self.engine.patience.stale_after);
        // What is left to a person is cleared once that person has deleted it.
        silent.extend(self.left.iter().cloned());
        self.absent.retain(|name, _| silent.contains(name));
        // A provider that does not answer must not hold the loop up: the asking is a task of its own.
        match self.asking.take() {
            Some(task) if !task.is_finished() => {
                self.asking = Some(task);
                return Ok(());
            }
            Some(task) => {
                for Asked { name, group, absent } in task.await.unwrap_or_default() {
                    let times = if absent { self.absent.get(&name).copied().unwrap_or(0) + 1 } else { 0 };
                    self.absent.insert(name.clone(), times);
                    if times >= 2 && silent.contains(&name) {
                        self.clear_ghost(&name, &group, now).await?;
                    }
                }
            }
            None => {}
        }
        if silent.is_empty() {
            return Ok(());
        }
        let fleet = self.engine.store.at_rest(&silent).await?;
        let (engine, kill) = (Arc::clone(&self.engine), self.kill.clone());
        self.asking = Some(self.shutdown.spawn("silent servers", async move {
            let mut said = Vec::new();
            for (server, candidate) in fleet {
                let answer = engine.providers.look(&server, candidate, &kill).await;
                let absent = is_absent(&answer);
                said.push(Asked { name: server.name, group: server.group_name, absent });
            }
            said
        }));
        Ok(())
    }

    async fn clear_ghost(&self, name: &str, group: &str, now: Timestamp) -> Result<(), StoreError> {
        let removal = NewRemoval {
            server: name,
            at: now,
            actor: &self.settings.instance_id,
            reason: GHOST,
            settings: DownSettings::default(),
            notice: Some(Notice {
                event: "failed",
                group: group.to_owned(),
                server: Some(name.to_owned()),
                reason: "the provider no longer has it; its rows and its routing record are cleared"
                    .to_owned(),
                at: now,
                key: format!("ghost:{name}:{}", now.as_second()),
            }),
        };
        if let Created::Operation(operation) = self.engine.store.plan_removal(&self.tenure, &removal).await? {
            tracing::error!(server = name, %operation, "the provider no longer has it; its rows and routing are cleared");
        }
        Ok(())
    }
}
