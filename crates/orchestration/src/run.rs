//! One attempt of an orchestration job: analyze, decide, execute, verify, complete.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;
use voiceai_postgres::PgPool;
use voiceai_queue::{Attempt, JobError, Outcome, Stop};

use crate::OrchestrationSettings;
use crate::answer::{Again, Failed, Heard, Report};
use crate::budget::Scope;
use crate::client::{Call, Client};
use crate::conclude::{AgentEnd, Conclusion, conclude};
use crate::error::{OrchestrationError, chain};
use crate::order::{JobType, Order};
use crate::store::{self, Begin, Begun, Earlier, End};
use crate::trail::Trail;
use crate::{limits, metrics, tell};

/// After so long it is looked again whether others left something of what an agent may do by itself.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// What orchestration jobs work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OrchestrationContext {
    /// The rows.
    pub pool: PgPool,
    /// The agents.
    pub client: Client,
    /// Which agents there are, and the limits.
    pub settings: Arc<OrchestrationSettings>,
    /// Longest time of one attempt, as the queue applies it; rows say it.
    pub limit: Duration,
}

impl OrchestrationContext {
    /// The agents that a dead job would call if it were put back: those that it means and that have not done their work.
    ///
    /// # Errors
    /// What is wrong with the order, or with reading what was done, in words.
    pub async fn agents_left(&self, id: &str, kind: &str, order: &Order) -> Result<Vec<String>, String> {
        let kind = JobType::of_kind(kind).ok_or_else(|| format!("kind {kind:?} calls no agents"))?;
        let words = |error: OrchestrationError| chain(&error);
        let parent = match order.parent() {
            Some(parent) => store::parent(&self.pool, parent).await.map_err(words)?,
            None => None,
        };
        let agents =
            plan(order, kind, &self.settings, parent.as_ref().map(|parent| parent.agents.as_slice()))?;
        let done = store::succeeded(&self.pool, id).await.map_err(words)?;
        Ok(agents.into_iter().filter(|agent| !done.contains(agent)).collect())
    }
}

/// Runs one attempt. An agent that succeeded once is never called again; every call of an agent within a line of retries has
/// the same `Idempotency-Key`.
pub(crate) async fn run(
    order: &Order,
    kind: JobType,
    ctx: &OrchestrationContext,
    attempt: &Attempt,
) -> Result<Outcome, JobError> {
    let id = attempt.id().as_str();
    let parent = match order.parent() {
        Some(parent) => store::parent(&ctx.pool, parent).await?,
        None => None,
    };
    let plan = plan(order, kind, &ctx.settings, parent.as_ref().map(|parent| parent.agents.as_slice()));
    let (agents, problem) = match plan {
        Ok(agents) => (agents, None),
        Err(problem) => (order.agent_slug.iter().cloned().collect(), Some(problem)),
    };
    let begin = Begin { id, order, kind, agents: &agents, limit: ctx.limit };
    let (root, epoch) = match store::begin(&ctx.pool, &begin, parent.as_ref()).await? {
        Begun::Now { root, epoch } => (root, epoch),
        Begun::Done(summary) => return Ok(Outcome::DoneWith(serde_json::to_value(summary)?)),
    };
    tell::one(&ctx.pool, id).await;
    if let Some(problem) = problem {
        let end = End::Failed { retryable: false };
        store::end(&ctx.pool, id, Some(epoch), end, Some("unusable_order"), Some(&problem)).await?;
        tell::one(&ctx.pool, id).await;
        return Err(JobError::discard(problem));
    }
    let trail = Trail {
        pool: ctx.pool.clone(),
        job: id.to_owned(),
        root,
        project: order.project_id.clone(),
        attempt: i32::try_from(attempt.number()).unwrap_or(i32::MAX),
        replays: i32::try_from(attempt.replays()).unwrap_or(i32::MAX),
        epoch,
    };
    let run = Run { order: order.clone(), kind, ctx: ctx.clone(), attempt: attempt.clone(), trail };
    let run = Arc::new(run);
    let ends = run.agents(&agents).await;
    let outcome = match attempt.stopped() {
        Some(why) => run.stopped(why).await,
        None => run.complete(&ends?).await,
    };
    tell::one(&ctx.pool, id).await;
    outcome
}

