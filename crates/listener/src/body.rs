//! Bodies that know their time: a request's must arrive within its limit, a response's end is noticed.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::connection::Phases;

/// The rest of a request did not arrive in time.
#[derive(Debug)]
pub(crate) struct ReadTimeout(Duration);

impl fmt::Display for ReadTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request did not arrive within {:?}", self.0)
    }
}

impl std::error::Error for ReadTimeout {}

/// A request's body that ends in an error once its time is over.
pub(crate) struct InTime {
    inner: Body,
    within: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl InTime {
    pub(crate) fn new(inner: Body, within: Duration) -> Self {
        Self { inner, within, deadline: Box::pin(tokio::time::sleep_until(Instant::now() + within)) }
    }
}

impl http_body::Body for InTime {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let within = self.within;
        self.deadline.as_mut().poll(cx).map(|()| Some(Err(ReadTimeout(within).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body; when it is let go, the connection is idle again.
pub(crate) struct Watched {
    inner: Body,
    phases: Phases,
}

impl Watched {
    pub(crate) fn new(inner: Body, phases: Phases) -> Self {
        Self { inner, phases }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.phases.idle();
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
