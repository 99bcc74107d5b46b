//! Lists of jobs by state, a page at a time.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use voiceai_redis::{RedisError, Value};

use super::views::{JobView, State, WorkerView, incarnation_of, to_ms};
use super::{Client, timestamp};
use crate::envelope::capped;
use crate::error::QueueError;
use crate::finished::DeadReason;
use crate::library::{QueueName, text_of};
use crate::new_job::check_queue;

/// Which jobs a list shows.
#[derive(Clone, Debug)]
pub struct ListFilter {
    /// The state; completed jobs are listed from the history instead.
    pub state: State,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this tenant.
    pub tenant: Option<String>,
    /// Only those whose last error contains this.
    pub error_contains: Option<String>,
    /// Only those parked for this reason.
    pub reason: Option<DeadReason>,
    /// Only those that have been there for longer than this: dead ones since they were parked, others since they were
    /// enqueued. The same rule as a clean-up's.
    pub older_than: Option<Duration>,
    /// Most rows.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

impl ListFilter {
    /// The first 50 jobs in `state`.
    #[must_use]
    pub const fn of(state: State) -> Self {
        Self {
            state,
            kind: None,
            tenant: None,
            error_contains: None,
            reason: None,
            older_than: None,
            limit: 50,
            cursor: None,
        }
    }

    fn matches(&self, job: &JobView, now: Timestamp) -> bool {
        self.kind.as_ref().is_none_or(|k| *k == job.kind)
            && self.tenant.as_ref().is_none_or(|t| Some(t) == job.tenant.as_ref())
            && self.reason.is_none_or(|r| Some(r) == job.dead_reason)
            && self
                .error_contains
                .as_ref()
                .is_none_or(|text| job.error.as_ref().is_some_and(|e| e.contains(text.as_str())))
            && self.older_than.is_none_or(|age| {
                let since = if job.state == State::Dead { job.dead_at } else { job.enqueued_at };
                since.is_some_and(|at| now.duration_since(at).unsigned_abs() >= age && at <= now)
            })
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobView>,
    /// Give it as [`ListFilter::cursor`] to go on; absent at the end.
    pub next: Option<String>,
}

/// How many jobs one look of `list` takes.
const SCAN_PAGE: usize = 500;

impl Client {
    /// Lists jobs of one state, oldest first. Filters are applied to at most a few thousand jobs a call, so a page may
    /// be short or empty although `next` is given.
    ///
    /// # Errors
    /// As Redis says.
    pub async fn list(&self, queue: &str, filter: &ListFilter) -> Result<Page, QueueError> {
        check_queue(queue)?;
        let failed = |e: RedisError| QueueError::from_redis(queue, "list jobs", e);
        let name = QueueName::new(queue);
        let mut offset: usize = match filter.cursor.as_deref() {
            None => 0,
            Some(text) => text.parse().map_err(|_| QueueError::Invalid {
                what: "cursor",
                given: capped(text, 80).to_owned(),
                expected: "the `next` of the page before",
            })?,
        };
        let now = self.redis_now();
        let mut jobs = Vec::new();
        for _ in 0..10 {
            let ids = self.ids(&name, filter.state, offset).await.map_err(failed)?;
            let seen = ids.len();
            for (position, view) in
                self.rows(&name, filter.state, ids).await.map_err(failed)?.into_iter().enumerate()
            {
                let Some(view) = view else { continue };
                if !filter.matches(&view, now) {
                    continue;
                }
                jobs.push(view);
                if jobs.len() >= filter.limit {
                    return Ok(Page { jobs, next: Some((offset + position + 1).to_string()) });
                }
            }
            offset += seen;
            if seen < SCAN_PAGE {
                return Ok(Page { jobs, next: None });
            }
        }
        Ok(Page { jobs, next: Some(offset.to_string()) })
    }

    /// One page of ids of a state, from `offset` on.
    async fn ids(&self, name: &QueueName, state: State, offset: usize) -> Result<Vec<String>, RedisError> {
        let redis = self.redis();
        let last = offset + SCAN_PAGE - 1;
        let range = |key: &str| -> Vec<Value> {
            vec![name.key(key).into(), offset.to_string().into(), last.to_string().into()]
        };
        match state {
            State::Dead => Ok(texts(redis.command("ZRANGE", range("dead")).await?)),
            State::Delayed => Ok(texts(redis.command("ZRANGE", range("delayed")).await?)),
            State::Completed => Ok(texts(redis.command("ZREVRANGE", range("results")).await?)),
            State::Active => {
                let mut ids = texts(redis.command("HKEYS", vec![name.key("active")]).await?);
                ids.retain(|id| !id.is_empty());
                ids.sort();
                Ok(ids.into_iter().skip(offset).take(SCAN_PAGE).collect())
            }
            State::Waiting => self.waiting_ids(name, offset).await,
        }
    }

