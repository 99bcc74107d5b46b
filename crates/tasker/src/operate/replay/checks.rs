//! What must hold before a job is tried again: the payload is its kind's, this version has a handler, and the kind's own
//! precondition holds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{Mutex, OnceCell};
use voiceai_cli::Failure;
use voiceai_orchestration::OrchestrationContext;
use voiceai_orchestration::order::Order;
use voiceai_platform::{BillingPause, Stripe, SubscriptionsMaintain};
use voiceai_queue::{Job as _, JobId, JobView};
use voiceai_recording::{PostCall, RecordingProcess};
use voiceai_replay::{Candidate, Refusal};

use super::{Wanted, calls};
use crate::jobs::backup::{self, BackupContext, BackupDatabase, BackupError};
use crate::jobs::orchestration::ORDERS;
use crate::jobs::recording::CallContexts;
use crate::jobs::registry::Kinds;
use crate::operate::Desk;

/// The newer job that holds the key of `job` now. The queue looks again when the job is put back.
async fn key_holder(desk: &Desk, job: &JobView) -> Option<JobId> {
    let seen = desk.client.show(&job.queue, job.id.as_str()).await;
    seen.ok().flatten().and_then(|job| job.key_holder)
}

/// The checks of one plan. What costs a call to somebody else is asked once for each kind.
#[derive(Debug)]
pub struct Checks {
    kinds: Kinds,
    backup: Option<BackupContext>,
    calls: Option<CallContexts>,
    stripe: Option<Stripe>,
    agents: Option<OrchestrationContext>,
    bucket: OnceCell<Result<(), String>>,
    billing: OnceCell<Result<(), String>>,
    reached: Mutex<BTreeMap<String, Result<(), String>>>,
    served: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Checks {
    /// Checks against the kinds of this version; `backup` where a bucket is set.
    #[must_use]
    pub fn new(kinds: Kinds, backup: Option<BackupContext>) -> Self {
        Self {
            kinds,
            backup,
            calls: None,
            stripe: None,
            agents: None,
            bucket: OnceCell::new(),
            billing: OnceCell::new(),
            reached: Mutex::default(),
            served: Mutex::default(),
        }
    }

    /// With calls and recordings, whose bucket and tables are asked too.
    #[must_use]
    pub fn with_calls(self, calls: CallContexts) -> Self {
        Self { calls: Some(calls), ..self }
    }

    /// With the way to Stripe, which is asked whether it answers before its jobs are put back.
    #[must_use]
    pub fn with_stripe(self, stripe: Option<Stripe>) -> Self {
        Self { stripe, ..self }
    }

    /// With the agents, each of which is asked whether it can be reached before a job that calls it is put back.
    #[must_use]
    pub fn with_agents(self, agents: Option<OrchestrationContext>) -> Self {
        Self { agents, ..self }
    }

    /// Checks one dead job.
    pub(super) async fn check(&self, desk: &Desk, job: &JobView) -> Result<(), Refusal> {
        let payload = job.payload.as_ref().map_or("", |payload| payload.get());
        match self.kinds.get(&job.kind) {
            Some(kind) => kind.check_payload(payload).map_err(|problem| {
                Refusal::new("bad_payload", format!("its payload does not parse: {problem}"))
            })?,
            // Another process of the same version may be told to handle more kinds than this one.
            None if self.is_served(desk, job).await => {}
            None => {
                let message =
                    format!("no handler for kind `{}` in this version, and no live worker has one", job.kind);
                return Err(Refusal::new("no_handler", message));
            }
        }
        if job.unique.is_some()
            && let Some(holder) = key_holder(desk, job).await
        {
            let message = format!("a newer job holds its unique key: {holder}");
            return Err(Refusal::new("unique_key_held", message));
        }
        self.precondition(job, payload).await
    }

    async fn is_served(&self, desk: &Desk, job: &JobView) -> bool {
        let mut served = self.served.lock().await;
        if !served.contains_key(&job.queue) {
            let kinds = crate::operate::schedules::served(&desk.client, &job.queue).await;
            served.insert(job.queue.clone(), kinds);
        }
        served.get(&job.queue).is_some_and(|kinds| kinds.contains(&job.kind))
    }

    /// The kind's own precondition.
    async fn precondition(&self, job: &JobView, payload: &str) -> Result<(), Refusal> {
        let kind = job.kind.as_str();
        if ORDERS.contains(&kind) {
            return self.agents_answer(job, payload).await;
        }
        if kind == PostCall::KIND || kind == RecordingProcess::KIND {
            return calls::precondition(self.calls.as_ref(), kind, payload).await;
        }
        if kind == BillingPause::KIND || (kind == SubscriptionsMaintain::KIND && self.stripe.is_some()) {
            let answers = self.billing.get_or_init(|| async {
                match &self.stripe {
                    Some(stripe) => stripe.probe().await.map_err(|error| error.to_string()),
                    None => Err("STRIPE_SECRET_KEY is not set".to_owned()),
                }
            });
            return answers.await.clone().map_err(|problem| Refusal::new("stripe_unreachable", problem));
        }
        if kind != BackupDatabase::KIND {
            return Ok(());
        }
        let looked = self.bucket.get_or_init(|| async {
            match &self.backup {
                Some(backup) => backup.store.check().await.map_err(|error| error.to_string()),
                None => Err("S3_BUCKET is not set".to_owned()),
            }
        });
        looked.await.clone().map_err(|problem| Refusal::new("bucket_unreachable", problem))
    }

    /// Whether each agent that the job would call can be reached; without an agent's work nothing would come of it but another death.
    async fn agents_answer(&self, job: &JobView, payload: &str) -> Result<(), Refusal> {
        let unreachable = |problem: String| Refusal::new("agents_unreachable", problem);
        let Some(context) = &self.agents else {
            return Err(unreachable("ORCHESTRATION_AGENTS_URL is not set".to_owned()));
        };
        let order: Order = serde_json::from_str(payload)
            .map_err(|error| Refusal::new("bad_payload", format!("its payload does not parse: {error}")))?;
        let left = context.agents_left(job.id.as_str(), &job.kind, &order).await;
        let agents = left.map_err(|problem| Refusal::new("unusable_order", problem))?;
        let mut reached = self.reached.lock().await;
        for agent in agents {
            let answer = match reached.get(&agent) {
                Some(answer) => answer.clone(),
                None => {
                    let answer = context.client.probe(&agent).await;
                    reached.insert(agent.clone(), answer.clone());
                    answer
                }
            };
            answer.map_err(|problem| unreachable(format!("agent {agent}: {problem}")))?;
        }
        Ok(())
    }

    /// Work of a kind that was never enqueued, by the kind's finder.
    ///
    /// # Errors
    /// Refused (4) for a kind without one.
    pub(super) async fn missing(&self, desk: &Desk, wanted: &Wanted) -> Result<Vec<Candidate>, Failure> {
        let kind = wanted.kind.clone().unwrap_or_default();
        if kind == PostCall::KIND {
            return calls::unclosed(desk, self.calls.as_ref(), wanted).await;
        }
        if kind == RecordingProcess::KIND {
            return calls::unprocessed(desk, self.calls.as_ref(), wanted).await;
        }
        let since = wanted.since.map_or(Timestamp::MIN, |since| since.timestamp(Timestamp::now()));
        if kind == BackupDatabase::KIND {
            return self.missing_backup(desk, since).await;
        }
        Err(Failure::refused(
            "no_finder",
            format!("kind `{kind}` has no finder: nothing tells which of its jobs were never enqueued"),
            "Enqueue what is missing with `jobs enqueue`.",
        ))
    }

    /// A backup is missing when the bucket holds none of this database from `since` on, and none is on its way.
    async fn missing_backup(&self, desk: &Desk, since: Timestamp) -> Result<Vec<Candidate>, Failure> {
        let Some(backup) = &self.backup else {
            return Err(Failure::refused(
                "no_bucket",
                "S3_BUCKET is not set, so no backup can be missing",
                "Set S3_BUCKET.",
            ));
        };
        let newest = match backup::find(backup, "latest").await {
            Ok((_, manifest)) => Some(manifest.snapshot_at),
            Err(BackupError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if newest.is_some_and(|newest| newest >= since) {
            return Ok(Vec::new());
        }
        let job = BackupDatabase::default();
        let payload = serde_json::to_value(&job).unwrap_or_default();
        // One id for one gap: two operators who fill the same one enqueue one job.
        let id = format!("missing:{}:{}", BackupDatabase::KIND, newest.unwrap_or(since).as_second());
        let on_its_way = crate::operate::jobs::locate(&desk.client, Some(BackupDatabase::QUEUE), &id).await?;
        let refused =
            on_its_way.map(|job| Refusal::new("on_its_way", format!("job {id} is {}", job.state.as_str())));
        Ok(vec![Candidate {
            place: BackupDatabase::QUEUE.to_owned(),
            id,
            content: Some(json!({ "kind": BackupDatabase::KIND, "payload": payload })),
            shown: json!({
                "queue": BackupDatabase::QUEUE,
                "kind": BackupDatabase::KIND,
                "newest_backup_at": newest,
                "since": since,
            }),
            refused,
        }])
    }
}
