//! The admin API of the queues and the metrics, as routes of the internal listener. docs/http.md lists them.

pub mod export;
mod metrics;
mod queue;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use voiceai_listener::axum::Router;
use voiceai_orchestration::OrchestrationContext;
use voiceai_platform::Stripe;
use voiceai_postgres::{PgPool, Tenure};
use voiceai_queue::Client;
use voiceai_redis::{CallOptions, Redis};
use voiceai_replay::Store;

use crate::jobs::backup::BackupContext;
use crate::jobs::recording::CallContexts;
use crate::jobs::registry::Kinds;
use crate::operate::replay::Checks;
use crate::operate::{Desk, trail};

/// Longest time for one call to Redis: a person waits, and may ask again.
const CALL_MAX: Duration = Duration::from_secs(2);

/// What the routes work with.
pub struct Admin {
    desk: Desk,
    store: Store,
    kinds: Kinds,
    contexts: CheckContexts,
}

/// What a replay's checks ask.
#[derive(Clone, Debug)]
pub struct CheckContexts {
    /// The backups' bucket; absent where none is set.
    pub backup: Option<BackupContext>,
    /// Calls and recordings.
    pub calls: CallContexts,
    /// The agents; absent where no address of theirs is set.
    pub agents: Option<OrchestrationContext>,
    /// The way to Stripe; absent where no key is set.
    pub stripe: Option<Stripe>,
}

impl Admin {
    /// Works on `client`, whose history writes at once.
    pub fn new(client: Client, pool: &PgPool, kinds: Kinds, contexts: CheckContexts) -> Arc<Self> {
        let desk = Desk { client, pool: pool.clone() };
        let store = Store::new(pool.clone(), trail::SERVICE);
        Arc::new(Self { desk, store, kinds, contexts })
    }

    /// The connection for it: calls to Redis fail at once while it is away, instead of waiting for it.
    pub fn connection(redis: &Redis) -> Redis {
        redis.with(CallOptions { attempts: Some(1), timeout: Some(CALL_MAX), fail_fast: true })
    }

    /// The checks of one plan: what they have learnt is true for its moment.
    fn checks(&self) -> Checks {
        let CheckContexts { backup, calls, agents, stripe } = self.contexts.clone();
        Checks::new(self.kinds.clone(), backup).with_calls(calls).with_stripe(stripe).with_agents(agents)
    }

    /// The queues' routes.
    pub fn routes(self: &Arc<Self>) -> Router {
        queue::routes(Arc::clone(self))
    }

    /// `/metrics`. Numbers of whole queues are given by the leader alone: a sum over all processes would be n-fold.
    pub fn metrics(self: &Arc<Self>, tenure: watch::Receiver<Option<Tenure>>) -> Router {
        metrics::routes(self.desk.client.clone(), tenure)
    }
}
