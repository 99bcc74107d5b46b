//! The payload of an orchestration job, and its id.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use voiceai_config::catalogue::orchestration::is_slug as is_agent_name;

/// Longest id of a project: with it a job's id still fits.
const PROJECT_MAX: usize = 80;

/// Who caused a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A schedule.
    Cron,
    /// An event of another service.
    Webhook,
    /// A person.
    #[default]
    Manual,
    /// A program.
    Api,
    /// The platform itself.
    System,
    /// The hourly look for failed jobs.
    RetryScheduler,
}

impl Trigger {
    /// The word on the wire and in rows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cron => "cron",
            Self::Webhook => "webhook",
            Self::Manual => "manual",
            Self::Api => "api",
            Self::System => "system",
            Self::RetryScheduler => "retry_scheduler",
        }
    }

    /// Whether nobody asked for this very run: then the limits of `autonomous_action_config` hold.
    #[must_use]
    pub const fn is_autonomous(self) -> bool {
        !matches!(self, Self::Manual | Self::Api)
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobType {
    /// Calls every agent.
    Batch,
    /// Calls one.
    SingleAgent,
    /// Calls the agent that looks at the project's repository.
    GithubAnalysis,
    /// Calls those agents of a failed job that did not succeed.
    Retry,
}

impl JobType {
    /// The word on the wire and in rows; a job's kind is `orchestration-` and this.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::SingleAgent => "single_agent",
            Self::GithubAnalysis => "github_analysis",
            Self::Retry => "retry",
        }
    }

    /// The type of a kind's jobs; `None` for a kind that is none of these.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        [Self::Batch, Self::SingleAgent, Self::GithubAnalysis, Self::Retry]
            .into_iter()
            .find(|own| own.kind() == kind)
    }

    /// The kind of its jobs.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Batch => "orchestration-batch",
            Self::SingleAgent => "orchestration-single_agent",
            Self::GithubAnalysis => "orchestration-github_analysis",
            Self::Retry => "orchestration-retry",
        }
    }
}

/// The payload of an orchestration job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The project whose agents are called.
    pub project_id: String,
    /// Who caused it.
    #[serde(default)]
    pub triggered_by: Trigger,
    /// For whom, where a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// 1 to 10, as the enqueuer gave it; the queue's own is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// What to do; absent: as the kind says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,
    /// The agent of a single call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_slug: Option<String>,
    /// Handed to the agents as it is. Read here: `periodHours` by github_analysis, `parentJobId` by retry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, Value>,
}

impl Order {
    /// An order with nothing but a project.
    #[must_use]
    pub fn new(project: impl Into<String>, triggered_by: Trigger) -> Self {
        Self {
            project_id: project.into(),
            triggered_by,
            user_id: None,
            priority: None,
            job_type: None,
            agent_slug: None,
            context: BTreeMap::new(),
        }
    }

    /// Checks it as the payload of a job of `kind`.
    ///
    /// # Errors
    /// The field, what is wrong, and what it should be.
    pub fn check(&self, kind: JobType) -> Result<(), String> {
        check_project(&self.project_id)?;
        if self.job_type.is_some_and(|given| given != kind) {
            let given = self.job_type.map_or("", JobType::word);
            return Err(format!(
                "jobType is {given}, but the job's kind is {}: enqueue orchestration-{given}",
                kind.kind()
            ));
        }
        if self.priority.is_some_and(|priority| !(1..=10).contains(&priority)) {
            return Err("priority is out of bounds: 1 to 10, higher first".to_owned());
        }
        match (&self.agent_slug, kind) {
            (None, JobType::SingleAgent) => {
                return Err("agentSlug is missing: name the agent to call".to_owned());
            }
            (Some(agent), _) if !is_agent_name(agent) => {
                return Err(format!(
                    "agentSlug {agent:?} is no agent's name: 1 to 50 of a-z, 0-9, `-` and `_`"
                ));
            }
            _ => {}
        }
        if let Some(hours) = self.context.get("periodHours")
            && !hours.as_u64().is_some_and(|hours| (1..=8_784).contains(&hours))
        {
            return Err(format!("context.periodHours is {hours}: hours from 1 to 8784 are needed"));
        }
        if let Some(parent) = self.context.get("parentJobId")
            && !parent.as_str().is_some_and(|id| !id.is_empty() && id.len() <= 128)
        {
            return Err(format!("context.parentJobId is {parent}: the id of a job is needed"));
        }
        Ok(())
    }

