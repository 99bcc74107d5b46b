//! Scripts that misbehave: nothing hangs, nothing survives, nothing unclear is taken for an answer.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use voiceai_scaler::script::{Call, Class, Labels, Outcome, Ran, Run, ScriptRunner, Surroundings};
use voiceai_scaler_core::Service;
use voiceai_testkit::wait_until;

use crate::harness::{Stack, binary};

const GOOD: &str = r#"{"id":"7","name":"n","status":"ready","ip":"10.0.0.7"}"#;

struct Bench {
    runner: ScriptRunner,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let runner = ScriptRunner::start(binary()).expect("a thread");
        Self { runner, folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, body: &str) -> PathBuf {
        let path = self.path("script.sh");
        std::fs::write(&path, format!("#!/bin/bash\n{body}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        path
    }

    /// A marker that every process started by the script carries in its environment.
    fn marker(&self) -> (String, OsString) {
        ("MARKER".to_owned(), self.folder.path().as_os_str().to_owned())
    }

    async fn run_with(&self, body: &str, limit: Duration, cancel: CancellationToken) -> Ran {
        let environment = vec![("PATH".to_owned(), "/usr/bin:/bin".into()), self.marker()];
        let run = Run { script: self.write(body), environment, server: "n".to_owned(), limit };
        self.runner.run(run, cancel).await
    }

    async fn run(&self, body: &str) -> Ran {
        self.run_with(body, Duration::from_secs(20), CancellationToken::new()).await
    }

    /// Processes that the script left behind.
    fn survivors(&self) -> Vec<String> {
        let marker = format!("MARKER={}", self.folder.path().display());
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                std::fs::read(entry.path().join("environ"))
                    .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == marker.as_bytes()))
            })
            .map(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).replace('\0', " ")
            })
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let left = self.survivors();
        assert!(left.is_empty() || std::thread::panicking(), "left behind: {left:?}");
    }
}

fn is_unknown(ran: &Ran, part: &str) -> bool {
    matches!(&ran.outcome, Outcome::Unknown(why, _) if why.contains(part))
}

#[tokio::test]
async fn exit_codes_and_the_last_line_are_the_answer() {
    let bench = Bench::new();
    let ran = bench.run(&format!("echo noise; echo '{{}}'; echo '{GOOD}'; echo secret-free >&2")).await;
    assert!(matches!(&ran.outcome, Outcome::Said(Class::Done, answer) if answer.id.as_deref() == Some("7")));
    assert_eq!(ran.stderr.trim(), "secret-free");
    for (exit, class) in [
        (10, Class::Retry),
        (11, Class::OutOfStock),
        (12, Class::Quota),
        (13, Class::RateLimited),
        (14, Class::NotFound),
        (20, Class::Refused),
    ] {
        let ran = bench.run(&format!("echo '{GOOD}'; exit {exit}")).await;
        assert!(matches!(ran.outcome, Outcome::Said(said, _) if said == class), "{exit}");
    }
    for exit in ["1", "2", "15", "127", "255"] {
        assert!(is_unknown(&bench.run(&format!("echo '{GOOD}'; exit {exit}")).await, "exit code"), "{exit}");
    }
    let killed = bench.run(&format!("echo '{GOOD}'; kill -KILL $$")).await;
    assert!(is_unknown(&killed, "exit code 137"), "{killed:?}");
}

#[tokio::test]
async fn output_outside_the_contract_is_unknown() {
    let bench = Bench::new();
    for body in [
        "true",
        "echo nonsense",
        "head -c 1000 /dev/urandom",
        "echo '{\"name\":\"other\",\"status\":\"ready\"}'",
        "echo '[1]'",
        "printf '%s' '{\"name\":\"n\",'",
    ] {
        let ran = bench.run(body).await;
        assert!(matches!(ran.outcome, Outcome::Unknown(_, Some(Class::Done))), "{body}: {ran:?}");
    }
    // A flood is read away, so that the script can end, and never kept.
    let began = Instant::now();
    let ran = bench
        .run(&format!("head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; echo '{GOOD}'"))
        .await;
    let Outcome::Unknown(why, Some(Class::Done)) = &ran.outcome else { panic!("{:?}", ran.outcome) };
    assert!(why.contains("the agreed JSON") || why.contains("more than"), "{why}");
    assert!(ran.stderr.len() <= 64 * 1024, "{}", ran.stderr.len());
    assert!(began.elapsed() < Duration::from_secs(15));
    // What stands before the last line is the script's own affair, however much it is.
    let ran = bench.run(&format!("head -c 30000000 /dev/urandom; echo; echo '{GOOD}'")).await;
    assert!(matches!(&ran.outcome, Outcome::Said(Class::Done, answer) if answer.id.as_deref() == Some("7")));
}

