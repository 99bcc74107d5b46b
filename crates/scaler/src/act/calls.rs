//! What the proxies say of a server's calls, besides its own heartbeat.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use voiceai_scaler_core::Service;

use super::{ActError, Engine, Look, Memory, Next};
use crate::dispatcher::{Flags, record};
use crate::routing::listing::Target;
use crate::routing::proxies::{Callee, Verdict, verdict};
use crate::store::Step;

/// The error code of a removal that waits for calls which only a proxy knows of.
const PROXY_CALLS: &str = "proxy_calls";
/// A proxy that says nothing so often in a row has no say: its calls are in the server's own count as well.
const UNHEARD_MAX: u32 = 3;
/// How much longer than usual a new server waits for a proxy to find it alive.
const PROBED_WITHIN: SignedDuration = SignedDuration::from_secs(60);

impl Engine {
    /// The server as proxies know it; `None` when none could.
    fn callee(&self, look: &Look<'_>) -> Option<Callee> {
        if self.proxies.is_empty() || look.server.service != Service::Voice {
            return None;
        }
        let record = record(look.server, Flags::Draining)?;
        Some(Callee { name: record.name, setid: record.setid, destination: record.destination })
    }

    /// `None`: no proxy that answers sends calls to the server or knows of one. Else what to do meanwhile.
    pub(super) async fn calls_at_proxies(
        &self,
        look: &Look<'_>,
        memory: &mut Memory,
    ) -> Result<Option<Next>, ActError> {
        let Some(callee) = self.callee(look) else { return Ok(None) };
        let answers = self.proxies.ask(&callee).await;
        let pause = Next::Wait(self.patience.status_poll.min(Duration::from_secs(1)));
        match verdict(&answers) {
            Verdict::Clear => Ok(None),
            Verdict::Silent(why) => {
                memory.unheard += 1;
                if memory.unheard < UNHEARD_MAX {
                    return Ok(Some(pause));
                }
                tracing::warn!(server = callee.name, why, "drained by its heartbeat alone");
                Ok(None)
            }
            Verdict::Busy(why) => {
                memory.unheard = 0;
                let told = look.operation.error_text.as_deref() == Some(why.as_str());
                if told {
                    return Ok(Some(pause));
                }
                tracing::info!(
                    server = callee.name,
                    why,
                    "without calls by its heartbeat, but not by a proxy"
                );
                let step = Step {
                    error: Some((PROXY_CALLS.to_owned(), why.clone())),
                    note: Some(why),
                    ..Step::default()
                };
                self.write(look, memory, step).await.map(Some)
            }
        }
    }

    /// Has every proxy that answers end the server's calls, so that callers hear it: the server is about to go.
    pub(super) async fn end_calls(&self, look: &Look<'_>) {
        let Some(callee) = self.callee(look) else { return };
        let ended = self.proxies.end_calls(&callee).await;
        tracing::warn!(server = callee.name, ended, "calls ended at the drain's deadline");
    }

    /// True once every proxy that answers has found the server alive, or has had its time since `settled` for that.
    pub(super) async fn is_probed(&self, look: &Look<'_>, settled: Timestamp) -> bool {
        let Some(callee) = self.callee(look) else { return true };
        let answers = self.proxies.ask(&callee).await;
        let missing = answers.iter().find_map(|(proxy, answer)| match answer {
            Ok(carried) if !carried.state.as_ref().is_some_and(Target::is_active) => Some(proxy),
            _ => None,
        });
        let Some(proxy) = missing else { return true };
        let late = settled + PROBED_WITHIN <= look.now;
        if late {
            tracing::warn!(
                server = callee.name,
                proxy,
                "in service although this proxy gets no answer to its OPTIONS from it"
            );
        }
        late
    }
}
