//! A bucket of a test's own on the shared S3 store.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::shared::{Part, address};

/// An empty bucket and how to reach it. The store checks signatures like the real one; the region is `us-east-1`.
#[derive(Debug, Clone)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`; buckets are addressed by path.
    pub endpoint: String,
    /// The access key.
    pub access_key: String,
    /// The secret key: of a throwaway server, so it may be shown.
    pub secret_key: String,
    /// The bucket's name.
    pub bucket: String,
}

/// Makes a bucket that no other test uses.
pub async fn s3() -> S3 {
    let address = address(Part::S3).await;
    let of = |name: &str| address[name].clone();
    let store = S3 {
        endpoint: of("VOICEAI_TEST_S3_ENDPOINT"),
        access_key: of("VOICEAI_TEST_S3_ACCESS_KEY"),
        secret_key: of("VOICEAI_TEST_S3_SECRET_KEY"),
        bucket: format!("test-{}-{:08x}", std::process::id(), crate::ports::random() & 0xffff_ffff),
    };
    store
        .empty_request("PUT", "")
        .await
        .unwrap_or_else(|error| panic!("make bucket {}: {error}", store.bucket));
    store
}

impl S3 {
    /// Stores an object.
    pub async fn put(&self, key: &str, content: &[u8]) {
        let file = tempfile::NamedTempFile::new().expect("make a file for curl to send");
        std::fs::write(file.path(), content).expect("write the file for curl to send");
        let sum = Command::new("sha256sum").arg(file.path()).output().await.expect("run sha256sum");
        let sum = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
        let body = format!("@{}", file.path().display());
        self.request(
            "PUT",
            &format!("/{key}"),
            &sum,
            &["--data-binary", &body, "-H", "content-type: application/octet-stream"],
        )
        .await
        .unwrap_or_else(|error| panic!("store {key}: {error}"));
    }

    /// The names of all objects, in the store's order.
    pub async fn keys(&self) -> Vec<String> {
        let listing = self
            .empty_request("GET", "?list-type=2")
            .await
            .unwrap_or_else(|error| panic!("list {}: {error}", self.bucket));
        let listing = String::from_utf8_lossy(&listing).into_owned();
        listing
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| rest.split_once("</Key>"))
            .map(|(key, _)| key.to_owned())
            .collect()
    }

    /// One object's bytes; `None` when there is none.
    pub async fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.empty_request("GET", &format!("/{key}")).await.ok()
    }

    /// Uploads of several parts that were begun and neither finished nor aborted.
    pub async fn unfinished_uploads(&self) -> usize {
        let listing = self
            .empty_request("GET", "?uploads=")
            .await
            .unwrap_or_else(|error| panic!("list uploads: {error}"));
        String::from_utf8_lossy(&listing).matches("<UploadId>").count()
    }

    async fn empty_request(&self, method: &str, rest: &str) -> Result<Vec<u8>, String> {
        // SHA-256 of nothing.
        self.request(method, rest, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", &[])
            .await
    }

    /// A signed request by curl: the SDK stays behind its own door. `sum` is the body's SHA-256 in hexadecimal.
    async fn request(&self, method: &str, rest: &str, sum: &str, more: &[&str]) -> Result<Vec<u8>, String> {
        let url = format!("{}/{}{rest}", self.endpoint, self.bucket);
        let mut curl = Command::new("curl")
            .args([
                "-sS",
                "--fail-with-body",
                "--noproxy",
                "*",
                "--max-time",
                "20",
                "--config",
                "-",
                "-X",
                method,
                &url,
            ])
            .args(["-H", &format!("x-amz-content-sha256: {sum}")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("start curl: {error}"))?;
        let config = format!(
            "user = \"{}:{}\"\naws-sigv4 = \"aws:amz:us-east-1:s3\"\n",
            self.access_key, self.secret_key
        );
        let mut stdin = curl.stdin.take().expect("curl's standard input is piped");
        stdin.write_all(config.as_bytes()).await.map_err(|error| format!("talk to curl: {error}"))?;
        drop(stdin);
        let output = curl.wait_with_output().await.map_err(|error| format!("run curl: {error}"))?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!(
                "{method} {url}: {} {}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout)
            ))
        }
    }
}
