//! Uploads of unknown length, in parts.

use std::io;
use std::time::Duration;

use aws_sdk_s3::config::Builder;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{S3Error, S3ErrorKind};
use crate::store::{ATTEMPT_MAX, CONNECT_MAX, ObjectStore};

const MIB: u64 = 1024 * 1024;
/// S3 takes no more parts than this.
const PARTS_MAX: u64 = 10_000;
/// S3 takes no larger part than this.
const PART_MAX: u64 = 5 * 1024 * MIB;
/// So many parts of a size travel at a time, beside the one being filled: the smallest in fours, large ones alone.
const FOUR_UP_TO: u64 = 5 * MIB;
const TWO_UP_TO: u64 = 32 * MIB;

/// How large the parts of one upload are.
///
/// All parts have one size, as some stores demand, as long as the object is no larger than expected. Beyond its first 5,000
/// parts the size doubles every thousand, so that 10,000 parts hold more than ten times what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSizes {
    first: u64,
}

impl PartSizes {
    /// 8 MiB: fits up to 40 GiB in parts of one size, and half a TiB at most.
    pub const SMALLEST: Self = Self { first: 8 * MIB };

    /// For an object of about `bytes`.
    #[must_use]
    pub const fn for_expected(bytes: u64) -> Self {
        let least = bytes.div_ceil(PARTS_MAX / 2).next_multiple_of(MIB);
        let first = if least < 8 * MIB { 8 * MIB } else { least };
        Self { first: if first > PART_MAX { PART_MAX } else { first } }
    }

    /// The first part's size in bytes: at least S3's 5 MiB.
    #[must_use]
    pub const fn starting_at(bytes: u64) -> Self {
        Self { first: if bytes < 5 * MIB { 5 * MIB } else { bytes } }
    }

    /// Size of part `number`, counted from 1.
    const fn of(self, number: u64) -> u64 {
        let half = PARTS_MAX / 2;
        let doublings = if number <= half { 0 } else { 1 + (number - half - 1) / 1000 };
        let size = self.first << doublings;
        if size > PART_MAX { PART_MAX } else { size }
    }
}

/// An object that was stored whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all its bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// The store's tag; of an object in parts it is no digest of the content.
    pub etag: Option<String>,
    /// Number of parts.
    pub parts: usize,
}

impl ObjectStore {
    /// Streams `reader` to its end into the object `key`, hashing on the way. The object appears whole or not at all, and
    /// only after `approve` has agreed: it is called once the reader has ended, with the length, before the upload is
    /// completed. Holds at most three parts in memory, five of 5 MiB.
    ///
    /// # Errors
    /// [`S3Error`]: of the store, of the reader ([`S3ErrorKind::Source`]), of `approve` (likewise), or
    /// [`S3ErrorKind::Cancelled`]. The upload has been aborted then. Dropping the future aborts it too, as long as the
    /// runtime lives; what a killed process leaves is for [`ObjectStore::abort_uploads`]. When the answer to the completion
    /// was lost, the object may exist although this is an error.
    pub async fn put_stream<R, A, E>(
        &self,
        key: &str,
        reader: R,
        sizes: PartSizes,
        cancel: &CancellationToken,
        approve: A,
    ) -> Result<Uploaded, S3Error>
    where
        R: AsyncRead + Send + Unpin,
        A: AsyncFnOnce(u64) -> Result<(), E>,
        E: std::error::Error + Send + Sync + 'static,
    {
        self.put_stream_as(key, "application/octet-stream", reader, sizes, cancel, approve).await
    }

