//! Group commit: enqueues that arrive while a batch is on its way form the next one; an idle client sends at once.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::sync::oneshot;
use voiceai_redis::Value;

use super::Time;
use crate::error::QueueError;
use crate::id::{JobId, Nonce};
use crate::library::{Library, QueueName};
use crate::metrics;

/// Most jobs in one call: keeps a call under a few milliseconds of the server's time.
const BATCH_JOBS: usize = 1_000;
/// Most bytes in one call.
const BATCH_BYTES: usize = 1 << 20;
/// Enqueues that may wait in this process before new ones are refused.
const WAITING_MAX: usize = 200_000;

/// A job ready to be sent.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) lane: std::borrow::Cow<'static, str>,
    pub(super) envelope: String,
}

#[derive(Debug)]
struct Waiting {
    jobs: Vec<Encoded>,
    reply: oneshot::Sender<Result<Vec<JobId>, QueueError>>,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Waiting>,
    jobs: usize,
    sending: bool,
    nonce: Nonce,
}

/// One queue's producer within this process.
#[derive(Debug)]
pub(super) struct Batcher {
    queue: QueueName,
    library: Library,
    time: Time,
    state: Mutex<State>,
}

impl Batcher {
    pub(super) fn new(queue: QueueName, library: Library, time: Time) -> Self {
        let state = State { waiting: VecDeque::new(), jobs: 0, sending: false, nonce: Nonce::random() };
        Self { queue, library, time, state: Mutex::new(state) }
    }

    /// Sends `jobs` (at most [`BATCH_JOBS`]) with whatever else waits. The ids come back in order.
    pub(super) async fn send(self: &Arc<Self>, jobs: Vec<Encoded>) -> Result<Vec<JobId>, QueueError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.jobs >= WAITING_MAX {
                return Err(QueueError::Overloaded {
                    queue: self.queue.name.to_string(),
                    waiting: state.jobs,
                });
            }
            state.jobs += jobs.len();
            state.waiting.push_back(Waiting { jobs, reply });
            if !mem::replace(&mut state.sending, true) {
                // A task of its own: the caller may be dropped while others wait for the same call.
                tokio::spawn(Arc::clone(self).run());
            }
        }
        answer.await.unwrap_or_else(|_| {
            Err(QueueError::BadReply {
                queue: self.queue.name.to_string(),
                tried: "enqueue",
                detail: "the runtime is shutting down".into(),
            })
        })
    }

    async fn run(self: Arc<Self>) {
        while let Some((batch, nonce, ids, last)) = self.next_batch() {
            let sent = self.send_batch(&batch, &nonce, &ids, last).await;
            if let Err(error) = &sent
                && error.outcome_unknown()
            {
                // Whether the batch was applied is not known, and a later counter would make a repetition of it look
                // like a duplicate. So it is never repeated, and what follows gets a nonce of its own.
                self.state.lock().unwrap_or_else(PoisonError::into_inner).nonce = Nonce::random();
            }
            let mut ids = ids.into_iter();
            for waiting in batch {
                let mine: Vec<JobId> = ids.by_ref().take(waiting.jobs.len()).collect();
                let _ = waiting.reply.send(sent.clone().map(|()| mine));
            }
            drop(ids);
            // Callers that go on to their next job join the batch that is formed now, instead of the one after.
            tokio::task::yield_now().await;
        }
    }

    /// Takes what fits into one call, or says that nothing waits.
    fn next_batch(&self) -> Option<(Vec<Waiting>, String, Vec<JobId>, u64)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut jobs, mut bytes) = (Vec::new(), 0, 0);
        while let Some(next) = state.waiting.front() {
            let more: usize = next.jobs.iter().map(|j| j.envelope.len()).sum();
            if jobs > 0 && (jobs + next.jobs.len() > BATCH_JOBS || bytes + more > BATCH_BYTES) {
                break;
            }
            jobs += next.jobs.len();
            bytes += more;
            batch.extend(state.waiting.pop_front());
        }
        state.jobs -= jobs;
        if batch.is_empty() {
            state.sending = false;
            return None;
        }
        if state.nonce.is_used_up() {
            state.nonce = Nonce::random();
        }
        let ids = (0..jobs)
            .map(|_| JobId::trusted(std::str::from_utf8(&state.nonce.next_id()).unwrap_or_default()))
            .collect();
        Some((batch, state.nonce.text(), ids, state.nonce.last()))
    }

    async fn send_batch(
        &self,
        batch: &[Waiting],
        nonce: &str,
        ids: &[JobId],
        last: u64,
    ) -> Result<(), QueueError> {
        let make = || arguments(batch, nonce, ids, last);
        let reply: Result<(i64, i64), _> =
            self.library.call_made(&self.queue, "voiceai_v1_enqueue", &make).await;
        let (_, now) = reply.map_err(|e| QueueError::from_redis(&self.queue.name, "enqueue", e))?;
        self.time.learn(now);
        metrics::get().enqueued(&self.queue.name, "now", u64::try_from(ids.len()).unwrap_or(0));
        Ok(())
    }
}

/// All ids and envelopes lie in one buffer: one allocation for a thousand jobs.
fn arguments(batch: &[Waiting], nonce: &str, ids: &[JobId], last: u64) -> Vec<Value> {
    let bytes = batch.iter().flat_map(|w| &w.jobs).map(|j| j.envelope.len()).sum::<usize>()
        + ids.iter().map(|id| id.as_str().len()).sum::<usize>();
    let mut text = BytesMut::with_capacity(bytes);
    for (job, id) in batch.iter().flat_map(|w| &w.jobs).zip(ids) {
        text.extend_from_slice(id.as_str().as_bytes());
        text.extend_from_slice(job.envelope.as_bytes());
    }
    let mut text = text.freeze();
    let mut args: Vec<Value> = Vec::with_capacity(ids.len() * 2 + 8);
    args.push(nonce.into());
    args.push(i64::try_from(last).unwrap_or(i64::MAX).into());
    let mut jobs = batch.iter().flat_map(|w| &w.jobs).zip(ids).peekable();
    // Neighbours of one lane share a group. Order inside a lane is kept, which is all that is promised.
    while let Some((first, _)) = jobs.peek() {
        let lane = &*first.lane;
        args.push(lane.into());
        let count_at = args.len();
        args.push(Value::Null);
        let mut n = 0_i64;
        while let Some((job, id)) = jobs.next_if(|(job, _)| job.lane == lane) {
            args.push(Value::Bytes(text.split_to(id.as_str().len())));
            args.push(Value::Bytes(text.split_to(job.envelope.len())));
            n += 1;
        }
        args[count_at] = n.into();
    }
    args
}
