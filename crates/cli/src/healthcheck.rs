use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use voiceai_config::Instance;
use voiceai_runtime::vitals::{self, Report};
use voiceai_runtime::{BootTime, boot_now};

use crate::failure::Failure;
use crate::output::{Output, human_duration};

/// Say whether the running service is well: 0 when it is, 7 when it is not
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Healthcheck {
    /// Also unwell while Redis, PostgreSQL or start-up is missing; without it only a stuck process is
    #[arg(long)]
    pub ready: bool,
}

/// What a state file says now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `voiceai-scaler` or `voiceai-tasker`.
    pub service: String,
    /// INSTANCE_ID of the running process.
    pub instance_id: String,
    /// Its process id.
    pub pid: u32,
    /// Every loop made progress within its bound.
    pub live: bool,
    /// Live, start-up is over and every backend answers.
    pub ready: bool,
    /// Why it is not ready or not live, in words; empty when it is both.
    pub why: Vec<String>,
    /// The process's own line about itself.
    pub status: String,
    /// How old the state file is.
    pub age_ms: u64,
}

impl Health {
    fn of(report: &Report, now: BootTime) -> Self {
        let why = report.not_ready(now);
        Self {
            service: report.service.clone(),
            instance_id: report.instance_id.clone(),
            pid: report.pid,
            live: report.not_live(now).is_empty(),
            ready: why.is_empty(),
            why,
            status: report.status.clone(),
            age_ms: now.as_millis().saturating_sub(report.written_boot_ms),
        }
    }

    fn text(&self) -> String {
        let word = match (self.live, self.ready) {
            (true, true) => "live and ready",
            (true, false) => "live, not ready",
            (false, _) => "not live",
        };
        let age = human_duration(Duration::from_millis(self.age_ms));
        let mut text =
            format!("{} {} (process {}): {word}, seen {age} ago\n", self.service, self.instance_id, self.pid);
        for line in
            self.why.iter().map(String::as_str).chain((!self.status.is_empty()).then_some(&*self.status))
        {
            text.push_str(&format!("  {line}\n"));
        }
        text
    }
}

/// Runs `healthcheck`: reads the state file of `instance` and nothing else, so that it answers while every backend is away.
///
/// # Errors
/// Unhealthy (7) when the process is not live, or with `--ready` not ready, or no state file is there.
pub fn healthcheck(arguments: Healthcheck, instance: &Instance, output: Output) -> Result<(), Failure> {
    let report = newest(&instance.state_files()).map_err(|(path, error)| unreadable(&path, &error))?;
    let health = Health::of(&report, boot_now());
    output.one(&health, Health::text)?;
    if !health.live {
        return Err(Failure::unhealthy(
            "not_live",
            format!("{} {} is not live: {}", health.service, health.instance_id, health.why.join("; ")),
            "Look at its log, then restart it.",
        ));
    }
    if arguments.ready && !health.ready {
        return Err(Failure::unhealthy(
            "not_ready",
            format!("{} {} is not ready: {}", health.service, health.instance_id, health.why.join("; ")),
            "Bring back what is missing; a restart heals nothing here.",
        ));
    }
    Ok(())
}

/// The file written last: a process that ran as another user may have left one in the other folder.
fn newest(paths: &[PathBuf]) -> Result<Report, (PathBuf, io::Error)> {
    let mut newest: Option<Report> = None;
    let mut failed = None;
    for path in paths {
        match vitals::read(path) {
            Ok(report) => {
                if newest.as_ref().is_none_or(|have| have.written_boot_ms < report.written_boot_ms) {
                    newest = Some(report);
                }
            }
            // A file that is there and cannot be read says more than one that is not there.
            Err(error) if failed.is_none() || error.kind() != io::ErrorKind::NotFound => {
                failed = Some((path.clone(), error));
            }
            Err(_) => {}
        }
    }
    match (newest, failed) {
        (Some(report), _) => Ok(report),
        (None, Some(failed)) => Err(failed),
        (None, None) => Err((PathBuf::new(), io::ErrorKind::NotFound.into())),
    }
}

fn unreadable(path: &std::path::Path, error: &io::Error) -> Failure {
    let (code, remedy) = if error.kind() == io::ErrorKind::NotFound {
        (
            "not_running",
            "Check that the service runs, with the same RUNTIME_DIR and INSTANCE_ID as this command.",
        )
    } else {
        ("state_unreadable", "Run this as the user that runs the service.")
    };
    Failure::unhealthy(code, format!("the state file {} cannot be read: {error}", path.display()), remedy)
}

#[cfg(test)]
mod tests {
    use voiceai_runtime::Vitals;

    use super::*;

    fn instance(folder: &std::path::Path) -> Instance {
        Instance { service: "voiceai-tasker", id: "a".into(), runtime_dir: Some(folder.to_owned()) }
    }

    fn check(ready: bool, instance: &Instance) -> Result<(), &'static str> {
        let result = healthcheck(Healthcheck { ready }, instance, Output::new(true));
        result.map_err(|failure| {
            assert_eq!(failure.exit.code(), 7, "{failure}");
            failure.code
        })
    }

    #[test]
    fn a_backend_that_is_away_makes_it_unready_and_never_dead() {
        let folder = tempfile::tempdir().unwrap();
        let instance = instance(folder.path());
        assert_eq!(check(false, &instance), Err("not_running"));
        let vitals = Vitals::new();
        let write = || vitals::write(&instance.state_file(), &vitals.report("voiceai-tasker", "a")).unwrap();
        write();
        assert_eq!((check(false, &instance), check(true, &instance)), (Ok(()), Err("not_ready")), "starting");
        vitals.set_ready("startup", Ok(()));
        write();
        assert_eq!(check(true, &instance), Ok(()));
        vitals.set_ready("redis", Err("connection refused".into()));
        write();
        assert_eq!((check(false, &instance), check(true, &instance)), (Ok(()), Err("not_ready")));
    }

    #[test]
    fn a_stuck_loop_and_a_silent_process_are_dead() {
        let folder = tempfile::tempdir().unwrap();
        let instance = instance(folder.path());
        let vitals = Vitals::new();
        let _pulse = vitals.register("worker", Duration::from_secs(5));
        let mut report = vitals.report("voiceai-tasker", "a");
        report.parts.clear();
        vitals::write(&instance.state_file(), &report).unwrap();
        assert_eq!(check(true, &instance), Ok(()));
        report.loops[0].last_progress_boot_ms = report.written_boot_ms.saturating_sub(5_001);
        vitals::write(&instance.state_file(), &report).unwrap();
        assert_eq!(check(false, &instance), Err("not_live"));
        report.loops.clear();
        report.written_boot_ms = report.written_boot_ms.saturating_sub(60_000);
        vitals::write(&instance.state_file(), &report).unwrap();
        assert_eq!(check(false, &instance), Err("not_live"));
        std::fs::write(instance.state_file(), "{").unwrap();
        assert_eq!(check(false, &instance), Err("state_unreadable"));
    }

    #[test]
    fn the_newest_of_two_files_counts() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("old"), folder.path().join("absent"), folder.path().join("new")];
        let mut report = Vitals::new().report("voiceai-tasker", "a");
        report.written_boot_ms = 1;
        vitals::write(&paths[0], &report).unwrap();
        report.written_boot_ms = 2;
        vitals::write(&paths[2], &report).unwrap();
        assert_eq!(newest(&paths).unwrap().written_boot_ms, 2);
    }
}
