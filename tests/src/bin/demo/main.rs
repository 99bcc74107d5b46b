//! `make demo`: the story of the two services on real parts. Every line with a tick was observed; what is not seen in time
//! ends the demo with exit code 1 and says what was missing.

mod story;
mod timeline;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use voiceai_e2e::Platform;

use timeline::Timeline;

/// The whole story, once everything is built.
const AT_MOST: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let timeline = Timeline::begin();
    let platform = match world::stores_from_environment().and_then(Platform::new) {
        Ok(platform) => platform,
        Err(error) => {
            timeline.missed(format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let told = tokio::select! {
        told = tokio::time::timeout(AT_MOST, story::tell(&timeline, &platform)) => told,
        () = interrupted() => {
            timeline.missed("interrupted; everything that was started is ended");
            world::end_servers(&platform.provider_state());
            return ExitCode::from(130);
        }
    };
    // The services themselves are killed by the drop of their guards, which the story held.
    world::end_servers(&platform.provider_state());
    match told {
        Ok(Ok(())) => {
            timeline.saw(format!("the whole story was seen, in {:.0} s", timeline.elapsed().as_secs_f64()));
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            timeline.missed(format!("{error:#}"));
            ExitCode::FAILURE
        }
        Err(_) => {
            timeline.missed(format!("the story was not over within {AT_MOST:?}"));
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
}
