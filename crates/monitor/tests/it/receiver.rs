//! A service that answers as it is told; what it is told may change while it runs.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Status, further header lines, body.
    Answer(u16, &'static str, &'static str),
    /// Takes the request and says nothing.
    Hang,
    /// The head at once, then a byte of the body now and then.
    Drip,
    /// The head at once, then a body without end.
    Endless,
    Garbage,
    /// Closes without an answer.
    Close,
}

pub(crate) const WELL: Act = Act::Answer(200, "", r#"{"status":"ok","counters":{"messages_received":3}}"#);

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    act: Arc<Mutex<Act>>,
    /// First lines of the requests.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Receiver {
    pub(crate) async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            act: Arc::new(Mutex::new(act)),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let own = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                tokio::spawn(async move {
                    let _ = own.serve(stream).await;
                });
            }
        });
        this
    }

    pub(crate) fn now(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut first = String::new();
        stream.read_line(&mut first).await?;
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 2 {
            line.clear();
        }
        self.asked.lock().unwrap().push(first.trim().to_owned());
        let act = self.act.lock().unwrap().clone();
        let mut stream = stream.into_inner();
        match act {
            Act::Answer(status, headers, body) => {
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} Told\r\n{headers}content-length: {length}\r\n\r\n{body}");
                stream.write_all(head.as_bytes()).await?;
            }
            Act::Hang => std::future::pending().await,
            Act::Drip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await?;
                loop {
                    stream.write_all(b" ").await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Act::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                loop {
                    stream.write_all(&[b' '; 65_536]).await?;
                }
            }
            Act::Garbage => stream.write_all(b"EHLO there\r\n\r\n").await?,
            Act::Close => {}
        }
        Ok(())
    }
}
