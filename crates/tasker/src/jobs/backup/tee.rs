//! A reader whose bytes are given to a tool on their way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads a source, and writes every byte of it into a copy. It holds no more than one read of the source: a slow copy slows
/// the reader, and the reader sees the end only after the copy has all of it.
#[derive(Debug)]
pub(super) struct Tee<R, W> {
    source: R,
    /// Absent once the source has ended: closing it is how the copy learns of the end.
    copy: Option<W>,
    /// Read, and not yet taken by the copy.
    pending: BytesMut,
    refused: Arc<AtomicBool>,
}

impl<R, W> Tee<R, W> {
    pub(super) fn new(source: R, copy: W) -> Self {
        Self { source, copy: Some(copy), pending: BytesMut::new(), refused: Arc::default() }
    }

    /// Becomes true when the copy took no more: the reader has got an error then.
    pub(super) fn refused(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.refused)
    }
}

impl<R, W: AsyncWrite + Unpin> Tee<R, W> {
    /// Gives the copy what it has not got yet.
    fn poll_copy(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(copy) = &mut self.copy else { return Poll::Ready(Ok(())) };
        while !self.pending.is_empty() {
            let written = match ready!(Pin::new(&mut *copy).poll_write(context, &self.pending)) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                written => written,
            };
            let written = written.inspect_err(|_| self.refused.store(true, Ordering::Relaxed))?;
            self.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> AsyncRead for Tee<R, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_copy(context))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.source).poll_read(context, buffer))?;
        let fresh = buffer.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            this.copy = None;
            return Poll::Ready(Ok(()));
        }
        this.pending.extend_from_slice(fresh);
        // As much as it takes at once. What it does not take now, or refuses, comes before the next read: these bytes are read.
        let _ = this.poll_copy(context);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_copy_has_every_byte_before_the_reader_sees_the_end() {
        let sent: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        // Takes a thousand bytes at a time.
        let (copy, mut copied) = tokio::io::duplex(1000);
        let mut tee = Tee::new(sent.as_slice(), copy);
        let taker = tokio::spawn(async move {
            let mut all = Vec::new();
            copied.read_to_end(&mut all).await.map(|_| all)
        });
        let mut read = Vec::new();
        tee.read_to_end(&mut read).await.expect("read");
        // The tee still lives: the copy was closed by the end of the source.
        let copied = taker.await.expect("no panic").expect("copied");
        assert!(read == sent && copied == sent, "{} and {} of {}", read.len(), copied.len(), sent.len());
    }

    #[tokio::test]
    async fn a_copy_that_takes_nothing_holds_the_reader_back() {
        let (copy, _held) = tokio::io::duplex(10);
        let mut tee = Tee::new(tokio::io::repeat(7), copy);
        let mut buffer = [0; 100];
        assert_eq!(tee.read(&mut buffer).await.expect("the first read"), 100);
        let more = tokio::time::timeout(std::time::Duration::from_millis(20), tee.read(&mut buffer)).await;
        assert!(more.is_err(), "90 bytes still wait: {more:?}");
    }

    #[tokio::test]
    async fn a_copy_that_is_gone_ends_the_reading_and_is_told_apart() {
        let (copy, gone) = tokio::io::duplex(10);
        let mut tee = Tee::new(tokio::io::repeat(7), copy);
        let refused = tee.refused();
        drop(gone);
        tee.read_to_end(&mut Vec::new()).await.expect_err("nobody takes the copy");
        assert!(refused.load(Ordering::Relaxed));
    }
}