#[tokio::test]
async fn a_script_that_cannot_start_says_why_and_changed_nothing() {
    let bench = Bench::new();
    let run = async |content: &str| {
        let script = bench.path("other.sh");
        std::fs::write(&script, content).expect("a script");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let limit = Duration::from_secs(20);
        let environment = vec![bench.marker()];
        let run = Run { script, environment, server: "n".to_owned(), limit };
        bench.runner.run(run, CancellationToken::new()).await.outcome
    };
    for (content, part) in [
        ("#!/bin/sh\r\necho\r\n", "Unix line ends"),
        ("echo '{}'\n", "#!/bin/sh"),
        ("", "#!/bin/sh"),
        ("#!/no/such/shell -e\n", "/no/such/shell, which does not exist"),
        ("#!/etc/hostname\n", "could not be started"),
    ] {
        let outcome = run(content).await;
        assert!(
            matches!(&outcome, Outcome::NotStarted(why) if why.contains(part) && why.contains("other.sh")),
            "{content:?}: {outcome:?}"
        );
    }
    // Codes that shells and `timeout` give are the script's own, and say nothing about how it was started.
    for exit in [124, 126, 143, 241, 242, 243] {
        let outcome = run(&format!("#!/bin/sh\nexit {exit}\n")).await;
        let told = if exit > 200 { "exit code 1".to_owned() } else { format!("exit code {exit}") };
        assert!(matches!(&outcome, Outcome::Unknown(why, None) if *why == told), "{exit}: {outcome:?}");
    }
    // One that is being written is waited for.
    let script = bench.write(&format!("echo '{GOOD}'"));
    let busy = std::fs::OpenOptions::new().append(true).open(&script).expect("open for writing");
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(busy);
    };
    let environment = vec![("PATH".to_owned(), "/usr/bin:/bin".into()), bench.marker()];
    let run = Run { script, environment, server: "n".to_owned(), limit: Duration::from_secs(20) };
    let (ran, ()) = tokio::join!(bench.runner.run(run, CancellationToken::new()), release);
    assert!(matches!(ran.outcome, Outcome::Said(Class::Done, _)), "{:?}", ran.outcome);
}

#[tokio::test]
async fn a_script_that_hangs_is_ended_with_all_it_started() {
    let bench = Bench::new();
    let began = Instant::now();
    let body = "sleep 1000 & setsid sleep 1001 & (setsid sleep 1002 & ) & sleep 1003";
    let ran = bench.run_with(body, Duration::from_millis(500), CancellationToken::new()).await;
    assert!(is_unknown(&ran, "no end within"), "{ran:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(bench.survivors(), [""; 0]);
}

#[tokio::test]
async fn a_script_that_ignores_sigterm_is_killed_ten_seconds_later() {
    let bench = Bench::new();
    let body = "trap '' TERM; setsid bash -c 'trap \"\" TERM; while true; do sleep 1; done' & while true; do sleep 1; done";
    let began = Instant::now();
    let ran = bench.run_with(body, Duration::from_millis(300), CancellationToken::new()).await;
    assert!(is_unknown(&ran, "no end within"), "{ran:?}");
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(16), "{took:?}");
    assert_eq!(bench.survivors(), [""; 0]);
}

#[tokio::test]
async fn a_pipe_held_open_by_a_grandchild_does_not_hang_the_answer() {
    let bench = Bench::new();
    let began = Instant::now();
    let ran = bench.run(&format!("setsid sleep 1000 & echo '{GOOD}'")).await;
    assert!(matches!(ran.outcome, Outcome::Said(Class::Done, _)), "{ran:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(bench.survivors(), [""; 0], "who keeps the script's output is no daemon");
    // One that left the output behind is a server that a provider started, and is let go.
    let ran = bench.run(&format!("setsid sleep 2 </dev/null >/dev/null 2>&1 & echo '{GOOD}'")).await;
    assert!(matches!(ran.outcome, Outcome::Said(Class::Done, _)), "{ran:?}");
    assert_eq!(bench.survivors().len(), 1);
    wait_until(Duration::from_secs(5), "it ends by itself", async || bench.survivors().is_empty()).await;
}

/// Leaves by every door: forked twice, a session of its own, another folder.
const DOUBLE_FORK: &str = r#"
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        if sys.argv[1] == "deaf":
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[2], "w").write(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[2]) or not open(sys.argv[2]).read():
    time.sleep(0.01)
"#;

