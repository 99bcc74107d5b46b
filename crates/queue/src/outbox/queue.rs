//! The real queue behind [`Enqueue`].

use std::time::Duration;

use voiceai_redis::{Key, Value};

use super::{AddError, Added, Enqueue, JobStanding, OutboxJob};
use crate::client::Client;
use crate::error::QueueError;
use crate::library::QueueName;
use crate::new_job::{AddOutcome, NewJob};

/// Longest time one call may take; the connection's own limits are shorter as a rule.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Most jobs of one call.
const CALL_MAX: usize = 500;

impl Enqueue for Client {
    async fn add_all(&self, jobs: &[OutboxJob]) -> Vec<Result<Added, AddError>> {
        let mut results: Vec<Option<Result<Added, AddError>>> = jobs.iter().map(|_| None).collect();
        // One call a queue, in the order of the rows.
        let mut parts: Vec<(&str, Vec<(usize, NewJob)>)> = vec![];
        for (at, job) in jobs.iter().enumerate() {
            match job.to_job() {
                Err(error) => results[at] = Some(Err(AddError::Refused(error.to_string()))),
                Ok(whole) => {
                    match parts.iter_mut().find(|(queue, part)| *queue == job.queue && part.len() < CALL_MAX)
                    {
                        Some((_, part)) => part.push((at, whole)),
                        None => parts.push((&job.queue, vec![(at, whole)])),
                    }
                }
            }
        }
        for (queue, part) in parts {
            let (places, part): (Vec<_>, Vec<_>) = part.into_iter().unzip();
            match add(self, queue, part).await {
                Ok(added) => {
                    for (at, added) in places.into_iter().zip(added) {
                        results[at] = Some(Ok(added));
                    }
                }
                Err(error) => {
                    for at in places {
                        results[at] = Some(Err(error.clone()));
                    }
                }
            }
        }
        let missing = || Err(AddError::Unreachable("it gave no answer for this job".to_owned()));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    async fn standings(&self, queue: &str, ids: &[String]) -> Result<Vec<JobStanding>, AddError> {
        if ids.is_empty() {
            return Ok(vec![]);
        }
        let name = QueueName::new(queue);
        let (jobs, later, dead) = (name.key("jobs"), name.key("later"), name.key("dead"));
        let look = async {
            let fields: Vec<Key> = ids.iter().map(Key::from).collect();
            // A job goes from `later` to `jobs` and never back: read in this order none is missed.
            let delayed: Vec<Option<String>> = self.redis().hmget(later, fields.clone()).await?;
            let envelopes: Vec<Option<String>> = self.redis().hmget(jobs, fields).await?;
            let envelopes = envelopes.into_iter().zip(delayed).map(|(here, later)| here.or(later));
            let mut args: Vec<Value> = vec![dead.into()];
            args.extend(ids.iter().map(|id| Value::from(id.as_str())));
            let parked: Vec<Option<f64>> = self.redis().command("ZMSCORE", args).await?;
            Ok(envelopes
                .zip(parked)
                .map(|(envelope, parked)| match envelope {
                    None => JobStanding::Unknown,
                    // An id that is only remembered, or a job that was cancelled while it waited.
                    Some(envelope) if envelope.is_empty() => JobStanding::Finished,
                    Some(_) if parked.is_some() => JobStanding::Finished,
                    Some(_) => JobStanding::Unfinished,
                })
                .collect())
        };
        limited(queue, "look up jobs", Box::pin(look)).await
    }
}

async fn add(client: &Client, queue: &str, jobs: Vec<NewJob>) -> Result<Vec<Added>, AddError> {
    let Ok(added) = tokio::time::timeout(CALL_LIMIT, client.add_many(queue, jobs, None)).await else {
        return Err(AddError::Unreachable(format!("no answer within {CALL_LIMIT:?}")));
    };
    let added = added.map_err(|error| classify(&error))?;
    Ok(added
        .into_iter()
        .map(|added| match added.outcome {
            AddOutcome::Accepted => Added::New,
            AddOutcome::Known => Added::Known,
            AddOutcome::Duplicate => Added::Duplicate { holder: added.id.to_string() },
        })
        .collect())
}

async fn limited<T>(
    queue: &str,
    tried: &'static str,
    call: impl Future<Output = Result<T, voiceai_redis::RedisError>>,
) -> Result<T, AddError> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(result) => result.map_err(|error| classify(&QueueError::from_redis(queue, tried, error))),
        Err(_) => Err(AddError::Unreachable(format!("no answer within {CALL_LIMIT:?}"))),
    }
}

/// Only a refusal that names the job condemns it. Everything else is trouble with the server, and passes.
fn classify(error: &QueueError) -> AddError {
    let text = match error {
        QueueError::Redis { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    match error {
        QueueError::Invalid { .. } | QueueError::Payload { .. } => AddError::Refused(text),
        QueueError::Redis { source, .. } if source.detail().contains("QBAD") => AddError::Refused(text),
        QueueError::Draining { .. }
        | QueueError::ProducersPaused { .. }
        | QueueError::Full { .. }
        | QueueError::Overloaded { .. } => AddError::NotNow(text),
        _ => AddError::Unreachable(text),
    }
}
