//! ffmpeg and ffprobe, run on what strangers sent.
//!
//! Between them and us stand util-linux's `setpriv` and `prlimit`, which set limits, forbid new privileges and have the kernel end the
//! program with its parent, and then become the program: setting these between fork and exec would need unsafe code here. Further
//! programs are never started by ffmpeg; should one be, it is in the same process group, which is killed as a whole.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::error::RecordingError;

/// The programs that must be in `PATH`.
pub const PROGRAMS: [&str; 4] = ["ffmpeg", "ffprobe", "setpriv", "prlimit"];

/// How much of what a program says is kept: the end, where results and causes stand.
const SAID_MAX: usize = 16 * 1024;
/// How much of it an error shows.
const SHOWN_MAX: usize = 600;
/// Files that a program may have open.
const FILES: u32 = 64;
/// How many times its processor time a program may take on the clock: other work is on the host, too.
const WALL: u32 = 10;
/// It may take so long in any case: where many wait for the processor, little processor time says nothing about the clock.
const WALL_MIN: Duration = Duration::from_secs(120);
/// Grace between the signal that its processor time is over and the kill.
const CPU_GRACE: u64 = 5;

/// What one run may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Address space in bytes.
    pub(crate) memory: u64,
    /// Processor time; on the clock [`WALL`] times as much, and at least [`WALL_MIN`].
    pub(crate) cpu: Duration,
    /// Largest file it may write, in bytes.
    pub(crate) file: u64,
}

/// A run that ended with exit code 0.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// The end of standard output.
    pub(crate) stdout: String,
    /// The end of standard error.
    pub(crate) said: String,
    /// Lines of standard error that were errors.
    pub(crate) errors: u64,
}

/// Why a run did not end well, before it is known whose file it was.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// A limit on what it uses.
    Limit { setting: &'static str, why: String },
    /// It refused its input.
    Refused(String),
    /// Anything else.
    Other(RecordingError),
}

/// Runs `tool` in `folder` to its end.
pub(crate) async fn run(
    tool: &'static str,
    arguments: &[OsString],
    folder: &Path,
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Ran, Stopped> {
    let seconds = limits.cpu.as_secs().max(1);
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--no-new-privs", "--", "prlimit"])
        .arg(format!("--as={}", limits.memory))
        .arg(format!("--cpu={seconds}:{}", seconds + CPU_GRACE))
        .arg(format!("--fsize={}", limits.file))
        .arg(format!("--nofile={FILES}"))
        .args(["--core=0", "--", tool])
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("LC_ALL", "C")
        .env("AV_LOG_FORCE_NOCOLOR", "1")
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| {
        Stopped::Other(match source.kind() {
            std::io::ErrorKind::NotFound => RecordingError::NoTool { tool: "setpriv".to_owned() },
            _ => RecordingError::File { tried: "start a program in", path: folder.to_owned(), source },
        })
    })?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (stdout, stderr) = tokio::join!(tail(stdout), tail(stderr));
        (child.wait().await, stdout, stderr)
    };
    let wall = wall(limits.cpu);
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RecordingError::Cancelled),
        ended = tokio::time::timeout(wall, work) => ended.map_err(|_| RecordingError::Tool {
            tool,
            how: format!("took longer than {} s", wall.as_secs()),
            said: "the host may be too busy; RECORDING_TIMEOUT sets the limit".to_owned(),
        }),
    };
    let (status, stdout, stderr) = match ended {
        Ok(ended) => {
            group.0 = None;
            ended
        }
        Err(error) => {
            drop(group);
            // Killed: it ends at once, and is not left as a zombie.
            let _ = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
            return Err(Stopped::Other(error));
        }
    };
    let status =
        status.map_err(RecordingError::file("wait for a program in", folder)).map_err(Stopped::Other)?;
    let ran = Ran { stdout: stdout.text(), errors: stderr.errors, said: stderr.text() };
    if status.success() { Ok(ran) } else { Err(judge(tool, status, &ran.said, folder, limits)) }
}

/// How long a program may take on the clock.
fn wall(cpu: Duration) -> Duration {
    cpu.saturating_mul(WALL).max(WALL_MIN)
}

/// What the end of a program means.
fn judge(tool: &'static str, status: ExitStatus, said: &str, folder: &Path, limits: Limits) -> Stopped {
    let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
    let last = shown(said, folder);
    // ffmpeg catches these, one a second, and ends in order; after the third it ends at once.
    let is_told_to_end =
        said.contains("received signal 24") || said.contains("system signals, terminating immediately");
    if signal == Some(Signal::SIGXCPU) || is_told_to_end {
        let why = format!("{tool} used up {} s of processor time", limits.cpu.as_secs());
        return Stopped::Limit { setting: "RECORDING_TIMEOUT", why };
    }
    if signal == Some(Signal::SIGXFSZ) || said.contains("File too large") {
        let why = format!("its processed copy would have more than {} bytes", limits.file);
        return Stopped::Limit { setting: "RECORDING_OUTPUT_BYTES_MAX", why };
    }
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        let why = format!("{tool} says: {last}");
        return Stopped::Other(RecordingError::DiskFull { folder: folder.to_owned(), why });
    }
    if said.contains("Cannot allocate memory") || said.contains("Out of memory") {
        let why = format!("{tool} needs more than {} bytes of memory", limits.memory);
        return Stopped::Limit { setting: "RECORDING_MEMORY_MAX", why };
    }
    match (status.code(), signal) {
        (Some(_), _) if said.contains("error while loading shared libraries") => {
            let how = "could not be loaded; RECORDING_MEMORY_MAX may be too little for it".to_owned();
            Stopped::Other(RecordingError::Tool { tool, how, said: last })
        }
        // As prlimit and setpriv say it: no such program.
        (Some(126 | 127), _) => Stopped::Other(RecordingError::NoTool { tool: tool.to_owned() }),
        (Some(_), _) if said.contains("failed to execute") => {
            Stopped::Other(RecordingError::NoTool { tool: tool.to_owned() })
        }
        (Some(_), _) => Stopped::Refused(last),
        // A crash on hostile input would crash again.
        (
            None,
            Some(
                signal @ (Signal::SIGSEGV
                | Signal::SIGABRT
                | Signal::SIGBUS
                | Signal::SIGILL
                | Signal::SIGFPE),
            ),
        ) => Stopped::Refused(format!("{tool} crashed on it ({signal})")),
        (None, signal) => {
            let how = signal.map_or_else(|| status.to_string(), |signal| format!("was ended by {signal}"));
            Stopped::Other(RecordingError::Tool { tool, how, said: last })
        }
    }
}