    /// Ids in the order of lanes and, within a lane, of service.
    async fn waiting_ids(&self, name: &QueueName, offset: usize) -> Result<Vec<String>, RedisError> {
        let redis = self.redis();
        let mut skip = offset;
        let mut ids = Vec::new();
        for ring in ["suspect", "ready", "held"] {
            let lanes = texts(redis.command("ZRANGE", vec![name.key(ring), "0".into(), "-1".into()]).await?);
            for lane in lanes {
                let key = name.key(&format!("lane:{lane}"));
                let length: usize = redis.command("LLEN", vec![key.clone()]).await?;
                if skip >= length {
                    skip -= length;
                    continue;
                }
                // The tail is served first.
                let want = (SCAN_PAGE - ids.len()).min(length - skip);
                let args = vec![key, format!("-{}", skip + want), format!("-{}", skip + 1)];
                let mut page = texts(redis.command("LRANGE", args).await?);
                page.reverse();
                ids.append(&mut page);
                skip = 0;
                if ids.len() >= SCAN_PAGE {
                    return Ok(ids);
                }
            }
        }
        Ok(ids)
    }

    /// The rows of a page of ids; `None` for a cancelled job that still has its place in a lane.
    async fn rows(
        &self,
        name: &QueueName,
        state: State,
        ids: Vec<String>,
    ) -> Result<Vec<Option<JobView>>, RedisError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let many = |hash: &str| {
            let mut args = vec![name.key(hash)];
            args.extend(ids.iter().cloned());
            args
        };
        let redis = self.redis();
        // Read as they are: bytes of a foreign client that are no UTF-8 must not hide the others.
        let fields = async |hash: &str| -> Result<Vec<Option<String>>, RedisError> {
            let found: Vec<Value> = redis.command("HMGET", many(hash)).await?;
            Ok(found.iter().map(text_of).collect())
        };
        // In this order: a job goes from `later` to `jobs` and never back.
        let later = match state {
            State::Delayed => fields("later").await?,
            _ => vec![None; ids.len()],
        };
        let jobs = fields("jobs").await?.into_iter().zip(later).map(|(here, later)| here.or(later));
        let fails = fields("fail").await?;
        let tokens = match state {
            State::Active => fields("active").await?,
            _ => vec![None; ids.len()],
        };
        let crashes = fields("crashes").await?;
        let (mut progress, mut asked) = (vec![None; ids.len()], vec![None; ids.len()]);
        let mut workers = HashMap::new();
        if state == State::Active {
            progress = fields("progress").await?;
            asked = fields("cancel").await?;
            let info = redis.command("HGETALL", vec![name.key("info")]).await?;
            workers = flat(info).chunks_exact(2).filter_map(worker_name).collect();
        }
        let scores: Vec<Option<f64>> = match state {
            State::Dead => redis.command("ZMSCORE", many("dead")).await?,
            State::Delayed => redis.command("ZMSCORE", many("delayed")).await?,
            _ => vec![None; ids.len()],
        };
        let rows = ids
            .iter()
            .zip(jobs)
            .zip(fails)
            .zip(tokens)
            .zip(scores)
            .zip(crashes)
            .zip(progress.into_iter().zip(asked));
        Ok(rows
            .map(|((((((id, envelope), fail), token), score), crashes), (progress, asked))| {
                let envelope = envelope.unwrap_or_default();
                if envelope.is_empty() && state != State::Completed {
                    return None;
                }
                let mut view = JobView::new(&name.name, id, state, &envelope, fail.as_deref());
                view.worker = token.map(|token| {
                    let incarnation = incarnation_of(&token);
                    workers.get(incarnation).cloned().unwrap_or_else(|| incarnation.to_owned())
                });
                view.crashes = crashes.and_then(|n| n.parse().ok()).unwrap_or(0);
                (view.progress, view.cancel_asked) = (progress, asked);
                let at = score.filter(|s| s.is_finite()).map(|s| timestamp(to_ms(s)));
                match state {
                    State::Dead => view.dead_at = at,
                    State::Delayed => view.due_at = at,
                    _ => {}
                }
                Some(view)
            })
            .collect())
    }
}

/// The texts of an array reply.
fn texts(reply: Vec<Value>) -> Vec<String> {
    reply.iter().filter_map(text_of).collect()
}

/// The texts of a hash, value after name, in either form of a reply.
fn flat(reply: Value) -> Vec<String> {
    match reply {
        Value::Map(map) => map
            .inner()
            .into_iter()
            .flat_map(|(name, value)| {
                [name.into_string().unwrap_or_default(), text_of(&value).unwrap_or_default()]
            })
            .collect(),
        Value::Array(items) => texts(items),
        _ => Vec::new(),
    }
}

/// An incarnation and what people call its worker: `host/pid`, as everywhere.
fn worker_name(pair: &[String]) -> Option<(String, String)> {
    let view: WorkerView = serde_json::from_str(&pair[1]).ok()?;
    Some((pair[0].clone(), format!("{}/{}", view.host, view.pid)))
}