    /// The same with a content type.
    ///
    /// # Errors
    /// As [`ObjectStore::put_stream`].
    pub async fn put_stream_as<R, A, E>(
        &self,
        key: &str,
        content_type: &str,
        reader: R,
        sizes: PartSizes,
        cancel: &CancellationToken,
        approve: A,
    ) -> Result<Uploaded, S3Error>
    where
        R: AsyncRead + Send + Unpin,
        A: AsyncFnOnce(u64) -> Result<(), E>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let created = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
        let created = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(self.cancelled(key)),
            created = created.content_type(content_type).send() => created,
        };
        let created =
            created.map_err(|error| S3Error::from_sdk("begin upload of", self.place(key), error))?;
        let id = created.upload_id().unwrap_or_default().to_owned();
        let mut upload =
            Upload { guard: AbortOnDrop::new(self.clone(), key.to_owned(), id), parts: Vec::new() };
        let work = async {
            let (bytes, sha256) = upload.send(reader, sizes).await?;
            approve(bytes).await.map_err(|error| self.source_failed(key, error))?;
            Ok((bytes, sha256))
        };
        let sent = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(self.cancelled(key)),
            sent = work => sent,
        };
        let completed = match sent {
            Ok((bytes, sha256)) => {
                upload.complete().await.map(|(etag, parts)| Uploaded { bytes, sha256, etag, parts })
            }
            Err(error) => Err(error),
        };
        match completed {
            Ok(uploaded) => {
                upload.guard.disarm();
                Ok(uploaded)
            }
            Err(error) => {
                upload.guard.abort_now().await;
                Err(error)
            }
        }
    }

    fn cancelled(&self, key: &str) -> S3Error {
        S3Error::new("upload", self.place(key), S3ErrorKind::Cancelled, "")
    }

    fn source_failed(&self, key: &str, error: impl std::error::Error + Send + Sync + 'static) -> S3Error {
        S3Error::new("upload", self.place(key), S3ErrorKind::Source, error.to_string()).with_source(error)
    }
}

/// One upload on its way.
struct Upload {
    guard: AbortOnDrop,
    parts: Vec<CompletedPart>,
}

impl Upload {
    /// Sends the whole source in parts; an empty one as a single empty part. Returns length and SHA-256.
    async fn send(
        &mut self,
        mut reader: impl AsyncRead + Unpin,
        sizes: PartSizes,
    ) -> Result<(u64, String), S3Error> {
        let store = self.guard.store.clone();
        let key = self.guard.key.clone();
        let (mut hash, mut bytes, mut number) = (Sha256::new(), 0_u64, 1_u64);
        // Dropping the set, on any way out, stops the parts that are still under way.
        let mut sending: JoinSet<Result<CompletedPart, S3Error>> = JoinSet::new();
        loop {
            let size = sizes.of(number);
            let part =
                read_part(&mut reader, size).await.map_err(|error| store.source_failed(&key, error))?;
            let last = (part.len() as u64) < size;
            if part.is_empty() && number > 1 {
                break;
            }
            if number > PARTS_MAX {
                let detail = "longer than 10,000 parts can hold";
                return Err(S3Error::new("upload", store.place(&key), S3ErrorKind::Other, detail));
            }
            hash.update(&part);
            bytes += part.len() as u64;
            let beside = beside(size);
            while sending.len() >= beside {
                self.arrived(sending.join_next().await)?;
            }
            sending.spawn(send_part(store.clone(), key.clone(), self.guard.id.clone(), number, part));
            if last {
                break;
            }
            number += 1;
        }
        while let Some(part) = sending.join_next().await {
            self.arrived(Some(part))?;
        }
        Ok((bytes, hex(&hash.finalize())))
    }

    fn arrived(
        &mut self,
        part: Option<Result<Result<CompletedPart, S3Error>, tokio::task::JoinError>>,
    ) -> Result<(), S3Error> {
        match part {
            Some(Ok(part)) => self.parts.push(part?),
            Some(Err(error)) => {
                let place = self.guard.store.place(&self.guard.key);
                return Err(S3Error::new("upload", place, S3ErrorKind::Other, "a part's task ended")
                    .with_source(error));
            }
            None => {}
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<(Option<String>, usize), S3Error> {
        self.parts.sort_by_key(|part| part.part_number);
        let count = self.parts.len();
        let list = CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone())).build();
        let AbortOnDrop { store, key, id, .. } = &self.guard;
        let request = store.client.complete_multipart_upload().bucket(&store.bucket).key(key).upload_id(id);
        // The SDK reads the body: an error inside a 200 is an error here.
        let done = request.multipart_upload(list).send().await;
        let done = done.map_err(|error| S3Error::from_sdk("complete upload of", store.place(key), error))?;
        Ok((done.e_tag().map(str::to_owned), count))
    }
}