/// The agents that an order means.
fn plan(
    order: &Order,
    kind: JobType,
    settings: &OrchestrationSettings,
    of_parent: Option<&[String]>,
) -> Result<Vec<String>, String> {
    let known = |agent: &str| {
        if settings.knows(agent) {
            return Ok(vec![agent.to_owned()]);
        }
        let names = settings.agents.join(", ");
        Err(format!(
            "agent {agent:?} is unknown: ORCHESTRATION_AGENTS names {}; add it there, or correct agentSlug",
            if names.is_empty() { "none" } else { &names }
        ))
    };
    match (kind, &order.agent_slug, of_parent) {
        (JobType::GithubAnalysis, None, _) => Ok(vec![settings.github_agent.clone()]),
        (JobType::SingleAgent | JobType::GithubAnalysis | JobType::Retry, Some(agent), _) => known(agent),
        (JobType::Retry, None, Some(agents)) if !agents.is_empty() => Ok(agents.to_vec()),
        _ if settings.agents.is_empty() => {
            Err("ORCHESTRATION_AGENTS names no agent: a batch has nobody to call; set it".to_owned())
        }
        _ => Ok(settings.agents.clone()),
    }
}

struct Run {
    order: Order,
    kind: JobType,
    ctx: OrchestrationContext,
    attempt: Attempt,
    trail: Trail,
}

impl Run {
    /// Every agent, some at a time, until each has ended or the attempt has to stop.
    async fn agents(self: &Arc<Self>, agents: &[String]) -> Result<Vec<(String, AgentEnd)>, JobError> {
        self.trail.close_open().await?;
        let earlier =
            store::earlier(&self.ctx.pool, &self.trail.root, &self.trail.job, self.attempt.replays()).await?;
        let done: Vec<_> = agents
            .iter()
            .filter(|agent| earlier.get(*agent).is_some_and(|earlier| earlier.succeeded))
            .collect();
        let detail =
            json!({ "agents": agents, "done_before": done, "triggered_by": self.order.triggered_by });
        self.trail.phase(None, "analyze", "completed", "", detail).await?;
        // A task each: one that is not polled for a while would hold what it waits for, such as the queue's connection.
        let mut waiting: VecDeque<_> = agents.iter().cloned().collect();
        let mut running = JoinSet::new();
        let mut ends = Vec::with_capacity(agents.len());
        loop {
            while running.len() < self.ctx.settings.concurrency
                && let Some(agent) = waiting.pop_front()
            {
                let (run, before) = (Arc::clone(self), earlier.get(&agent).cloned());
                let call = async move {
                    let end = run.agent(&agent, before.as_ref()).await;
                    (agent, end)
                };
                running.spawn(call.in_current_span());
            }
            let Some(ended) = running.join_next().await else { break };
            // A row that cannot be written ends the attempt, but not before the other calls have come back.
            ends.push(ended.map_err(|error| JobError::retry(format!("a call ended abnormally: {error}")))?);
            let progress = format!("{} of {} agents", ends.len(), agents.len());
            if self.attempt.stopped().is_none()
                && let Err(error) = self.attempt.progress(progress).await
            {
                tracing::debug!(%error, "progress cannot be reported");
            }
        }
        // In the order of the plan, whoever came back first.
        ends.sort_by_key(|(agent, _)| agents.iter().position(|known| known == agent));
        ends.into_iter().map(|(agent, end)| Ok((agent, end?))).collect()
    }

