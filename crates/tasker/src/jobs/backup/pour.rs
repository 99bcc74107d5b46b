//! From the bucket into `pg_restore`, checked on the way.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::error::BackupError;
use super::manifest::Manifest;
use super::tools::Tool;
use super::{BackupContext, hex};

/// So much of the end is held back until the checksum of the whole is known. `pg_restore` cannot finish the last table,
/// and so cannot commit, without it.
const HELD_BACK: usize = 64 * 1024;

/// Where the dump goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sink<'a> {
    /// Read as SQL and thrown away: fails on anything that is no whole archive.
    Nowhere,
    /// Restored in one transaction: whole, or not at all.
    Database(&'a Address),
}

/// Streams the dump through `pg_restore`. The database, where there is one, is changed only when the dump's length and
/// SHA-256 are the manifest's.
///
/// # Errors
/// [`BackupError::Damaged`] when the dump is not the one that was stored; [`BackupError::Tool`] when it is and `pg_restore`
/// fails all the same; the store's.
pub(super) async fn pour(
    ctx: &BackupContext,
    manifest: &Manifest,
    tool: &Tool,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<(), BackupError> {
    check_length(ctx, manifest).await?;
    let mut command = tool.command(if let Sink::Database(address) = sink { Some(address) } else { None });
    command.stdin(std::process::Stdio::piped()).args(["--format=custom", "--no-password"]);
    match sink {
        Sink::Nowhere => command.args(["--file=/dev/null"]),
        Sink::Database(address) => command
            .args(["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"])
            .args(["--no-publications", "--no-subscriptions"])
            .arg(format!("--dbname={}", libpq_quoted(address.database()))),
    };
    let mut running = tool.start(&mut command)?;
    let stdin = running.child.stdin.take();
    let feed = feed(ctx, manifest, stdin);
    let fed = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        fed = feed => fed?,
    };
    if fed.sha256 != manifest.sha256 || fed.bytes != manifest.bytes {
        // Dropped here, it is killed before it has seen the end.
        drop(running);
        return Err(damaged(
            manifest,
            format!("its SHA-256 is {} instead of {}", fed.sha256, manifest.sha256),
        ));
    }
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(BackupError::Cancelled),
        ended = running.ended_well() => ended,
    }
}

fn damaged(manifest: &Manifest, problem: String) -> BackupError {
    BackupError::Damaged { id: manifest.id.clone(), problem }
}

/// The cheapest look at a dump: is it there, and as long as it was?
pub(super) async fn check_length(ctx: &BackupContext, manifest: &Manifest) -> Result<(), BackupError> {
    match ctx.store.head(&manifest.key).await?.map(|object| object.size) {
        None => Err(damaged(manifest, "the dump is missing".to_owned())),
        Some(size) if size != manifest.bytes => {
            Err(damaged(manifest, format!("the dump has {size} bytes instead of {}", manifest.bytes)))
        }
        Some(_) => Ok(()),
    }
}

struct Fed {
    sha256: String,
    bytes: u64,
}

/// Feeds the whole object and closes the pipe, unless the object is not the right one. A tool that stops reading ends
/// nothing: the checksum says whether the dump or something else made it stop.
async fn feed(
    ctx: &BackupContext,
    manifest: &Manifest,
    stdin: Option<ChildStdin>,
) -> Result<Fed, BackupError> {
    let mut download = ctx.store.get(&manifest.key).await?;
    let mut held = Held { stdin, last: VecDeque::new() };
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    loop {
        let Some(chunk) = download.next_chunk().await? else { break };
        hash.update(&chunk);
        held.push(&chunk).await;
        bytes += chunk.len() as u64;
    }
    let fed = Fed { sha256: hex(&hash.finalize()), bytes };
    if fed.sha256 == manifest.sha256 {
        held.release().await;
    }
    Ok(fed)
}

/// A pipe that keeps the last bytes back.
struct Held {
    stdin: Option<ChildStdin>,
    last: VecDeque<u8>,
}

impl Held {
    async fn push(&mut self, chunk: &[u8]) {
        self.last.extend(chunk);
        let surplus = self.last.len().saturating_sub(HELD_BACK);
        self.write(surplus).await;
    }

    async fn release(mut self) {
        let all = self.last.len();
        self.write(all).await;
        // Closing the pipe is the end of the archive.
        drop(self.stdin.take());
    }

    async fn write(&mut self, count: usize) {
        let bytes: Vec<u8> = self.last.drain(..count).collect();
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(&bytes).await.is_err()
        {
            self.stdin = None;
        }
    }
}

/// A name that libpq takes as a name even where it looks like a connection string.
fn libpq_quoted(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_name_is_never_read_as_a_connection_string() {
        assert_eq!(libpq_quoted("host=evil"), "dbname='host=evil'");
        assert_eq!(libpq_quoted(r"it's\x"), r"dbname='it\'s\\x'");
    }
}
