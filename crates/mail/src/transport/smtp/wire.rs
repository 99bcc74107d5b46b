use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::transport::Reply;

/// What ends a mail's content. The library writes it by itself, after the content.
const FINAL_DOT: &[u8] = b"\r\n.\r\n";
/// A server that sends more than this without a line end does not speak SMTP.
const LINE_LONGEST: usize = 64 * 1024;
/// The library takes no longer lines.
const LINE_SHOWN: usize = 900;
/// More lines than any reply has.
const LINES_MOST: usize = 90;

/// A connection to the server, secured or not.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What was seen on a connection; shared with whoever holds the connection.
#[derive(Debug)]
pub(super) struct Seen {
    /// The lines of the current reply.
    reply: Vec<String>,
    /// Whether its last line has come.
    complete: bool,
    /// The server has closed the connection.
    pub(super) ended: bool,
    /// The server said something that nobody asked for.
    pub(super) unasked: bool,
    /// Nothing is read behind a refusal: it ends the conversation.
    pub(super) first_refusal_ends: bool,
    /// Content is being written; the final dot has to be told from other bytes.
    pub(super) in_content: bool,
    /// The final dot was given to the network, whole or in part.
    pub(super) dot_sent: bool,
    /// When bytes were last written.
    pub(super) progress: Instant,
}

impl Seen {
    /// The reply that stands last, when all its lines have come.
    pub(super) fn reply(&self) -> Option<Reply> {
        self.complete.then(|| Reply::parse(&self.reply)).flatten()
    }

    /// The texts of its lines, without codes.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.reply.iter().map(|line| line.get(4..).unwrap_or_default())
    }

    /// Forgets the last reply, before a command asks for another.
    pub(super) fn ask(&mut self) {
        self.reply.clear();
        self.complete = false;
    }
}

/// Between the library and the network: hands replies on line by line, in a form that the library can read, and remembers
/// them whole.
///
/// The library fails on a reply that is not UTF-8, on one without a text, and on a long one; after a refusal it waits for
/// more. It keeps one line of an error and cannot tell whether content was written whole. All that is made good here.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    peer: Option<SocketAddr>,
    raw: Vec<u8>,
    cooked: VecDeque<u8>,
    seen: Arc<Mutex<Seen>>,
}

/// The state behind a lock that no panic can poison for good.
pub(super) fn look(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        let peer = match &stream {
            Stream::Plain(stream) => stream.peer_addr(),
            Stream::Tls(stream) => stream.get_ref().0.peer_addr(),
        };
        let seen = Seen {
            reply: Vec::new(),
            complete: false,
            ended: false,
            unasked: false,
            first_refusal_ends: true,
            in_content: false,
            dot_sent: false,
            progress: Instant::now(),
        };
        Self {
            stream,
            peer: peer.ok(),
            raw: Vec::new(),
            cooked: VecDeque::new(),
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    /// A connection whose greeting was read before it was secured: it is said once more, for the library.
    pub(super) fn greeted(stream: Stream) -> Self {
        let mut wire = Self::new(stream);
        wire.cooked.extend(b"220 secured\r\n");
        wire
    }

    pub(super) fn seen(&self) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen)
    }

    /// The connection, when nothing of what came over it was left unread.
    pub(super) fn into_stream(self) -> Option<Stream> {
        (self.raw.is_empty() && self.cooked.is_empty()).then_some(self.stream)
    }

    /// Takes one line off what has come and makes it fit to be read.
    fn cook(&mut self) -> bool {
        let Some(end) = self.raw.iter().position(|byte| *byte == b'\n') else { return false };
        let line: Vec<u8> = self.raw.drain(..=end).collect();
        let text = String::from_utf8_lossy(&line);
        let text: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut line: String = text.chars().take(LINE_SHOWN / 4).collect();
        if line.len() == 3 {
            // A code alone is a reply.
            line.push(' ');
        }
        let mut seen = look(&self.seen);
        if seen.complete {
            seen.reply.clear();
        }
        seen.complete = line.as_bytes().get(3) != Some(&b'-');
        // One reply was asked for; what comes behind it would be taken for the answer to the next command.
        seen.unasked |= seen.complete && !self.raw.is_empty();
        seen.reply.push(line.clone());
        if seen.reply.len() > LINES_MOST && !seen.complete {
            seen.ended = true;
        }
        let code = Reply::parse(&seen.reply).map_or(0, |reply| reply.code);
        if seen.complete && (code == 421 || (seen.first_refusal_ends && code >= 400)) {
            seen.ended = true;
        }
        self.cooked.extend(line.bytes());
        self.cooked.extend(b"\r\n");
        true
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.cooked.is_empty() {
                let count = buffer.remaining().min(self.cooked.len());
                let bytes: Vec<u8> = self.cooked.drain(..count).collect();
                buffer.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            if look(&self.seen).ended {
                return Poll::Ready(Ok(()));
            }
            if self.cook() {
                continue;
            }
            if self.raw.len() > LINE_LONGEST {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end")));
            }
            let mut chunk = [0; 2048];
            let mut read = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut read)) {
                Ok(()) if read.filled().is_empty() => {
                    look(&self.seen).ended = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(()) => self.raw.extend_from_slice(read.filled()),
                Err(error) => {
                    look(&self.seen).ended = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        {
            let mut seen = look(&self.seen);
            // The content cannot be these five bytes: dots at the start of a line are doubled in it.
            seen.dot_sent |= seen.in_content && bytes == FINAL_DOT;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        look(&self.seen).progress = Instant::now();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncTokioStream for Wire {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.peer.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
