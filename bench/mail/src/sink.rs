//! A mail server that takes everything as fast as it can, the same for both sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The sink: how much it took, and when each mail began.
pub struct Sink {
    pub address: SocketAddr,
    pub taken: Arc<AtomicU64>,
    /// Recipient and the moment of its MAIL command.
    pub begun: mpsc::UnboundedReceiver<(String, Instant)>,
}

impl Sink {
    /// Runs on a thread of its own, so that neither side's runtime works for it.
    pub fn start() -> anyhow::Result<Self> {
        let (tell, begun) = mpsc::unbounded_channel();
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
        Ok(Self { address: told.recv()?, taken, begun })
    }
}

async fn session(stream: TcpStream, taken: Arc<AtomicU64>, tell: mpsc::UnboundedSender<(String, Instant)>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 sink\r\n").await?;
    let (mut line, mut at) = (String::new(), Instant::now());
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let upper = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer: &[u8] = match upper.as_str() {
            "EHLO" => b"250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
            "MAIL" => {
                at = Instant::now();
                b"250 ok\r\n"
            }
            "RCPT" => {
                let to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                let _ = tell.send((to, at));
                b"250 ok\r\n"
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                content(&mut stream).await?;
                taken.fetch_add(1, Ordering::Relaxed);
                b"250 taken\r\n"
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => b"250 ok\r\n",
        };
        stream.write_all(answer).await?;
    }
}

async fn content(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let (mut last, mut byte) = ([0_u8; 5], [0_u8; 1]);
    loop {
        stream.read_exact(&mut byte).await?;
        last.rotate_left(1);
        last[4] = byte[0];
        if &last == b"\r\n.\r\n" {
            return Ok(());
        }
    }
}