    /// One agent: decide, execute, verify.
    async fn agent(&self, agent: &str, earlier: Option<&Earlier>) -> Result<AgentEnd, JobError> {
        match earlier {
            Some(Earlier { succeeded: true, .. }) => return Ok(AgentEnd::Succeeded),
            Some(Earlier { skipped: true, .. }) => return Ok(AgentEnd::Skipped),
            Some(Earlier { refused: Some(error), .. }) => {
                return Ok(AgentEnd::Failed { error: error.clone(), is_final: true });
            }
            _ => {}
        }
        if self.attempt.stopped().is_some() {
            return Ok(stopping());
        }
        // Asked first: what is granted to an agent that is not called would be nobody's for a while.
        if let Some(span) = store::resting(&self.ctx.pool, agent).await? {
            let words = format!("it asked for time: {} s more", span.as_secs().max(1));
            self.trail.phase(Some(agent), "decide", "skipped", &words, json!({})).await?;
            return Ok(AgentEnd::Resting(span));
        }
        let scope = self.scope(agent).await?;
        if let Scope::Nothing(reasons) = &scope {
            let reason = format!("autonomous_action_config lets it do nothing now: {reasons}");
            self.trail.skip(agent, &reason).await?;
            self.tell(agent, &format!("passed over: {reason}")).await;
            return Ok(AgentEnd::Skipped);
        }
        if let Scope::Busy(reasons) = &scope {
            let words = format!("others may be doing what autonomous_action_config leaves: {reasons}");
            self.trail.phase(Some(agent), "decide", "skipped", &words, json!({})).await?;
            return Ok(AgentEnd::Resting(BUSY_WAIT));
        }
        self.trail.phase(Some(agent), "decide", "completed", "", granted(&scope)).await?;
        self.execute(agent, &scope).await
    }

    async fn scope(&self, agent: &str) -> Result<Scope, OrchestrationError> {
        if !self.order.triggered_by.is_autonomous() {
            return Ok(Scope::Unlimited);
        }
        let caller = limits::Caller {
            project: &self.order.project_id,
            agent,
            root: &self.trail.root,
            job: &self.trail.job,
            limit: self.ctx.limit,
        };
        limits::grant(&self.ctx.pool, caller, Timestamp::now()).await
    }

    async fn execute(&self, agent: &str, scope: &Scope) -> Result<AgentEnd, JobError> {
        let Some(begun) = self.trail.begin_call(agent).await? else { return Ok(AgentEnd::Succeeded) };
        let (calls, phase) = begun;
        let call = Call {
            agent: agent.to_owned(),
            key: format!("{}:{agent}", self.trail.root),
            body: self.body(agent, calls, scope).to_string(),
            trace: self.attempt.trace().map(str::to_owned),
        };
        let began = Instant::now();
        let heard = tokio::select! {
            biased;
            heard = self.ctx.client.call(&call) => heard,
            () = self.attempt.cancelled().cancelled() => {
                return self.cut_off(&call, begun, began.elapsed()).await;
            }
        };
        let took = began.elapsed();
        metrics::get().called(&heard, took);
        match heard {
            Heard::Done(report) => self.verify(agent, phase, &report, scope, took).await,
            Heard::Failed(failed) => self.failed(agent, begun, failed, took).await,
        }
    }

    /// The attempt has to stop. Where the job is over, the agent is told; where it goes on elsewhere, it is asked again there.
    async fn cut_off(&self, call: &Call, begun: (i32, i64), took: Duration) -> Result<AgentEnd, JobError> {
        let why = self.attempt.stopped();
        let is_over =
            matches!(why, Some(Stop::Cancelled)) || (why == Some(Stop::TimedOut) && self.attempt.is_last());
        let error = match why {
            Some(Stop::Cancelled) => "the job was cancelled",
            Some(Stop::TimedOut) => "the job's time was over",
            _ => "the process stops, or another has the job",
        };
        let failed = Failed { status: None, error: error.to_owned(), again: Again::Later };
        if why == Some(Stop::LeaseLost) {
            // Another process may be at it already: its rows are not to be touched.
            return Ok(stopping());
        }
        let told = async {
            if is_over {
                self.ctx.client.cancel(call).await;
            }
        };
        let (noted, ()) = tokio::join!(self.trail.failed(&call.agent, begun, &failed, took), told);
        noted?;
        Ok(stopping())
    }

