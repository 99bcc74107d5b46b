//! What a process says of itself without any HTTP: one small state file, written by rename, aged by the boot-time clock.
//!
//! *Live* means that every registered loop made progress within its own bound; a backend that is away never makes a
//! process dead, since restarting it would heal nothing. *Ready* means that start-up is over and every backend answers.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{BootTime, boot_now};

/// How often the state file is rewritten.
pub const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How old the state file may be before its writer counts as stuck or gone. Wide, so that a starved machine does not
/// get its processes restarted on top.
pub const STALE_AFTER: Duration = Duration::from_secs(15);

/// The progress and readiness of one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    loops: Mutex<BTreeMap<String, Arc<Loop>>>,
    parts: Mutex<BTreeMap<String, Result<(), String>>>,
    status: Mutex<String>,
}

#[derive(Debug)]
struct Loop {
    bound_ms: u64,
    last_ms: AtomicU64,
}

/// One loop's hand on its own entry. Dropping it takes the loop off the list: a loop that ended on purpose is not stuck.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    entry: Arc<Loop>,
    vitals: Vitals,
}

impl Pulse {
    /// Says: this loop has just made progress.
    pub fn beat(&self) {
        self.entry.last_ms.store(boot_now().as_millis(), Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let mut loops = self.vitals.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if loops.get(&self.name).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            loops.remove(&self.name);
        }
    }
}

impl Vitals {
    /// No loops, no parts: live, but not ready, as start-up has not been reported over.
    #[must_use]
    pub fn new() -> Self {
        let this = Self::default();
        this.set_ready("startup", Err("still starting".into()));
        this
    }

    /// Puts a loop on the list; from now on it must [`Pulse::beat`] at least once in every `bound`.
    #[must_use = "dropping the pulse takes the loop off the list"]
    pub fn register(&self, name: impl Into<String>, bound: Duration) -> Pulse {
        let name = name.into();
        let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        let entry = Arc::new(Loop { bound_ms, last_ms: AtomicU64::new(boot_now().as_millis()) });
        let mut loops = self.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.insert(name.clone(), Arc::clone(&entry));
        Pulse { name, entry, vitals: self.clone() }
    }

    /// Reports a part (`startup`, `redis`, `postgres`) as ready, or why it is not.
    pub fn set_ready(&self, part: &str, state: Result<(), String>) {
        let mut parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let was = parts.insert(part.to_owned(), state.clone());
        match (&was, &state) {
            (Some(Err(_)), Ok(())) => tracing::info!(part, "ready"),
            (Some(Ok(())) | None, Err(why)) if part != "startup" => tracing::warn!(part, why, "not ready"),
            _ => {}
        }
    }

    /// One line for people: leader or follower, workers, and the like.
    pub fn set_status(&self, status: impl Into<String>) {
        *self.0.status.lock().unwrap_or_else(PoisonError::into_inner) = status.into();
    }

    /// The state as it is now.
    #[must_use]
    pub fn report(&self, service: &str, instance_id: &str) -> Report {
        let loops = self.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let loops = loops
            .iter()
            .map(|(name, entry)| LoopReport {
                name: name.clone(),
                bound_ms: entry.bound_ms,
                last_progress_boot_ms: entry.last_ms.load(Ordering::Relaxed),
            })
            .collect();
        let parts = parts
            .iter()
            .map(|(name, state)| PartReport { name: name.clone(), why_not: state.clone().err() })
            .collect();
        Report {
            service: service.to_owned(),
            instance_id: instance_id.to_owned(),
            pid: std::process::id(),
            written_boot_ms: boot_now().as_millis(),
            status: self.0.status.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            loops,
            parts,
        }
    }

    /// Rewrites the state file every second until `ended` is cancelled, then removes it. A file that cannot be written
    /// (full disk) is reported and tried again: it never ends the process. Run it outside the drained tasks: a process
    /// that drains is still alive.
    pub async fn keep_file(
        self,
        path: PathBuf,
        service: String,
        instance_id: String,
        ended: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(WRITE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! { biased; () = ended.cancelled() => break, _ = tick.tick() => {} }
            if let Err(error) = write(&path, &self.report(&service, &instance_id)) {
                tracing::warn!(path = %path.display(), %error, "cannot write the state file");
            }
        }
        let _ = std::fs::remove_file(&path);
    }
}

/// The state file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `voiceai-scaler` or `voiceai-tasker`.
    pub service: String,
    /// INSTANCE_ID of the writer.
    pub instance_id: String,
    /// Process id of the writer.
    pub pid: u32,
    /// When it was written, ms since boot.
    pub written_boot_ms: u64,
    /// One line for people.
    #[serde(default)]
    pub status: String,
    /// Every running loop.
    pub loops: Vec<LoopReport>,
    /// Every part that readiness asks for.
    pub parts: Vec<PartReport>,
}

/// One loop's progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopReport {
    /// The loop's name.
    pub name: String,
    /// It must make progress at least this often, ms.
    pub bound_ms: u64,
    /// When it last did, ms since boot.
    pub last_progress_boot_ms: u64,
}

/// One part's readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// `startup`, `redis`, `postgres`.
    pub name: String,
    /// Absent when ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

impl Report {
    /// Why the process is not live at `now`; empty means live.
    #[must_use]
    pub fn not_live(&self, now: BootTime) -> Vec<String> {
        let written = BootTime::from_millis(self.written_boot_ms);
        if written > now {
            return vec!["the state file is from before this machine's last boot".into()];
        }
        let age = now.duration_since(written);
        if age > STALE_AFTER {
            return vec![format!(
                "the state file is {:.0} s old; process {} is stuck or gone",
                age.as_secs_f64(),
                self.pid
            )];
        }
        // Judged at the moment of writing: the file's own age was judged above.
        self.loops
            .iter()
            .filter_map(|l| {
                let idle = written.duration_since(BootTime::from_millis(l.last_progress_boot_ms));
                (idle > Duration::from_millis(l.bound_ms)).then(|| {
                    format!(
                        "loop `{}` has made no progress for {:.1} s (bound {:.1} s)",
                        l.name,
                        idle.as_secs_f64(),
                        Duration::from_millis(l.bound_ms).as_secs_f64()
                    )
                })
            })
            .collect()
    }

