//! The kinds of orchestration-queue, and the two that keep it in order.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use voiceai_queue::{Attempt, Job, JobError, Outcome, RetryPolicy};

use crate::order::{JobType, Order};
use crate::run::{OrchestrationContext, run};
use crate::{cleanup, retry_failed};

/// The queue of every orchestration job.
pub const QUEUE: &str = "orchestration-queue";
/// Priority of an order that names none.
pub const PRIORITY: u8 = 5;
/// Longest time of one attempt.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $kind:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "Order", into = "Order")]
        pub struct $name(pub Order);

        impl TryFrom<Order> for $name {
            type Error = String;

            fn try_from(order: Order) -> Result<Self, String> {
                order.check($kind).map(|()| Self(order))
            }
        }

        impl From<$name> for Order {
            fn from(job: $name) -> Self {
                job.0
            }
        }

        impl Job for $name {
            const KIND: &'static str = $kind.kind();
            const QUEUE: &'static str = QUEUE;
            const RETRY: RetryPolicy = RetryPolicy::exponential(Duration::from_secs(30), 3);
            const ATTEMPT_TIMEOUT: Duration = ATTEMPT_TIMEOUT;
            const PRIORITY: u8 = PRIORITY;
            type Context = OrchestrationContext;

            async fn run(&self, ctx: &OrchestrationContext, attempt: &Attempt) -> Result<Outcome, JobError> {
                Box::pin(run(&self.0, $kind, ctx, attempt)).await
            }
        }
    };
}

kind!(
    /// Calls every agent of `ORCHESTRATION_AGENTS` for a project.
    Batch,
    JobType::Batch
);
kind!(
    /// Calls one agent for a project.
    SingleAgent,
    JobType::SingleAgent
);
kind!(
    /// Calls the agent that looks at a project's repository.
    GithubAnalysis,
    JobType::GithubAnalysis
);
kind!(
    /// Calls those agents of a failed job that did not succeed.
    Retry,
    JobType::Retry
);

/// Looks for failed jobs and enqueues a retry of each, once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryFailed {}

impl Job for RetryFailed {
    const KIND: &'static str = "orchestration.retry-failed";
    type Context = OrchestrationContext;

    async fn run(&self, ctx: &OrchestrationContext, _: &Attempt) -> Result<Outcome, JobError> {
        let retried = retry_failed::sweep(&ctx.pool, &ctx.settings).await?;
        Ok(Outcome::DoneWith(serde_json::json!({ "retried": retried })))
    }
}

/// Deletes the rows of orchestration whose time is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {}

impl Job for Cleanup {
    const KIND: &'static str = "orchestration.cleanup";
    type Context = OrchestrationContext;

    async fn run(&self, ctx: &OrchestrationContext, attempt: &Attempt) -> Result<Outcome, JobError> {
        let deleted = cleanup::sweep(&ctx.pool, &ctx.settings, attempt.cancelled()).await?;
        Ok(Outcome::DoneWith(serde_json::to_value(deleted)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_checked_against_its_kind() {
        let payload = r#"{"projectId":"p","agentSlug":"seo","triggeredBy":"api"}"#;
        assert_eq!(
            serde_json::from_str::<SingleAgent>(payload).unwrap().0.agent_slug.as_deref(),
            Some("seo")
        );
        let error = serde_json::from_str::<SingleAgent>(r#"{"projectId":"p"}"#).unwrap_err().to_string();
        assert!(error.contains("agentSlug is missing"), "{error}");
        let error =
            serde_json::from_str::<Retry>(r#"{"projectId":"p","jobType":"batch"}"#).unwrap_err().to_string();
        assert!(error.contains("orchestration-batch"), "{error}");
        assert_eq!(
            (Batch::KIND, SingleAgent::KIND, GithubAnalysis::KIND, Retry::KIND),
            (
                "orchestration-batch",
                "orchestration-single_agent",
                "orchestration-github_analysis",
                "orchestration-retry"
            )
        );
    }
}
