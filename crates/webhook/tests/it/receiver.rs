//! A receiver that does as it is told, request by request.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
pub(crate) enum Act {
    Answer(u16, Vec<(&'static str, String)>),
    Hang,
    /// The answer comes once this is cancelled.
    Once(u16, CancellationToken),
    /// A byte of the head now and then, for ever.
    Drip,
    /// Head at once, a body without end.
    HugeBody(u16),
    Garbage,
    Close,
}

#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(have, _)| have == name).map_or("", |(_, value)| value)
    }
}

type Script = dyn Fn(usize, &Got) -> Act + Send + Sync;

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    got: Arc<Mutex<Vec<Got>>>,
    now: Arc<Mutex<(usize, usize)>>,
}

impl Receiver {
    pub(crate) async fn always(act: Act) -> Self {
        Self::start(IpAddr::from([127, 0, 0, 1]), None, move |_, _| act.clone()).await
    }

    pub(crate) async fn script(script: impl Fn(usize, &Got) -> Act + Send + Sync + 'static) -> Self {
        Self::start(IpAddr::from([127, 0, 0, 1]), None, script).await
    }

    pub(crate) async fn start(
        ip: IpAddr,
        tls: Option<TlsAcceptor>,
        script: impl Fn(usize, &Got) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            got: Arc::default(),
            now: Arc::default(),
        };
        let (own, script): (Self, Arc<Script>) = (this.clone(), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let (own, script, tls) = (own.clone(), Arc::clone(&script), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => own.serve(stream, &*script).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                own.serve(stream, &*script).await;
                            }
                        }
                    }
                });
            }
        });
        this
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The most requests that were open at a time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.now.lock().unwrap().1
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin, script: &Script) {
        let mut stream = BufReader::new(stream);
        while let Some(got) = read(&mut stream).await {
            let number = {
                let mut all = self.got.lock().unwrap();
                all.push(got.clone());
                all.len() - 1
            };
            {
                let mut now = self.now.lock().unwrap();
                now.0 += 1;
                now.1 = now.1.max(now.0);
            }
            let goes_on = act(&mut stream, script(number, &got)).await;
            self.now.lock().unwrap().0 -= 1;
            if !goes_on {
                return;
            }
        }
    }
}

async fn act<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>, act: Act) -> bool {
    match act {
        Act::Answer(status, headers) => {
            let mut text = format!("HTTP/1.1 {status} Told\r\ncontent-length: 5\r\n");
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("\r\nhello");
            stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok()
        }
        Act::Once(status, may) => {
            may.cancelled().await;
            let text = format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok()
        }
        Act::Hang => {
            // Until the client has had enough.
            let _ = stream.read(&mut [0; 1]).await;
            false
        }
        Act::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-drip: ").await;
            while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            false
        }
        Act::HugeBody(status) => {
            let _ = stream.write_all(format!("HTTP/1.1 {status} Told\r\n\r\n").as_bytes()).await;
            while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
            false
        }
        Act::Garbage => {
            let _ = stream.write_all(b"EHLO there\r\n\r\n").await;
            let _ = stream.flush().await;
            false
        }
        Act::Close => false,
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Got> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
    let target = first.split_whitespace().nth(1)?.to_owned();
    let mut got = Got { target, headers: Vec::new(), body: Vec::new() };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        got.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    got.body = vec![0; got.header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut got.body).await.ok()?;
    Some(got)
}
