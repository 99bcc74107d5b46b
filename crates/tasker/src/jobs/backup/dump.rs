//! One `pg_dump` on its way to the bucket, with a `pg_restore` that reads along.

use std::process::Stdio;
use std::sync::atomic::Ordering;

use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;
use voiceai_aws::{PartSizes, S3ErrorKind, Uploaded};

use super::BackupContext;
use super::crypt;
use super::error::BackupError;
use super::tee::Tee;
use super::tools::{Running, Tool};

/// What is dumped, with what, and where it goes.
pub(super) struct Dump<'a> {
    pub(super) ctx: &'a BackupContext,
    pub(super) key: String,
    /// `pg_dump`.
    pub(super) tool: &'a Tool,
    /// `pg_restore`.
    pub(super) check: &'a Tool,
    pub(super) snapshot: String,
    /// About how long it may get.
    pub(super) size_bytes: u64,
    pub(super) compression: Compression,
    pub(super) recipients: Vec<age::x25519::Recipient>,
}

/// `BACKUP_COMPRESSION` in the words of `pg_dump`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compression {
    argument: Option<String>,
    /// The first `pg_dump` that has the method.
    pub(super) least_major: u32,
}

impl Compression {
    pub(super) fn of(setting: &str) -> Self {
        let (argument, least_major) = match setting.split_once(':') {
            _ if setting == "none" => (Some("--compress=0".to_owned()), 0),
            _ if setting == "gzip" => (None, 0),
            Some(("gzip", level)) => (Some(format!("--compress={level}")), 0),
            _ => (Some(format!("--compress={setting}")), 16),
        };
        Self { argument, least_major }
    }
}

/// A pattern of `pg_dump` that matches this schema alone.
fn pattern(schema: &str) -> String {
    format!("\"{}\"", schema.replace('"', "\"\""))
}

/// The two tools at work.
struct Pair {
    dump: Running,
    check: Running,
    /// Why the dump is none.
    failed: Option<BackupError>,
}

impl Pair {
    /// The end of the pipe says nothing: a killed `pg_dump` closes it too. Only exit 0 makes the stream a dump, and only an
    /// archive that `pg_restore` has read to its end is a whole one.
    async fn approve(&mut self) -> Result<(), std::io::Error> {
        // In this order: what pg_restore says of half an archive is not the cause.
        let ended = match self.dump.ended_well().await {
            Ok(()) => self.check.ended_well().await,
            failed => failed,
        };
        ended.map_err(|error| {
            let refused = std::io::Error::other(error.to_string());
            self.failed = Some(error);
            refused
        })
    }
}

impl Dump<'_> {
    /// Streams the dump into the bucket, while `pg_restore` reads the same bytes: the upload is completed only when both
    /// have ended well.
    ///
    /// # Errors
    /// [`BackupError::Tool`] of the one that failed first, [`BackupError::Cancelled`], or the store's. The upload has been
    /// aborted then.
    pub(super) async fn upload(&self, stop: &CancellationToken) -> Result<Uploaded, BackupError> {
        let (mut pair, stdout, stdin) = self.start()?;
        let tee = Tee::new(stdout, stdin);
        let refused = tee.refused();
        let source: Box<dyn AsyncRead + Send + Unpin> = if self.recipients.is_empty() {
            Box::new(tee)
        } else {
            Box::new(crypt::encrypting(tee, self.recipients.clone()))
        };
        let sizes = PartSizes::for_expected(self.size_bytes);
        let approve = async |_| pair.approve().await;
        let uploaded = self.ctx.store.put_stream(&self.key, source, sizes, stop, approve).await;
        match (uploaded, pair.failed) {
            (Ok(uploaded), None) => Ok(uploaded),
            (_, Some(error)) => Err(error),
            (Err(error), None) if error.kind() == S3ErrorKind::Cancelled => Err(BackupError::Cancelled),
            (Err(_), None) if refused.load(Ordering::Relaxed) => {
                pair.check.ended_well().await?;
                let how = "stopped reading before the end of the dump".to_owned();
                Err(BackupError::Tool { tool: self.check.name, how, said: String::new() })
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    fn start(&self) -> Result<(Pair, tokio::process::ChildStdout, tokio::process::ChildStdin), BackupError> {
        let mut command = self.tool.command(Some(&self.ctx.database));
        command.args(["--format=custom", "--no-password", "--lock-wait-timeout=60s"]);
        command.args(&self.compression.argument);
        command.args(self.ctx.schemas.iter().map(|schema| format!("--schema={}", pattern(schema))));
        command.arg(format!("--snapshot={}", self.snapshot)).stdout(Stdio::piped());
        let mut dump = self.tool.start(&mut command)?;
        let mut check = self.check.start(self.check.reading(None).arg("--file=/dev/null"))?;
        let without = |tool: &Tool| BackupError::Tool {
            tool: tool.name,
            how: "could not be started: it has no pipe".to_owned(),
            said: String::new(),
        };
        let stdout = dump.child.stdout.take().ok_or_else(|| without(self.tool))?;
        let stdin = check.child.stdin.take().ok_or_else(|| without(self.check))?;
        Ok((Pair { dump, check, failed: None }, stdout, stdin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_written_as_every_pg_dump_that_has_it_reads_it() {
        let of = |setting| {
            let Compression { argument, least_major } = Compression::of(setting);
            (argument.unwrap_or_default(), least_major)
        };
        assert_eq!(of("gzip"), (String::new(), 0));
        assert_eq!(of("none"), ("--compress=0".to_owned(), 0));
        assert_eq!(of("gzip:9"), ("--compress=9".to_owned(), 0));
        assert_eq!(of("lz4"), ("--compress=lz4".to_owned(), 16));
        assert_eq!(of("zstd:19"), ("--compress=zstd:19".to_owned(), 16));
    }

    #[test]
    fn a_schemas_name_is_never_read_as_a_pattern() {
        assert_eq!(pattern("a*b"), "\"a*b\"");
        assert_eq!(pattern("odd\"name"), "\"odd\"\"name\"");
    }
}
