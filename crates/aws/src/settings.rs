//! Where the bucket is and who may enter.

use std::sync::Arc;

use url::Url;
use voiceai_config::catalogue::form::is_aws_region;
use voiceai_config::catalogue::storage;
use voiceai_config::{Reader, Setting};
use voiceai_egress::Rule;

use crate::access::AwsAccess;
use crate::keys::{KeyPair, KeySource};

/// One bucket and how to reach it.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// `S3_BUCKET`.
    pub bucket: String,
    /// `S3_PREFIX`: the folder inside the bucket, without slashes at its ends. Default `database-dumps`; may be empty.
    pub prefix: String,
    /// `S3_ENDPOINT`: a server other than AWS. The bucket is then addressed by path.
    pub endpoint: Option<String>,
    /// `S3_PUBLIC_ENDPOINT`: what links to objects are signed for, where it is another address than the one used here. The bucket is
    /// then addressed by path.
    pub public_endpoint: Option<String>,
    /// `S3_REGION`, else `AWS_REGION`.
    pub region: String,
    /// `S3_ACCESS_KEY` and `S3_SECRET_KEY`, else the keys of all AWS calls; without them the standard AWS credential chain is
    /// used.
    pub keys: Option<KeyPair>,
    /// Where newer keys than those come from while the service runs.
    pub renewed: Option<Arc<dyn KeySource>>,
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
        let keys = keys(reader);
        let prefix = reader.get(&storage::S3_PREFIX);
        Self::of_bucket(reader, &storage::S3_BUCKET, &storage::S3_REGION, &prefix, keys)
    }

    /// The same for a bucket of another setting, in a region of its own, at the same store and with the same keys; its
    /// prefix is empty. Nothing when `bucket` is unset.
    pub fn read_other(
        reader: &Reader<'_>,
        bucket: &'static Setting<String>,
        region: &'static Setting<String>,
    ) -> Option<Self> {
        // Half a pair is reported by `read`.
        let keys = reader.optional(&storage::S3_ACCESS_KEY).zip(reader.optional(&storage::S3_SECRET_KEY));
        Self::of_bucket(reader, bucket, region, "", keys)
    }

    fn of_bucket(
        reader: &Reader<'_>,
        setting: &'static Setting<String>,
        region: &'static Setting<String>,
        prefix: &str,
        keys: Option<KeyPair>,
    ) -> Option<Self> {
        let bucket = reader.optional(setting)?;
        if !is_bucket_name(&bucket) {
            reader.violation(
                setting,
                "a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens",
                "Give the bare name of the bucket, without s3:// and without a folder.",
            );
        }
        let address =
            |setting| reader.optional(setting).map(|url: Url| url.as_str().trim_end_matches('/').to_owned());
        let endpoint = address(&storage::S3_ENDPOINT);
        let public_endpoint = address(&storage::S3_PUBLIC_ENDPOINT);
        let region = [region, &storage::S3_REGION]
            .into_iter()
            .find_map(|setting| checked_region(reader, setting, endpoint.is_none()))
            .unwrap_or_else(|| reader.get(&storage::AWS_REGION));
        let checksums = reader.optional(&storage::S3_CHECKSUMS).unwrap_or(endpoint.is_none());
        let AwsAccess { instance_profile, way, keys: of_aws, .. } = AwsAccess::read(reader);
        // A store of its own knows nothing of AWS's keys.
        let keys = keys.or(of_aws.filter(|_| endpoint.is_none()));
        let prefix = prefix.trim_matches('/').to_owned();
        Some(Self {
            bucket,
            prefix,
            endpoint,
            public_endpoint,
            region,
            keys,
            renewed: None,
            checksums,
            instance_profile,
            way,
        })
    }
}

/// The region of `setting`. At AWS a name that is no region's would be a host that is not there.
fn checked_region(reader: &Reader<'_>, setting: &'static Setting<String>, at_aws: bool) -> Option<String> {
    let region = reader.optional(setting)?;
    // These move the store as well, and are the AWS library's own.
    let moved =
        ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().any(|name| std::env::var_os(name).is_some());
    if at_aws && !moved && !is_aws_region(&region) {
        reader.violation(
            setting,
            "a region of AWS such as eu-central-1, because S3_ENDPOINT is not set",
            "Correct the region, or set S3_ENDPOINT to the address of the store that has it.",
        );
    }
    Some(region)
}

fn keys(reader: &Reader<'_>) -> Option<KeyPair> {
    let access = reader.optional(&storage::S3_ACCESS_KEY);
    let secret = reader.optional(&storage::S3_SECRET_KEY);
    let missing = match (access, secret) {
        (Some(access), Some(secret)) => return Some((access, secret)),
        (None, None) => return None,
        (Some(_), None) => (&storage::S3_SECRET_KEY, "a value beside S3_ACCESS_KEY"),
        (None, Some(_)) => (&storage::S3_ACCESS_KEY, "a value beside S3_SECRET_KEY"),
    };
    reader.violation(missing.0, missing.1, "Set both or neither.");
    None
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
    fn a_region_of_no_partition_is_refused_at_aws_and_taken_at_another_store() {
        let own = ("S3_ENDPOINT", "http://127.0.0.1:8333");
        let region = |pairs: &[(&'static str, &'static str)]| {
            let bucket = [("S3_BUCKET", "backups")];
            read(&bucket.iter().chain(pairs).copied().collect::<Vec<_>>())
                .map(|read| read.map(|settings| settings.region))
        };
        assert_eq!(region(&[own, ("S3_REGION", "fsn1")]), Ok(Some("fsn1".to_owned())));
        assert_eq!(region(&[("S3_REGION", "eu-north-1")]), Ok(Some("eu-north-1".to_owned())));
        assert_eq!(region(&[("S3_REGION", "fsn1")]), Err(vec!["S3_REGION".to_owned()]));
        assert_eq!(region(&[own, ("S3_REGION", "eu/central")]), Err(vec!["S3_REGION".to_owned()]));
        assert_eq!(region(&[("AWS_REGION", "eu-central-1a")]), Err(vec!["AWS_REGION".to_owned()]));
    }

    #[test]
    fn links_have_an_address_of_their_own_where_one_is_given() {
        let own = read(&[("S3_BUCKET", "backups"), ("S3_ENDPOINT", "http://store:8333")]);
        assert_eq!(own.expect("sound").expect("a bucket").public_endpoint, None);
        let both = [
            ("S3_BUCKET", "backups"),
            ("S3_ENDPOINT", "http://store:8333"),
            ("S3_PUBLIC_ENDPOINT", "https://files.example.com/"),
        ];
        let both = read(&both).expect("sound").expect("a bucket");
        assert_eq!(both.endpoint.as_deref(), Some("http://store:8333"));
        assert_eq!(both.public_endpoint.as_deref(), Some("https://files.example.com"));
        for bad in ["files.example.com", "https:///files", "https://u:s3cret-canary@files.example.com"] {
            assert_eq!(
                read(&[("S3_BUCKET", "backups"), ("S3_PUBLIC_ENDPOINT", bad)]).map(|_| ()),
                Err(vec!["S3_PUBLIC_ENDPOINT".into()]),
                "{bad}"
            );
        }
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
