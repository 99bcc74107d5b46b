//! The object store, and what is kept there: backups and exports.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use voiceai_runtime::Secret;

use super::form::{HTTP_ORIGIN, is_http_origin, is_region};
pub use crate::catalogue::platform::AWS_REGION;
use crate::setting::{Binaries, settings};
use crate::value::kinds::{boolean, duration, integer, list, path, secret, secret_url, text, url};

settings! {
    "Object store", "Where database backups and exports go, and how long they stay. `<NAME>` is a further database's name in upper case. Without `S3_ACCESS_KEY` the standard AWS credential chain is used.";

    /// Bucket of backups and exports. Without it neither is made.
    S3_BUCKET: String = text().only(Binaries::Tasker);
    /// Folder inside the bucket.
    S3_PREFIX: String = text().default("database-dumps").only(Binaries::Tasker);
    /// Address of an S3 server other than AWS. Buckets are then addressed by path.
    S3_ENDPOINT: Url = url().only(Binaries::Tasker).check(HTTP_ORIGIN, is_http_origin);
    /// Address at which those who are given a link to an export reach the store, where it is another one than that at which the services do. Links are signed for it, with the bucket in the path; what stands there must hand on path, query and `Host` as they came.
    S3_PUBLIC_ENDPOINT: Url = url().only(Binaries::Tasker).computed_default("`S3_ENDPOINT`, else AWS").check(HTTP_ORIGIN, is_http_origin);
    /// Access key.
    S3_ACCESS_KEY: Secret = secret().required_with("S3_SECRET_KEY").only(Binaries::Tasker).rotates();
    /// Secret key beside `S3_ACCESS_KEY`.
    S3_SECRET_KEY: Secret = secret().required_with("S3_ACCESS_KEY").only(Binaries::Tasker).rotates();
    /// Region of the bucket, where it is another one than `AWS_REGION`.
    S3_REGION: String = text().only(Binaries::Tasker).computed_default("`AWS_REGION`").check(REGION, is_region);
    /// Whether requests carry the checksums that AWS's own clients send by default. Set it to false for a store that refuses them, to true for another store than AWS that takes them.
    S3_CHECKSUMS: bool = boolean().only(Binaries::Tasker).computed_default("`true`; `false` where `S3_ENDPOINT` is set");
    /// Address of a further database to back up, by the name that `backup run --database` and the job's payload give: `BACKUP_DATABASE_BILLING_URL` is `billing`.
    BACKUP_DATABASE_URL as "BACKUP_DATABASE_<NAME>_URL": Secret = secret_url().only(Binaries::Tasker)
        .check("a postgres:// or postgresql:// URL", super::postgres::is_postgres);
    /// Newest backups of each database that stay, whenever they are from. With all four at 0 no backup is ever removed.
    BACKUP_KEEP_LAST: u32 = integer().default("7").between(0, 10_000).only(Binaries::Tasker);
    /// Days (UTC) of which the newest backup stays.
    BACKUP_KEEP_DAILY: u32 = integer().default("14").between(0, 10_000).only(Binaries::Tasker);
    /// Weeks (ISO, UTC) of which the newest backup stays.
    BACKUP_KEEP_WEEKLY: u32 = integer().default("8").between(0, 10_000).only(Binaries::Tasker);
    /// Months (UTC) of which the newest backup stays.
    BACKUP_KEEP_MONTHLY: u32 = integer().default("12").between(0, 10_000).only(Binaries::Tasker);
    /// Age of the newest proved backup's data above which an alert is raised.
    BACKUP_PROVED_MAX_AGE: Duration = duration().default("50h").between(60_000, 315_360_000_000).only(Binaries::Tasker);
    /// How dumps are compressed: `none`, `gzip`, `lz4` or `zstd`, with `:LEVEL` where wanted. `lz4` and `zstd` need `pg_dump` 16.
    BACKUP_COMPRESSION: String = text().default("gzip").only(Binaries::Tasker)
        .check("none, gzip[:1-9], lz4[:1-12] or zstd[:1-22]", is_compression);
    /// Public keys (`age1…`) to which dumps are encrypted. Without one they are not.
    BACKUP_AGE_RECIPIENTS: Vec<String> = list().only(Binaries::Tasker);
    /// File with the age identities (`AGE-SECRET-KEY-1…`) that scheduled proofs decrypt with. Without it an encrypted backup is proved only by `backup verify --identity`.
    BACKUP_AGE_IDENTITY_FILE: PathBuf = path().only(Binaries::Tasker);
    /// Bucket of exports, where it is another one than that of the backups; same endpoint and keys.
    EXPORTS_S3_BUCKET: String = text().only(Binaries::Tasker).computed_default("`S3_BUCKET`, with a warning");
    /// Folder of exports inside the bucket. It must not be `S3_PREFIX` or below it.
    EXPORT_PREFIX: String = text().default("exports").only(Binaries::Tasker);
    /// How long an export's object and row stay after it was made.
    EXPORT_RETENTION: Duration = duration().default("24h").between(60_000, 31_536_000_000).only(Binaries::Tasker);
    /// How long a download link is good for.
    EXPORT_LINK_TTL: Duration = duration().default("1h").between(1_000, 604_800_000).only(Binaries::Tasker);
    /// Tables that may be exported beside `devices`, `alerts` and `telemetry`, as `schema.table` in the database's own spelling.
    EXPORT_TABLES: Vec<String> = list().only(Binaries::Tasker);
    /// What the call to an order's `callback_url` is signed with, by Standard Webhooks: `whsec_` and 24 to 64 bytes in base64. Without it calls are not signed.
    EXPORT_CALLBACK_SECRET: Secret = secret().only(Binaries::Tasker);
    /// Longest time to the answer of a `callback_url`.
    EXPORT_CALLBACK_TIMEOUT: Duration = duration().default("10s").between(100, 60_000).only(Binaries::Tasker);
    /// Waits before the first, second, … call to a `callback_url`, in order. After the last one it is given up; the export stays as it is.
    EXPORT_CALLBACK_RETRY_LADDER: Vec<String> = list().default("0s,10s,1m,5m,30m").only(Binaries::Tasker)
        .check("durations separated by commas, such as 0s,10s,1m, at most 50, each at most 7d", super::webhook::is_ladder);
}

pub(super) const REGION: &str = "the name of a region, such as eu-central-1 or fsn1";

fn is_compression(text: &str) -> bool {
    let (method, level) = text.split_once(':').map_or((text, None), |(method, level)| (method, Some(level)));
    let most = match method {
        "none" => return level.is_none(),
        "gzip" => 9,
        "lz4" => 12,
        "zstd" => 22,
        _ => return false,
    };
    level.is_none_or(|level| level.parse().is_ok_and(|level: u32| (1..=most).contains(&level)))
}

#[cfg(test)]
mod tests {
    use super::is_compression;

    #[test]
    fn a_compression_is_a_known_method_with_a_level_of_its_own() {
        for good in ["none", "gzip", "gzip:1", "gzip:9", "lz4", "lz4:12", "zstd", "zstd:22"] {
            assert!(is_compression(good), "{good}");
        }
        for bad in [
            "",
            "none:1",
            "gzip:0",
            "gzip:10",
            "lz4:13",
            "zstd:23",
            "zstd:",
            "brotli",
            "zstd:fast",
            "gzip: 1",
        ] {
            assert!(!is_compression(bad), "{bad}");
        }
    }
}
