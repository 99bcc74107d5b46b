//! The process between the scaler and a provider's script: it leaves no survivor.
//!
//! A process group is not enough: what a script starts in a session of its own escapes it. The guard is the *subreaper* of
//! everything the script starts, so that every descendant stays below it in the process tree, and the kernel ends the guard
//! with the scaler, so that even a killed leader's script is stopped.
//!
//! - At the time limit, at SIGTERM and when the scaler dies: SIGTERM to the script's group, ten seconds, then SIGKILL to the
//!   group and to every descendant until none is left.
//! - When the script ends by itself: what is left of its group is killed, and so is every descendant that still holds the
//!   script's stdout or stderr. A descendant that left both, as a daemon does, is let go: the provider `local` starts its
//!   servers so.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpid, getppid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

/// First argument that makes the binary a guard.
pub(super) const ARGUMENT: &str = "script-guard";
/// From SIGTERM to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Exit code of a guard that ended the script at its time limit.
pub(super) const TIMED_OUT: i32 = 241;
/// Exit code of a guard that did not start the script, with the reason on stderr.
pub(super) const NOT_STARTED: i32 = 242;
/// Exit code of a guard that was told to stop.
pub(super) const STOPPED: i32 = 243;
/// What a script's own exit code becomes that would be taken for one of those: it has no agreed meaning either way.
const NOT_THE_GUARDS: i32 = 1;

/// How long a script is waited for that somebody is writing at this very moment.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

const LEFTOVERS_GRACE: Duration = Duration::from_secs(1);
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// Runs as a guard when the arguments say so. `Some` is the exit code.
#[must_use]
pub fn run_if_asked() -> Option<i32> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let mut number = || arguments.next().and_then(|text| text.to_str()?.parse::<u64>().ok());
    let (Some(parent), Some(limit_ms)) = (number(), number()) else { return Some(NOT_STARTED) };
    let Some(script) = arguments.next().map(PathBuf::from) else { return Some(NOT_STARTED) };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Some(NOT_STARTED);
    };
    Some(runtime.block_on(guard(parent, Duration::from_millis(limit_ms), script)))
}

async fn guard(parent: u64, limit: Duration, script: PathBuf) -> i32 {
    let prepared = prctl::set_child_subreaper(true).and_then(|()| prctl::set_pdeathsig(Signal::SIGTERM));
    let Ok(mut told) = signal(SignalKind::terminate()) else { return NOT_STARTED };
    // The scaler may have died before the line above: then nobody would ever tell.
    let orphaned = u64::try_from(getppid().as_raw()).ok() != Some(parent);
    if prepared.is_err() || orphaned {
        return NOT_STARTED;
    }
    let mut child = match start(&script).await {
        Ok(child) => child,
        Err(error) => {
            // Read by the scaler, from the pipe that is the script's stderr.
            let _ = writeln!(std::io::stderr(), "{}: {error}", script.display());
            return NOT_STARTED;
        }
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    tokio::select! {
        ended = child.wait() => {
            leave(group).await;
            let code = |status: ExitStatus| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            match ended.map_or(1, code) {
                TIMED_OUT | NOT_STARTED | STOPPED => NOT_THE_GUARDS,
                code => code,
            }
        }
        () = sleep(limit) => {
            end(&mut child, group).await;
            TIMED_OUT
        }
        _ = told.recv() => {
            end(&mut child, group).await;
            STOPPED
        }
    }
}

/// A file that is open for writing cannot be started; a deployment that replaces it takes a moment.
async fn start(script: &Path) -> std::io::Result<Child> {
    let until = Instant::now() + WRITTEN_WITHIN;
    loop {
        match Command::new(script).stdin(Stdio::null()).process_group(0).spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < until => {
                sleep(Duration::from_millis(50)).await;
            }
            started => return started,
        }
    }
}

/// After a script that ended by itself: what it left is given a moment, since a daemon leaves the script's group and output
/// only after it was started; then it is killed.
async fn leave(group: Option<Pid>) {
    let pipes = own_pipes();
    let leftovers = || -> Vec<Pid> {
        descendants().into_iter().filter(|pid| in_group(*pid, group) || holds(*pid, &pipes)).collect()
    };
    let until = Instant::now() + LEFTOVERS_GRACE;
    while Instant::now() < until {
        if leftovers().is_empty() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    kill_all(leftovers).await;
}

/// Ends a script that has to stop, with everything below it.
async fn end(child: &mut Child, group: Option<Pid>) {
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGTERM);
    }
    let _ = timeout(GRACE, child.wait()).await;
    kill_all(|| {
        if let Some(group) = group {
            let _ = killpg(group, Signal::SIGKILL);
        }
        descendants()
    })
    .await;
    let _ = timeout(Duration::from_secs(1), child.wait()).await;
}

/// Kills what `list` finds until it finds nothing: a process that was forking escapes one pass.
async fn kill_all(list: impl Fn() -> Vec<Pid>) {
    let until = Instant::now() + KILL_WITHIN;
    loop {
        let found = list();
        if found.is_empty() || Instant::now() >= until {
            return;
        }
        for pid in &found {
            let _ = kill(*pid, Signal::SIGSTOP);
        }
        for pid in found {
            let _ = kill(pid, Signal::SIGKILL);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Every living process below this one.
fn descendants() -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some((state, parent, _)) = stat(pid)
            && state != 'Z'
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![getpid().as_raw()];
    while let Some(pid) = open.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            found.push(Pid::from_raw(child));
            open.push(child);
        }
    }
    found
}

/// State, parent and process group from `/proc/<pid>/stat`: the command's name may hold spaces and brackets, so what counts
/// begins after the last bracket.
fn stat(pid: i32) -> Option<(char, i32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn in_group(pid: Pid, group: Option<Pid>) -> bool {
    group.is_some_and(|group| stat(pid.as_raw()).is_some_and(|(_, _, its)| its == group.as_raw()))
}

/// The pipes that are this process's stdout and stderr, as `/proc` names them.
fn own_pipes() -> HashSet<PathBuf> {
    [1, 2]
        .iter()
        .filter_map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .collect()
}

fn holds(pid: Pid, pipes: &HashSet<PathBuf>) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| pipes.contains(&target)))
}
