//! `diagnostic.probe`: a job that fails, sleeps, panics or aborts as told, for canaries, game days and acceptance.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use voiceai_redis::{Redis, Value};

use crate::attempt::Attempt;
use crate::job::{Job, JobError, Outcome};

/// Where effects are counted: HASH effect key → how often it happened.
pub const EFFECTS_KEY: &str = "voiceai:diagnostic:effects";

/// Largest `result_bytes`.
const RESULT_BYTES_MAX: usize = 4 << 20;

/// The payload. Register it only where `DIAGNOSTIC_JOBS=true`: it can end the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    /// Sleep this long; ends at once when cancelled.
    pub sleep_ms: u64,
    /// Fail the first so many attempts.
    pub fail_times: u32,
    /// Panic.
    pub panic: bool,
    /// Abort the whole process.
    pub abort: bool,
    /// Leave a result of about so many bytes.
    pub result_bytes: usize,
    /// On success, HINCRBY this field of [`EFFECTS_KEY`] by 1: on purpose not idempotent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

impl Job for Probe {
    const KIND: &'static str = "diagnostic.probe";
    type Context = Redis;

    #[allow(clippy::panic, reason = "told to: the probe exists to show what a panic does")]
    async fn run(&self, redis: &Redis, attempt: &Attempt) -> Result<Outcome, JobError> {
        if attempt.number() <= self.fail_times {
            return Err(JobError::retry(format!("told to fail attempt {}", attempt.number())));
        }
        if self.abort {
            std::process::abort();
        }
        assert!(!self.panic, "told to panic");
        if self.sleep_ms > 0 {
            tokio::select! {
                () = attempt.cancelled().cancelled() => return Err(JobError::retry("cancelled while it slept")),
                () = tokio::time::sleep(Duration::from_millis(self.sleep_ms)) => {}
            }
        }
        if let Some(effect) = &self.effect {
            let args: Vec<Value> = vec![EFFECTS_KEY.into(), effect.as_str().into(), 1.into()];
            // Sent once: counting is the point, so a repetition by the client must not count.
            let once = voiceai_redis::CallOptions { attempts: Some(1), ..Default::default() };
            let _: i64 = redis.with(once).command("HINCRBY", args).await?;
        }
        if self.result_bytes > 0 {
            let result = "x".repeat(self.result_bytes.min(RESULT_BYTES_MAX));
            return Ok(Outcome::DoneWith(serde_json::json!({ "filler": result })));
        }
        Ok(Outcome::Done)
    }
}
