//! Starting scripts, and reading them without ever hanging on them.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::answer::{self, LIST_MAX, Listed, Outcome, STDOUT_MAX, Tail};
use super::guard;

/// How much of stderr is kept, from its end.
const STDERR_KEPT: usize = 16 * 1024;
/// How long a pipe is read on after its script has ended.
const PIPE_GRACE: Duration = Duration::from_secs(3);
/// How much longer than the guard may need is waited for the guard itself.
const GUARD_SLACK: Duration = Duration::from_secs(10);

/// How long the end of a cancelled script is waited for.
const CANCEL_WITHIN: Duration = Duration::from_millis(1500);

/// One run of one script.
#[derive(Debug)]
pub struct Run {
    /// The script's file.
    pub script: PathBuf,
    /// Its whole environment.
    pub environment: Vec<(String, OsString)>,
    /// The server it is about.
    pub server: String,
    /// Its time limit.
    pub limit: Duration,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    /// What is known now.
    pub outcome: Outcome,
    /// The end of its stderr.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// How a run of `list.sh` ended.
#[derive(Debug)]
pub struct RanList {
    /// Every server, or why it is no whole list.
    pub servers: Result<Vec<Listed>, String>,
    /// The end of its stderr.
    pub stderr: String,
}

/// What a script left, not yet understood.
struct Ended {
    end: End,
    stderr: Vec<u8>,
    took: Duration,
}

enum End {
    NotStarted(String),
    Unknown(String),
    /// Its exit code, and its stdout with the word whether there was more; `None`: stdout stayed open.
    Exit(i32, Option<(Vec<u8>, bool)>),
}

/// Which bytes of stdout are kept; the rest is read away, so that the writer is never blocked.
#[derive(Clone, Copy)]
enum Keep {
    First(usize),
    Last(usize),
}

struct Order {
    run: Run,
    keep: Keep,
    cancel: CancellationToken,
    reply: oneshot::Sender<Ended>,
}

/// Runs scripts on a thread of its own: the kernel's notice of a parent's death is bound to the thread that started the
/// child, so that thread must live as long as the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ScriptRunner {
    orders: mpsc::UnboundedSender<Order>,
}

