//! `health`: how the watched services are.

use jiff::Timestamp;
use voiceai_cli::{Column, ExitCode, Failure, Output, human_duration};
use voiceai_monitor::view::{self, Line};
use voiceai_monitor::{MonitorError, State};

use super::Service;
use crate::operate::database_failure;

/// Shows them. Exit code 7 when one is not healthy; nothing more is said then: the list says which and why.
pub(super) async fn run(service: &Service, output: Output) -> Result<ExitCode, Failure> {
    let pool = service.pool().await?;
    let now = Timestamp::now();
    let lines = view::list(&pool, &service.settings.monitor, now).await.map_err(|error| failure(&error))?;
    if lines.is_empty() && !output.is_json() {
        super::warn("no service is watched: set INGEST_HEALTH_URL, EVALUATOR_HEALTH_URL or WATCHED_SERVICES");
    }
    let ago = |at: Option<Timestamp>| {
        let age = at.and_then(|at| std::time::Duration::try_from(now.duration_since(at)).ok());
        age.map(human_duration).unwrap_or_default()
    };
    let columns = [
        Column::new("SERVICE", |line: &Line| line.service.clone()),
        Column::new("STATUS", |line: &Line| line.status.word().to_owned()),
        Column::new("FOR", |line: &Line| ago(line.since)),
        Column::new("LATENCY", |line: &Line| {
            line.latency_ms.map_or_else(String::new, |ms| format!("{ms} ms"))
        }),
        Column::new("CHECKED", |line: &Line| ago(line.checked_at)),
        Column::new("ALERT", |line: &Line| {
            line.alert_since.map_or_else(String::new, |at| format!("since {at:.0}"))
        }),
        Column::new("NOTE", |line: &Line| line.note.clone().unwrap_or_default()),
    ];
    output.list("services", &lines, None, &columns)?;
    let is_well = lines.iter().all(|line| line.status == State::Healthy);
    Ok(if is_well { ExitCode::Done } else { ExitCode::Unhealthy })
}

fn failure(error: &MonitorError) -> Failure {
    match error {
        MonitorError::Database { source, .. } => database_failure(source),
        other => Failure::unreachable("postgres_unreachable", other.to_string(), "Check PostgreSQL."),
    }
}