    async fn verify(
        &self,
        agent: &str,
        phase: i64,
        report: &Report,
        scope: &Scope,
        took: Duration,
    ) -> Result<AgentEnd, JobError> {
        self.trail.done(agent, phase, report, took).await?;
        if !report.actions.is_empty() {
            limits::count(&self.ctx.pool, &self.order.project_id, agent, &report.actions).await?;
        }
        let beyond = beyond(report, scope);
        let detail = json!({ "tasks_created": report.tasks, "suggestions_created": report.suggestions,
            "actions": report.actions, "not_granted": beyond });
        let (status, words) = if beyond.is_empty() {
            (if report.did_nothing { "do_nothing" } else { "completed" }, String::new())
        } else {
            let words = format!("it did what it was not granted: {}", beyond.join(", "));
            tracing::warn!(agent, project = self.order.project_id, job.id = self.trail.job, "{words}");
            ("failed", words)
        };
        self.trail.phase(Some(agent), "verify", status, &words, detail).await?;
        self.tell(agent, &format!("done: {} tasks, {} suggestions", report.tasks, report.suggestions)).await;
        Ok(AgentEnd::Succeeded)
    }

    async fn failed(
        &self,
        agent: &str,
        begun: (i32, i64),
        failed: Failed,
        took: Duration,
    ) -> Result<AgentEnd, JobError> {
        self.trail.failed(agent, begun, &failed, took).await?;
        self.tell(agent, &format!("failed: {}", failed.error)).await;
        if let Again::After(wish) = failed.again {
            let span = wish.min(self.ctx.settings.retry_after_max);
            store::rest(&self.ctx.pool, agent, span, &failed.error).await?;
            return Ok(AgentEnd::Resting(span));
        }
        Ok(AgentEnd::Failed { error: failed.error, is_final: failed.again == Again::Never })
    }

    /// The body of a call.
    fn body(&self, agent: &str, calls: i32, scope: &Scope) -> Value {
        let mut body = json!({
            "jobId": self.trail.job,
            "rootJobId": self.trail.root,
            "jobType": self.kind.word(),
            "projectId": self.order.project_id,
            "agentSlug": agent,
            "triggeredBy": self.order.triggered_by,
            "call": calls,
            "context": self.order.context,
        });
        if let Some(user) = &self.order.user_id {
            body["userId"] = json!(user);
        }
        if self.kind == JobType::GithubAnalysis || self.order.context.contains_key("periodHours") {
            body["periodHours"] = json!(self.order.period_hours());
        }
        if let Scope::Limited(actions) = scope {
            body["allowedActions"] = json!(actions);
        }
        body
    }

    /// A line in the job's own log. Losing it loses nothing that counts.
    async fn tell(&self, agent: &str, words: &str) {
        if let Err(error) = self.attempt.log(format!("{agent}: {words}")).await {
            tracing::debug!(%error, "a line of the job's log is lost");
        }
    }

    async fn complete(&self, ends: &[(String, AgentEnd)]) -> Result<Outcome, JobError> {
        let age = Timestamp::now().duration_since(self.attempt.enqueued_at());
        let conclusion = conclude(ends, Duration::try_from(age).unwrap_or_default());
        let (end, code, words) = match &conclusion {
            Conclusion::Done => (End::Completed, None, None),
            Conclusion::Again(words) if self.attempt.is_last() => {
                (End::Failed { retryable: true }, Some("agents_failed"), Some(words.as_str()))
            }
            Conclusion::Again(words) => (End::Again, Some("agents_failed"), Some(words.as_str())),
            Conclusion::Dead(words) => {
                (End::Failed { retryable: false }, Some("agents_refused"), Some(words.as_str()))
            }
            Conclusion::Wait(_) => {
                (End::Again, Some("agents_resting"), Some("waits for agents that asked for time"))
            }
        };
        let summary =
            store::end(&self.ctx.pool, &self.trail.job, Some(self.trail.epoch), end, code, words).await?;
        let status = if end == End::Completed { "completed" } else { "failed" };
        let value = serde_json::to_value(&summary)?;
        self.trail.phase(None, "complete", status, words.unwrap_or(""), value.clone()).await?;
        match conclusion {
            Conclusion::Done => Ok(Outcome::DoneWith(value)),
            Conclusion::Again(words) => Err(JobError::retry(words)),
            Conclusion::Dead(words) => Err(JobError::discard(words)),
            Conclusion::Wait(span) => Ok(Outcome::Snooze(span)),
        }
    }

