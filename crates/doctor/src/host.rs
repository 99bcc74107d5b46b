//! This host: its folder, its clock, its programs and its way out.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, access, statvfs};
use tokio::net::TcpStream;
use tokio::process::Command;
use url::Url;
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_config::Resolved;
use voiceai_service::Shared;

use crate::BOUND;

/// A name that does not resolve or a port that swallows packets must not use up a check's whole bound.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Clocks of two hosts: what NTP keeps, and what is no longer a matter of precision.
const CLOCK_WARNING: f64 = 1.0;
const CLOCK_FAILED: f64 = 10.0;
/// Log lines and state files need little; below this the disk is about to be full.
const FREE_LEAST: u64 = 16 * 1024 * 1024;

pub(crate) fn add(doctor: &mut Doctor, resolved: &Resolved, shared: &Shared) {
    let folder = shared.runtime_dir();
    doctor.check("host.runtime_dir", BOUND, async move { writable(&folder) });
    let endpoint = resolved.shown("OTEL_EXPORTER_OTLP_ENDPOINT");
    doctor.check("telemetry.endpoint", BOUND, async move {
        match endpoint {
            Some(url) => {
                self::endpoint(&url, 4317, "Start the collector, or unset OTEL_EXPORTER_OTLP_ENDPOINT.").await
            }
            None => Finding::skipped("OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing is exported"),
        }
    });
}

fn writable(folder: &Path) -> Finding {
    let shown = folder.display();
    if let Err(error) = access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        return Finding::failed(
            format!("{shown} cannot be written: {error}"),
            "Make it writable for this user, or set RUNTIME_DIR: without it `healthcheck` sees nothing.",
        );
    }
    match statvfs(folder) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_LEAST => Finding::failed(
            format!("{shown} has {} MiB left", disk.f_bavail.saturating_mul(disk.f_frsize) / 1024 / 1024),
            "Free space there.",
        ),
        _ => Finding::ok(format!("{shown} can be written")),
    }
}

/// Whether a host's clock, `theirs`, agrees with ours: asked at `sent`, answered at `received`, all Unix seconds.
pub(crate) fn clock_finding(whose: &str, theirs: f64, sent: f64, received: f64) -> Finding {
    // Anywhere between question and answer is agreement.
    let off = if theirs < sent { sent - theirs } else { (theirs - received).max(0.0) };
    let evidence = format!("this host's clock and {whose}'s differ by {off:.1} s");
    let remedy = "Start NTP on both hosts: leases, schedules and signatures go by the clock.";
    if off >= CLOCK_FAILED {
        Finding::failed(evidence, remedy)
    } else if off >= CLOCK_WARNING {
        Finding::warning(evidence, remedy)
    } else {
        Finding::ok(format!("this host's clock and {whose}'s agree"))
    }
}

/// Whether somebody listens where `url` points; `port` stands in for one the URL does not give.
pub async fn endpoint(url: &str, port: u16, remedy: &str) -> Finding {
    let Some((host, port)) = Url::parse(url).ok().and_then(|url| {
        let port = url.port_or_known_default().unwrap_or(port);
        Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), port))
    }) else {
        return Finding::failed("it is no URL with a host", remedy);
    };
    listening(&host, port, remedy).await
}

/// Whether somebody listens on `host:port`. Says which of name, route and port is at fault.
pub async fn listening(host: &str, port: u16, remedy: &str) -> Finding {
    let start = Instant::now();
    let connect = async {
        let addresses: Vec<_> =
            tokio::net::lookup_host((host, port)).await.map_err(|_| "its name does not resolve")?.collect();
        match TcpStream::connect(addresses.as_slice()).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err("nobody listens there")
            }
            Err(_) => Err("there is no route to it"),
        }
    };
    let why = match tokio::time::timeout(CONNECT_WITHIN, connect).await {
        Ok(Ok(())) => {
            let took = start.elapsed().as_secs_f64() * 1_000.0;
            return Finding::ok(format!("{host}:{port} accepts connections ({took:.1} ms)"));
        }
        Ok(Err(why)) => why,
        Err(_) => "it does not answer at all: look for a firewall on the way",
    };
    Finding::failed(format!("{host}:{port}: {why}"), remedy)
}

