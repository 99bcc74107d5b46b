//! The HTTP listeners as part of the process: opened first, served last, ended before everything else.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use voiceai_cli::Failure;
use voiceai_listener::axum::Router;
use voiceai_listener::{ListenError, Listener, ListenerSettings};
use voiceai_service::Context;

/// Ports that are open and not served yet.
pub(super) struct Http {
    internal: Option<Listener>,
    public: Option<Listener>,
    /// Dropped once nobody serves any more.
    ended: DropGuard,
}

/// Opens what the settings name, before anything else of the process starts: a taken port must not be found out by a worker
/// that is running already. The token is cancelled once the process is told to stop and the listeners have ended: what
/// their requests need stops then, and not earlier.
///
/// # Errors
/// Refused (4), saying which address cannot be used.
pub(super) fn open<S>(
    context: &Context<S>,
    settings: &ListenerSettings,
) -> Result<(Http, CancellationToken), Failure> {
    let internal = Listener::internal(settings).map_err(|error| refused(&error))?;
    let public = Listener::public(settings).map_err(|error| refused(&error))?;
    let (told, ended, stopping) =
        (context.shutdown.stopping(), CancellationToken::new(), CancellationToken::new());
    let http = Http { internal, public, ended: ended.clone().drop_guard() };
    let then = stopping.clone();
    context.shutdown.spawn("order of the stop", async move {
        told.cancelled().await;
        ended.cancelled().await;
        then.cancel();
    });
    Ok((http, stopping))
}

fn refused(error: &ListenError) -> Failure {
    let mut message = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        message = format!("{message}: {source}");
    }
    Failure::refused("address_unusable", message, error.remedy())
}

impl Http {
    /// True where the internal listener is open, so that its routes are worth making.
    pub(super) const fn is_internal_open(&self) -> bool {
        self.internal.is_some()
    }

    /// Serves the routes until the process stops.
    pub(super) fn serve<S>(self, context: &Context<S>, internal: Router, public: Router) {
        let Self { internal: first, public: second, ended } = self;
        let drain = drain_time(context.shared.general.shutdown_timeout);
        let mut serving = Vec::new();
        for (name, listener, routes) in
            [("internal listener", first, internal), ("public listener", second, public)]
        {
            let Some(listener) = listener else { continue };
            let pulse = context.vitals.register(name, Listener::SILENCE_MAX);
            let serve = listener.mount(routes).serve(context.shutdown.stopping(), drain, pulse);
            serving.push(context.shutdown.spawn(name, serve));
        }
        let stopping = context.shutdown.stopping();
        context.shutdown.spawn("listeners", async move {
            let _ended = ended;
            stopping.cancelled().await;
            for task in serving {
                // A listener that panicked has ended too.
                let _ = task.await;
            }
        });
    }
}

/// Of the time to stop, what requests that are running may use.
fn drain_time(shutdown_timeout: Duration) -> Duration {
    (shutdown_timeout / 10).clamp(Duration::from_millis(200), Duration::from_secs(10))
}
