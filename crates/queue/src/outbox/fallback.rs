//! Enqueueing that outlives Redis: to the queue, else to the outbox.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use serde::Serialize;
use voiceai_postgres::sqlx::{self, PgPool};

use super::{AddError, Added, Enqueue, Inserted, OutboxJob, Wakeups, bounded, insert, insert_many};
use crate::new_job::NewJob;

/// Where a job went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// It is in its queue.
    Queue,
    /// It is a row of the outbox and comes to its queue by itself.
    Outbox {
        /// Why it was not taken by the queue.
        cause: String,
    },
}

/// A job that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enqueued {
    /// The job's id; of a duplicate, the id of the job that holds its unique key.
    pub id: String,
    /// Its id, or its unique key, was there before: nothing was added.
    pub known: bool,
    /// Where it is.
    pub route: Route,
}

/// A job that was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The queue will never take it as it is.
    #[error("enqueue a job of kind {kind:?}: {reason}")]
    Refused {
        /// The job's kind.
        kind: String,
        /// Why.
        reason: String,
    },
    /// Neither the queue nor the outbox could be reached. Calling again with the same id is safe.
    #[error("enqueue: the queue did not take the job ({queue}), and neither did the outbox")]
    Unavailable {
        /// Why the queue did not.
        queue: String,
        /// Why the outbox did not.
        source: sqlx::Error,
    },
}

/// The enqueuer of our own producers. A job goes to its queue; when Redis cannot be reached, is full, or the queue's producers are
/// paused (`queue pause --enqueue`), it becomes a row of the outbox instead, and the answer, a log line and the counter
/// `voiceai.outbox.fallbacks` say so.
///
/// When Redis took the job and only its answer was lost, the row repeats it under the same id, and the queue keeps one.
#[derive(Debug, Clone)]
pub struct FallbackEnqueuer<Q> {
    queue: Q,
    pool: PgPool,
    wakeups: Wakeups,
    fallbacks: Counter<u64>,
}

impl<Q: Enqueue> FallbackEnqueuer<Q> {
    /// Enqueues through `queue`, falling back to the outbox in `pool`.
    pub fn new(queue: Q, pool: PgPool, wakeups: Wakeups) -> Self {
        let fallbacks = opentelemetry::global::meter("voiceai")
            .u64_counter("voiceai.outbox.fallbacks")
            .with_description("Jobs that went to the outbox because the queue did not take them.")
            .build();
        for cause in ["unreachable", "not_now"] {
            fallbacks.add(0, &[KeyValue::new("cause", cause)]);
        }
        Self { queue, pool, wakeups, fallbacks }
    }

    /// Enqueues one job.
    ///
    /// # Errors
    /// [`EnqueueError::Refused`] when the job is wrong, [`EnqueueError::Unavailable`] when both databases are away.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued, EnqueueError> {
        let job = OutboxJob::from_job(job, false)?;
        let unavailable = || EnqueueError::Unavailable {
            queue: "it gave no answer".to_owned(),
            source: sqlx::Error::PoolClosed,
        };
        self.enqueue_all(vec![job]).await.pop().unwrap_or_else(|| Err(unavailable()))
    }

    /// Enqueues a job that must not be lost even when Redis loses its last writes: its row is committed first and looked after until the
    /// job has finished. It reaches its queue a few milliseconds later.
    ///
    /// # Errors
    /// [`EnqueueError::Refused`] when the job is wrong, [`EnqueueError::Unavailable`] when PostgreSQL is away.
    pub async fn enqueue_critical(&self, job: NewJob) -> Result<Enqueued, EnqueueError> {
        let job = OutboxJob::from_job(job, true)?;
        match bounded(insert(&self.pool, &job)).await {
            Ok(inserted) => {
                self.wakeups.wake_outbox();
                let route = Route::Outbox { cause: "the job is critical".to_owned() };
                Ok(Enqueued { id: job.id, known: inserted == Inserted::Known, route })
            }
            Err(error) => {
                Err(not_inserted(&job, "critical jobs go through the outbox".to_owned(), &mut Some(error)))
            }
        }
    }

    /// Enqueues many jobs; one result a job, in order. They may go different ways.
    pub async fn enqueue_all(&self, jobs: Vec<OutboxJob>) -> Vec<Result<Enqueued, EnqueueError>> {
        let answers = self.queue.add_all(&jobs).await;
        let mut results = Vec::with_capacity(jobs.len());
        let mut fallen: Vec<(usize, OutboxJob, AddError)> = vec![];
        for (at, job) in jobs.into_iter().enumerate() {
            let answer = answers.get(at).cloned();
            let error = match answer {
                Some(Ok(added)) => {
                    results.push(Some(Ok(in_queue(job.id, added))));
                    continue;
                }
                Some(Err(AddError::Refused(reason))) => {
                    results.push(Some(Err(EnqueueError::Refused { kind: job.kind, reason })));
                    continue;
                }
                Some(Err(error)) => error,
                None => AddError::Unreachable("it gave no answer".to_owned()),
            };
            results.push(None);
            fallen.push((at, job, error));
        }
        if !fallen.is_empty() {
            self.fall_back(fallen, &mut results).await;
        }
        results.into_iter().flatten().collect()
    }

    async fn fall_back(
        &self,
        fallen: Vec<(usize, OutboxJob, AddError)>,
        results: &mut [Option<Result<Enqueued, EnqueueError>>],
    ) {
        let mut places = Vec::with_capacity(fallen.len());
        let mut rows = Vec::with_capacity(fallen.len());
        for (at, job, error) in fallen {
            let cause = if matches!(error, AddError::NotNow(_)) { "not_now" } else { "unreachable" };
            self.fallbacks.add(1, &[KeyValue::new("cause", cause)]);
            places.push((at, error.to_string()));
            rows.push(job);
        }
        if let Some((_, cause)) = places.first() {
            tracing::warn!(jobs = rows.len(), cause, "jobs go to the outbox and are relayed later");
        }
        match bounded(insert_many(&self.pool, &rows)).await {
            Ok(inserted) => {
                self.wakeups.wake_outbox();
                for (((at, cause), row), inserted) in places.into_iter().zip(rows).zip(inserted) {
                    results[at] = Some(Ok(Enqueued {
                        id: row.id,
                        known: inserted == Inserted::Known,
                        route: Route::Outbox { cause },
                    }));
                }
            }
            Err(error) => {
                let mut error = Some(error);
                for ((at, cause), row) in places.into_iter().zip(rows) {
                    results[at] = Some(Err(not_inserted(&row, cause, &mut error)));
                }
            }
        }
    }
}

/// The table refused a value, or could not be reached. The source goes to the first job of the batch.
fn not_inserted(row: &OutboxJob, cause: String, error: &mut Option<sqlx::Error>) -> EnqueueError {
    let refused = error.as_ref().is_some_and(|error| !voiceai_postgres::is_unavailable(error));
    match error.take() {
        Some(error) if refused => EnqueueError::Refused { kind: row.kind.clone(), reason: error.to_string() },
        Some(source) => EnqueueError::Unavailable { queue: cause, source },
        None => EnqueueError::Unavailable { queue: cause, source: sqlx::Error::PoolTimedOut },
    }
}

fn in_queue(id: String, added: Added) -> Enqueued {
    let (id, known) = match added {
        Added::New => (id, false),
        Added::Known => (id, true),
        Added::Duplicate { holder } => (holder, true),
    };
    Enqueued { id, known, route: Route::Queue }
}