#[tokio::test]
async fn a_grandchild_that_forked_twice_and_holds_the_output_neither_hangs_nor_survives() {
    let bench = Bench::new();
    std::fs::write(bench.path("fork.py"), DOUBLE_FORK).expect("a program");
    for (temper, then, answered) in [("deaf", "", true), ("tame", "sleep 1000", false)] {
        let pid = bench.path(&format!("{temper}.pid"));
        let body = format!(
            "python3 '{}' {temper} '{}'; echo '{GOOD}'; {then}",
            bench.path("fork.py").display(),
            pid.display()
        );
        let began = Instant::now();
        let ran = bench.run_with(&body, Duration::from_secs(3), CancellationToken::new()).await;
        assert_eq!(matches!(ran.outcome, Outcome::Said(Class::Done, _)), answered, "{ran:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{temper}: {:?}", began.elapsed());
        assert!(pid.exists(), "it ran");
        assert_eq!(bench.survivors(), [""; 0]);
    }
}

#[tokio::test]
async fn hostile_values_run_nothing_in_the_local_provider() {
    let stack = Stack::new().await;
    let bait = stack.folder.path().join("bait");
    let touch = format!("touch {}", bait.display());
    let hostile = [
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("'; {touch}; '"),
        format!("\"; {touch}; \""),
        format!("a[$({touch})]"),
        format!("x\n{touch}\n"),
        format!("-e {touch}"),
    ];
    let keys = [
        "redisUrl",
        "heartbeatKeyPrefix",
        "heartbeatMs",
        "heartbeatTtlMs",
        "capacity",
        "bootDelayMs",
        "address",
        "dispatcher",
        "location",
        "a[$(id)]",
    ];
    for (number, value) in hostile.iter().enumerate() {
        let name = format!("hostile-{number:02}");
        let mut config = stack.config();
        for key in keys {
            config[key] = json!(value);
        }
        config["dispatcher"] = json!({ "port": value });
        let labels = json!({"operation": value, "group": value});
        // A server is made where the values allow one, so that they reach it, too.
        let mut usable = stack.config();
        for key in ["heartbeatKeyPrefix", "location", "a[$(id)]"] {
            usable[key] = json!(value);
        }
        let calls = [
            ("scalingStatus.sh", &config),
            ("scaleDown.sh", &config),
            ("scaleUp.sh", &usable),
            ("scalingStatus.sh", &usable),
            ("scaleDown.sh", &usable),
        ];
        for (script, config) in calls {
            let said = stack.script_with(script, &name, value, config, &labels);
            assert!(!bait.exists(), "{script} ran {value}");
            assert!(said.answer.is_object(), "{script} with {value}: exit {}", said.exit);
        }
        // Nor where the name itself is the bait.
        let said = stack.script_with("scaleUp.sh", value, "op", &stack.config(), &json!({"operation": "op"}));
        assert_eq!(said.exit, 20, "{value}");
    }
    assert!(!bait.exists());
}