    /// The attempt was stopped: what is known is written, and the queue decides what becomes of the job.
    async fn stopped(&self, why: Stop) -> Result<Outcome, JobError> {
        let (end, code, words) = match why {
            Stop::Cancelled => (End::Cancelled, "cancelled", "cancelled while it ran"),
            Stop::TimedOut if self.attempt.is_last() => {
                (End::TimedOut, "timeout", "the last attempt's time was over")
            }
            Stop::TimedOut => (End::Again, "timeout", "the attempt's time was over"),
            Stop::ShuttingDown => (End::Again, "returned", "the process stopped; the job goes on elsewhere"),
            Stop::LeaseLost => {
                return Err(JobError::retry("the lease is lost: another worker may have the job"));
            }
        };
        let ended =
            store::end(&self.ctx.pool, &self.trail.job, Some(self.trail.epoch), end, Some(code), Some(words))
                .await;
        if let Err(error) = ended {
            // The queue's history tells it later.
            tracing::warn!(
                error = chain(&error),
                job.id = self.trail.job,
                "a stopped job's row cannot be written now"
            );
        }
        Err(JobError::retry(words))
    }
}

/// What stands for an agent whose call was cut off: nobody reads it, since the attempt has stopped.
fn stopping() -> AgentEnd {
    AgentEnd::Failed { error: "the attempt was stopped".to_owned(), is_final: false }
}

fn granted(scope: &Scope) -> Value {
    match scope {
        Scope::Limited(actions) => json!({ "allowed_actions": actions }),
        Scope::Unlimited | Scope::Nothing(_) | Scope::Busy(_) => json!({}),
    }
}

/// The actions that were taken more often than granted.
fn beyond(report: &Report, scope: &Scope) -> Vec<String> {
    let Scope::Limited(granted) = scope else { return Vec::new() };
    let over = report.actions.iter().filter(|(key, count)| **count > granted.get(*key).copied().unwrap_or(0));
    over.map(|(key, count)| format!("{key} {count} times")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::order::Trigger;

    fn settings(agents: &[&str]) -> OrchestrationSettings {
        OrchestrationSettings {
            agents_url: None,
            token: None,
            agents: agents.iter().map(|&agent| agent.to_owned()).collect(),
            github_agent: "github-analysis".to_owned(),
            timeout: Duration::from_secs(1),
            concurrency: 1,
            response_bytes_max: 1,
            retry_after_max: Duration::ZERO,
            keep_jobs: Duration::ZERO,
            keep_logs: Duration::ZERO,
        }
    }

    #[test]
    fn each_type_names_its_agents() {
        let order = |agent: Option<&str>| Order {
            agent_slug: agent.map(str::to_owned),
            ..Order::new("p", Trigger::Manual)
        };
        let parent = ["b".to_owned()];
        for (kind, agent, of_parent, expected) in [
            (JobType::Batch, None, None, Ok(vec!["a", "b"])),
            (JobType::SingleAgent, Some("b"), None, Ok(vec!["b"])),
            (
                JobType::SingleAgent,
                Some("c"),
                None,
                Err("agent \"c\" is unknown: ORCHESTRATION_AGENTS names a, b"),
            ),
            (JobType::SingleAgent, Some("github-analysis"), None, Ok(vec!["github-analysis"])),
            (JobType::GithubAnalysis, None, None, Ok(vec!["github-analysis"])),
            (JobType::Retry, None, Some(&parent[..]), Ok(vec!["b"])),
            (JobType::Retry, None, None, Ok(vec!["a", "b"])),
            (JobType::Retry, Some("a"), Some(&parent[..]), Ok(vec!["a"])),
        ] {
            let planned = plan(&order(agent), kind, &settings(&["a", "b"]), of_parent);
            match expected {
                Ok(names) => assert_eq!(planned.unwrap(), names, "{kind:?} {agent:?}"),
                Err(says) => assert!(planned.unwrap_err().contains(says)),
            }
        }
        assert!(
            plan(&order(None), JobType::Batch, &settings(&[]), None).unwrap_err().contains("names no agent")
        );
    }
}
