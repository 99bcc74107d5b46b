//! The object store of the backups.

use url::Url;
use voiceai_runtime::Secret;

pub use crate::catalogue::platform::AWS_REGION;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{boolean, secret, text, url};

settings! {
    "Object store", "Where database backups go. Without `S3_ACCESS_KEY` the standard AWS credential chain is used.";

    /// Bucket of the backups. Without it no backup is taken.
    S3_BUCKET: String = text().only(Binaries::Tasker);
    /// Folder inside the bucket.
    S3_PREFIX: String = text().default("database-dumps").only(Binaries::Tasker);
    /// Address of an S3 server other than AWS. Buckets are then addressed by path.
    S3_ENDPOINT: Url = url().only(Binaries::Tasker);
    /// Access key.
    S3_ACCESS_KEY: Secret = secret().required_with("S3_SECRET_KEY").only(Binaries::Tasker);
    /// Secret key beside `S3_ACCESS_KEY`.
    S3_SECRET_KEY: Secret = secret().required_with("S3_ACCESS_KEY").only(Binaries::Tasker);
    /// Region of the bucket, where it is another one than `AWS_REGION`.
    S3_REGION: String = text().only(Binaries::Tasker).computed_default("`AWS_REGION`");
    /// Whether requests carry the checksums that AWS's own clients send by default. Set it to false for a store that refuses them, to true for another store than AWS that takes them.
    S3_CHECKSUMS: bool = boolean().only(Binaries::Tasker).computed_default("`true`; `false` where `S3_ENDPOINT` is set");
}