    /// How far back a look at the repository goes. Default a day.
    #[must_use]
    pub fn period_hours(&self) -> u64 {
        self.context.get("periodHours").and_then(Value::as_u64).unwrap_or(24)
    }

    /// The failed job that a retry is for.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.context.get("parentJobId").and_then(Value::as_str)
    }
}

/// Refuses what cannot be a project's id.
pub(crate) fn check_project(project: &str) -> Result<(), String> {
    let fits = (1..=PROJECT_MAX).contains(&project.len())
        && !project.chars().any(|c| c.is_whitespace() || c.is_control());
    if fits {
        Ok(())
    } else {
        Err(format!("projectId {project:?} is not usable: 1 to {PROJECT_MAX} bytes without blanks"))
    }
}

/// The id of an orchestration job: `orch-<project>-<epoch ms>`, with `-<suffix>` where more than one may fall into a millisecond.
#[must_use]
pub fn job_id(project: &str, at: Timestamp, suffix: Option<&str>) -> String {
    let moment = at.as_millisecond();
    suffix.map_or_else(
        || format!("orch-{project}-{moment}"),
        |suffix| format!("orch-{project}-{moment}-{suffix}"),
    )
}

/// An id with a random end.
#[must_use]
pub fn new_job_id(project: &str) -> String {
    let random: u32 = rand::random();
    job_id(project, Timestamp::now(), Some(&format!("{random:08x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Order {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_platforms_payload_is_read() {
        let order = read(
            r#"{"projectId":"p-1","triggeredBy":"retry_scheduler","userId":"u","priority":8,"jobType":"github_analysis",
                "context":{"periodHours":48}}"#,
        );
        assert_eq!(order.check(JobType::GithubAnalysis), Ok(()));
        assert_eq!((order.period_hours(), order.triggered_by), (48, Trigger::RetryScheduler));
        assert_eq!(read(r#"{"projectId":"p-1"}"#).period_hours(), 24);
        assert_eq!(
            serde_json::to_string(&read(r#"{"projectId":"p-1"}"#)).unwrap(),
            r#"{"projectId":"p-1","triggeredBy":"manual"}"#
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, kind, says) in [
            (r#"{"projectId":""}"#, JobType::Batch, "projectId"),
            (r#"{"projectId":"a b"}"#, JobType::Batch, "projectId"),
            (r#"{"projectId":"p","jobType":"batch"}"#, JobType::Retry, "jobType is batch"),
            (r#"{"projectId":"p"}"#, JobType::SingleAgent, "agentSlug is missing"),
            (r#"{"projectId":"p","agentSlug":"../x"}"#, JobType::SingleAgent, "agentSlug"),
            (r#"{"projectId":"p","priority":11}"#, JobType::Batch, "1 to 10"),
            (r#"{"projectId":"p","context":{"periodHours":0}}"#, JobType::GithubAnalysis, "periodHours"),
            (r#"{"projectId":"p","context":{"parentJobId":7}}"#, JobType::Retry, "parentJobId"),
        ] {
            let problem = read(json).check(kind).unwrap_err();
            assert!(problem.contains(says), "{json}: {problem}");
        }
    }

    #[test]
    fn ids_are_made_of_project_and_moment() {
        let at = "2026-11-22T10:00:00.123Z".parse().unwrap();
        assert_eq!(job_id("acme", at, None), "orch-acme-1795341600123");
        assert_ne!(new_job_id("acme"), new_job_id("acme"));
        assert!(voiceai_queue::JobId::chosen(new_job_id(&"x".repeat(PROJECT_MAX))).is_ok());
    }
}
