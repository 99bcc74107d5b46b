//! Encryption of dumps to age recipients, as a stream: a few chunks in memory, whatever the size.
//!
//! The age format is worked on a thread of its own, because its library reads and writes blockingly and because it is work.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use age::{DecryptError, Decryptor, Encryptor, Identity, IdentityFile, Recipient};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::io::StreamReader;

use super::error::BackupError;

/// The word in the manifest.
pub(super) const METHOD: &str = "age";
/// Chunks on their way between a task and a thread.
const WAITING: usize = 8;
const CHUNK: usize = 64 * 1024;

fn wrong(problem: impl Into<String>) -> BackupError {
    BackupError::Encryption { problem: problem.into() }
}

/// Reads public keys.
///
/// # Errors
/// [`BackupError::Encryption`] with the one that is none.
pub(super) fn recipients(texts: &[String]) -> Result<Vec<age::x25519::Recipient>, BackupError> {
    let one = |text: &String| {
        let parsed = text.parse::<age::x25519::Recipient>();
        parsed.map_err(|problem| {
            wrong(format!("BACKUP_AGE_RECIPIENTS has {text:?}, which is no age1… key ({problem})"))
        })
    };
    texts.iter().map(one).collect()
}

/// Whether all of these are public keys.
///
/// # Errors
/// [`BackupError::Encryption`] with the one that is none.
pub fn check(texts: &[String]) -> Result<(), BackupError> {
    recipients(texts).map(drop)
}

fn identities(file: &Path) -> Result<Vec<Box<dyn Identity + Send + Sync>>, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("identity file {}: {error}", file.display());
    let text = std::fs::read(file).map_err(|error| unreadable(&error))?;
    let found = IdentityFile::from_buffer(text.as_slice())
        .map_err(|_| unreadable(&"not a file of age identities"))?;
    let found = found.into_identities().map_err(|_| unreadable(&"not a file of age identities"))?;
    if found.is_empty() { Err(unreadable(&"holds no identity")) } else { Ok(found) }
}

/// `source`, encrypted. Ends in an error when the source does, and never looks complete then.
pub(super) fn encrypting(
    mut source: impl AsyncRead + Send + Unpin + 'static,
    recipients: Vec<age::x25519::Recipient>,
) -> impl AsyncRead + Send + Unpin {
    let (plain_in, plain) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    let (sealed_in, mut sealed) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    tokio::spawn(async move {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            let read = source.read_buf(&mut chunk).await.map(|_| chunk.freeze());
            // An empty chunk is the end: a channel that merely closes is none.
            let last = read.as_ref().map_or(true, Bytes::is_empty);
            if plain_in.send(read).await.is_err() || last {
                return;
            }
        }
    });
    tokio::task::spawn_blocking(move || {
        if let Err(error) = seal(plain, &recipients, &sealed_in) {
            let _ = sealed_in.blocking_send(Err(error));
        }
    });
    StreamReader::new(futures_util::stream::poll_fn(move |context| sealed.poll_recv(context)))
}

fn seal(
    mut plain: mpsc::Receiver<io::Result<Bytes>>,
    recipients: &[age::x25519::Recipient],
    sealed: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let encryptor =
        Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn Recipient));
    let mut output = encryptor.map_err(io::Error::other)?.wrap_output(Outgoing(sealed))?;
    loop {
        match plain.blocking_recv() {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(chunk) => match chunk? {
                chunk if chunk.is_empty() => return output.finish().map(|_| ()),
                chunk => output.write_all(&chunk)?,
            },
        }
    }
}

struct Outgoing<'a>(&'a mpsc::Sender<io::Result<Bytes>>);

impl Write for Outgoing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(buffer)));
        sent.map(|()| buffer.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A decryption on its way into a tool's standard input.
#[derive(Debug)]
pub(super) struct Decrypting {
    sealed: mpsc::Sender<Bytes>,
    done: JoinHandle<Result<(), Failed>>,
}

/// Why a decryption ended.
#[derive(Debug)]
enum Failed {
    /// The key is wrong or cannot be read: the dump may be as good as ever.
    Key(String),
    /// The dump is.
    Content(String),
}

impl Decrypting {
    /// Begins one.
    pub(super) fn into(stdin: ChildStdin, identity_file: PathBuf) -> Self {
        let (sealed, incoming) = mpsc::channel(WAITING);
        let runtime = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || open(incoming, stdin, &identity_file, &runtime));
        Self { sealed, done }
    }

    /// Hands it the next bytes; false once it takes no more.
    pub(super) async fn push(&mut self, bytes: Bytes) -> bool {
        self.sealed.send(bytes).await.is_ok()
    }

    /// Tells it that this was all, and waits for its end.
    ///
    /// # Errors
    /// [`BackupError::Encryption`] for a wrong key. What is wrong with the dump itself is its checksum's to say.
    pub(super) async fn end(self) -> Result<(), BackupError> {
        drop(self.sealed);
        match self.done.await {
            Ok(Err(Failed::Key(problem))) => Err(wrong(problem)),
            Ok(Err(Failed::Content(problem))) => {
                tracing::warn!(problem, "a dump could not be decrypted to its end");
                Ok(())
            }
            Ok(Ok(())) => Ok(()),
            Err(error) => Err(wrong(format!("the decryption ended: {error}"))),
        }
    }
}

fn open(
    incoming: mpsc::Receiver<Bytes>,
    mut stdin: ChildStdin,
    identity_file: &Path,
    runtime: &tokio::runtime::Handle,
) -> Result<(), Failed> {
    let identities = identities(identity_file).map_err(Failed::Key)?;
    let known = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed => Failed::Key(format!(
            "none of the identities in {} is one that the backup was encrypted to",
            identity_file.display()
        )),
        other => Failed::Content(other.to_string()),
    };
    let decryptor = Decryptor::new(Incoming { chunks: incoming, rest: Bytes::new() }).map_err(known)?;
    let keys = identities.iter().map(|identity| identity.as_ref() as &dyn Identity);
    let mut plain = decryptor.decrypt(keys).map_err(known)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match plain.read(&mut chunk).map_err(|error| Failed::Content(error.to_string()))? {
            0 => return Ok(()),
            count => {
                let bytes = chunk.get(..count).unwrap_or_default();
                // A tool that stops reading says why by its own end.
                if runtime.block_on(stdin.write_all(bytes)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

struct Incoming {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        let given = self.rest.split_to(count);
        buffer[..count].copy_from_slice(&given);
        Ok(count)
    }
}
