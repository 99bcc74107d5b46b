//! Reading an object to its end, over connections that break.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use crate::error::{S3Error, S3ErrorKind};
use crate::store::{ObjectStore, size};

/// How often in a row a broken connection is taken up again without a byte of progress.
const RESUMES_MAX: u32 = 5;
/// Wait before the first of them; each further one waits twice as long.
const RESUME_AFTER: Duration = Duration::from_millis(200);

/// An object's bytes on their way. What it gives is the object whole, or an error: a stream that ends early is taken up
/// where it ended, and only of the very same object.
pub struct Download {
    store: ObjectStore,
    key: String,
    etag: Option<String>,
    size: u64,
    given: u64,
    body: Option<ByteStream>,
    failures: u32,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("key", &self.key).field("size", &self.size).finish_non_exhaustive()
    }
}

impl ObjectStore {
    /// Opens an object for reading from its beginning.
    ///
    /// # Errors
    /// [`S3Error`], [`S3ErrorKind::NotFound`] when there is no such object.
    pub async fn get(&self, key: &str) -> Result<Download, S3Error> {
        let asked = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let object = asked.map_err(|error| S3Error::from_sdk("read", self.place(key), error))?;
        Ok(Download {
            store: self.clone(),
            key: key.to_owned(),
            etag: object.e_tag().map(str::to_owned),
            size: size(object.content_length()),
            given: 0,
            body: Some(object.body),
            failures: 0,
        })
    }
}

impl Download {
    /// The object's length in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes; nothing once all [`Download::size`] of them have been given.
    ///
    /// # Errors
    /// [`S3Error`] when the connection breaks again and again, or when the object has been replaced meanwhile.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, S3Error> {
        while self.given < self.size {
            let Some(body) = &mut self.body else {
                self.resume().await?;
                continue;
            };
            match body.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.given += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                Some(Err(error)) => self.broken(&error.to_string())?,
                None => self.broken("it ended early")?,
            }
        }
        Ok(None)
    }

    fn broken(&mut self, how: &str) -> Result<(), S3Error> {
        self.body = None;
        self.failures += 1;
        let detail = format!("after {} of {} bytes: {how}", self.given, self.size);
        if self.failures > RESUMES_MAX {
            return Err(S3Error::new("read", self.store.place(&self.key), S3ErrorKind::Unreachable, detail));
        }
        tracing::debug!(key = self.key, detail, "a download broke off and is taken up again");
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), S3Error> {
        tokio::time::sleep(RESUME_AFTER * (1 << (self.failures.saturating_sub(1)).min(6))).await;
        let request = self.store.client.get_object().bucket(&self.store.bucket).key(&self.key);
        let request = request.range(format!("bytes={}-", self.given)).set_if_match(self.etag.clone());
        let place = self.store.place(&self.key);
        match request.send().await {
            Ok(rest)
                if rest
                    .content_range()
                    .is_some_and(|range| range.starts_with(&format!("bytes {}-", self.given))) =>
            {
                self.body = Some(rest.body);
                Ok(())
            }
            Ok(_) => Err(S3Error::new(
                "read on",
                place,
                S3ErrorKind::Other,
                "the store does not read from the middle",
            )),
            Err(error) => match S3Error::from_sdk("read on", place, error) {
                error if error.is_transient() => self.broken(&error.to_string()),
                error => Err(error),
            },
        }
    }
}
