//! An endpoint that takes everything as fast as it can, or hangs, the same for both sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The receiver: how much it took, and when each event came.
pub struct Receiver {
    pub address: SocketAddr,
    pub taken: Arc<AtomicU64>,
    /// `webhook-id` and the moment its request was read whole.
    pub came: mpsc::UnboundedReceiver<(String, Instant)>,
}

impl Receiver {
    /// Runs on a thread of its own, so that neither side's runtime works for it. A path that begins with `/hang` gets no answer.
    pub fn start() -> anyhow::Result<Self> {
        let (tell, came) = mpsc::unbounded_channel();
        let taken = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&taken);
        let (address, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                address.send(listener.local_addr()?)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    tokio::spawn(session(stream, Arc::clone(&counter), tell.clone()));
                }
            })
        });
        Ok(Self { address: told.recv()?, taken, came })
    }
}

async fn session(
    mut stream: TcpStream,
    taken: Arc<AtomicU64>,
    tell: mpsc::UnboundedSender<(String, Instant)>,
) -> std::io::Result<()> {
    let mut have = Vec::with_capacity(8_192);
    loop {
        while let Some((length, id, hangs)) = request(&have) {
            have.drain(..length);
            if hangs {
                // Until the client has had enough.
                while stream.read_buf(&mut have).await? > 0 {}
                return Ok(());
            }
            taken.fetch_add(1, Ordering::Relaxed);
            let _ = tell.send((id, Instant::now()));
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
        }
        if stream.read_buf(&mut have).await? == 0 {
            return Ok(());
        }
    }
}

/// The length of a whole request, its id, and whether it is to hang.
fn request(have: &[u8]) -> Option<(usize, String, bool)> {
    let head = have.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&have[..head]).ok()?;
    let header = |wanted: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let body: usize = header("content-length")?.parse().ok()?;
    let id = header("webhook-id").unwrap_or_default().to_owned();
    (have.len() >= head + body).then(|| (head + body, id, text.starts_with("POST /hang")))
}
