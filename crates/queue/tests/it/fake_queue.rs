//! A queue in memory that takes each id once, like the real one, and can be told to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use voiceai_queue::outbox::{AddError, Added, Enqueue, JobStanding, OutboxJob};

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeQueue(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Id to how it stands.
    pub(crate) jobs: BTreeMap<String, JobStanding>,
    /// Ids in the order in which they were accepted.
    pub(crate) accepted: Vec<String>,
    /// Calls that met a known id.
    pub(crate) repeated: u32,
    /// Every job as it arrived last.
    pub(crate) seen: BTreeMap<String, OutboxJob>,
    /// Redis is away.
    pub(crate) away: bool,
    /// Jobs are accepted and the answer never comes.
    pub(crate) mute: bool,
    /// Queues that take nothing at present.
    pub(crate) closed: BTreeSet<String>,
    /// Kinds that are refused for good.
    pub(crate) refused_kinds: BTreeSet<String>,
}

impl FakeQueue {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn accepted(&self) -> Vec<String> {
        self.state().accepted.clone()
    }

    /// The job has ended.
    pub(crate) fn finish(&self, id: &str) {
        self.state().jobs.insert(id.to_owned(), JobStanding::Finished);
    }

    /// The job is lost, as by a power cut.
    pub(crate) fn lose(&self, id: &str) {
        self.state().jobs.remove(id);
    }

    fn add(&self, job: &OutboxJob) -> Result<Added, AddError> {
        let mut state = self.state();
        if state.away {
            return Err(AddError::Unreachable("the test took it away".into()));
        }
        if state.closed.contains(&job.queue) {
            return Err(AddError::NotNow("the test closed it".into()));
        }
        if state.refused_kinds.contains(&job.kind) {
            return Err(AddError::Refused("the test refuses this kind".into()));
        }
        state.seen.insert(job.id.clone(), job.clone());
        if state.jobs.contains_key(&job.id) {
            state.repeated += 1;
            return Ok(Added::Known);
        }
        state.jobs.insert(job.id.clone(), JobStanding::Unfinished);
        state.accepted.push(job.id.clone());
        Ok(Added::New)
    }
}

impl Enqueue for FakeQueue {
    async fn add_all(&self, jobs: &[OutboxJob]) -> Vec<Result<Added, AddError>> {
        let results = jobs.iter().map(|job| self.add(job)).collect();
        if self.state().mute {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        results
    }

    async fn standings(&self, _queue: &str, ids: &[String]) -> Result<Vec<JobStanding>, AddError> {
        let state = self.state();
        if state.away {
            return Err(AddError::Unreachable("the test took it away".into()));
        }
        Ok(ids.iter().map(|id| state.jobs.get(id).copied().unwrap_or(JobStanding::Unknown)).collect())
    }
}