impl ScriptRunner {
    /// Starts the thread. `guard` is the binary that can be a guard: [`ScriptRunner::own_binary`] in the service.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(guard: PathBuf) -> std::io::Result<Self> {
        let (orders, mut incoming) = mpsc::unbounded_channel::<Order>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("provider-scripts".into()).spawn(move || {
            runtime.block_on(async move {
                while let Some(order) = incoming.recv().await {
                    let guard = guard.clone();
                    tokio::spawn(async move {
                        let ended = execute(&guard, order.run, order.keep, order.cancel).await;
                        let _ = order.reply.send(ended);
                    });
                }
            });
        })?;
        Ok(Self { orders })
    }

    /// This very binary, even when its file was replaced meanwhile.
    #[must_use]
    pub fn own_binary() -> PathBuf {
        PathBuf::from("/proc/self/exe")
    }

    /// Runs a script to its end, its time limit, or until `cancel`. After that its end is waited for only briefly: the
    /// guard ends a script that does not obey, whether or not anybody waits.
    pub async fn run(&self, run: Run, cancel: CancellationToken) -> Ran {
        let server = run.server.clone();
        let ended = self.order(run, Keep::Last(STDOUT_MAX), cancel).await;
        let outcome = match ended.end {
            End::NotStarted(why) => Outcome::NotStarted(why),
            End::Unknown(why) => Outcome::Unknown(why, None),
            End::Exit(exit, Some((bytes, cut))) => answer::read(exit, Tail { bytes: &bytes, cut }, &server),
            End::Exit(exit, None) => {
                Outcome::Unknown("its stdout stayed open".to_owned(), answer::Class::of(exit))
            }
        };
        Ran { outcome, stderr: String::from_utf8_lossy(&ended.stderr).into_owned(), took: ended.took }
    }

    /// Runs a script that lists servers, as [`ScriptRunner::run`] does.
    pub async fn list(&self, run: Run, cancel: CancellationToken) -> RanList {
        let ended = self.order(run, Keep::Last(LIST_MAX), cancel).await;
        let servers = match ended.end {
            End::NotStarted(why) | End::Unknown(why) => Err(why),
            End::Exit(exit, Some((bytes, cut))) => answer::read_list(exit, Tail { bytes: &bytes, cut }),
            End::Exit(_, None) => Err("its stdout stayed open".to_owned()),
        };
        RanList { servers, stderr: String::from_utf8_lossy(&ended.stderr).into_owned() }
    }

    /// Runs a script that prints a document of at most `most` bytes; of a longer one, one byte more is kept.
    ///
    /// # Errors
    /// Why there is none. What the script wrote to stderr is dropped: it may hold the document's secrets.
    pub async fn document(
        &self,
        run: Run,
        most: usize,
        cancel: CancellationToken,
    ) -> Result<Vec<u8>, String> {
        match self.order(run, Keep::First(most.saturating_add(1)), cancel).await.end {
            End::NotStarted(why) | End::Unknown(why) => Err(why),
            End::Exit(0, Some((bytes, _))) => Ok(bytes),
            // A writer that minds a closed pipe ends otherwise; the length is what is wrong.
            End::Exit(_, Some((bytes, _))) if bytes.len() > most => Ok(bytes),
            End::Exit(exit, Some(_)) => Err(format!("ended with exit code {exit}")),
            End::Exit(_, None) => Err("its stdout stayed open".to_owned()),
        }
    }

    async fn order(&self, run: Run, keep: Keep, cancel: CancellationToken) -> Ended {
        let (reply, mut answer) = oneshot::channel();
        let cancelled = cancel.clone();
        let lost =
            |why: &str| Ended { end: End::Unknown(why.to_owned()), stderr: Vec::new(), took: Duration::ZERO };
        if self.orders.send(Order { run, keep, cancel, reply }).is_err() {
            return lost("the script thread is gone");
        }
        let ended = tokio::select! {
            ended = &mut answer => ended.ok(),
            () = cancelled.cancelled() => match tokio::time::timeout(CANCEL_WITHIN, &mut answer).await {
                Ok(ended) => ended.ok(),
                Err(_) => return lost("it was stopped, and its end not waited for"),
            },
        };
        ended.unwrap_or_else(|| lost("the script thread dropped the run"))
    }
}

/// Why the file cannot be a script, so that nothing is started.
fn unusable(script: &Path) -> Option<String> {
    match std::fs::metadata(script) {
        Err(error) => Some(format!("{}: {error}", script.display())),
        Ok(file) if !file.is_file() => Some(format!("{}: not a file", script.display())),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => {
            Some(format!("{}: not executable", script.display()))
        }
        Ok(_) => wrong_first_line(script).map(|why| format!("{}: {why}", script.display())),
    }
}

/// Why the kernel would not start a text file, which it says in words that lead nowhere: `No such file or directory` for a
/// script that is there, and nothing at all of a missing first line. A program of its own has no such line.
fn wrong_first_line(script: &Path) -> Option<String> {
    let mut start = [0; 256];
    let read = std::fs::File::open(script).and_then(|mut file| file.read(&mut start)).ok()?;
    let start = &start[..read];
    if start.starts_with(b"\x7fELF") {
        return None;
    }
    let Some(rest) = start.strip_prefix(b"#!") else {
        return Some("its first line does not name an interpreter; let it begin with #!/bin/sh".to_owned());
    };
    let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.ends_with(b"\r") {
        return Some("its lines end with carriage returns; save it with Unix line ends".to_owned());
    }
    let interpreter = line.trim_ascii().split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let path = Path::new(std::ffi::OsStr::from_bytes(interpreter));
    (!path.exists()).then(|| format!("its first line names {}, which does not exist", path.display()))
}

