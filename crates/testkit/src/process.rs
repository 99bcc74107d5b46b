//! Processes that a test starts, watches, pauses and kills.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::shared::workspace;
use crate::wait::{wait_for, wait_until};

/// What of the test's own environment a started program sees: nothing that could change what it does.
const INHERITED: [&str; 7] =
    ["PATH", "HOME", "USER", "TMPDIR", "LANG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// The path of one of our own binaries, such as `voiceai-scaler`, built from the sources as they are now.
///
/// `make test` builds them beforehand and says so by `VOICEAI_TEST_BINARIES=built`; otherwise the first call builds it.
///
/// # Panics
/// When it cannot be built, with the compiler's message.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    // The test's own file is target/PROFILE/deps/NAME-HASH.
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let mut built = lock(&BUILT);
    if std::env::var_os("VOICEAI_TEST_BINARIES").is_none() && !built.iter().any(|known| known == name) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--bin", name]).current_dir(workspace());
        cargo.env("CARGO_TARGET_DIR", profile.parent().expect("a profile lies in the target directory"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let output = cargo.output().unwrap_or_else(|error| panic!("run cargo to build {name}: {error}"));
        assert!(output.status.success(), "build {name}:\n{}", String::from_utf8_lossy(&output.stderr));
        built.push(name.to_owned());
    }
    let path = profile.join(name);
    assert!(path.exists(), "{} does not exist", path.display());
    path
}

/// A program about to be started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    /// Put before the program: another user, other rights.
    wrapper: Vec<OsString>,
}

impl Program {
    /// A program by path, or by name through PATH. Its environment is empty but for PATH, HOME and the like.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), directory: None, wrapper: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets variables.
    #[must_use]
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.env.extend(
            variables.into_iter().map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned())),
        );
        self
    }

    /// The directory it starts in.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// A command that ends in running another one, such as `faketime -f +1h` or `nice -n 19`.
    #[must_use]
    pub fn wrapped_in<S: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper.extend(wrapper.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Starts it in a process group of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(self) -> Process {
        Process::start(self)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(Signal),
}

/// A running or ended process. Dropping it kills its whole process group; so does the kernel for the process itself when
/// the test process is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    /// Unreaped until drop, so that the pid and the group's number stay ours and a signal never hits a stranger.
    child: Child,
    exit: Arc<Mutex<Option<Exit>>>,
    output: Arc<Mutex<Output>>,
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// Streams that have not reached their end.
    open: u8,
}

