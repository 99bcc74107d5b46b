//! `orchestration …`

use serde_json::Value;
use voiceai_cli::{Column, Failure, Output};
use voiceai_orchestration::schedule::{self, Line};
use voiceai_orchestration::{JobLine, OrchestrationError, list_jobs};

use super::{Service, warn};
use crate::cli::{ListOrchestration, Orchestration as Command};
use crate::operate::database_failure;

pub(super) async fn run(command: Command, service: &Service, output: Output) -> Result<(), Failure> {
    if service.settings.orchestration.agents_url.is_none() {
        warn("ORCHESTRATION_AGENTS_URL is not set: no orchestration job is run here, and no schedule fires");
    }
    match command {
        Command::Schedules => schedules(service, output).await,
        Command::Jobs(which) => jobs(&which, service, output).await,
        Command::Show { id } => show(&id, service, output).await,
    }
}

fn failure(error: &OrchestrationError) -> Failure {
    match error {
        OrchestrationError::Database { source, .. } => database_failure(source),
        other @ OrchestrationError::Client { .. } => {
            Failure::failed("orchestration", other.to_string(), "Look at ORCHESTRATION_AGENTS_URL.")
        }
    }
}

async fn schedules(service: &Service, output: Output) -> Result<(), Failure> {
    let lines = schedule::list(&service.pool().await?).await.map_err(|error| failure(&error))?;
    let columns = [
        Column::new("ID", |line: &Line| line.id.clone()),
        Column::new("PROJECT", |line: &Line| line.project.clone().unwrap_or_default()),
        Column::new("AGENT", |line: &Line| line.agent.clone().unwrap_or_else(|| "all".to_owned())),
        Column::new("TIMES", |line: &Line| line.times.clone()),
        Column::new("DECISION", |line: &Line| line.decision.clone()),
        Column::new("REASON", |line: &Line| line.reason.clone()),
    ];
    output.list("schedules", &lines, None, &columns)
}

async fn jobs(which: &ListOrchestration, service: &Service, output: Output) -> Result<(), Failure> {
    let pool = service.pool().await?;
    let status = which.status.map(crate::cli::OrchestrationStatus::word);
    let lines = list_jobs(&pool, which.project.as_deref(), status, which.limit);
    let lines = lines.await.map_err(|error| failure(&error))?;
    let columns = [
        Column::new("ID", |line: &JobLine| line.id.clone()),
        Column::new("TYPE", |line: &JobLine| line.job_type.clone()),
        Column::new("TRIGGER", |line: &JobLine| line.triggered_by.clone()),
        Column::new("STATUS", |line: &JobLine| line.status.clone()),
        Column::new("GOOD", |line: &JobLine| line.agents_succeeded.to_string()),
        Column::new("FAILED", |line: &JobLine| line.agents_failed.to_string()),
        Column::new("ERROR", |line: &JobLine| line.error.clone().unwrap_or_default()),
    ];
    output.list("jobs", &lines, None, &columns)
}

async fn show(id: &str, service: &Service, output: Output) -> Result<(), Failure> {
    let found = voiceai_orchestration::show(&service.pool().await?, id).await;
    let job = found.map_err(|error| failure(&error))?.ok_or_else(|| {
        let remedy =
            "Look with `orchestration jobs`; a job that waits for its first attempt is in `jobs list`.";
        Failure::not_found(
            "orchestration_job_not_found",
            format!("no orchestration job {id} has begun"),
            remedy,
        )
    })?;
    output.one(&job, |job| {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut lines = String::new();
        for (name, value) in job.iter().filter(|(_, value)| !value.is_array() && !value.is_null()) {
            lines.push_str(&format!("{name}: {}\n", text(value)));
        }
        for (title, key) in [("agents", "agent_runs"), ("phases", "phases")] {
            lines.push_str(&format!("{title}:\n"));
            for row in job.get(key).and_then(Value::as_array).into_iter().flatten() {
                let field = |name: &str| row.get(name).filter(|value| !value.is_null()).map(text);
                let words: Vec<_> = ["started_at", "agent", "phase", "state", "status", "error", "message"]
                    .into_iter()
                    .filter_map(field)
                    .collect();
                lines.push_str(&format!("  {}\n", words.join("  ")));
            }
        }
        lines
    })
}
