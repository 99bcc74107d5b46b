//! The servers that all tests share, and Redis's part of them.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A server that no test process has used for this long is ended by its supervisor.
const IDLE_SECONDS: &str = "60";
/// Installing the S3 store's Python package on a fresh machine is the longest wait.
const START_WITHIN: Duration = Duration::from_secs(180);

/// The workspace's root, where `scripts/` and `.stack/` lie.
pub(crate) fn workspace() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        here.ancestors().nth(2).expect("crates/testkit lies two levels below the root").to_owned()
    })
}

/// The variables under which a part's address is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Redis,
    Postgres,
    S3,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::S3 => "s3",
        }
    }

    const fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["VOICEAI_TEST_REDIS_URL"],
            Self::Postgres => &["VOICEAI_TEST_DATABASE_URL"],
            Self::S3 => {
                &["VOICEAI_TEST_S3_ENDPOINT", "VOICEAI_TEST_S3_ACCESS_KEY", "VOICEAI_TEST_S3_SECRET_KEY"]
            }
        }
    }
}

/// The part's address: from the environment, else from a server started for all test processes of this checkout.
pub(crate) async fn address(part: Part) -> HashMap<String, String> {
    let given: HashMap<String, String> = part
        .variables()
        .iter()
        .filter_map(|name| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.is_empty())
                .map(|value| ((*name).to_owned(), value))
        })
        .collect();
    if given.len() == part.variables().len() {
        return given;
    }
    assert!(
        given.is_empty(),
        "of {:?} some are set and some are not; set all of them, or none to have a server started",
        part.variables()
    );
    // Blocks on file locks and on a server's start, so not on a runtime thread.
    tokio::task::spawn_blocking(move || started(part)).await.expect("start a shared server")
}

/// One start for each part and process; the users' lock is held until the process ends.
fn started(part: Part) -> HashMap<String, String> {
    type Started = HashMap<Part, (HashMap<String, String>, File)>;
    static STARTED: Mutex<Option<Started>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let started = started.get_or_insert_default();
    let (address, _user) = started.entry(part).or_insert_with(|| join_or_start(part));
    address.clone()
}

fn join_or_start(part: Part) -> (HashMap<String, String>, File) {
    let directory = workspace().join(".stack/test").join(part.name());
    fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
    // While this is held the supervisor does not decide to end, and no other process starts a second server.
    let start_lock = lock_file(&directory.join("start.lock"));
    start_lock.lock().expect("lock start.lock");
    let user = lock_file(&directory.join("users.lock"));
    user.lock_shared().expect("lock users.lock");

    let supervisor = directory.join("supervisor.pid");
    if !is_alive(&supervisor) {
        start_supervisor(part, &directory);
    }
    let deadline = Instant::now() + START_WITHIN;
    loop {
        if let Ok(text) = fs::read_to_string(directory.join("env")) {
            return (parse(&text), user);
        }
        let log = directory.join("supervisor.log");
        // The pid file is written first thing; before that there is nothing to judge by, so the deadline decides.
        let ended = supervisor.exists() && !is_alive(&supervisor);
        assert!(
            !ended && Instant::now() < deadline,
            "the tests' {} did not start; its log {}:\n{}",
            part.name(),
            log.display(),
            fs::read_to_string(&log).unwrap_or_default()
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn lock_file(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Starts the supervisor outside this test's session, so that it outlives the test that happened to be first.
fn start_supervisor(part: Part, directory: &Path) {
    // What a former supervisor left would be mistaken for the new one's.
    for old in ["env", "supervisor.pid"] {
        let _ = fs::remove_file(directory.join(old));
    }
    let log = File::create(directory.join("supervisor.log")).expect("create supervisor.log");
    let status = Command::new("setsid")
        .arg("--fork")
        .arg("bash")
        .arg(workspace().join("scripts/stack/test-servers.sh"))
        .args(["serve", part.name()])
        .arg(directory)
        .arg(IDLE_SECONDS)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share supervisor.log"))
        .stderr(log)
        .status();
    assert!(matches!(status, Ok(status) if status.success()), "start the tests' {}: {status:?}", part.name());
}

/// Whether the process recorded in a pid file (`pid start-time`, as `scripts/stack/lib.sh` writes it) still runs.
fn is_alive(pid_file: &Path) -> bool {
    let Ok(text) = fs::read_to_string(pid_file) else { return false };
    let Some((pid, started)) = text.trim().split_once(' ') else { return false };
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The command's name may hold anything, so count from the parenthesis that ends it; field 22 is the start time.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let state = fields.next();
    !matches!(state, Some("Z" | "X") | None) && fields.nth(18) == Some(started)
}

fn parse(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A Redis database of the calling test's own, empty. Keep it for as long as the database is used.
#[derive(Debug, Clone)]
pub struct RedisDb {
    /// `redis://127.0.0.1:PORT/NUMBER`.
    pub url: String,
    /// The database's number. Pub/sub ignores it: put it into channel names.
    pub number: u32,
    /// Held locked; other tests skip a number whose file is locked.
    _reservation: Arc<File>,
}

impl RedisDb {
    /// Runs one command with `redis-cli` and returns its raw output, trimmed.
    pub async fn cli(&self, args: &[&str]) -> String {
        crate::redis_server::redis_cli(&["-u", &self.url], None, args).await
    }
}

/// The client library counts databases in one byte.
const LAST_DATABASE: u32 = 255;

/// Takes a database number of the shared Redis that no living test uses, and empties it.
pub async fn redis() -> RedisDb {
    let address = address(Part::Redis).await;
    let server = address["VOICEAI_TEST_REDIS_URL"].trim_end_matches('/').to_owned();
    let (_, port) = server.rsplit_once(':').expect("the shared Redis has a port");
    let directory = std::env::temp_dir().join(format!("voiceai-redis-{port}-{}", nix::unistd::getuid()));
    std::fs::create_dir_all(&directory)
        .unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
    // Database 0 holds only this counter. It is where the search begins, so that a number comes round as late as it can.
    let counter = format!("{server}/0");
    for _ in 0..LAST_DATABASE {
        let count: u32 =
            crate::redis_server::redis_cli(&["-u", &counter], None, &["INCR", "testkit:databases"])
                .await
                .parse()
                .expect("INCR answers a number");
        let number = count % LAST_DATABASE + 1;
        let path = directory.join(number.to_string());
        let reservation =
            File::create(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        if reservation.try_lock().is_err() {
            continue;
        }
        let reservation = Arc::new(reservation);
        if std::env::var_os("NEXTEST").is_some() {
            // One test a process: kept to its end, so that a test which holds on to the URL alone is safe as well.
            static KEPT: Mutex<Vec<Arc<File>>> = Mutex::new(Vec::new());
            KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Arc::clone(&reservation));
        }
        let url = format!("{server}/{number}");
        let database = RedisDb { url, number, _reservation: reservation };
        assert_eq!(database.cli(&["FLUSHDB", "SYNC"]).await, "OK", "empty {}", database.url);
        return database;
    }
    panic!("all {LAST_DATABASE} databases of {server} are in use by living tests");
}
