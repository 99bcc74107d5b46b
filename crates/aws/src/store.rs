//! One bucket.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use crate::access::{AwsAccess, Patience};
use crate::error::{S3Error, S3ErrorKind};
use crate::settings::S3Settings;

/// Tries of one request, the first included: the SDK waits between them, longer each time.
const ATTEMPTS_MAX: u32 = 4;
/// Longest time one try may take, the body of a part included.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(120);
/// Longest time until a connection stands.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(5);

/// An object, as a listing or a look at its head tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The whole key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Option<SystemTime>,
}

/// An upload in parts that was begun and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The key the object would get.
    pub key: String,
    /// The store's name for the upload.
    pub id: String,
    /// When it began, by the store's clock.
    pub initiated: Option<SystemTime>,
}

/// One bucket. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    pub(crate) client: Client,
    /// Signs links, for the address that others use. It is never sent anything by.
    links: Client,
    pub(crate) bucket: String,
}

impl ObjectStore {
    /// Builds the client. Sends nothing: see [`ObjectStore::check`].
    pub async fn new(settings: &S3Settings) -> Self {
        let access = AwsAccess {
            region: settings.region.clone(),
            endpoint: None,
            keys: settings.keys.clone(),
            renewed: settings.renewed.clone(),
            instance_profile: settings.instance_profile,
            way: settings.way.clone(),
        };
        let patience =
            Patience { attempts: ATTEMPTS_MAX, connect: CONNECT_MAX, attempt: ATTEMPT_MAX, call: None };
        let shared = access.load(patience).await;
        let client_at = |endpoint: Option<&String>| {
            let mut config = aws_sdk_s3::config::Builder::from(&shared);
            if let Some(endpoint) = endpoint {
                config = config.endpoint_url(endpoint).force_path_style(true);
            }
            if !settings.checksums {
                config = config
                    .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                    .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            }
            Client::from_conf(config.build())
        };
        let client = client_at(settings.endpoint.as_ref());
        let links = match &settings.public_endpoint {
            Some(public) => client_at(Some(public)),
            None => client.clone(),
        };
        Self { client, links, bucket: settings.bucket.clone() }
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Asks the bucket for one key: proves address, credentials, clock and that the bucket exists.
    ///
    /// # Errors
    /// [`S3Error`]; its kind tells these apart.
    pub async fn check(&self) -> Result<(), S3Error> {
        // A listing, because the answer to a HEAD has no body that could say why it was refused.
        let asked = self.client.list_objects_v2().bucket(&self.bucket).max_keys(1).send().await;
        asked
            .map(|_| ())
            .map_err(|error| about_bucket(S3Error::from_sdk("reach bucket", &self.bucket, error)))
    }

    /// The object's size; nothing when there is none.
    ///
    /// # Errors
    /// [`S3Error`]. A bucket that does not exist looks like an object that does not.
    pub async fn head(&self, key: &str) -> Result<Option<Object>, S3Error> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => Ok(Some(Object {
                key: key.to_owned(),
                size: size(head.content_length()),
                modified: head.last_modified().and_then(to_system_time),
            })),
            Err(error) => match S3Error::from_sdk("look at", self.place(key), error) {
                error if error.kind() == S3ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Reads a small object whole.
    ///
    /// # Errors
    /// [`S3Error`]; [`S3ErrorKind::Other`] when it is larger than `limit` bytes.
    pub async fn get_small(&self, key: &str, limit: usize) -> Result<Bytes, S3Error> {
        let place = || self.place(key);
        let asked = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let mut body = asked.map_err(|error| S3Error::from_sdk("read", place(), error))?.body;
        let mut whole = BytesMut::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| {
                S3Error::new("read", place(), S3ErrorKind::Unreachable, "the connection broke")
                    .with_source(error)
            })?;
            if whole.len() + chunk.len() > limit {
                let detail = format!("more than the {limit} bytes that such an object may have");
                return Err(S3Error::new("read", place(), S3ErrorKind::Other, detail));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// Writes a small object in one request; an object of that key is replaced.
    ///
    /// # Errors
    /// [`S3Error`]; after [`S3Error::is_transient`] the object may or may not be there.
    pub async fn put_small(&self, key: &str, content: Bytes, content_type: &str) -> Result<(), S3Error> {
        let request = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
        let sent = request.body(ByteStream::from(content)).send().await;
        sent.map(|_| ()).map_err(|error| S3Error::from_sdk("write", self.place(key), error))
    }

    /// A link by which anybody may read the object until `good_for` is over; at most seven days. It leads to `S3_PUBLIC_ENDPOINT`
    /// where there is one: the host is part of what is signed, so a link cannot be moved to another afterwards. Asks nobody whether there is
    /// such an object.
    ///
    /// # Errors
    /// [`S3Error`] when there are no credentials to sign with.
    pub async fn presigned(&self, key: &str, good_for: Duration) -> Result<String, S3Error> {
        let config = PresigningConfig::expires_in(good_for).map_err(|error| {
            S3Error::new("sign a link to", self.place(key), S3ErrorKind::Other, error.to_string())
        })?;
        let signed = self.links.get_object().bucket(&self.bucket).key(key).presigned(config).await;
        let signed = signed.map_err(|error| S3Error::from_sdk("sign a link to", self.place(key), error))?;
        Ok(signed.uri().to_owned())
    }

    /// Removes an object; one that is not there counts as removed.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn delete(&self, key: &str) -> Result<(), S3Error> {
        let sent = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        match sent.map_err(|error| S3Error::from_sdk("delete", self.place(key), error)) {
            Err(error) if error.kind() != S3ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every object whose key begins with `prefix`, in the order of keys, page by page.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, S3Error> {
        let mut objects = Vec::new();
        let mut pages =
            self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page =
                page.map_err(|error| about_bucket(S3Error::from_sdk("list", self.place(prefix), error)))?;
            objects.extend(page.contents().iter().filter_map(|object| {
                Some(Object {
                    key: object.key()?.to_owned(),
                    size: size(object.size()),
                    modified: object.last_modified().and_then(to_system_time),
                })
            }));
        }
        Ok(objects)
    }

    /// The uploads under `prefix` that were begun and not ended: what killed processes left, and what others are doing.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>, S3Error> {
        let mut uploads = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(prefix);
            let asked = request.set_key_marker(key_marker).set_upload_id_marker(id_marker).send().await;
            let page = asked.map_err(|error| {
                about_bucket(S3Error::from_sdk("list uploads under", self.place(prefix), error))
            })?;
            uploads.extend(page.uploads().iter().filter_map(|upload| {
                Some(OpenUpload {
                    key: upload.key()?.to_owned(),
                    id: upload.upload_id()?.to_owned(),
                    initiated: upload.initiated().and_then(to_system_time),
                })
            }));
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if !page.is_truncated().unwrap_or(false) || key_marker.is_none() {
                // Not every store filters by prefix.
                uploads.retain(|upload| upload.key.starts_with(prefix));
                return Ok(uploads);
            }
        }
    }

    /// Aborts the open uploads under `prefix` that `stale` picks, and returns how many. One that has ended meanwhile is not
    /// an error.
    ///
    /// # Errors
    /// [`S3Error`]; uploads before the failing one are aborted.
    pub async fn abort_uploads(
        &self,
        prefix: &str,
        stale: impl Fn(&OpenUpload) -> bool,
    ) -> Result<usize, S3Error> {
        let mut aborted = 0;
        for upload in self.open_uploads(prefix).await?.into_iter().filter(stale) {
            self.abort(&upload.key, &upload.id).await?;
            aborted += 1;
        }
        Ok(aborted)
    }

    pub(crate) async fn abort(&self, key: &str, id: &str) -> Result<(), S3Error> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(id);
        match request
            .send()
            .await
            .map_err(|error| S3Error::from_sdk("abort upload of", self.place(key), error))
        {
            Err(error) if error.kind() != S3ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn place(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

/// A request that names no key and is answered with "not found" misses the bucket, whatever words the store uses.
fn about_bucket(error: S3Error) -> S3Error {
    if error.kind() == S3ErrorKind::NotFound { error.with_kind(S3ErrorKind::NoSuchBucket) } else { error }
}

pub(crate) fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

fn to_system_time(time: &aws_sdk_s3::primitives::DateTime) -> Option<SystemTime> {
    SystemTime::try_from(*time).ok()
}
