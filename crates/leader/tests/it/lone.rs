//! An election inside the test's own process, for what has to be seen from inside.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use voiceai_leader::{Election, LeaderSettings, Role, Tenure, TermMirror};
use voiceai_postgres::PgPool;
use voiceai_redis::{Redis, RedisSettings};
use voiceai_runtime::Vitals;
use voiceai_testkit::wait_until;

use crate::fleet::{HEARTBEAT, SOON, TTL};
use crate::subject::KEY;

pub(crate) struct Lone {
    pub(crate) election: Election,
    pub(crate) watch: watch::Receiver<Option<Tenure>>,
    pub(crate) vitals: Vitals,
}

pub(crate) fn settings(instance: &str) -> LeaderSettings {
    LeaderSettings {
        key: KEY.into(),
        heartbeat: HEARTBEAT,
        lock_ttl: TTL,
        instance_id: instance.into(),
        host: "test".into(),
    }
}

pub(crate) async fn connect(url: &str) -> Redis {
    Redis::connect(&RedisSettings::from_url(url).unwrap()).await.unwrap()
}

impl Lone {
    pub(crate) async fn join(redis_url: &str, pool: &PgPool, instance: &str) -> Self {
        Self::join_with(redis_url, pool, instance, Vec::new()).await
    }

    pub(crate) async fn join_with(
        redis_url: &str,
        pool: &PgPool,
        instance: &str,
        mirrors: Vec<Arc<dyn TermMirror>>,
    ) -> Self {
        let vitals = Vitals::new();
        let redis = connect(redis_url).await;
        let election = Election::start(settings(instance), redis, pool.clone(), mirrors, &vitals);
        Self { watch: election.watch(), election, vitals }
    }

    pub(crate) fn role(&self) -> Role {
        self.election.status().role
    }

    /// Waits for a tenure of a term above `above` that may act (or is held).
    pub(crate) async fn tenure_above(&self, above: i64) -> Tenure {
        let mut watch = self.watch.clone();
        let found = watch.wait_for(|t| t.as_ref().is_some_and(|t| t.term().number > above));
        let found = tokio::time::timeout(SOON, found).await;
        let status = self.election.status();
        found.unwrap_or_else(|_| panic!("no tenure above {above}: {status:?}")).unwrap().clone().unwrap()
    }

    pub(crate) async fn becomes(&self, role: Role, within: Duration) {
        wait_until(within, format!("the role {role:?}"), async || self.role() == role).await;
    }
}
