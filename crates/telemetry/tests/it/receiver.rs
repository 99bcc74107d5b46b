//! A real OTLP receiver: rotel from the Python package index.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running receiver; ended on drop.
pub(crate) struct Receiver {
    process: Child,
    pub(crate) grpc: u16,
    pub(crate) http: u16,
    seen: Arc<Mutex<String>>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let (grpc, http) = (free_port(), free_port());
        let mut process = Command::new(installed())
            .arg("start")
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .args(["--exporter", "blackhole", "--debug-log-verbosity", "detailed"])
            .args(["--debug-log", "traces", "--debug-log", "metrics", "--debug-log", "logs"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("rotel starts");
        let seen = Arc::new(Mutex::new(String::new()));
        let (output, told) = (process.stdout.take().expect("stdout is piped"), Arc::clone(&seen));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut told = told.lock().expect("no test panics with the lock");
                told.push_str(&line);
                told.push('\n');
            }
        });
        let receiver = Self { process, grpc, http, seen };
        receiver.wait("both listeners", |_| {
            [grpc, http].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        receiver
    }

    /// Waits until what was received satisfies `enough`, and returns it.
    pub(crate) fn wait(&self, what: &str, enough: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let seen = self.seen.lock().expect("no test panics with the lock").clone();
            if enough(&seen) {
                return seen;
            }
            assert!(Instant::now() < until, "{what} did not come; received:\n{seen}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// The receiver's program; the script installs it where it is missing.
fn installed() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/stack/tool.sh");
    let output = Command::new(script).arg("rotel").output().expect("run scripts/stack/tool.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}
