//! What systemd is told where it started the process: ready, what it is doing, alive, stopping.
//!
//! The protocol is one datagram of `NAME=value` lines to the socket that NOTIFY_SOCKET names. The watchdog is fed by what
//! the health check judges by: while a loop makes no progress, nothing is sent, and systemd starts the process anew.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use voiceai_runtime::{Vitals, boot_now};

/// How soon readiness and a new status line are told.
const EVERY: Duration = Duration::from_millis(250);

/// The socket of the process's supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Half of what the watchdog waits; `None` when it does not watch this process.
    feed_every: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that `variable` (the environment) names. A name that cannot be used is reported and passed over: a
    /// service that cannot say so is still better than none.
    pub(crate) fn find(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let name = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let address = match name.strip_prefix('@') {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
            None => SocketAddr::from_pathname(&name),
        };
        let made = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
        match made {
            Ok((socket, address)) => {
                Some(Self { socket, address, feed_every: watchdog(&variable, std::process::id()) })
            }
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; systemd is told nothing");
                None
            }
        }
    }

    /// Tells what the vitals say until `ended`; that the process stops as soon as `stopping`. Run it outside the drained
    /// tasks: a process that drains is alive.
    pub(crate) async fn inform(self, vitals: Vitals, stopping: CancellationToken, ended: CancellationToken) {
        let mut told = String::new();
        let (mut ready, mut said_stopping) = (false, false);
        let mut fed: Option<tokio::time::Instant> = None;
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                () = stopping.cancelled(), if !said_stopping => {}
                _ = tick.tick() => {}
            }
            let report = vitals.report("", "");
            if stopping.is_cancelled() && !said_stopping {
                said_stopping = true;
                self.send("STOPPING=1");
            }
            let waiting: Vec<_> = report
                .parts
                .iter()
                .filter_map(|part| part.why_not.as_ref().map(|why| format!("{}: {why}", part.name)))
                .collect();
            let status = if waiting.is_empty() { report.status.clone() } else { waiting.join("; ") };
            if status != told {
                self.send(&format!("STATUS={}", status.replace(['\n', '\r'], " ")));
                told = status;
            }
            // Once: losing a backend later makes a process unready for routing, not for systemd.
            if !ready && report.parts.iter().all(|part| part.name != "startup" || part.why_not.is_none()) {
                ready = true;
                self.send("READY=1");
            }
            if let Some(every) = self.feed_every {
                let due = fed.is_none_or(|at| at.elapsed() >= every);
                if due && report.not_live(boot_now()).is_empty() {
                    fed = Some(tokio::time::Instant::now());
                    self.send("WATCHDOG=1");
                }
            }
        }
    }

    /// A supervisor that does not listen must not stop the service: the next line may get through.
    fn send(&self, line: &str) {
        if let Err(error) = self.socket.send_to_addr(line.as_bytes(), &self.address) {
            tracing::debug!(%error, line, "systemd was not told");
        }
    }
}

/// Half of the watchdog's patience, where it watches process `pid`.
fn watchdog(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|watched| watched.trim().parse() != Ok(pid)) {
        return None;
    }
    let micros: u64 = variable("WATCHDOG_USEC")?.trim().parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (tempfile::TempDir, UnixDatagram, String) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("time limit");
        (folder, socket, path.to_str().expect("plain path").to_owned())
    }

    /// Reads lines until `wanted` comes; what came before it.
    async fn heard(socket: &UnixDatagram, wanted: &'static str) -> Vec<String> {
        let socket = socket.try_clone().expect("clone");
        tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            let mut buffer = [0; 512];
            loop {
                let length =
                    socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{wanted} after {lines:?}: {e}"));
                let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if line == wanted {
                    return lines;
                }
                lines.push(line);
            }
        })
        .await
        .expect("reader")
    }

    #[tokio::test]
    async fn systemd_hears_of_start_readiness_and_stop() {
        let (_folder, socket, path) = listener();
        let supervisor =
            Supervisor::find(|name| (name == "NOTIFY_SOCKET").then(|| path.clone())).expect("one");
        let vitals = Vitals::new();
        let (stopping, ended) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(supervisor.inform(vitals.clone(), stopping.clone(), ended.clone()));
        let before = heard(&socket, "STATUS=startup: still starting").await;
        assert!(before.is_empty(), "{before:?}");
        vitals.set_status("leader");
        vitals.set_ready("startup", Ok(()));
        let before = heard(&socket, "READY=1").await;
        assert_eq!(before, ["STATUS=leader"], "no watchdog was asked for");
        stopping.cancel();
        heard(&socket, "STOPPING=1").await;
        ended.cancel();
        task.await.expect("ends");
    }

    #[tokio::test]
    async fn a_stuck_loop_starves_the_watchdog() {
        let (_folder, socket, path) = listener();
        let supervisor = Supervisor::find(|name| match name {
            "NOTIFY_SOCKET" => Some(path.clone()),
            "WATCHDOG_USEC" => Some("600000".into()),
            _ => None,
        })
        .expect("one");
        let vitals = Vitals::new();
        let (stopping, ended) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(supervisor.inform(vitals.clone(), stopping, ended.clone()));
        heard(&socket, "WATCHDOG=1").await;
        heard(&socket, "WATCHDOG=1").await;
        let pulse = vitals.register("stuck", Duration::ZERO);
        // One that was judged a moment before the loop was stuck may still be on its way.
        tokio::time::sleep(EVERY).await;
        socket.set_nonblocking(true).expect("not waiting");
        while socket.recv(&mut [0; 512]).is_ok() {}
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert!(socket.recv(&mut [0; 512]).is_err(), "fed while a loop is stuck");
        drop(pulse);
        socket.set_nonblocking(false).expect("waiting");
        heard(&socket, "WATCHDOG=1").await;
        ended.cancel();
        task.await.expect("ends");
    }

    #[test]
    fn the_watchdog_of_another_process_is_not_ours() {
        let of = |usec: Option<&'static str>, pid: Option<&'static str>| {
            watchdog(
                move |name| match name {
                    "WATCHDOG_USEC" => usec.map(str::to_owned),
                    "WATCHDOG_PID" => pid.map(str::to_owned),
                    _ => None,
                },
                7,
            )
        };
        assert_eq!(of(Some("30000000"), Some("7")), Some(Duration::from_secs(15)));
        assert_eq!(of(Some("30000000"), None), Some(Duration::from_secs(15)));
        assert_eq!(of(Some("30000000"), Some("8")), None);
        assert_eq!(of(Some("0"), None), None);
        assert_eq!(of(Some("soon"), None), None);
        assert_eq!(of(None, Some("7")), None);
    }

    #[test]
    fn without_a_socket_nobody_is_told() {
        assert!(Supervisor::find(|_| None).is_none());
        assert!(Supervisor::find(|name| (name == "NOTIFY_SOCKET").then(String::new)).is_none());
        assert!(Supervisor::find(|_| Some("@voiceai-abstract".into())).is_some());
    }
}
