//! `pg_dump` and `pg_restore`: which one may be used, and how they are run.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::address::Address;
use super::error::BackupError;

/// How much of what a tool says to stderr is kept: the end, where the cause is.
const SAID_MAX: usize = 4 * 1024;

/// Where the tools are looked for.
#[derive(Debug, Clone)]
pub struct Tools {
    folders: Vec<PathBuf>,
}

/// One installed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    /// Such as `15.18`.
    pub(super) version: String,
    pub(super) major: u32,
}

impl Default for Tools {
    /// Where the distributions put each major version side by side, then the search path.
    fn default() -> Self {
        let mut folders = Vec::new();
        for parent in ["/usr/lib/postgresql", "/usr/libexec/postgresql", "/opt/postgresql"] {
            let versions = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
            folders.extend(versions.map(|version| version.path().join("bin")));
        }
        let others = std::fs::read_dir("/usr").into_iter().flatten().filter_map(Result::ok);
        let packaged = others.filter(|entry| entry.file_name().to_string_lossy().starts_with("pgsql-"));
        folders.extend(packaged.map(|entry| entry.path().join("bin")));
        folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        Self { folders }
    }
}

impl Tools {
    /// Only these folders.
    pub fn in_folders(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// The versions of `pg_dump` and `pg_restore` that a server of this major version gets: for `doctor`.
    ///
    /// # Errors
    /// [`BackupError::NoTool`], with what was found.
    pub async fn newest_pair(&self, server: u32) -> Result<(String, String), BackupError> {
        let dump = self.find("pg_dump", server).await?;
        let restore = self.find("pg_restore", dump.major).await?;
        Ok((dump.version, restore.version))
    }

    /// The tool for a server, or an archive, of this major version: that version's own, else the next higher one. An
    /// older one would refuse, or worse: miss what it does not know.
    ///
    /// # Errors
    /// [`BackupError::NoTool`], with what was found.
    pub(super) async fn find(&self, name: &'static str, least: u32) -> Result<Tool, BackupError> {
        let mut found = Vec::new();
        for folder in &self.folders {
            let path = folder.join(name);
            if let Some(version) = version(&path).await {
                let fits = major(&version) == least;
                found.push(Tool { name, path, major: major(&version), version });
                // None can fit better, and a distribution's wrapper on the search path takes its time to answer.
                if fits {
                    break;
                }
            }
        }
        choose(found, name, least)
    }
}

fn choose(mut found: Vec<Tool>, name: &'static str, least: u32) -> Result<Tool, BackupError> {
    found.sort_by_key(|tool| tool.major);
    let have: Vec<String> =
        found.iter().map(|tool| format!("{} in {}", tool.version, tool.path.display())).collect();
    found.into_iter().find(|tool| tool.major >= least).ok_or_else(|| {
        let have = if have.is_empty() {
            "there is none".to_owned()
        } else {
            format!("there is {}", have.join(", "))
        };
        BackupError::NoTool { tool: name, found: format!("version {least} or newer is needed, and {have}") }
    })
}

/// What `--version` says: `pg_dump (PostgreSQL) 15.18 (Debian …)`.
async fn version(path: &std::path::Path) -> Option<String> {
    if !path.is_file() {
        return None;
    }
    let mut asked = Command::new(path);
    asked.arg("--version").env_clear().stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(10), asked.output()).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    output.status.success().then(|| version.trim().to_owned())
}

/// `15.18` is 15, `9.6.24` is 9, `18beta1` is 18.
pub(super) fn major(version: &str) -> u32 {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

impl Tool {
    /// The tool with an environment of its own: nothing of ours, the address, and English messages.
    pub(super) fn command(&self, address: Option<&Address>) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("PGAPPNAME", "voiceai-backup");
        // Without it libpq would look for a password file in a home that may be anybody's. This one can never exist.
        command.env("PGPASSFILE", "/dev/null/none");
        if let Some(address) = address {
            command.envs(address.environment());
        }
        // Not ended with us by a terminal's Ctrl-C, but by us; and never left behind.
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// `pg_restore` that reads an archive of `pg_dump`'s custom format from its standard input.
    pub(super) fn reading(&self, address: Option<&Address>) -> Command {
        let mut command = self.command(address);
        command.stdin(Stdio::piped()).args(["--format=custom", "--no-password"]);
        command
    }

    pub(super) fn start(&self, command: &mut Command) -> Result<Running, BackupError> {
        let how =
            |error: std::io::Error| format!("could not be started from {}: {error}", self.path.display());
        let mut child = command.spawn().map_err(|error| BackupError::Tool {
            tool: self.name,
            how: how(error),
            said: String::new(),
        })?;
        let said = child.stderr.take().map(|stderr| tokio::spawn(tail(stderr)));
        Ok(Running { tool: self.name, child, said })
    }
}

/// A tool at work. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Running {
    tool: &'static str,
    pub(super) child: Child,
    said: Option<tokio::task::JoinHandle<String>>,
}

impl Running {
    /// Waits for its end, which must be exit 0.
    ///
    /// # Errors
    /// [`BackupError::Tool`] with how it ended and the last it said.
    pub(super) async fn ended_well(&mut self) -> Result<(), BackupError> {
        let status = self.child.wait().await;
        let said = match self.said.take() {
            Some(said) => said.await.unwrap_or_default(),
            None => String::new(),
        };
        let how = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => ending(status),
            Err(error) => format!("could not be waited for: {error}"),
        };
        Err(BackupError::Tool { tool: self.tool, how, said })
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => format!("ended with {status}"),
    }
}

/// Reads to the end and keeps the last of it, on one line.
async fn tail(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = stderr.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(SAID_MAX);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(version: &str) -> Tool {
        Tool {
            name: "pg_dump",
            path: PathBuf::from("/x"),
            version: version.to_owned(),
            major: major(version),
        }
    }

    #[test]
    fn the_servers_own_version_is_taken_else_the_next_higher() {
        let installed = || vec![tool("17.2"), tool("14.9"), tool("16.1")];
        for (least, taken) in [(14, "14.9"), (15, "16.1"), (16, "16.1"), (17, "17.2")] {
            assert_eq!(choose(installed(), "pg_dump", least).expect("one fits").version, taken);
        }
        let refused = choose(installed(), "pg_dump", 18).expect_err("all are older").to_string();
        assert!(refused.contains("18 or newer") && refused.contains("17.2"), "{refused}");
        assert!(choose(vec![], "pg_dump", 15).expect_err("none").to_string().contains("there is none"));
    }

    #[test]
    fn majors_are_read() {
        for (text, number) in [("15.18", 15), ("9.6.24", 9), ("18beta1", 18), ("devel", 0)] {
            assert_eq!(major(text), number, "{text}");
        }
    }
}
