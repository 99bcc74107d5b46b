//! What may go wrong with a bucket, told apart by what the operator has to do.

use std::error::Error;
use std::fmt;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// The cause of an [`S3Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3ErrorKind {
    /// The bucket does not exist.
    NoSuchBucket,
    /// The object, or the upload, does not exist.
    NotFound,
    /// No credentials, unknown, expired or wrongly signed ones.
    Credentials,
    /// The credentials are known and may not do this.
    Denied,
    /// This host's clock differs too much from the store's.
    ClockSkew,
    /// The bucket is in another region.
    Region,
    /// The store cannot be reached, or gave no answer in time.
    Unreachable,
    /// The store answered that it is overloaded or broken, several times.
    Unavailable,
    /// The store has no room left, or the account none of its share.
    Full,
    /// The source of an upload could not be read.
    Source,
    /// The caller cancelled.
    Cancelled,
    /// What arrived is not what was sent.
    Integrity,
    /// Anything else; the text has the store's own words.
    Other,
}

impl S3ErrorKind {
    /// What an operator does about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoSuchBucket => "Create the bucket or correct S3_BUCKET and S3_ENDPOINT.",
            Self::NotFound => "Look at what the bucket holds.",
            Self::Credentials => {
                "Check S3_ACCESS_KEY and S3_SECRET_KEY, or without them the AWS credential chain of this host."
            }
            Self::Denied => "Allow these credentials to list, read, write and delete under S3_PREFIX.",
            Self::ClockSkew => "Set this host's clock.",
            Self::Region => "Correct S3_REGION.",
            Self::Unreachable => "Check S3_ENDPOINT, the proxy variables and the network.",
            Self::Unavailable => "Look at the store's own health; trying again later is safe.",
            Self::Full => "Make room in the store, or raise the quota; trying again then is safe.",
            Self::Source | Self::Cancelled => "Nothing was stored; start again.",
            Self::Integrity => "Do not trust this object; start again.",
            Self::Other => "See the store's own words.",
        }
    }
}

/// One request, or one upload, failed.
#[derive(Debug)]
pub struct S3Error {
    tried: &'static str,
    place: String,
    kind: S3ErrorKind,
    detail: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl S3Error {
    pub(crate) fn new(
        tried: &'static str,
        place: impl Into<String>,
        kind: S3ErrorKind,
        detail: impl Into<String>,
    ) -> Self {
        Self { tried, place: place.into(), kind, detail: detail.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    pub(crate) const fn with_kind(mut self, kind: S3ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sorts an SDK error.
    pub(crate) fn from_sdk<E>(
        tried: &'static str,
        place: impl Into<String>,
        error: SdkError<E, HttpResponse>,
    ) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().unwrap_or_default().to_owned();
        let kind = match &error {
            SdkError::ConstructionFailure(_) => S3ErrorKind::Other,
            SdkError::TimeoutError(_) => S3ErrorKind::Unreachable,
            SdkError::DispatchFailure(_) => dispatch_kind(&error),
            _ => by_code(&code, status),
        };
        let detail = match (error.message(), code.as_str(), status) {
            (Some(message), code, _) if !code.is_empty() => format!("{code}: {message}"),
            (_, "", Some(status)) => format!("HTTP {status}"),
            (_, "", None) => chain(&error),
            (_, code, _) => code.to_owned(),
        };
        Self { tried, place: place.into(), kind, detail, source: None }
    }

    /// The cause.
    pub const fn kind(&self) -> S3ErrorKind {
        self.kind
    }

    /// True when the same request may succeed later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, S3ErrorKind::Unreachable | S3ErrorKind::Unavailable)
    }
}

/// The SDK reports missing credentials as a failed dispatch whose words name the provider.
fn dispatch_kind(error: &(dyn Error + 'static)) -> S3ErrorKind {
    let about_credentials = chain(error).to_ascii_lowercase().contains("credentials");
    if about_credentials { S3ErrorKind::Credentials } else { S3ErrorKind::Unreachable }
}

fn by_code(code: &str, status: Option<u16>) -> S3ErrorKind {
    match code {
        "NoSuchBucket" => S3ErrorKind::NoSuchBucket,
        "NoSuchKey" | "NotFound" | "NoSuchUpload" => S3ErrorKind::NotFound,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "AuthorizationHeaderMalformed"
        | "MissingAuthenticationToken" => S3ErrorKind::Credentials,
        "RequestTimeTooSkewed" => S3ErrorKind::ClockSkew,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => S3ErrorKind::Denied,
        "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException" => {
            S3ErrorKind::Region
        }
        "InsufficientStorage" | "XMinioStorageFull" | "QuotaExceeded" | "InsufficientCapacity" => {
            S3ErrorKind::Full
        }
        "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => S3ErrorKind::Integrity,
        "SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "OperationAborted" => {
            S3ErrorKind::Unavailable
        }
        _ => match status {
            Some(301 | 307) => S3ErrorKind::Region,
            Some(401) => S3ErrorKind::Credentials,
            Some(403) => S3ErrorKind::Denied,
            Some(404) => S3ErrorKind::NotFound,
            Some(507) => S3ErrorKind::Full,
            Some(429 | 500..=599) => S3ErrorKind::Unavailable,
            _ => S3ErrorKind::Other,
        },
    }
}

/// An error with its causes, in one line, each said once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            S3ErrorKind::NoSuchBucket => "the bucket does not exist",
            S3ErrorKind::NotFound => "not found",
            S3ErrorKind::Credentials => "the store does not accept the credentials",
            S3ErrorKind::Denied => "access denied",
            S3ErrorKind::ClockSkew => "this host's clock is wrong",
            S3ErrorKind::Region => "the bucket is in another region",
            S3ErrorKind::Unreachable => "the store cannot be reached",
            S3ErrorKind::Unavailable => "the store is unavailable",
            S3ErrorKind::Full => "the store is full",
            S3ErrorKind::Source => "the source could not be read",
            S3ErrorKind::Cancelled => "cancelled",
            S3ErrorKind::Integrity => "what was stored is not what was sent",
            S3ErrorKind::Other => "failed",
        };
        write!(f, "{} {}: {words}", self.tried, self.place)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl Error for S3Error {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_words_are_sorted_by_what_the_operator_must_do() {
        for (code, status, kind) in [
            ("NoSuchBucket", Some(404), S3ErrorKind::NoSuchBucket),
            ("NoSuchKey", Some(404), S3ErrorKind::NotFound),
            ("", Some(404), S3ErrorKind::NotFound),
            ("InvalidAccessKeyId", Some(403), S3ErrorKind::Credentials),
            ("SignatureDoesNotMatch", Some(403), S3ErrorKind::Credentials),
            ("RequestTimeTooSkewed", Some(403), S3ErrorKind::ClockSkew),
            ("AccessDenied", Some(403), S3ErrorKind::Denied),
            ("", Some(403), S3ErrorKind::Denied),
            ("", Some(301), S3ErrorKind::Region),
            ("SlowDown", Some(503), S3ErrorKind::Unavailable),
            ("InternalError", Some(200), S3ErrorKind::Unavailable),
            ("", Some(502), S3ErrorKind::Unavailable),
            ("", Some(507), S3ErrorKind::Full),
            ("XMinioStorageFull", Some(507), S3ErrorKind::Full),
            ("MalformedXML", Some(400), S3ErrorKind::Other),
        ] {
            assert_eq!(by_code(code, status), kind, "{code} {status:?}");
        }
    }
}
