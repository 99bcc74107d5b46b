//! A TCP proxy that misbehaves on demand, between a program and its server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy on a port of its own. Every method acts on open and on new connections alike; it ends on drop.
#[derive(Debug)]
pub struct TcpProxy {
    port: u16,
    state: watch::Sender<State>,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    server: SocketAddr,
    /// Held back before each piece of data is passed on, in each direction.
    delay: Duration,
    /// Swallow every n-th piece of data from the server; 0 for none.
    drop_reply: u64,
    /// Data is read in neither direction: connections stay open and silent.
    paused: bool,
    /// New connections are closed at once.
    refusing: bool,
    /// Goes up at each cut: connections of an older generation end.
    generation: u64,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    replies: AtomicU64,
    dropped: AtomicU64,
}

impl TcpProxy {
    /// Starts a proxy on a free port of 127.0.0.1 to a port there.
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind the proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        let (state, seen) = watch::channel(State {
            server: (Ipv4Addr::LOCALHOST, server_port).into(),
            delay: Duration::ZERO,
            drop_reply: 0,
            paused: false,
            refusing: false,
            generation: 0,
        });
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, seen, Arc::clone(&counts)));
        Self { port, state, counts, accepting }
    }

    /// The port to connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A URL with its port replaced by the proxy's.
    #[must_use]
    pub fn url(&self, server_url: &str) -> String {
        let server = self.state.borrow().server.port();
        let old = format!("127.0.0.1:{server}");
        assert!(server_url.contains(&old), "{server_url} does not hold {old}");
        server_url.replacen(&old, &format!("127.0.0.1:{}", self.port), 1)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Pieces of data swallowed so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::SeqCst)
    }

    /// Holds every piece of data back for this long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Swallows every n-th piece of data from the server: the request took effect, and its answer never comes.
    /// 0 swallows nothing.
    pub fn drop_every_nth_reply(&self, n: u64) {
        self.counts.replies.store(0, Ordering::SeqCst);
        self.state.send_modify(|state| state.drop_reply = n);
    }

    /// Black hole: connections stay open, new ones are accepted, and nothing is passed on.
    pub fn pause(&self) {
        self.state.send_modify(|state| state.paused = true);
    }

    /// Passes on again, also what was sent in the meantime.
    pub fn resume(&self) {
        self.state.send_modify(|state| {
            state.paused = false;
            state.refusing = false;
        });
    }

    /// Closes all open connections; new ones work.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Closes all open connections and every new one at once, until [`Self::resume`].
    pub fn refuse(&self) {
        self.state.send_modify(|state| {
            state.refusing = true;
            state.generation += 1;
        });
    }

    /// Sends new connections to another port, as a DNS name or a balancer would after a failover.
    pub fn redirect(&self, server_port: u16) {
        self.state.send_modify(|state| state.server.set_port(server_port));
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        // Connections watch the sender; it is gone after this and they end.
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>, counts: Arc<Counts>) {
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::SeqCst);
        if !state.borrow().refusing {
            tokio::spawn(serve(client, state.clone(), Arc::clone(&counts)));
        }
    }
}

async fn serve(client: TcpStream, mut state: watch::Receiver<State>, counts: Arc<Counts>) {
    let (server, generation) = {
        let state = state.borrow_and_update();
        (state.server, state.generation)
    };
    // Unreachable: closing the client's connection says so.
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pass(from_client, to_server, state.clone(), None);
    let replies = pass(from_server, to_client, state.clone(), Some(counts));
    tokio::select! {
        // Each direction ends by itself, so that a half-closed connection stays half open.
        _ = async { tokio::join!(requests, replies) } => {}
        _ = state.wait_for(|state| state.generation != generation) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    counts: Option<Arc<Counts>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if state.wait_for(|state| !state.paused).await.is_err() {
            return;
        }
        let Ok(read) = from.read(&mut buffer).await else { return };
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        // Data that came while the pause began waits for its end.
        if state.wait_for(|state| !state.paused).await.is_err() {
            return;
        }
        let (delay, drop_reply) = {
            let state = state.borrow();
            (state.delay, state.drop_reply)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(counts) = &counts
            && drop_reply > 0
            && (counts.replies.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(drop_reply)
        {
            counts.dropped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
