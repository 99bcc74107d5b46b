//! From the bucket into `pg_restore`, checked on the way.

use std::collections::VecDeque;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::crypt::Decrypting;
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
    let identity = identity(ctx, manifest)?;
    let mut command = tool.reading(if let Sink::Database(address) = sink { Some(address) } else { None });
    match sink {
        Sink::Nowhere => command.args(["--file=/dev/null"]),
        // A dump of the schema `public` creates it, and every database has one: --clean drops that one first, inside the
        // transaction, and only when it is empty.
        Sink::Database(address) => command
            .args(if manifest.only_schemas.iter().any(|name| name == "public") {
                &["--clean", "--if-exists"][..]
            } else {
                &[]
            })
            .args(["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"])
            .args(["--no-publications", "--no-subscriptions"])
            .arg(format!("--dbname={}", libpq_quoted(address.database()))),
    };
    let mut running = tool.start(&mut command)?;
    let way = match (running.child.stdin.take(), identity) {
        (Some(stdin), Some(identity)) => Way::Decrypting(Decrypting::into(stdin, identity)),
        (Some(stdin), None) => Way::Pipe(stdin),
        (None, _) => Way::Nowhere,
    };
    let feed = feed(ctx, manifest, way);
    let fed = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        fed = feed => fed?,
    };
    if let Err(error) = check_sum(manifest, &fed) {
        // Dropped here, it is killed before it has seen the end.
        drop(running);
        return Err(error);
    }
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(BackupError::Cancelled),
        ended = running.ended_well() => ended,
    }
}

/// Reads the dump for its length and SHA-256 alone.
///
/// # Errors
/// [`BackupError::Damaged`] when the dump is not the one that was stored; the store's.
pub(super) async fn compare(
    ctx: &BackupContext,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> Result<(), BackupError> {
    check_length(ctx, manifest).await?;
    let fed = tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(BackupError::Cancelled),
        fed = feed(ctx, manifest, Way::Nowhere) => fed?,
    };
    check_sum(manifest, &fed)
}

fn check_sum(manifest: &Manifest, fed: &Fed) -> Result<(), BackupError> {
    if fed.sha256 == manifest.sha256 && fed.bytes == manifest.bytes {
        return Ok(());
    }
    Err(damaged(manifest, format!("its SHA-256 is {} instead of {}", fed.sha256, manifest.sha256)))
}

/// What an encrypted dump is opened with.
fn identity(ctx: &BackupContext, manifest: &Manifest) -> Result<Option<std::path::PathBuf>, BackupError> {
    match (&manifest.encryption, &ctx.policy.identity_file) {
        (None, _) => Ok(None),
        (Some(_), Some(file)) => Ok(Some(file.clone())),
        (Some(encryption), None) => Err(BackupError::Encryption {
            problem: format!(
                "backup {} is encrypted to {}, and there is no identity to open it with",
                manifest.id,
                encryption.recipients.join(", ")
            ),
        }),
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
async fn feed(ctx: &BackupContext, manifest: &Manifest, way: Way) -> Result<Fed, BackupError> {
    let mut download = ctx.store.get(&manifest.key).await?;
    let mut held = Held { way, last: VecDeque::new() };
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    loop {
        let Some(chunk) = download.next_chunk().await? else { break };
        hash.update(&chunk);
        held.push(&chunk).await?;
        bytes += chunk.len() as u64;
    }
    let fed = Fed { sha256: hex(&hash.finalize()), bytes };
    if fed.sha256 == manifest.sha256 {
        held.release().await?;
    }
    Ok(fed)
}

/// Where the bytes go.
enum Way {
    Pipe(ChildStdin),
    Decrypting(Decrypting),
    Nowhere,
}

/// A way that keeps the last bytes back.
struct Held {
    way: Way,
    last: VecDeque<u8>,
}

impl Held {
    async fn push(&mut self, chunk: &[u8]) -> Result<(), BackupError> {
        if matches!(self.way, Way::Nowhere) {
            return Ok(());
        }
        self.last.extend(chunk);
        let surplus = self.last.len().saturating_sub(HELD_BACK);
        self.write(surplus).await
    }

    async fn release(mut self) -> Result<(), BackupError> {
        let all = self.last.len();
        self.write(all).await?;
        // Closing the pipe is the end of the archive.
        match self.way {
            Way::Decrypting(decrypting) => decrypting.end().await,
            Way::Pipe(_) | Way::Nowhere => Ok(()),
        }
    }

    /// A tool that stops reading ends nothing; a key that does not fit ends everything.
    async fn write(&mut self, count: usize) -> Result<(), BackupError> {
        let bytes: Vec<u8> = self.last.drain(..count).collect();
        let taken = match &mut self.way {
            Way::Pipe(stdin) => stdin.write_all(&bytes).await.is_ok(),
            Way::Decrypting(decrypting) => decrypting.push(Bytes::from(bytes)).await,
            Way::Nowhere => return Ok(()),
        };
        if !taken && let Way::Decrypting(decrypting) = std::mem::replace(&mut self.way, Way::Nowhere) {
            return decrypting.end().await;
        }
        Ok(())
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
