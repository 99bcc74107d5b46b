use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use voiceai_postgres::{PgPool, Tenure};
use voiceai_redis::Redis;
use voiceai_runtime::Vitals;

use crate::campaign::Campaign;
use crate::machine::Role;
use crate::mirror::TermMirror;
use crate::settings::LeaderSettings;

/// How this process stands in the election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ElectionStatus {
    /// What this process is.
    pub role: Role,
    /// Its term, while it has one.
    pub term: Option<i64>,
    /// Elected, but a person must release it first: the database went back in time.
    pub held: bool,
    /// Why it is what it is, for people.
    pub reason: String,
}

/// This process's part in an election. Dropping it resigns, without waiting for the lease to be given back.
#[derive(Debug)]
pub struct Election {
    tenure: watch::Receiver<Option<Tenure>>,
    status: watch::Receiver<ElectionStatus>,
    stop: CancellationToken,
    _resign_on_drop: DropGuard,
}

impl Election {
    /// Joins the election of `settings.key`, which [`LeaderSettings::validate`] must have accepted. Needs a tokio
    /// runtime; returns at once.
    ///
    /// `mirrors`: further copies of the term. All that can be read count when a term is issued. All are raised before
    /// this process acts; one that cannot be raised then is tried again with each heartbeat.
    ///
    /// The loop is registered with `vitals` as `leader election`, and makes progress whether or not Redis and
    /// PostgreSQL answer.
    #[must_use]
    pub fn start(
        settings: LeaderSettings,
        redis: Redis,
        pool: PgPool,
        mirrors: Vec<Arc<dyn TermMirror>>,
        vitals: &Vitals,
    ) -> Self {
        let (tell, tenure) = watch::channel(None::<Tenure>);
        let (report, status) = watch::channel(ElectionStatus {
            role: Role::Follower,
            term: None,
            held: false,
            reason: "just started".into(),
        });
        let stop = CancellationToken::new();
        let (vitals, ended) = (vitals.clone(), stop.clone());
        tokio::spawn(async move {
            let campaign = || {
                // After a panic: what the one before it had won is not renewed by anybody.
                if let Some(left) = tell.send_replace(None) {
                    left.end();
                }
                let (settings, mirrors) = (settings.clone(), mirrors.clone());
                let (tell, report) = (tell.clone(), report.clone());
                Campaign::new(settings, &redis, &pool, mirrors, &vitals, tell, report, ended.clone()).run()
            };
            voiceai_runtime::restarting("leader election", &ended, campaign).await;
        });
        Self { tenure, status, stop: stop.clone(), _resign_on_drop: stop.drop_guard() }
    }

    /// Tells of each tenure's beginning (`Some`) and end (`None`), and wakes its readers when a tenure is suspended,
    /// goes on, or is released. A `Some` alone permits nothing: ask [`Tenure::check`] before every effect, and
    /// [`Tenure::is_held`] before acting at all. Closed some time after this process resigned.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Tenure>> {
        self.tenure.clone()
    }

    /// How this process stands now.
    #[must_use]
    pub fn status(&self) -> ElectionStatus {
        self.status.borrow().clone()
    }

    /// Ends the tenure, then gives the lease back, so that a follower takes over at its next poll; returns when both
    /// are done. This process takes no more part. Bounded: a Redis that does not answer is not waited for longer than
    /// one call, and the lease then runs out by itself.
    pub async fn resign(&self) {
        self.stop.cancel();
        let _ = self.status.clone().wait_for(|status| status.role == Role::Resigned).await;
    }
}
