use std::time::Duration;

use url::Url;
use voiceai_config::Reader;
use voiceai_config::catalogue::orchestration as names;
use voiceai_runtime::Secret;

/// The settings of orchestration.
#[derive(Debug, Clone)]
pub struct OrchestrationSettings {
    /// `ORCHESTRATION_AGENTS_URL`; absent: no agent is ever called.
    pub agents_url: Option<Url>,
    /// `ORCHESTRATION_AGENTS_TOKEN` as it was when they were read: it may change since.
    pub token: Option<Secret>,
    /// `ORCHESTRATION_AGENTS`, in the order in which a batch calls them.
    pub agents: Vec<String>,
    /// `ORCHESTRATION_GITHUB_AGENT`.
    pub github_agent: String,
    /// `ORCHESTRATION_AGENT_TIMEOUT`.
    pub timeout: Duration,
    /// `ORCHESTRATION_AGENT_CONCURRENCY`. In one job.
    pub concurrency: usize,
    /// `ORCHESTRATION_RESPONSE_BYTES_MAX`.
    pub response_bytes_max: usize,
    /// `ORCHESTRATION_RETRY_AFTER_MAX`.
    pub retry_after_max: Duration,
    /// `ORCHESTRATION_JOB_RETENTION`.
    pub keep_jobs: Duration,
    /// `ORCHESTRATION_LOG_RETENTION`.
    pub keep_logs: Duration,
}

impl OrchestrationSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        let count = |setting| usize::try_from(reader.get(setting)).unwrap_or(usize::MAX);
        Self {
            agents_url: reader.optional(&names::ORCHESTRATION_AGENTS_URL),
            token: reader.optional(&names::ORCHESTRATION_AGENTS_TOKEN),
            agents: reader.optional(&names::ORCHESTRATION_AGENTS).unwrap_or_default(),
            github_agent: reader.get(&names::ORCHESTRATION_GITHUB_AGENT),
            timeout: reader.get(&names::ORCHESTRATION_AGENT_TIMEOUT),
            concurrency: count(&names::ORCHESTRATION_AGENT_CONCURRENCY),
            response_bytes_max: count(&names::ORCHESTRATION_RESPONSE_BYTES_MAX),
            retry_after_max: reader.get(&names::ORCHESTRATION_RETRY_AFTER_MAX),
            keep_jobs: reader.get(&names::ORCHESTRATION_JOB_RETENTION),
            keep_logs: reader.get(&names::ORCHESTRATION_LOG_RETENTION),
        }
    }

    /// Whether `agent` may be called.
    #[must_use]
    pub fn knows(&self, agent: &str) -> bool {
        agent == self.github_agent || self.agents.iter().any(|known| known == agent)
    }
}
