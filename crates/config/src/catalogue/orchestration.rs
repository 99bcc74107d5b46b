//! Orchestration: the agents that jobs of orchestration-queue call, and how long what they did is kept.

use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::is_http_origin;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{duration, integer, list, secret, text, url};

settings! {
    "Orchestration", "Jobs of `orchestration-queue` call the platform's agents over HTTP; see docs/orchestration.md.";

    /// Where the agents are called: an agent's name takes the place of `{agent}`, or is added as the last part of the path. Without it no orchestration job is run and no orchestration schedule fires.
    ORCHESTRATION_AGENTS_URL: Url = url().only(Binaries::Tasker)
        .check("an http:// or https:// address without user, password, query and fragment", is_http_origin);
    /// What the agents are shown as `Authorization: Bearer …`.
    ORCHESTRATION_AGENTS_TOKEN: Secret = secret().only(Binaries::Tasker).rotates();
    /// The agents there are, by name, in the order in which a batch calls them.
    ORCHESTRATION_AGENTS: Vec<String> = list().only(Binaries::Tasker)
        .check("at most 100 different names separated by commas, each of 1 to 50 of a-z, 0-9, `-` and `_`", are_slugs);
    /// The agent that `orchestration-github_analysis` calls.
    ORCHESTRATION_GITHUB_AGENT: String = text().default("github-analysis").only(Binaries::Tasker)
        .check("1 to 50 of a-z, 0-9, `-` and `_`", is_slug);
    /// Longest time for one call of an agent, from the look at its name to the last byte of its answer.
    ORCHESTRATION_AGENT_TIMEOUT: Duration = duration().default("2m").between(100, 3_600_000).only(Binaries::Tasker);
    /// Agents of one batch that are called at a time.
    ORCHESTRATION_AGENT_CONCURRENCY: u32 = integer().default("3").between(1, 100).only(Binaries::Tasker);
    /// Longest answer of an agent in bytes. A longer one is a failure that is not tried again.
    ORCHESTRATION_RESPONSE_BYTES_MAX: u32 = integer().default("1048576").between(1_024, 67_108_864).only(Binaries::Tasker);
    /// Longest wait that an agent's own `Retry-After` is obeyed for.
    ORCHESTRATION_RETRY_AFTER_MAX: Duration = duration().default("1h").between(0, 86_400_000).only(Binaries::Tasker);
    /// How long the row of an ended orchestration job is kept.
    ORCHESTRATION_JOB_RETENTION: Duration = duration().default("7d").between(86_400_000, 315_360_000_000).only(Binaries::Tasker);
    /// How long the phases of an orchestration job are kept.
    ORCHESTRATION_LOG_RETENTION: Duration = duration().default("30d").between(86_400_000, 315_360_000_000).only(Binaries::Tasker);
}

/// Whether this can be an agent's name.
#[must_use]
pub fn is_slug(raw: &str) -> bool {
    (1..=50).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn are_slugs(raw: &str) -> bool {
    let names: Vec<_> = raw.split(',').map(str::trim).collect();
    let different: std::collections::BTreeSet<_> = names.iter().collect();
    names.len() <= 100 && different.len() == names.len() && names.iter().all(|name| is_slug(name))
}