async fn execute(guard_binary: &Path, run: Run, keep: Keep, cancel: CancellationToken) -> Ended {
    let began = Instant::now();
    let done = |end, stderr| Ended { end, stderr, took: began.elapsed() };
    if let Some(why) = unusable(&run.script) {
        return done(End::NotStarted(why), Vec::new());
    }
    let spawned = Command::new(guard_binary)
        .arg(guard::ARGUMENT)
        .arg(std::process::id().to_string())
        .arg(run.limit.as_millis().to_string())
        .arg(&run.script)
        .env_clear()
        .envs(run.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            return done(End::NotStarted(format!("start the script's guard: {error}")), Vec::new());
        }
    };
    let stdout = child.stdout.take();
    let stdout = tokio::spawn(async move {
        match keep {
            Keep::First(most) => read_start(stdout, most).await,
            Keep::Last(most) => read_end(stdout, most).await,
        }
    });
    let stderr = tokio::spawn(read_end(child.stderr.take(), STDERR_KEPT));
    let exit = wait(&mut child, run.limit, &cancel).await;
    // Whoever still holds the pipe now escaped the guard; nothing waits for it.
    let (out, err) = tokio::join!(bounded(stdout), bounded(stderr));
    let err = err.map(|(bytes, _)| bytes).unwrap_or_default();
    let end = match exit {
        None => End::Unknown("the script's guard did not end".to_owned()),
        Some(guard::TIMED_OUT) => End::Unknown(format!("no end within {:?}", run.limit)),
        Some(guard::STOPPED) => End::Unknown("it was stopped".to_owned()),
        Some(guard::NOT_STARTED) => {
            End::NotStarted(format!("it could not be started: {}", String::from_utf8_lossy(&err).trim_end()))
        }
        Some(exit) => End::Exit(exit, out),
    };
    done(end, err)
}

/// The guard's exit code. The guard keeps the time limit itself; the limit here is for a guard that fails.
async fn wait(child: &mut Child, limit: Duration, cancel: &CancellationToken) -> Option<i32> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let patience = limit + guard::GRACE + GUARD_SLACK;
    let ended = tokio::select! {
        ended = tokio::time::timeout(patience, child.wait()) => ended,
        () = cancel.cancelled() => {
            if let Some(pid) = pid {
                let _ = kill(pid, Signal::SIGTERM);
            }
            tokio::time::timeout(guard::GRACE + GUARD_SLACK, child.wait()).await
        }
    };
    if let Ok(Ok(status)) = ended {
        return status.code();
    }
    let _ = child.kill().await;
    None
}

async fn bounded<T>(task: tokio::task::JoinHandle<T>) -> Option<T> {
    let abort = task.abort_handle();
    let ended = tokio::time::timeout(PIPE_GRACE, task).await;
    abort.abort();
    ended.ok()?.ok()
}

/// Keeps the first `most` bytes and reads the rest away, so that the writer is never blocked. True: there was more.
async fn read_start(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> (Vec<u8>, bool) {
    let mut kept = Vec::new();
    let mut too_long = false;
    each_block(pipe, |block| {
        let room = most - kept.len();
        kept.extend_from_slice(&block[..block.len().min(room)]);
        too_long |= block.len() > room;
    })
    .await;
    (kept, too_long)
}

/// Keeps the last `most` bytes. True: there was more.
async fn read_end(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> (Vec<u8>, bool) {
    let mut kept: Vec<u8> = Vec::new();
    let mut cut = false;
    let shorten = |kept: &mut Vec<u8>| {
        let over = kept.len().saturating_sub(most);
        kept.drain(..over);
        over > 0
    };
    each_block(pipe, |block| {
        kept.extend_from_slice(block);
        // Seldom: each time moves all that is kept.
        if kept.len() > most.saturating_mul(2) {
            cut |= shorten(&mut kept);
        }
    })
    .await;
    cut |= shorten(&mut kept);
    (kept, cut)
}

async fn each_block(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let mut block = vec![0; 8192];
    while let Ok(read) = pipe.read(&mut block).await {
        if read == 0 {
            break;
        }
        take(&block[..read]);
    }
}