    /// Why the process is not ready at `now`; empty means ready. A process that is not live is not ready either.
    #[must_use]
    pub fn not_ready(&self, now: BootTime) -> Vec<String> {
        let mut why = self.not_live(now);
        why.extend(
            self.parts
                .iter()
                .filter_map(|p| p.why_not.as_ref().map(|reason| format!("{}: {reason}", p.name))),
        );
        why
    }
}

/// The state file of `service` and `instance_id` under `runtime_dir`. Characters that a file name should not carry
/// become `_`.
#[must_use]
pub fn file_path(runtime_dir: &Path, service: &str, instance_id: &str) -> PathBuf {
    let clean = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
    };
    runtime_dir.join(format!("{}.{}.json", clean(service), clean(instance_id)))
}

/// Writes `report` to a neighbour of `path` and renames it into place, so that a reader never sees half a file. Where that
/// fails, as on a full disk, the file that is there is written over in its own blocks, which needs no space: a process
/// must not be taken for stuck, and restarted, because a disk is full.
///
/// # Errors
/// When the folder cannot be made, or the file can be written neither way.
pub fn write(path: &Path, report: &Report) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_vec(report)?;
    let next = path.with_extension(format!("json.{}", std::process::id()));
    std::fs::write(&next, &text).and_then(|()| std::fs::rename(&next, path)).or_else(|error| {
        let _ = std::fs::remove_file(&next);
        write_over(path, text).map_err(|_| error)
    })
}

/// Without truncating, which would give the blocks away; spaces at the end are no part of a JSON document.
fn write_over(path: &Path, mut text: Vec<u8>) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(text.len());
    text.resize(text.len().max(length), b' ');
    file.write_all(&text)
}

/// Reads a state file. One that is just being written over is read a second time.
///
/// # Errors
/// `NotFound` when no process wrote one; `InvalidData` when it is no state file.
pub fn read(path: &Path) -> io::Result<Report> {
    let parse = || {
        let bytes = std::fs::read(path)?;
        serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    parse().or_else(
        |error: io::Error| if error.kind() == io::ErrorKind::InvalidData { parse() } else { Err(error) },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(bound_ms: u64, last: u64, written: u64) -> Report {
        Report {
            service: "voiceai-tasker".into(),
            instance_id: "a".into(),
            pid: 1,
            written_boot_ms: written,
            status: String::new(),
            loops: vec![LoopReport { name: "worker".into(), bound_ms, last_progress_boot_ms: last }],
            parts: vec![PartReport { name: "redis".into(), why_not: Some("refused".into()) }],
        }
    }

    #[test]
    fn a_loop_within_its_bound_is_live_though_redis_is_away() {
        let r = report(1_000, 100_000, 101_000);
        assert!(r.not_live(BootTime::from_millis(101_500)).is_empty());
        assert_eq!(r.not_ready(BootTime::from_millis(101_500)), ["redis: refused"]);
    }

    #[test]
    fn a_stuck_loop_an_old_file_and_another_boot_are_not_live() {
        let stuck = report(1_000, 100_000, 101_001).not_live(BootTime::from_millis(101_001));
        assert!(stuck[0].contains("loop `worker`"), "{stuck:?}");
        let old = report(1_000, 101_000, 101_000).not_live(BootTime::from_millis(101_000 + 15_001));
        assert!(old[0].contains("stuck or gone"), "{old:?}");
        let rebooted = report(1_000, 101_000, 101_000).not_live(BootTime::from_millis(500));
        assert!(rebooted[0].contains("boot"), "{rebooted:?}");
    }

    #[test]
    fn file_round_trip_and_dropped_pulse() {
        let folder = std::env::temp_dir().join(format!("vitals-{}", std::process::id()));
        let path = file_path(&folder, "voiceai-scaler", "../evil/id");
        assert_eq!(path.parent(), Some(folder.as_path()));
        let vitals = Vitals::new();
        let pulse = vitals.register("loop", Duration::from_secs(1));
        pulse.beat();
        write(&path, &vitals.report("voiceai-scaler", "x")).unwrap();
        let read_back = read(&path).unwrap();
        assert_eq!(read_back.loops.len(), 1);
        assert!(!read_back.not_ready(boot_now()).is_empty(), "start-up was not reported over");
        drop(pulse);
        vitals.set_ready("startup", Ok(()));
        let report = vitals.report("voiceai-scaler", "x");
        assert!(report.loops.is_empty());
        assert!(report.not_ready(boot_now()).is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
    #[test]
    fn a_file_that_cannot_be_replaced_is_written_over() {
        let folder = std::env::temp_dir().join(format!("vitals-over-{}", std::process::id()));
        let path = file_path(&folder, "voiceai-scaler", "x");
        let mut long = report(1_000, 100_000, 101_000);
        long.status = "a status that is longer than the next one".into();
        write(&path, &long).unwrap();
        // No neighbour can be written, as on a full disk.
        std::fs::create_dir(path.with_extension(format!("json.{}", std::process::id()))).unwrap();
        let short = report(1_000, 102_000, 103_000);
        write(&path, &short).unwrap();
        assert_eq!(read(&path).unwrap(), short);
        long.status.push_str(", and longer still");
        write(&path, &long).unwrap();
        assert_eq!(read(&path).unwrap(), long);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
