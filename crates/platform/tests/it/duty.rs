//! Running a job here and now, and a server that receives what jobs post.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use voiceai_queue::{Inline, InlineRunner, Job, NewJob, Registry};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The result of one attempt; an error begins with what becomes of the job: `retry`, `discard` or `snooze`.
pub(crate) async fn run<J: Job>(job: &J, context: &J::Context) -> Result<Value, String> {
    attempt(job, context, 1).await
}

/// The same for a later attempt.
pub(crate) async fn attempt<J: Job>(job: &J, context: &J::Context, number: u32) -> Result<Value, String> {
    let runner = InlineRunner::new(Registry::new().register::<J>(context.clone()));
    match runner.attempt(&NewJob::of(job).unwrap(), number).await.end {
        Inline::Done(result) => Ok(result.unwrap_or(Value::Null)),
        Inline::Snoozed(wait) => Err(format!("snooze {wait:?}")),
        Inline::Retry { error, .. } => Err(format!("retry: {error}")),
        Inline::Dead { error, .. } => Err(format!("discard: {error}")),
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(have, _)| have == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

type Answer = dyn Fn(&Request) -> u16 + Send + Sync;

/// Answers every request with a status and keeps it. Ends with the test.
pub(crate) struct Receiver {
    port: u16,
    received: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    pub(crate) async fn start(answer: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (kept, answer): (_, Arc<Answer>) = (received.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone(), answer.clone()));
            }
        });
        Self { port, received }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn received(&self) -> Vec<Request> {
        self.received.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, kept: Arc<Mutex<Vec<Request>>>, answer: Arc<Answer>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next()?, words.next()?);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length =
            headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
        let mut body = vec![0; length.parse().ok()?];
        stream.read_exact(&mut body).await.ok()?;
        let request = Request { method, target, headers, body: String::from_utf8(body).ok()? };
        let status = answer(&request);
        kept.lock().unwrap().push(request);
        let text = format!("HTTP/1.1 {status} Test\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(text.as_bytes()).await.ok()?;
    }
}