async fn send_part(
    store: ObjectStore,
    key: String,
    id: String,
    number: u64,
    part: Bytes,
) -> Result<CompletedPart, S3Error> {
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    let request =
        store.client.upload_part().bucket(&store.bucket).key(&key).upload_id(id).part_number(number);
    // A large part takes its time even on a sound line: a MiB a second is granted on top.
    let limit = ATTEMPT_MAX + Duration::from_secs(part.len() as u64 / MIB);
    let limits =
        TimeoutConfig::builder().connect_timeout(CONNECT_MAX).operation_attempt_timeout(limit).build();
    let request = request.body(ByteStream::from(part)).customize();
    let sent = request.config_override(Builder::new().timeout_config(limits)).send().await;
    let sent = sent.map_err(|error| S3Error::from_sdk("upload a part of", store.place(&key), error))?;
    Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned)).build())
}

/// How many parts of a size travel at a time.
const fn beside(size: u64) -> usize {
    if size <= FOUR_UP_TO {
        4
    } else if size <= TWO_UP_TO {
        2
    } else {
        1
    }
}

/// Reads until `size` bytes are there or the source ends.
async fn read_part(reader: &mut (impl AsyncRead + Unpin), size: u64) -> io::Result<Bytes> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut part = BytesMut::with_capacity(size.min(8 * 1024 * 1024));
    while part.len() < size {
        let room = size - part.len();
        if reader.take(room as u64).read_buf(&mut part).await? == 0 {
            break;
        }
    }
    Ok(part.freeze())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Aborts the upload unless it is told that all is well.
struct AbortOnDrop {
    store: ObjectStore,
    key: String,
    id: String,
    armed: bool,
}

impl AbortOnDrop {
    const fn new(store: ObjectStore, key: String, id: String) -> Self {
        Self { store, key, id, armed: true }
    }

    const fn disarm(&mut self) {
        self.armed = false;
    }

    async fn abort_now(&mut self) {
        report(&self.key, self.store.abort(&self.key, &self.id).await);
        self.armed = false;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (store, key, id) =
            (self.store.clone(), std::mem::take(&mut self.key), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { report(&key, store.abort(&key, &id).await) });
        }
    }
}

fn report(key: &str, cleaned: Result<(), S3Error>) {
    if let Err(error) = cleaned {
        tracing::warn!(key, %error, "an upload could not be aborted; the next run does it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_any_object() {
        let total = |sizes: PartSizes| (1..=PARTS_MAX).map(|number| sizes.of(number)).sum::<u64>();
        let tib = 1024 * 1024 * MIB;
        assert!(total(PartSizes::SMALLEST) > tib / 2, "an unexpected object of half a TiB still fits");
        for expected in [0, 1, 40 * 1024 * MIB, tib, 5 * tib] {
            let sizes = PartSizes::for_expected(expected);
            let even = (1..=PARTS_MAX / 2).map(|number| sizes.of(number)).sum::<u64>();
            assert!(even >= expected, "{expected} bytes fit into parts of one size");
            assert!(
                total(sizes) > 10 * expected || total(sizes) > 20 * tib,
                "and there is room for an error of the estimate"
            );
            assert!(
                (1..=PARTS_MAX).all(|number| sizes.of(number) >= 5 * MIB && sizes.of(number) <= PART_MAX)
            );
        }
        assert_eq!(PartSizes::for_expected(0), PartSizes::SMALLEST);
    }
}