/// Whether every one of `files` is there and may be run by this user.
#[must_use]
pub fn executables(files: &[PathBuf], remedy: &str) -> Finding {
    let wrong: Vec<_> = files
        .iter()
        .filter_map(|file| {
            let shown = file.display();
            match access(file, Access::EXEC_OK) {
                _ if file.is_dir() => Some(format!("{shown} is a folder")),
                Ok(()) => None,
                Err(rustix::io::Errno::NOENT) => Some(format!("{shown} is missing")),
                Err(rustix::io::Errno::ACCESS) => Some(format!("{shown} may not be run")),
                Err(error) => Some(format!("{shown}: {error}")),
            }
        })
        .collect();
    if wrong.is_empty() {
        Finding::ok(format!("{} of {} are there and may be run", files.len(), files.len()))
    } else {
        Finding::failed(wrong.join("; "), remedy)
    }
}

/// The first version number that `name --version` prints, such as `15.14`.
///
/// # Errors
/// The finding of a check that needs the program: it is missing, hangs or does not run.
pub async fn program(name: &str, remedy: &str) -> Result<String, Finding> {
    let mut command = Command::new(name);
    command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let failed = |why: String| Finding::failed(format!("{name}: {why}"), remedy);
    let output = match tokio::time::timeout(CONNECT_WITHIN, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(failed("it is not installed, or not in PATH".to_owned()));
        }
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("`--version` gives no answer".to_owned())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    version.map(str::to_owned).ok_or_else(|| failed(format!("`--version` says {:?}", text.trim())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::net::TcpListener;

    use super::*;

    fn verdict(finding: &Finding) -> String {
        finding.verdict().to_string()
    }

    #[test]
    fn a_clock_agrees_anywhere_between_question_and_answer() {
        for (theirs, expected) in [
            (100.0, "ok"),
            (105.0, "ok"),
            (106.5, "warning"),
            (98.5, "warning"),
            (700.0, "FAILED"),
            (-500.0, "FAILED"),
        ] {
            assert_eq!(verdict(&clock_finding("Redis", theirs, 100.0, 105.0)), expected, "{theirs}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_says_what_is_at_fault() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = endpoint(&format!("http://127.0.0.1:{port}/v1"), 4317, "").await;
        assert_eq!(verdict(&found), "ok");
        drop(listener);
        let found = listening("127.0.0.1", port, "Start it.").await;
        assert!(found.evidence().contains("nobody listens"), "{found:?}");
        let found = listening("absent.invalid", 1, "").await;
        assert!(found.evidence().contains("does not resolve"), "{found:?}");
        assert_eq!(verdict(&endpoint("nonsense", 1, "").await), "FAILED");
    }

    #[test]
    fn files_must_be_there_and_may_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("up.sh");
        let absent = folder.path().join("absent.sh");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let mode = |bits| std::fs::set_permissions(&script, std::fs::Permissions::from_mode(bits)).unwrap();
        mode(0o755);
        assert_eq!(verdict(&executables(std::slice::from_ref(&script), "")), "ok");
        mode(0o644);
        let found = executables(&[script, absent, folder.path().to_owned()], "Run chmod +x.");
        for part in ["up.sh may not be run", "absent.sh is missing", "is a folder"] {
            assert!(found.evidence().contains(part), "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_program_says_its_version() {
        assert!(program("bash", "").await.unwrap().starts_with(|c: char| c.is_ascii_digit()));
        let found = program("absent-program", "Install it.").await.unwrap_err();
        assert!(found.evidence().contains("not installed"), "{found:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(verdict(&writable(folder.path())), "ok");
        assert_eq!(verdict(&writable(&folder.path().join("absent"))), "FAILED");
    }
}
