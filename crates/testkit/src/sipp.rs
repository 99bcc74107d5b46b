//! Callers: `sipp` placing real calls.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::ports::Port;
use crate::process::{Exit, Process, Program};

/// People who call without a pause: each waits for the answer, talks for a while and hangs up.
#[derive(Debug, Clone, Copy)]
pub struct SippOptions {
    /// Calls begun each second.
    pub rate: u32,
    /// Calls in all; `None`: until it is told to finish.
    pub calls: Option<u32>,
    /// Shortest and longest talk.
    pub talk: (Duration, Duration),
}

impl Default for SippOptions {
    fn default() -> Self {
        Self { rate: 5, calls: None, talk: (Duration::from_millis(500), Duration::from_secs(3)) }
    }
}

/// What became of the calls so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SippCounts {
    /// Begun.
    pub created: u64,
    /// Running.
    pub current: u64,
    /// Answered, and ended by their caller.
    pub successful: u64,
    /// Refused, not answered, or cut.
    pub failed: u64,
}

/// A running `sipp`. Ended on drop.
#[derive(Debug)]
pub struct Sipp {
    process: Process,
    directory: TempDir,
    _port: Port,
}

impl Sipp {
    /// Starts calling the SIP port of 127.0.0.1.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(target: u16, options: SippOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("sipp-").tempdir().expect("make a directory");
        let scenario = include_str!("caller.xml")
            .replace("SHORTEST", &options.talk.0.as_millis().to_string())
            .replace("LONGEST", &options.talk.1.as_millis().to_string());
        let file = directory.path().join("caller.xml");
        std::fs::write(&file, scenario).expect("write the scenario");
        let port = Port::reserve();
        let mut program = Program::new("sipp")
            .arg("-sf")
            .arg(&file)
            .args(["-i", "127.0.0.1", "-p", &port.number().to_string(), "-r", &options.rate.to_string()])
            .args(["-nostdin", "-trace_stat", "-fd", "1", "-stf", "statistics.csv"])
            .args(["-trace_err", "-error_file", "errors.log"])
            .directory(directory.path());
        if let Some(calls) = options.calls {
            program = program.args(["-m", &calls.to_string()]);
        }
        let process = program.arg(format!("127.0.0.1:{target}")).start();
        Self { process, directory, _port: port }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it last wrote down; about a second old.
    #[must_use]
    pub fn counts(&self) -> SippCounts {
        let text = std::fs::read_to_string(self.file("statistics.csv")).unwrap_or_default();
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split(';').collect();
        // A line that is being written ends without its last fields.
        let Some(values) =
            lines.map(|line| line.split(';').collect::<Vec<_>>()).rfind(|values| values.len() == names.len())
        else {
            return SippCounts::default();
        };
        let of = |name: &str| {
            let place = names.iter().position(|have| *have == name).expect("a column of sipp's statistics");
            values[place].trim().parse().expect("a number")
        };
        SippCounts {
            created: of("TotalCallCreated"),
            current: of("CurrentCall"),
            successful: of("SuccessfulCall(C)"),
            failed: of("FailedCall(C)"),
        }
    }

    /// What it has to say about failed calls.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.file("errors.log")).unwrap_or_default()
    }

    /// Begins no further call, waits for the running ones and returns what became of all.
    ///
    /// # Panics
    /// When they have not ended `within`.
    pub async fn finish(&self, within: Duration) -> SippCounts {
        self.process.signal(Signal::SIGUSR1);
        let exit = self.process.wait_exit(within).await;
        let counts = self.counts();
        // 0: all went well; 1: at least one call failed; 97 and 99: told to end.
        assert!(matches!(exit, Exit::Code(0 | 1 | 97 | 99)), "sipp ended with {exit:?}: {}", self.errors());
        counts
    }

    /// Waits for the end of a fixed number of calls.
    ///
    /// # Panics
    /// When they have not ended `within`.
    pub async fn wait(&self, within: Duration) -> SippCounts {
        self.process.wait_exit(within).await;
        self.counts()
    }
}
