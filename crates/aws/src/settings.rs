//! Where the bucket is and who may enter.

use voiceai_config::Reader;
use voiceai_config::catalogue::storage;
use voiceai_egress::Rule;
use voiceai_runtime::Secret;

use crate::access::AwsAccess;

/// One bucket and how to reach it.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// `S3_BUCKET`.
    pub bucket: String,
    /// `S3_PREFIX`: the folder inside the bucket, without slashes at its ends. Default `database-dumps`; may be empty.
    pub prefix: String,
    /// `S3_ENDPOINT`: a server other than AWS. The bucket is then addressed by path.
    pub endpoint: Option<String>,
    /// `S3_REGION`, else `AWS_REGION`.
    pub region: String,
    /// `S3_ACCESS_KEY` and `S3_SECRET_KEY`; without them the standard AWS credential chain is used.
    pub keys: Option<(Secret, Secret)>,
    /// `S3_CHECKSUMS`: whether requests carry the SDK's CRC trailers. On for AWS; off for other servers, several of which refuse
    /// them.
    pub checksums: bool,
    /// `AWS_USE_INSTANCE_PROFILE`: without keys, only the instance's own role counts.
    pub instance_profile: bool,
    /// The way out.
    pub way: Rule,
}

impl S3Settings {
    /// Reads the settings; nothing when `S3_BUCKET` is unset. Rules that are broken are reported to the reader.
    pub fn read(reader: &Reader<'_>) -> Option<Self> {
        let access = reader.optional(&storage::S3_ACCESS_KEY);
        let secret = reader.optional(&storage::S3_SECRET_KEY);
        let keys = match (access, secret) {
            (Some(access), Some(secret)) => Some((access, secret)),
            (None, None) => None,
            (Some(_), None) => {
                reader.violation(
                    &storage::S3_SECRET_KEY,
                    "a value beside S3_ACCESS_KEY",
                    "Set both or neither.",
                );
                None
            }
            (None, Some(_)) => {
                reader.violation(
                    &storage::S3_ACCESS_KEY,
                    "a value beside S3_SECRET_KEY",
                    "Set both or neither.",
                );
                None
            }
        };
        let prefix = reader.get(&storage::S3_PREFIX);
        let bucket = reader.optional(&storage::S3_BUCKET)?;
        if !is_bucket_name(&bucket) {
            reader.violation(
                &storage::S3_BUCKET,
                "a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens",
                "Give the bare name of the bucket, without s3:// and without a folder (that is S3_PREFIX).",
            );
        }
        let endpoint =
            reader.optional(&storage::S3_ENDPOINT).map(|url| url.as_str().trim_end_matches('/').to_owned());
        let region = reader.optional(&storage::S3_REGION).unwrap_or_else(|| reader.get(&storage::AWS_REGION));
        let checksums = reader.optional(&storage::S3_CHECKSUMS).unwrap_or(endpoint.is_none());
        let AwsAccess { instance_profile, way, .. } = AwsAccess::read(reader);
        let prefix = prefix.trim_matches('/').to_owned();
        Some(Self { bucket, prefix, endpoint, region, keys, checksums, instance_profile, way })
    }
}

fn is_bucket_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.chars().all(inner)
        && name.starts_with(edge)
        && name.ends_with(edge)
}

#[cfg(test)]
mod tests {
    use voiceai_config::{Binary, Resolved};

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Option<S3Settings>, Vec<String>> {
        let resolved = Resolved::from_pairs(Binary::Tasker, pairs.iter().copied());
        let read = resolved.read(S3Settings::read).map(|loaded| loaded.settings);
        read.map_err(|report| report.violations.into_iter().map(|violation| violation.name).collect())
    }

    #[test]
    fn no_bucket_means_no_store() {
        assert!(read(&[]).expect("nothing is wrong").is_none());
    }

    #[test]
    fn a_store_other_than_aws_is_addressed_without_checksum_trailers() {
        let aws =
            read(&[("S3_BUCKET", "backups"), ("S3_PREFIX", "/a/b/")]).expect("sound").expect("a bucket");
        assert_eq!((aws.prefix.as_str(), aws.region.as_str(), aws.checksums), ("a/b", "eu-central-1", true));
        assert!(aws.keys.is_none() && aws.endpoint.is_none());
        let own = read(&[
            ("S3_BUCKET", "backups"),
            ("S3_ENDPOINT", "http://127.0.0.1:8333"),
            ("S3_REGION", "us-east-1"),
            ("S3_ACCESS_KEY", "a"),
            ("S3_SECRET_KEY", "s3cret-canary"),
        ]);
        let own = own.expect("sound").expect("a bucket");
        assert!(!own.checksums && own.keys.is_some() && own.region == "us-east-1");
        assert!(!format!("{own:?}").contains("s3cret-canary"));
    }

    #[test]
    fn checksums_are_as_the_operator_says_where_he_says_so() {
        let checksums = |pairs: &[(&'static str, &'static str)]| {
            let bucket = [("S3_BUCKET", "backups")];
            let pairs: Vec<_> = bucket.iter().chain(pairs).copied().collect();
            read(&pairs).expect("sound").expect("a bucket").checksums
        };
        assert!(!checksums(&[("S3_CHECKSUMS", "false")]));
        assert!(checksums(&[("S3_ENDPOINT", "http://127.0.0.1:8333"), ("S3_CHECKSUMS", "true")]));
    }

    #[test]
    fn half_a_key_pair_and_a_wrong_bucket_are_reported_by_name() {
        assert_eq!(
            read(&[("S3_BUCKET", "b-1"), ("S3_ACCESS_KEY", "a")]).map(|_| ()),
            Err(vec!["S3_SECRET_KEY".into()])
        );
        assert_eq!(
            read(&[("S3_BUCKET", "b-1"), ("S3_SECRET_KEY", "a")]).map(|_| ()),
            Err(vec!["S3_ACCESS_KEY".into()])
        );
        for bucket in ["s3://backups", "Backups", "ab", "backups/db", "-backups"] {
            assert_eq!(read(&[("S3_BUCKET", bucket)]).map(|_| ()), Err(vec!["S3_BUCKET".into()]), "{bucket}");
        }
    }
}
