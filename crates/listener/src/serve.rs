use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use voiceai_runtime::Pulse;

use crate::auth::{self, Bearer};
use crate::guard::{self, Guard};
use crate::{Limits, ListenError, ListenerSettings, Problem, connection, metrics};

/// Connections that the system holds while all of ours are taken.
const BACKLOG: u32 = 1024;
/// How often a listener that nobody asks shows that it lives. Longest silence: this and [`ACCEPT_PAUSE`].
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// Wait after a connection could not be taken: when file descriptors are short, the next try fails too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// One open port with the routes behind it. Bound, it accepts nothing until [`Listener::serve`].
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    address: SocketAddr,
    bearer: Option<Bearer>,
    limits: Limits,
    routes: Router,
}

impl Listener {
    /// Longest silence of the pulse that [`Listener::serve`] beats.
    pub const SILENCE_MAX: Duration = Duration::from_secs(60);

    /// The internal listener, whose every route asks for the bearer token; `None` where no address is set.
    ///
    /// # Errors
    /// The port is taken, or cannot be used.
    pub fn internal(settings: &ListenerSettings) -> Result<Option<Self>, ListenError> {
        let (Some(address), Some(token)) = (settings.internal, &settings.token) else { return Ok(None) };
        let bearer = Some(Bearer::new(token));
        Self::bind("internal", "MAIL_INTERNAL_HTTP_ADDR", address, bearer, settings.limits).map(Some)
    }

    /// The public listener, whose routes prove their callers themselves; `None` where no address is set.
    ///
    /// # Errors
    /// The port is taken, or cannot be used.
    pub fn public(settings: &ListenerSettings) -> Result<Option<Self>, ListenError> {
        let Some(address) = settings.public else { return Ok(None) };
        Self::bind("public", "MAIL_PUBLIC_HTTP_ADDR", address, None, settings.limits).map(Some)
    }

    fn bind(
        name: &'static str,
        setting: &'static str,
        wanted: SocketAddr,
        bearer: Option<Bearer>,
        limits: Limits,
    ) -> Result<Self, ListenError> {
        let bound = || {
            let socket = if wanted.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A restart must not wait for the last process's connections to be forgotten.
            socket.set_reuseaddr(true)?;
            socket.bind(wanted)?;
            let socket = socket.listen(BACKLOG)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bound().map_err(|source| ListenError::of(setting, wanted, source))?;
        Ok(Self { name, socket, address, bearer, limits, routes: Router::new() })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds routes. They must not have a fallback of their own, nor a path that is there already: both are mistakes of a
    /// program, and end it at start.
    #[must_use]
    pub fn mount(mut self, routes: Router) -> Self {
        let routes = match &self.bearer {
            Some(bearer) if routes.has_routes() => {
                routes.route_layer(middleware::from_fn_with_state(bearer.clone(), auth::require))
            }
            _ => routes,
        };
        self.routes = self.routes.merge(routes);
        self
    }

    /// The routes with everything around them.
    fn app(&self) -> Router {
        let guard = Guard { listener: self.name, trusts_traces: self.bearer.is_some(), limits: self.limits };
        self.routes
            .clone()
            .fallback(|| async { Problem::of_status(StatusCode::NOT_FOUND) })
            .layer(DefaultBodyLimit::max(self.limits.body_bytes))
            .layer(middleware::from_fn_with_state(guard, guard::guard))
    }

    /// Serves until `stopping`; then takes no new connection, and lets running requests end within `drain`. Comes back when
    /// all have ended or been cut, so what they need must live until then.
    pub async fn serve(self, stopping: CancellationToken, drain: Duration, pulse: Pulse) {
        let app = self.app();
        let Self { name, socket, address, limits, .. } = self;
        tracing::info!(listener = name, %address, "listener started");
        let closing = CancellationToken::new();
        let mut door = Door::new(socket, limits.connections);
        let mut open = JoinSet::new();
        let mut beat = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                _ = beat.tick() => pulse.beat(),
                Some(_) = open.join_next() => {}
                (stream, peer, permit) = door.next() => {
                    let (app, crowded, closing) = (app.clone(), door.crowded.subscribe(), closing.clone());
                    open.spawn(async move {
                        let (_permit, _open) = (permit, metrics::Open::new(name));
                        let cut = connection::serve(stream, peer, app, limits, crowded, closing).await;
                        if let Some(doing) = cut {
                            metrics::cut(name, doing);
                        }
                    });
                }
            }
        }
        // The port is free from here on.
        drop(door.socket);
        closing.cancel();
        let all_ended = async { while open.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout(drain, all_ended).await.is_ok();
        let cut = open.len();
        open.shutdown().await;
        if !in_time {
            tracing::warn!(listener = name, requests = cut, "requests were cut: they did not end in time");
        }
        tracing::info!(listener = name, %address, "listener stopped");
    }
}

/// Lets so many connections in at a time, and says when more are waiting.
struct Door {
    socket: TcpListener,
    places: Arc<Semaphore>,
    crowded: watch::Sender<bool>,
}

impl Door {
    fn new(socket: TcpListener, connections: usize) -> Self {
        Self { socket, places: Arc::new(Semaphore::new(connections)), crowded: watch::Sender::new(false) }
    }

    /// The next connection. May be dropped and called again: nothing is lost.
    async fn next(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
                self.crowded.send_if_modified(|crowded| std::mem::replace(crowded, false));
                break permit;
            }
            self.crowded.send_if_modified(|crowded| !std::mem::replace(crowded, true));
            // Only waited for: taken above, where the crowd is called off.
            drop(self.places.acquire().await);
        };
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
