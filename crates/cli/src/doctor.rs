//! `doctor`: named checks with a result, the evidence and a remedy, run at the same time and each bounded.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::failure::Failure;
use crate::output::{Column, Output, human_duration};

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and will not for ever or not for everything.
    Warning,
    /// Does not work.
    Failed,
    /// Could not or need not be looked at; the evidence says why.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// What a check found, what it saw, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    verdict: Verdict,
    evidence: String,
    remedy: Option<String>,
}

impl Finding {
    /// As it should be; `evidence` is what was seen.
    pub fn ok(evidence: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, evidence: evidence.into(), remedy: None }
    }

    /// Works for now.
    pub fn warning(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, evidence: evidence.into(), remedy: Some(remedy.into()) }
    }

    /// Does not work.
    pub fn failed(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, evidence: evidence.into(), remedy: Some(remedy.into()) }
    }

    /// Was not looked at, and why.
    pub fn skipped(because: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, evidence: because.into(), remedy: None }
    }

    /// What was found.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What was seen.
    #[must_use]
    pub fn evidence(&self) -> &str {
        &self.evidence
    }
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The check: `redis.policy`. Stable, so that a script may look for it.
    pub check: &'static str,
    /// What was found.
    pub result: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What to do; absent when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
}

type Looking = Pin<Box<dyn Future<Output = Finding> + Send>>;

/// Named checks that run at the same time, each within its own bound, and that cannot harm each other: one that hangs or
/// panics is itself a finding.
#[derive(Default)]
pub struct Doctor {
    checks: Vec<(&'static str, Duration, Looking)>,
}

impl fmt::Debug for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, bound, _)| (name, bound))).finish()
    }
}

impl Doctor {
    /// No checks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check under `name`, which may take `bound`.
    pub fn check(
        &mut self,
        name: &'static str,
        bound: Duration,
        look: impl Future<Output = Finding> + Send + 'static,
    ) -> &mut Self {
        self.checks.push((name, bound, Box::pin(look)));
        self
    }

    /// Runs every check at the same time; what is found stands in the order in which the checks were added. Takes as long as
    /// the longest bound at most.
    pub async fn examine(self) -> Vec<Diagnosis> {
        let started: Vec<_> = self
            .checks
            .into_iter()
            .map(|(check, bound, look)| (check, tokio::spawn(bounded(bound, look))))
            .collect();
        let mut found = Vec::with_capacity(started.len());
        for (check, task) in started {
            let (Finding { verdict, evidence, remedy }, took) = task.await.unwrap_or_else(|_| {
                let panicked =
                    Finding::failed("the check itself broke down", "Report this; the log has the place.");
                (panicked, Duration::ZERO)
            });
            let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            found.push(Diagnosis { check, result: verdict, evidence, remedy, duration_ms });
        }
        found
    }
}

async fn bounded(bound: Duration, look: Looking) -> (Finding, Duration) {
    let start = Instant::now();
    let finding = tokio::time::timeout(bound, look).await.unwrap_or_else(|_| {
        let evidence = format!("no answer within {}", human_duration(bound));
        Finding::failed(
            evidence,
            "Look for what swallows packets on the way: firewall, route, proxy, a stopped process.",
        )
    });
    (finding, start.elapsed())
}

/// Prints what was found, with a remedy under each line that needs one.
///
/// # Errors
/// Unhealthy (7) when any check failed; warnings do not count.
pub fn report(found: &[Diagnosis], output: Output) -> Result<(), Failure> {
    let columns = [
        Column::new("CHECK", |line: &Diagnosis| line.check.to_owned()),
        Column::new("RESULT", |line: &Diagnosis| line.result.to_string()),
        Column::new("EVIDENCE", |line: &Diagnosis| line.evidence.clone()),
        Column::new("REMEDY", |line: &Diagnosis| line.remedy.clone().unwrap_or_default()),
    ];
    output.list("checks", found, None, &columns)?;
    let failed: Vec<_> =
        found.iter().filter(|line| line.result == Verdict::Failed).map(|line| line.check).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let what = if failed.len() == 1 {
        "1 check failed".to_owned()
    } else {
        format!("{} checks failed", failed.len())
    };
    Err(Failure::unhealthy(
        "unhealthy",
        format!("{what}: {}", failed.join(", ")),
        "Follow the remedy of each.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_check_that_hangs_or_panics_is_a_finding_and_harms_no_other() {
        let mut doctor = Doctor::new();
        let panics =
            async { if std::hint::black_box(true) { panic!("as the test wants") } else { Finding::ok("") } };
        doctor
            .check("a.hangs", Duration::from_millis(50), std::future::pending())
            .check("b.panics", SOON, panics)
            .check("c.fine", SOON, async { Finding::ok("seen") })
            .check("d.skipped", SOON, async { Finding::skipped("a is away") });
        let found = doctor.examine().await;
        let results: Vec<_> = found.iter().map(|line| (line.check, line.result)).collect();
        assert_eq!(
            results,
            [
                ("a.hangs", Verdict::Failed),
                ("b.panics", Verdict::Failed),
                ("c.fine", Verdict::Ok),
                ("d.skipped", Verdict::Skipped)
            ]
        );
        assert_eq!(found[0].evidence, "no answer within 50ms");
        let failure = report(&found, Output::new(true)).unwrap_err();
        assert_eq!(
            (failure.exit.code(), failure.message.as_str()),
            (7, "2 checks failed: a.hangs, b.panics")
        );
    }

    #[tokio::test]
    async fn checks_run_at_the_same_time() {
        let mut doctor = Doctor::new();
        let meeting = std::sync::Arc::new(tokio::sync::Barrier::new(3));
        for name in ["a", "b", "c"] {
            let meeting = meeting.clone();
            // None gets past the barrier unless all three run.
            doctor.check(name, SOON, async move {
                meeting.wait().await;
                Finding::ok("met")
            });
        }
        assert!(doctor.examine().await.iter().all(|line| line.result == Verdict::Ok));
    }

    #[test]
    fn a_warning_is_healthy() {
        let line =
            |result| Diagnosis { check: "x", result, evidence: String::new(), remedy: None, duration_ms: 1 };
        for healthy in [Verdict::Ok, Verdict::Warning, Verdict::Skipped] {
            assert_eq!(report(&[line(healthy)], Output::new(true)), Ok(()));
        }
        let json = serde_json::to_value(line(Verdict::Warning)).unwrap();
        assert_eq!(json["result"], "warning");
    }
}
