//! The object store on a real S3 server, and on a scripted one for answers that a real one rarely gives.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod faults;
mod platform;
mod real;
mod scripted;
mod way;

use voiceai_aws::{ObjectStore, S3Settings};
use voiceai_runtime::Secret;

/// Settings for a store at `endpoint`.
fn settings(endpoint: &str, bucket: &str, access: &str, secret: &str) -> S3Settings {
    S3Settings {
        bucket: bucket.to_owned(),
        prefix: "database-dumps".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        public_endpoint: None,
        region: "us-east-1".to_owned(),
        keys: Some((Secret::new(access), Secret::new(secret))),
        renewed: None,
        checksums: false,
        instance_profile: false,
        way: voiceai_egress::Rule::default(),
    }
}

/// A bucket of the test's own.
async fn bucket() -> (voiceai_testkit::S3, ObjectStore) {
    let server = voiceai_testkit::s3().await;
    let store =
        ObjectStore::new(&settings(&server.endpoint, &server.bucket, &server.access_key, &server.secret_key))
            .await;
    (server, store)
}

/// `length` bytes that do not repeat within a part.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