#[tokio::test]
async fn a_cancelled_run_ends_its_script() {
    let bench = Bench::new();
    let cancel = CancellationToken::new();
    let started = bench.path("started");
    let body = format!("touch '{}'; sleep 1000", started.display());
    let stop = async {
        wait_until(Duration::from_secs(10), "it runs", async || started.exists()).await;
        cancel.cancel();
    };
    let (ran, ()) = tokio::join!(bench.run_with(&body, Duration::from_secs(60), cancel.clone()), stop);
    assert!(is_unknown(&ran, "stopped"), "{ran:?}");
    assert_eq!(bench.survivors(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_started_changed_nothing() {
    let bench = Bench::new();
    for (script, part) in
        [("absent.sh", "No such file"), ("plain.sh", "not executable"), ("folder", "not a file")]
    {
        std::fs::write(bench.path("plain.sh"), "#!/bin/sh\n").expect("a file");
        std::fs::create_dir_all(bench.path("folder")).expect("a folder");
        let run = Run {
            script: bench.path(script),
            environment: Vec::new(),
            server: "n".to_owned(),
            limit: Duration::from_secs(5),
        };
        let ran = bench.runner.run(run, CancellationToken::new()).await;
        assert!(matches!(&ran.outcome, Outcome::NotStarted(why) if why.contains(part)), "{ran:?}");
    }
}

fn call() -> Call {
    let operation = Uuid::nil();
    Call {
        operation,
        server: "dev-voice-01".to_owned(),
        group: "eu".to_owned(),
        service: Service::Voice,
        provider: "custom".to_owned(),
        config: Map::from_iter([("key".to_owned(), json!("value $(touch x)"))]),
        candidate: Map::from_iter([("type".to_owned(), json!("t"))]),
        labels: Labels::new("eu", Service::Voice, "dev", operation),
        cloud_init: None,
        provider_id: Some("42".to_owned()),
    }
}

#[tokio::test]
async fn a_script_gets_the_agreed_variables_and_nothing_else() {
    let bench = Bench::new();
    let surroundings = Surroundings {
        environment: "dev".to_owned(),
        proxy: vec![("HTTP_PROXY", voiceai_runtime::Secret::new("http://proxy:3128"))],
        // Passing a variable on cannot replace what the contract says.
        passed: vec![("EXTRA".to_owned(), "1".into()), ("INSTANCE_NAME".to_owned(), "evil".into())],
        ..Surroundings::default()
    };
    let environment = surroundings.of(&call()).expect("a valid call");
    let body = format!(
        "env | grep -v -e '^_=' -e '^SHLVL=' -e '^PWD=' | sort > '{}'; echo '{GOOD}'",
        bench.path("env").display()
    );
    let run = Run {
        script: bench.write(&body),
        environment,
        server: "n".to_owned(),
        limit: Duration::from_secs(10),
    };
    let ran = bench.runner.run(run, CancellationToken::new()).await;
    assert!(matches!(ran.outcome, Outcome::Said(Class::Done, _)), "{ran:?}");
    let text = std::fs::read_to_string(bench.path("env")).expect("the environment");
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "CANDIDATE",
            "ENVIRONMENT",
            "EXTRA",
            "GROUP_NAME",
            "HTTP_PROXY",
            "INSTANCE_NAME",
            "LABELS",
            "OPERATION_ID",
            "PATH",
            "PROVIDER_CONFIG",
            "PROVIDER_ID",
            "SERVICE",
        ]
    );
    assert!(text.contains("INSTANCE_NAME=dev-voice-01\n"), "{text}");
    assert!(text.contains(r#"PROVIDER_CONFIG={"key":"value $(touch x)"}"#), "{text}");
    let labels = r#"LABELS={"managed-by":"voiceai-scaler","group":"eu","role":"voice","environment":"dev","operation":"00000000-0000-0000-0000-000000000000"}"#;
    assert!(text.contains(labels), "{text}");
}

#[test]
fn hostile_names_never_reach_a_shell() {
    let surroundings = Surroundings { environment: "dev".to_owned(), ..Surroundings::default() };
    assert!(surroundings.of(&call()).is_ok());
    type Change = fn(&mut Call);
    let changes: [(&str, Change); 6] = [
        ("server", |call| call.server = "a[$(id)]".to_owned()),
        ("group", |call| call.group = "$(id)".to_owned()),
        ("provider", |call| call.provider = "../../bin".to_owned()),
        ("label", |call| call.labels.group = "a b".to_owned()),
        ("id", |call| call.provider_id = Some("1;id".to_owned())),
        ("server", |call| call.server = "UPPER".to_owned()),
    ];
    for (what, change) in changes {
        let mut call = call();
        change(&mut call);
        assert!(surroundings.of(&call).is_err(), "{what}");
    }
    for name in ["BASH_ENV", "LD_PRELOAD", "BASH_FUNC_ls%%", "IFS", "A B", ""] {
        assert!(voiceai_scaler::script::is_never_passed(name), "{name}");
    }
}

#[tokio::test]
async fn the_local_provider_adopts_refuses_and_deletes_by_its_labels() {
    let stack = Stack::new().await;
    let absent = stack.script("scalingStatus.sh", "by-hand-01", "op-1");
    assert_eq!((absent.exit, absent.answer["status"].as_str()), (14, Some("absent")));
    let made = stack.script("scaleUp.sh", "by-hand-01", "op-1");
    assert_eq!((made.exit, made.answer["status"].as_str()), (0, Some("ready")), "{}", made.answer);
    let again = stack.script("scaleUp.sh", "by-hand-01", "op-1");
    assert_eq!(again.answer["id"], made.answer["id"], "the same server is adopted");
    assert_eq!(stack.processes(), 1);
    assert_eq!(
        stack.script("scaleUp.sh", "by-hand-01", "op-2").exit,
        20,
        "another operation's server is refused"
    );
    assert_eq!(stack.script("scaleDown.sh", "by-hand-01", "op-2").exit, 20);
    assert_eq!(stack.processes(), 1);
    let mut call = stack.call("by-hand-01");
    assert!(call.lives());
    let gone = stack.script("scaleDown.sh", "by-hand-01", "op-1");
    assert_eq!((gone.exit, gone.answer["status"].as_str()), (0, Some("absent")));
    assert!(!call.lives(), "a cut call is seen by its caller");
    assert_eq!(
        stack.script("scaleDown.sh", "by-hand-01", "op-1").exit,
        0,
        "deleting what is not there is success"
    );
    assert_eq!(stack.processes(), 0);
    assert_eq!(stack.script("scaleUp.sh", "a b", "op-1").exit, 20);
}
