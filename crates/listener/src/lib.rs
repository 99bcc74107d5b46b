//! The opt-in HTTP listeners of voiceai-tasker.
//!
//! A [`Listener`] is bound at start, is given the routes of other crates as [`axum::Router`]s, and serves them until the
//! process stops. What every route may rely on:
//!
//! - **Who asks.** Each route of the internal listener asks for the bearer token; a path that does not exist is 404 for
//!   anybody. The routes of the public listener prove their caller themselves.
//! - **Limits.** The head of a request, the whole of it, the handler, the taking of the response and an idle connection
//!   have a time limit each; head, body and the number of connections are bounded; what is over a limit is cut or answered,
//!   and never kept.
//! - **Errors** are `application/problem+json` (RFC 9457), also those of the server itself: see [`Problem`].
//! - **A panic** is a 500 and a log line with the route, never the end of the process.
//! - **Traces and metrics**: one span and one duration per request, by method, route and status. `X-Request-Id` is taken
//!   over or made, answered, and stands in the span and in each problem.
//!
//! ```no_run
//! # async fn run(settings: &voiceai_listener::ListenerSettings, pulse: voiceai_runtime::Pulse,
//! #     stopping: tokio_util::sync::CancellationToken) -> Result<(), voiceai_listener::ListenError> {
//! use axum::{Router, routing::get};
//! use voiceai_listener::Listener;
//!
//! if let Some(listener) = Listener::internal(settings)? {
//!     let routes = Router::new().route("/api/v1/internal/answer", get(|| async { "42" }));
//!     listener.mount(routes).serve(stopping, std::time::Duration::from_secs(3), pulse).await;
//! }
//! # Ok(())
//! # }
//! ```

mod auth;
mod body;
mod connection;
mod extract;
mod guard;
mod metrics;
mod openapi;
mod problem;
mod serve;
mod settings;

use std::io;
use std::net::SocketAddr;

pub use axum;
pub use extract::{MaybeJson, StrictJson, StrictPath, StrictQuery};
pub use guard::{Caller, Operator, RequestId};
pub use openapi::{Bearer, ProblemDocument};
pub use problem::Problem;
pub use serve::Listener;
pub use settings::{Limits, ListenerSettings};

/// A listener could not be opened. The process does not start then.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has the port.
    #[error("{setting}: port {} of {} is taken by another process", address.port(), address.ip())]
    Taken {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// This host does not have the address.
    #[error("{setting}: {} is no address of this host", address.ip())]
    NotOurs {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The process may not use the port.
    #[error("{setting}: this process may not listen on port {}", address.port())]
    Denied {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("{setting}: listen on {address}")]
    Failed {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl ListenError {
    pub(crate) fn of(setting: &'static str, address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { setting, address },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { setting, address },
            io::ErrorKind::PermissionDenied => Self::Denied { setting, address },
            _ => Self::Failed { setting, address, source },
        }
    }

    /// What to do about it, as an order.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Taken { setting, address } => {
                format!(
                    "Find it with `ss -ltnp sport = :{}`, end it, or set {setting} to a free port.",
                    address.port()
                )
            }
            Self::NotOurs { setting, .. } => {
                format!("Set {setting} to an address of this host, 0.0.0.0 for all of them.")
            }
            Self::Denied { setting, .. } => format!("Set {setting} to a port above 1023."),
            Self::Failed { setting, .. } => format!("Correct {setting}, then start again."),
        }
    }
}
