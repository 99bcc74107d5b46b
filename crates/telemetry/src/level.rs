//! Which log lines are written, and the on-call engineer's switch for more.

use std::str::FromStr as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Filter};

use crate::Violation;

/// How long `SIGUSR1` keeps debug lines on, unless it is sent again earlier.
pub const DEBUG_FOR: Duration = Duration::from_secs(15 * 60);

/// Crates that write about every byte they move: their warnings are enough, whatever the level.
const QUIET: [&str; 9] = [
    "hyper",
    "hyper_util",
    "h2",
    "tonic",
    "tower",
    "reqwest",
    "rustls",
    "aws_smithy_runtime",
    "opentelemetry",
];

/// The filter of the log lines. Clones share one state, which [`LogLevel::toggle_debug`] changes at run time.
#[derive(Debug, Clone)]
pub struct LogLevel {
    configured: Targets,
    active: Arc<RwLock<Active>>,
}

#[derive(Debug, Clone)]
struct Active {
    targets: Targets,
    debug: bool,
}

impl LogLevel {
    /// Reads a `LOG_LEVEL`: one level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or a comma list of
    /// `target=level` with at most one bare level, such as `info,voiceai_queue=debug`.
    ///
    /// # Errors
    /// A [`Violation`] that names `LOG_LEVEL` and what it may be.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        let wrong = || Violation {
            name: "LOG_LEVEL".to_owned(),
            problem: format!(
                "`{text}` is not a level (error, warn, info, debug, trace, off) or a list of target=level"
            ),
        };
        // `Targets` takes a bare word that is no level for a target at trace: `LOG_LEVEL=inof` would flood.
        let sound = |part: &str| match part.split_once('=') {
            Some((target, level)) => !target.trim().is_empty() && LevelFilter::from_str(level.trim()).is_ok(),
            None => LevelFilter::from_str(part).is_ok(),
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || !parts.iter().all(|part| sound(part)) {
            return Err(wrong());
        }
        let mut targets = Targets::new();
        for name in QUIET {
            targets = targets.with_target(name, Level::WARN);
        }
        let named: Targets = parts.join(",").parse().map_err(|_| wrong())?;
        targets = targets.with_targets(named.iter());
        if let Some(default) = named.default_level() {
            targets = targets.with_default(default);
        }
        let active = Arc::new(RwLock::new(Active { targets: targets.clone(), debug: false }));
        Ok(Self { configured: targets, active })
    }

    /// Switches debug lines of our own crates on, or back off. Returns whether they are on now.
    ///
    /// Other crates keep their level: their debug lines may show what is sent to a server, passwords included.
    pub fn toggle_debug(&self) -> bool {
        let debug = !self.read(|active| active.debug);
        self.set_debug(debug);
        debug
    }

    fn set_debug(&self, debug: bool) {
        let mut targets = self.configured.clone();
        if debug {
            let ours = self.configured.iter().filter(|(target, _)| target.starts_with("voiceai"));
            targets = targets
                .with_target("voiceai", LevelFilter::DEBUG)
                .with_targets(ours.map(|(target, level)| (target, level.max(LevelFilter::DEBUG))));
        }
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = Active { targets, debug };
        tracing::callsite::rebuild_interest_cache();
    }

    fn read<T>(&self, look: impl FnOnce(&Active) -> T) -> T {
        look(&self.active.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Spans down to `info` are always seen, so that a warning keeps its ids and fields at `LOG_LEVEL=warn`.
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        (metadata.is_span() && *metadata.level() <= Level::INFO)
            || self.read(|active| active.targets.would_enable(metadata.target(), metadata.level()))
    }
}

impl<S> Filter<S> for LogLevel {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let lines = self.read(|active| {
            active.targets.iter().map(|(_, level)| level).chain(active.targets.default_level()).max()
        });
        Some(lines.unwrap_or(LevelFilter::OFF).max(LevelFilter::INFO))
    }
}

/// Waits for `SIGUSR1` for ever: each one switches debug lines on for [`DEBUG_FOR`], or off when they are on.
///
/// The binary spawns it first thing: until it has been polled once, the signal ends the process. Drop it to stop.
///
/// # Errors
/// When the process may not listen to signals.
pub async fn toggle_debug_on_sigusr1(level: LogLevel) -> std::io::Result<()> {
    let mut signals = signal(SignalKind::user_defined1())?;
    loop {
        if signals.recv().await.is_none() {
            return Ok(());
        }
        if !level.toggle_debug() {
            tracing::info!("debug log lines off");
            continue;
        }
        tracing::info!(for_seconds = DEBUG_FOR.as_secs(), "debug log lines on");
        tokio::select! {
            () = tokio::time::sleep(DEBUG_FOR) => tracing::info!("debug log lines off: the time is over"),
            _ = signals.recv() => tracing::info!("debug log lines off"),
        }
        level.set_debug(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(level: &LogLevel, target: &str, line: Level) -> bool {
        level.read(|active| active.targets.would_enable(target, &line))
    }

    #[test]
    fn levels_and_targets_are_read() {
        let level = LogLevel::parse("warn, voiceai_queue=debug").expect("a sound level");
        assert!(writes(&level, "voiceai_queue::worker", Level::DEBUG));
        assert!(writes(&level, "voiceai_redis", Level::WARN));
        assert!(!writes(&level, "voiceai_redis", Level::INFO));
        assert!(!writes(&LogLevel::parse("debug").expect("a level"), "h2::codec", Level::INFO));
        assert!(writes(&LogLevel::parse("info,h2=trace").expect("a level"), "h2::codec", Level::TRACE));
    }

    #[test]
    fn a_wrong_level_is_refused_by_name() {
        for text in ["", " ", "inof", "info,voiceai=loud", "=info", "voiceai_queue"] {
            let violation = LogLevel::parse(text).expect_err(text);
            assert_eq!(violation.name, "LOG_LEVEL", "{text}");
        }
    }

    #[test]
    fn debug_is_switched_on_for_our_crates_alone_and_off_again() {
        let level = LogLevel::parse("info,voiceai_queue=warn,voiceai_redis=trace").expect("a level");
        assert!(level.toggle_debug());
        for target in ["voiceai_tasker::jobs", "voiceai_queue", "voiceai_redis"] {
            assert!(writes(&level, target, Level::DEBUG), "{target}");
        }
        assert!(writes(&level, "voiceai_redis", Level::TRACE));
        assert!(!writes(&level, "sqlx::query", Level::DEBUG));
        assert!(!level.toggle_debug());
        assert!(!writes(&level, "voiceai_tasker::jobs", Level::DEBUG));
    }
}