/// The end of what was said, on one line, without where on this host the file lies and where in memory its reader: tenants are told it,
/// and the same file gives the same words.
fn shown(said: &str, folder: &Path) -> String {
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let place = folder.to_string_lossy();
    let line = lines.join("; ").replace(&format!("file:{place}/"), "").replace(&format!("{place}/"), "");
    let mut parts = line.split(" @ 0x");
    let mut line = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        line.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    let from = line.char_indices().rev().nth(SHOWN_MAX).map_or(0, |(at, _)| at);
    line[from..].to_owned()
}

/// A process group that is killed when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
    errors: u64,
}

impl Tail {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// Reads to the end and keeps the last of it.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> Tail {
    let mut tail = Tail::default();
    let Some(mut stream) = stream else { return tail };
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let marks = chunk[..count].windows(7).filter(|window| *window == b"[error]").count();
        tail.errors += marks as u64;
        tail.kept.extend_from_slice(&chunk[..count]);
        let surplus = tail.kept.len().saturating_sub(SAID_MAX);
        tail.kept.drain(..surplus);
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(raw: i32, said: &str) -> Stopped {
        let limits = Limits { memory: 1, cpu: Duration::from_secs(7), file: 9 };
        judge("ffmpeg", ExitStatus::from_raw(raw), said, Path::new("/x"), limits)
    }

    #[test]
    fn the_end_of_a_program_is_told_apart() {
        assert!(matches!(judged(24, ""), Stopped::Limit { setting: "RECORDING_TIMEOUT", .. }));
        let in_order = judged(255 << 8, "Exiting normally, received signal 24.");
        assert!(matches!(in_order, Stopped::Limit { setting: "RECORDING_TIMEOUT", .. }));
        let at_once = judged(123 << 8, "Received > 3 system signals, terminating immediately");
        assert!(matches!(at_once, Stopped::Limit { setting: "RECORDING_TIMEOUT", .. }));
        assert!(matches!(judged(25, ""), Stopped::Limit { setting: "RECORDING_OUTPUT_BYTES_MAX", .. }));
        assert!(matches!(
            judged(1 << 8, "x: Cannot allocate memory"),
            Stopped::Limit { setting: "RECORDING_MEMORY_MAX", .. }
        ));
        let full = judged(1 << 8, "av_interleaved_write_frame(): No space left on device");
        assert!(matches!(full, Stopped::Other(RecordingError::DiskFull { .. })));
        assert!(matches!(judged(1 << 8, "Invalid data found"), Stopped::Refused(_)));
        assert!(matches!(judged(11, ""), Stopped::Refused(_)));
        assert!(matches!(judged(9, ""), Stopped::Other(RecordingError::Tool { .. })), "by whom is not known");
        let none = judged(127 << 8, "prlimit: failed to execute ffmpeg: No such file or directory");
        assert!(matches!(none, Stopped::Other(RecordingError::NoTool { .. })));
        let loaded = judged(127 << 8, "ffmpeg: error while loading shared libraries: failed to map segment");
        assert!(matches!(loaded, Stopped::Other(RecordingError::Tool { .. })), "not the recording's fault");
    }

    #[test]
    fn a_busy_host_is_no_reason_to_give_a_recording_up() {
        assert_eq!(wall(Duration::from_secs(1)), WALL_MIN);
        assert_eq!(wall(Duration::from_secs(1_800)), Duration::from_secs(18_000));
    }

    #[test]
    fn only_the_end_is_shown() {
        let long = format!("{}\nthe cause\n", "é".repeat(5_000));
        let short = shown(&long, Path::new("/x"));
        assert!(short.ends_with("; the cause") && short.chars().count() <= SHOWN_MAX + 1);
    }

    #[test]
    fn neither_the_host_nor_its_memory_is_shown() {
        let said = "[wav @ 0x564131972c80] [error] no tag\n[error] file:/x/job-1/original: Invalid data found in /x/job-1/original";
        let wanted = "[wav] [error] no tag; [error] original: Invalid data found in original";
        assert_eq!(shown(said, Path::new("/x/job-1")), wanted);
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let limits = Limits { memory: 1 << 30, cpu: Duration::from_secs(5), file: 1 << 20 };
        let ran = run("no-such-program", &[], Path::new("/"), limits, &CancellationToken::new()).await;
        let Err(Stopped::Other(RecordingError::NoTool { tool })) = ran else { panic!("{ran:?}") };
        assert_eq!(tool, "no-such-program");
    }
}
