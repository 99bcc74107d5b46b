//! Agents that do as they are told, call by call.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// A status, headers, a body.
    Answer(u16, &'static [(&'static str, &'static str)], String),
    /// The same after a while.
    Later(Duration, Box<Self>),
    /// Nothing, until the caller has had enough.
    Hang,
    /// A byte of the body now and then, for ever.
    Drip,
    /// A body without end.
    HugeBody(u16),
    /// Part of an answer, then the line is dead.
    DieMidway,
    /// No HTTP.
    Garbage,
}

impl Act {
    pub(crate) fn done(tasks: u64, suggestions: u64) -> Self {
        Self::ok(&format!(r#"{{"success":true,"tasksCreated":{tasks},"suggestionsCreated":{suggestions}}}"#))
    }

    pub(crate) fn ok(body: &str) -> Self {
        Self::Answer(200, &[], body.to_owned())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, &[], "told so".to_owned())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) method: String,
    pub(crate) agent: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(have, _)| have == name).map_or("", |(_, value)| value)
    }
}

/// By the agent and how often it was called before.
type Script = dyn Fn(&str, usize) -> Act + Send + Sync;

#[derive(Clone)]
pub(crate) struct Agents {
    pub(crate) address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    at_once: Arc<Mutex<(usize, usize)>>,
}

impl Agents {
    pub(crate) async fn start(script: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, got: Arc::default(), at_once: Arc::default() };
        let (own, script): (Self, Arc<Script>) = (this.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, script) = (own.clone(), Arc::clone(&script));
                tokio::spawn(async move { own.serve(stream, &*script).await });
            }
        });
        this
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1/agents/{{agent}}/run", self.address)
    }

    /// Everything that was asked, in order.
    pub(crate) fn all(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The calls of one agent.
    pub(crate) fn calls(&self, agent: &str) -> Vec<Got> {
        self.all().into_iter().filter(|got| got.agent == agent && got.method == "POST").collect()
    }

    /// The most calls that were open at a time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.at_once.lock().unwrap().1
    }

    async fn serve(&self, stream: TcpStream, script: &Script) {
        let mut stream = BufReader::new(stream);
        while let Some(got) = read(&mut stream).await {
            let before = self.calls(&got.agent).len();
            let act = if got.method == "POST" { script(&got.agent, before) } else { Act::status(204) };
            self.got.lock().unwrap().push(got);
            {
                let mut now = self.at_once.lock().unwrap();
                now.0 += 1;
                now.1 = now.1.max(now.0);
            }
            let goes_on = perform(&mut stream, act).await;
            self.at_once.lock().unwrap().0 -= 1;
            if !goes_on {
                return;
            }
        }
    }
}

async fn perform(stream: &mut BufReader<TcpStream>, mut act: Act) -> bool {
    while let Act::Later(span, then) = act {
        tokio::time::sleep(span).await;
        act = *then;
    }
    match act {
        Act::Later(..) => false,
        Act::Answer(status, headers, body) => {
            let mut text = format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str(&format!("\r\n{body}"));
            stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok()
        }
        Act::Hang => {
            let _ = stream.read(&mut [0; 1]).await;
            false
        }
        Act::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
            while stream.write_all(b" ").await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            false
        }
        Act::HugeBody(status) => {
            let _ = stream.write_all(format!("HTTP/1.1 {status} Told\r\n\r\n").as_bytes()).await;
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
            false
        }
        Act::DieMidway => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"success\":").await;
            let _ = stream.flush().await;
            false
        }
        Act::Garbage => {
            let _ = stream.write_all(b"EHLO there\r\n\r\n").await;
            let _ = stream.flush().await;
            false
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Got> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let agent = target.strip_prefix("/v1/agents/")?.strip_suffix("/run")?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Got { method, agent, headers, body })
}
