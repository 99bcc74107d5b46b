//! One connection, and how long each of its phases may last.
//!
//! The HTTP library has one time limit, from the end of a response to the end of the next head: idle connections could
//! then live no longer than a head may take to arrive. So the phases are watched here.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::Limits;
use crate::body::Watched;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Connected, and nothing received yet.
    New,
    /// Between two requests.
    Idle,
    /// A head is arriving.
    Head,
    /// A handler works; its time is limited there.
    Handling,
    /// The client takes the response.
    Sending,
}

impl Doing {
    const fn word(self) -> &'static str {
        match self {
            Self::New => "connected",
            Self::Idle => "idle",
            Self::Head => "sending_head",
            Self::Handling => "waiting",
            Self::Sending => "taking_response",
        }
    }
}

/// What a connection is doing, and since when.
#[derive(Clone, Copy, Debug)]
struct Phase {
    doing: Doing,
    since: Instant,
}

impl Phase {
    fn of(doing: Doing) -> Self {
        Self { doing, since: Instant::now() }
    }

    /// When it has lasted too long. While others wait for a connection, an idle one is kept no longer than a head may take.
    fn deadline(self, limits: &Limits, crowded: bool) -> Option<Instant> {
        let limit = match self.doing {
            Doing::New | Doing::Head => limits.read_header,
            Doing::Idle if crowded => limits.idle.min(limits.read_header),
            Doing::Idle => limits.idle,
            Doing::Handling => return None,
            Doing::Sending => limits.send,
        };
        Some(self.since + limit)
    }
}

/// Where the parts of a connection say what they are doing.
#[derive(Clone, Debug)]
pub(crate) struct Phases(Arc<watch::Sender<Phase>>);

impl Phases {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::of(Doing::New))))
    }

    fn set(&self, doing: Doing) {
        self.0.send_replace(Phase::of(doing));
    }

    pub(crate) fn idle(&self) {
        self.set(Doing::Idle);
    }

    fn received(&self) {
        self.0.send_if_modified(|phase| {
            let begins = matches!(phase.doing, Doing::New | Doing::Idle);
            if begins {
                *phase = Phase {
                    doing: Doing::Head,
                    since: if phase.doing == Doing::New { phase.since } else { Instant::now() },
                };
            }
            begins
        });
    }

    fn doing(&self) -> Doing {
        self.0.borrow().doing
    }

    /// Comes back once a phase has lasted too long, with its name.
    async fn expired(&self, limits: &Limits, mut crowded: watch::Receiver<bool>) -> Doing {
        let mut phases = self.0.subscribe();
        let mut crowd_is_over = false;
        loop {
            let phase = *phases.borrow_and_update();
            let is_crowded = *crowded.borrow_and_update();
            let deadline = phase.deadline(limits, is_crowded);
            let over = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = phases.changed() => {}
                changed = crowded.changed(), if !crowd_is_over => crowd_is_over = changed.is_err(),
                () = over => return phase.doing,
            }
        }
    }
}

/// A socket that says when something arrives.
struct Noting {
    stream: TcpStream,
    phases: Phases,
}

impl AsyncRead for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        if done.is_ready() && buf.filled().len() > before {
            self.phases.received();
        }
        done
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Serves one connection to its end: the client's, a limit's, or after `closing` the end of the request that is running.
/// Answers what it was doing where a limit has ended it.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    limits: Limits,
    crowded: watch::Receiver<bool>,
    closing: CancellationToken,
) -> Option<&'static str> {
    let _ = stream.set_nodelay(true);
    let phases = Phases::new();
    let service = {
        let phases = phases.clone();
        service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            phases.set(Doing::Handling);
            let (app, phases) = (app.clone(), phases.clone());
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(ConnectInfo(peer));
                let answer = app.oneshot(request).await;
                phases.set(Doing::Sending);
                answer.map(|response| response.map(|body| Watched::new(body, phases)))
            }
        })
    };
    let io = TokioIo::new(Noting { stream, phases: phases.clone() });
    // Beyond what a route takes, so that a head that is too large is answered as every other error; what is larger still is
    // cut off by the library, with a bare 431.
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size((limits.head_bytes * 4).max(64 * 1024))
        .max_headers(limits.head_fields * 4)
        .serve_connection(io, service);
    let mut serving = pin!(serving);
    let mut expired = pin!(phases.expired(&limits, crowded));
    let mut told = false;
    loop {
        tokio::select! {
            done = serving.as_mut() => {
                if let Err(error) = done {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return None;
            }
            doing = expired.as_mut() => {
                tracing::debug!(%peer, doing = doing.word(), "connection cut: its time was over");
                return Some(doing.word());
            }
            () = closing.cancelled(), if !told => {
                if matches!(phases.doing(), Doing::New | Doing::Idle) {
                    return None;
                }
                told = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_phase_has_its_own_limit_and_a_crowd_shortens_idling() {
        let limits = Limits::default();
        let of = |doing, crowded| {
            let phase = Phase::of(doing);
            phase.deadline(&limits, crowded).map(|deadline| deadline - phase.since)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((of(Doing::New, false), of(Doing::Head, false)), (seconds(2), seconds(2)));
        assert_eq!((of(Doing::Idle, false), of(Doing::Idle, true)), (seconds(60), seconds(2)));
        assert_eq!((of(Doing::Handling, true), of(Doing::Sending, true)), (None, seconds(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_trickle_do_not_prolong_a_head() {
        let phases = Phases::new();
        let (crowd, crowded) = watch::channel(false);
        let (limits, teller) = (Limits::default(), phases.clone());
        let began = Instant::now();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                teller.received();
            }
        };
        let doing = tokio::select! {
            doing = phases.expired(&limits, crowded) => doing,
            () = trickle => unreachable!("it never ends"),
        };
        assert_eq!(doing, Doing::Head);
        assert_eq!(began.elapsed().as_secs(), 2);
        drop(crowd);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_ends_a_connection_that_idles() {
        let phases = Phases::new();
        phases.idle();
        let (crowd, crowded) = watch::channel(false);
        let began = Instant::now();
        let limits = Limits::default();
        let expired = phases.expired(&limits, crowded);
        let crowding = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            crowd.send_replace(true);
            std::future::pending::<()>().await;
        };
        let doing = tokio::select! {
            doing = expired => doing,
            () = crowding => unreachable!("it never ends"),
        };
        assert_eq!((doing, began.elapsed().as_secs()), (Doing::Idle, 5));
    }
}
