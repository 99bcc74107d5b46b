//! A Kamailio of a test's own, with the configuration that is shipped.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ports::Port;
use crate::process::{Process, Program};
use crate::shared::workspace;

const START_WITHIN: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_secs(15);

/// How a Kamailio is set up: `deploy/kamailio/voiceai.cfg` with these values.
#[derive(Debug, Clone)]
pub struct KamailioOptions {
    /// The dispatcher's Redis, on 127.0.0.1.
    pub redis_port: u16,
    /// Its database.
    pub redis_database: u32,
    /// Look at the generation.
    pub pull: bool,
    /// Take JSON-RPC over HTTP.
    pub push: bool,
    /// Further definitions, such as `PING_SECONDS` and `1`. They win over those made here.
    pub defines: Vec<(&'static str, String)>,
}

impl KamailioOptions {
    /// Of both kinds, probing every second, on a database of the Redis on this port.
    #[must_use]
    pub fn new(redis_port: u16, redis_database: u32) -> Self {
        Self { redis_port, redis_database, pull: true, push: true, defines: Vec::new() }
    }
}

/// A Kamailio that may be killed, paused and restarted on the same ports. Ended on drop.
#[derive(Debug)]
pub struct Kamailio {
    options: KamailioOptions,
    sip: Port,
    rpc: Port,
    directory: TempDir,
    process: Option<Process>,
}

/// Where Debian's package puts the program, which an ordinary user's PATH does not know.
fn program() -> PathBuf {
    let path = PathBuf::from("/usr/sbin/kamailio");
    if path.exists() { path } else { PathBuf::from("kamailio") }
}

impl Kamailio {
    /// Starts one and waits until it answers OPTIONS.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn start(options: KamailioOptions) -> Self {
        let mut kamailio = Self::prepare(options);
        kamailio.launch().await;
        kamailio
    }

    /// Everything but the start.
    #[must_use]
    pub fn prepare(options: KamailioOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("kamailio-").tempdir().expect("make a directory");
        let kamailio = Self { options, sip: Port::reserve(), rpc: Port::reserve(), directory, process: None };
        std::fs::write(kamailio.site(), kamailio.configuration()).expect("write Kamailio's configuration");
        kamailio
    }

    /// The file that it is started with.
    #[must_use]
    pub fn site(&self) -> PathBuf {
        self.directory.path().join("site.cfg")
    }

    fn configuration(&self) -> String {
        let (port, database) = (self.options.redis_port, self.options.redis_database);
        let mut defines: Vec<(&str, String)> = vec![
            ("SIP_LISTEN", format!("udp:127.0.0.1:{}", self.sip.number())),
            ("RPC_LISTEN", format!("tcp:127.0.0.1:{}", self.rpc.number())),
            ("DISPATCHER_REDIS", format!("\"redis://127.0.0.1:{port}/{database}\"")),
            ("GENERATION_REDIS", format!("\"name=dispatcher;addr=127.0.0.1;port={port};db={database}\"")),
            ("PING_SECONDS", "1".to_owned()),
            ("WORKERS", "2".to_owned()),
        ];
        for (wanted, name) in [(self.options.pull, "WITH_PULL"), (self.options.push, "WITH_PUSH")] {
            if wanted {
                defines.push((name, String::new()));
            }
        }
        defines.retain(|(name, _)| !self.options.defines.iter().any(|(own, _)| own == name));
        defines.extend(self.options.defines.iter().cloned());
        let mut text = "#!KAMAILIO\n".to_owned();
        for (name, value) in defines {
            let _ = writeln!(text, "#!define {name} {value}");
        }
        let shipped = workspace().join("deploy/kamailio/voiceai.cfg");
        let _ = writeln!(text, "include_file \"{}\"", shipped.display());
        text
    }

    /// What Kamailio itself says of a configuration: whether it is sound, and its words.
    ///
    /// # Panics
    /// When Kamailio cannot be run.
    pub async fn check(site: &std::path::Path) -> (bool, String) {
        let process = Program::new(program()).args(["-c", "-E", "-f"]).arg(site).start();
        let exit = process.wait_exit(START_WITHIN).await;
        (exit == crate::process::Exit::Code(0), format!("{}\n{}", process.stdout(), process.stderr()))
    }

    /// The port that speaks SIP over UDP on 127.0.0.1.
    #[must_use]
    pub const fn sip_port(&self) -> u16 {
        self.sip.number()
    }

    /// The address of its JSON-RPC.
    #[must_use]
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}/RPC", self.rpc.number())
    }

    /// The process, while it is up.
    ///
    /// # Panics
    /// While it is down.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("Kamailio is up")
    }

    /// SIGSTOP to all of its processes: connections are taken by the kernel, nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT to all of its processes.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.process().pid()), signal).expect("Kamailio's processes are one group");
    }

    /// SIGTERM, and waits until it is gone.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.terminate();
            process.wait_exit(END_WITHIN).await;
        }
    }

    /// Stops it and starts it again.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    /// Starts it when it is down.
    pub async fn launch(&mut self) {
        let directory = self.directory.path();
        let process = Program::new(program())
            .args(["-DD", "-E", "-m", "64", "-M", "8", "-N", "2", "-f"])
            .arg(self.site())
            .arg("-P")
            .arg(directory.join("pid"))
            .arg("-Y")
            .arg(directory)
            .start();
        let port = self.sip.number();
        process.wait_until(START_WITHIN, "Kamailio answers OPTIONS", async || answers(port).await).await;
        self.process = Some(process);
    }

    /// Calls a method by JSON-RPC; `parameters` is a JSON list. Returns the body of the answer.
    ///
    /// # Panics
    /// When nothing answers within five seconds.
    pub async fn rpc(&self, method: &str, parameters: &str) -> String {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{parameters}}}"#);
        let port = self.rpc.number();
        let request = format!(
            "POST /RPC HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let (mut answer, mut part) = (Vec::new(), vec![0; 16384]);
            // Kamailio leaves the connection open: the length says where the answer ends.
            loop {
                let text = String::from_utf8_lossy(&answer).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| {
                        let (name, value) = line.split_once(':')?;
                        name.eq_ignore_ascii_case("content-length")
                            .then(|| value.trim().parse::<usize>().ok())?
                    });
                    if length.is_some_and(|length| body.len() >= length) {
                        return Ok::<String, std::io::Error>(body.to_owned());
                    }
                }
                match stream.read(&mut part).await? {
                    0 => return Ok(text),
                    read => answer.extend_from_slice(&part[..read]),
                }
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(5), exchange).await;
        answered
            .unwrap_or_else(|_| panic!("{method}: no answer within 5 s"))
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }
}

/// True when something answers an OPTIONS at the port.
async fn answers(port: u16) -> bool {
    let Ok(socket) = tokio::net::UdpSocket::bind("127.0.0.1:0").await else { return false };
    let Ok(own) = socket.local_addr() else { return false };
    let request = format!(
        "OPTIONS sip:127.0.0.1:{port} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{0};rport\r\n\
         From: <sip:test@{own}>;tag=1\r\nTo: <sip:127.0.0.1:{port}>\r\nCall-ID: {0}@{own}\r\nCSeq: 1 OPTIONS\r\n\
         Max-Forwards: 5\r\nContent-Length: 0\r\n\r\n",
        crate::ports::random()
    );
    if socket.send_to(request.as_bytes(), ("127.0.0.1", port)).await.is_err() {
        return false;
    }
    let mut answer = [0; 2048];
    let heard = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut answer)).await;
    matches!(heard, Ok(Ok(read)) if answer[..read].starts_with(b"SIP/2.0 200"))
}