impl Process {
    fn start(program: Program) -> Self {
        let name = program.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The kernel's signal for a parent's death goes by the thread that made the child, so a thread that never ends does.
        let mut child = on_spawner(move || {
            // `setpriv` because setting the signal between fork and exec would need unsafe code here.
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL", "--"])
                .args(&program.wrapper)
                .arg(&program.path)
                .args(&program.args)
                .env_clear();
            for name in INHERITED {
                if let Some(value) = std::env::var_os(name) {
                    command.env(name, value);
                }
            }
            command.envs(program.env.iter().map(|(name, value)| (name, value)));
            if let Some(directory) = &program.directory {
                command.current_dir(directory);
            }
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", program.path.display()))
        });
        let pid = Pid::from_raw(child.id().cast_signed());
        let output = Arc::new(Mutex::new(Output { open: 2, ..Output::default() }));
        collect(child.stdout.take(), &output, |output| &mut output.stdout);
        collect(child.stderr.take(), &output, |output| &mut output.stderr);

        let exit = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&exit);
        std::thread::spawn(move || {
            // Looks without reaping. Ends with an error when drop has reaped first, which nobody then asks about.
            let ended = loop {
                match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                    Ok(WaitStatus::Exited(_, code)) => break Some(Exit::Code(code)),
                    Ok(WaitStatus::Signaled(_, signal, _)) => break Some(Exit::Signal(signal)),
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => break None,
                }
            };
            *lock(&seen) = ended;
        });
        Self { name, pid, child, exit, output }
    }

    /// Its process id. `setpriv` execs into the program, so it is the program's own.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *lock(&self.exit)
    }

    /// Sends a signal to the process alone. Nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        // An ended process is a zombie until drop: the signal reaches nobody.
        let _ = kill(self.pid, signal);
    }

    /// SIGTERM: asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGKILL: ends it between two instructions. Its children live on, as after a real crash, until drop.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// SIGSTOP: its connections stay open and it answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT: it goes on, not knowing that time has passed.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it has ended and all its output was read.
    ///
    /// # Panics
    /// When it still runs after `within`; the message holds its output.
    pub async fn wait_exit(&self, within: Duration) -> Exit {
        let exit = wait_for(within, format!("{} (pid {}) ends", self.name, self.pid), async || {
            self.exit().ok_or_else(|| format!("it runs, and has written:\n{}", self.tail()))
        })
        .await;
        // A child of it may keep a stream open; the output so far has then to do.
        let drained = tokio::time::timeout(Duration::from_secs(1), async {
            while lock(&self.output).open > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let _ = drained.await;
        exit
    }

    /// Waits for a line on either stream that holds `text`, also one written before the call, and returns it.
    ///
    /// # Panics
    /// When there is none within the time, or the process has ended without one.
    pub async fn wait_for_line(&self, within: Duration, text: &str) -> String {
        let mut ended = false;
        wait_for(within, format!("{} writes a line with {text:?}", self.name), async || {
            let found = {
                let output = lock(&self.output);
                output.stdout.iter().chain(&output.stderr).find(|line| line.contains(text)).cloned()
            };
            if let Some(line) = found {
                return Ok(line);
            }
            let over = self.exit().is_some() && lock(&self.output).open == 0;
            assert!(
                !(over && ended),
                "{} ended ({:?}) without a line with {text:?}:\n{}",
                self.name,
                self.exit(),
                self.tail()
            );
            // One more look after the end: the line may have come between the two looks.
            ended = over;
            Err(format!("its last lines:\n{}", self.tail()))
        })
        .await
    }

    /// Waits until the process has ended or the condition holds; panics with its output otherwise.
    pub async fn wait_until(&self, within: Duration, what: &str, mut check: impl AsyncFnMut() -> bool) {
        wait_until(within, format!("{what} ({} pid {})", self.name, self.pid), async || {
            let holds = check().await;
            assert!(
                holds || self.exit().is_none(),
                "{} ended ({:?}) before {what}:\n{}",
                self.name,
                self.exit(),
                self.tail()
            );
            holds
        })
        .await;
    }

    /// All of standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        lock(&self.output).stdout.join("\n")
    }

    /// All of standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        lock(&self.output).stderr.join("\n")
    }

    fn tail(&self) -> String {
        let output = lock(&self.output);
        let mut text = String::new();
        for (stream, lines) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            for line in lines.iter().skip(lines.len().saturating_sub(30)) {
                let _ = writeln!(text, "  {stream}: {line}");
            }
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process takes SIGKILL as well.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- {} (pid {}) {:?}, last output ---\n{}",
                self.name,
                self.pid,
                self.exit(),
                self.tail()
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a stream to its end on a thread of its own, line by line.
fn collect(
    stream: Option<impl Read + Send + 'static>,
    output: &Arc<Mutex<Output>>,
    of: fn(&mut Output) -> &mut Vec<String>,
) {
    let output = Arc::clone(output);
    let stream = stream.expect("the stream is piped");
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            of(&mut lock(&output))
                .push(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned());
            line.clear();
        }
        lock(&output).open -= 1;
    });
}

/// Runs `work` on the one thread of this process that starts children and never ends.
fn on_spawner<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    type Work = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<mpsc::Sender<Work>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Work>();
        std::thread::spawn(move || {
            while let Ok(work) = receiver.recv() {
                work();
            }
        });
        sender
    });
    let (answer, result) = mpsc::sync_channel(1);
    let work = move || {
        // A panic must reach the test that asked, and must not end the thread: its children would be killed.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let _ = answer.send(outcome);
    };
    spawner.send(Box::new(work)).expect("the spawning thread never ends");
    match result.recv().expect("the spawning thread answers") {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
