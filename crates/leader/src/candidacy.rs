//! From the lease to the term.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use voiceai_postgres::term::{self, Candidate, Issued};
use voiceai_postgres::{PgPool, sqlx};
use voiceai_redis::Redis;
use voiceai_runtime::{BootTime, boot_now};

use crate::lease::{Confirmed, Lease};
use crate::machine::Event;
use crate::mirror::{RedisTerm, TermMirror};
use crate::settings::{LeaderSettings, Timing};

pub(crate) type Mirrors = Vec<Arc<dyn TermMirror>>;

/// A term that was issued and written into the lease.
pub(crate) struct Won {
    pub(crate) issued: Issued,
    pub(crate) trusted_until: BootTime,
    /// Copies that could not be raised.
    pub(crate) late: Mirrors,
}

/// What a holder of the lease needs to be given a term.
pub(crate) struct Candidacy {
    settings: LeaderSettings,
    timing: Timing,
    pool: PgPool,
    /// The copy beside the lease, which the lease's own script raises.
    own_copy: Arc<dyn TermMirror>,
    mirrors: Mirrors,
}

impl Candidacy {
    pub(crate) fn new(
        settings: LeaderSettings,
        timing: Timing,
        pool: PgPool,
        redis: Redis,
        mirrors: Mirrors,
    ) -> Self {
        let own_copy = Arc::new(RedisTerm::new(redis, settings.term_key()));
        Self { settings, timing, pool, own_copy, mirrors }
    }

    /// Reads the copies, has the term issued, raises the copies, and writes the term into the lease if it is still ours.
    /// Gives up early when `stop` is cancelled, and in any case while the lease, trusted until `lease_until`, is still ours.
    pub(crate) async fn seek_term(
        &self,
        lease: &Lease,
        lease_until: BootTime,
        stop: &CancellationToken,
    ) -> Result<Won, (Event, String)> {
        let highest = self.highest_copy().await;
        let spare = lease_until.duration_since(boot_now()).saturating_sub(self.timing.call * 2);
        let issue = self.issue(highest);
        let issued = tokio::select! {
            biased;
            () = stop.cancelled() => return Err((Event::Stop, "this process resigned".into())),
            issued = timeout(spare.min(self.timing.issue), issue) => match issued {
                Ok(Ok(Ok(issued))) => issued,
                Ok(Ok(Err(error))) => return Err((Event::NoTerm, format!("PostgreSQL issued no term: {error}"))),
                Ok(Err(error)) => return Err((Event::NoTerm, format!("the question for a term failed: {error}"))),
                Err(_) => return Err((Event::NoTerm, "PostgreSQL issued no term while the lease was ours".into())),
            },
        };
        let number = issued.term.number;
        let late = raise(&self.mirrors, number, self.timing.call).await;
        let sent = boot_now();
        match lease.confirm(number).await {
            Ok(Confirmed::Ok { replaced }) => {
                if let Some(was) = replaced.filter(|was| !was.is_empty()) {
                    tracing::warn!(
                        key = self.settings.term_key(),
                        was,
                        term = number,
                        "the copy of the term was no number; replaced"
                    );
                }
                Ok(Won { issued, trusted_until: self.timing.trusted_until(sent), late })
            }
            Ok(Confirmed::Behind(copy)) => {
                Err((Event::NoTerm, format!("term {number} is behind the copy in Redis, which is {copy}")))
            }
            Ok(Confirmed::NotOurs(held)) => Err((Event::Displaced, held.describe())),
            Err(error) => Err((Event::Unsure, error.to_string())),
        }
    }

    async fn highest_copy(&self) -> i64 {
        let copies = self.mirrors.iter().chain(std::iter::once(&self.own_copy));
        let read = join_all(copies.map(|copy| async {
            match timeout(self.timing.call, copy.highest()).await {
                Ok(Ok(term)) => term,
                Ok(Err(error)) => {
                    tracing::warn!(copy = copy.name(), error = %error, "cannot read a copy of the term; goes on without it");
                    0
                }
                Err(_) => {
                    tracing::warn!(copy = copy.name(), "no answer from a copy of the term; goes on without it");
                    0
                }
            }
        }));
        read.await.into_iter().max().unwrap_or(0)
    }

    /// In a task of its own, which is left to its own limits when this process cannot wait any more: a term that is
    /// issued too late supersedes a newer leader's, who then notices and is elected again.
    fn issue(&self, highest: i64) -> JoinHandle<Result<Issued, sqlx::Error>> {
        let pool = self.pool.clone();
        let LeaderSettings { key, instance_id, host, .. } = self.settings.clone();
        tokio::spawn(async move {
            let candidate = Candidate {
                name: &key,
                service: &program_name(),
                holder: &instance_id,
                host: &host,
                pid: std::process::id(),
            };
            term::issue(&pool, &candidate, highest).await
        })
    }
}

/// Raises all copies at once; returns those that could not be raised.
pub(crate) async fn raise(mirrors: &[Arc<dyn TermMirror>], term: i64, limit: Duration) -> Mirrors {
    let raised = join_all(mirrors.iter().map(|copy| async move {
        let why = match timeout(limit, copy.raise(term)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(
            copy = copy.name(),
            term,
            error = why,
            "cannot raise a copy of the term; tried again with each heartbeat"
        );
        Some(Arc::clone(copy))
    }));
    raised.await.into_iter().flatten().collect()
}

/// The running program's name, which is the service's.
fn program_name() -> String {
    let path = std::env::current_exe().ok();
    path.and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "voiceai".into())
}
