//! A server that stands in for SSM, Secrets Manager, STS and SES, and what goes wrong between it and its callers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::http::{Request, answer, read};
use crate::ports::Port;
use crate::process::{Process, Program};
use crate::shared::workspace;

/// A moto server of a test's own. Ended on drop.
#[derive(Debug)]
pub struct Moto {
    _process: Process,
    port: Port,
}

impl Moto {
    /// Starts it and waits until it answers; installs it where it is missing.
    ///
    /// # Panics
    /// When it cannot be installed or started.
    pub async fn start() -> Self {
        let script = workspace().join("scripts/stack/moto.sh");
        let output = Command::new(&script).output().await.expect("run scripts/stack/moto.sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = String::from_utf8(output.stdout).expect("a path").trim().to_owned();
        let port = Port::reserve();
        let server = Program::new(path).args(["-H", "127.0.0.1", "-p", &port.number().to_string()]).start();
        let answers = async || TcpStream::connect(("127.0.0.1", port.number())).await.is_ok();
        server.wait_until(Duration::from_secs(30), "moto answers", answers).await;
        Self { _process: server, port }
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }
}

/// What becomes of one operation's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AwsFault {
    /// This status and body instead of the server's.
    Answer(u16, String),
    /// The server's answer, cut off after this many bytes of its body, and the connection closed.
    Truncated(usize),
    /// No answer, and the connection stays open.
    Hang,
}

impl AwsFault {
    /// An error as the JSON services word it.
    #[must_use]
    pub fn error(code: &str, message: &str) -> Self {
        Self::Answer(400, format!(r#"{{"__type":"{code}","message":"{message}"}}"#))
    }
}

/// Stands before a server of AWS's services and does to single operations what it is told. Ends on drop.
#[derive(Debug)]
pub struct AwsFaults {
    endpoint: String,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    faults: Mutex<HashMap<String, AwsFault>>,
    asked: Mutex<Vec<(String, String)>>,
}

impl AwsFaults {
    /// Before the server on `port` of 127.0.0.1.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the double");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let state: Arc<State> = Arc::default();
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, port, Arc::clone(&shared)));
            }
        });
        Self { endpoint, state, serving }
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on `operation` (`GetParametersByPath`, `ListSecrets`, …) ends like this; `None` mends it.
    pub fn set(&self, operation: &str, fault: Option<AwsFault>) {
        let mut faults = lock(&self.state.faults);
        match fault {
            Some(fault) => faults.insert(operation.to_owned(), fault),
            None => faults.remove(operation),
        };
    }

    /// How often an operation was asked for.
    #[must_use]
    pub fn asked(&self, operation: &str) -> usize {
        lock(&self.state.asked).iter().filter(|(asked, _)| asked == operation).count()
    }

    /// The access key of each call so far.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        lock(&self.state.asked).iter().map(|(_, key)| key.clone()).collect()
    }
}

impl Drop for AwsFaults {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: TcpStream, port: u16, state: Arc<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let operation = operation(&request);
        lock(&state.asked).push((operation.clone(), access_key(&request)));
        let fault = lock(&state.faults).get(&operation).cloned();
        let done = match fault {
            Some(AwsFault::Hang) => std::future::pending().await,
            Some(AwsFault::Answer(status, body)) => {
                let kind = [("content-type", "application/x-amz-json-1.1")];
                answer(&mut stream, status, &kind, body.as_bytes()).await
            }
            Some(AwsFault::Truncated(most)) => {
                let whole = forward(&request, port).await;
                let body = whole.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
                let _ = stream.write_all(&whole[..whole.len().min(body + most)]).await;
                return;
            }
            None => {
                let _ = stream.write_all(&forward(&request, port).await).await;
                // The server was told to close, so its answer may have no length.
                return;
            }
        };
        if done.is_err() {
            return;
        }
    }
}

fn operation(request: &Request) -> String {
    let target = request.header("x-amz-target").and_then(|target| target.rsplit('.').next());
    if let Some(target) = target {
        return target.to_owned();
    }
    // The query services name it in the body; the REST ones by method and path.
    let body = String::from_utf8_lossy(&request.body);
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action="));
    action.map_or_else(|| format!("{} {}", request.method, request.target), str::to_owned)
}

fn access_key(request: &Request) -> String {
    let authorization = request.header("authorization").unwrap_or_default();
    let key = authorization.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next());
    key.unwrap_or_default().to_owned()
}

/// The server's whole answer.
async fn forward(request: &Request, port: u16) -> Vec<u8> {
    let mut whole = Vec::new();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return whole };
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("connection: close\r\n\r\n");
    let sent = async {
        server.write_all(text.as_bytes()).await?;
        server.write_all(&request.body).await?;
        server.read_to_end(&mut whole).await
    };
    let _ = sent.await;
    whole
}
