//! Settings as the platform keeps them: both binaries on SSM and Secrets Manager, with the faults of those.

mod document;
mod instance_role;
mod planted;
mod rotation;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use voiceai_testkit::{AwsFaults, Moto, Program, RedisOptions, RedisServer};

use crate::SOON;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A Redis that loses nothing, a database, and moto behind a double that spoils single calls.
pub(crate) struct Cloud {
    pub(crate) moto: Moto,
    pub(crate) aws: AwsFaults,
    pub(crate) redis: RedisServer,
    pub(crate) database: voiceai_testkit::Database,
    pub(crate) folder: TempDir,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let moto = Moto::start().await;
        Self {
            aws: AwsFaults::before(moto.port()).await,
            moto,
            redis: RedisServer::start(RedisOptions { appendonly: true, ..RedisOptions::default() }).await,
            database: voiceai_testkit::empty_database().await,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// What a host's bootstrap file holds, and nothing else.
    pub(crate) fn bootstrap(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NAMESPACE", "voiceai/staging".to_owned()),
            ("ENVIRONMENT", "staging".to_owned()),
            ("RUNTIME_DIR", self.folder.path().display().to_string()),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_ENDPOINT_URL", self.aws.endpoint().to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    pub(crate) fn program(&self, binary: &str) -> Program {
        Program::new(voiceai_testkit::binary(binary)).envs(self.bootstrap())
    }

    /// Runs one command to its end: its code and both streams.
    pub(crate) async fn command(
        &self,
        binary: &str,
        args: &[&str],
        more: &[(&str, &str)],
    ) -> (i32, String, String) {
        let mut command = Command::new(voiceai_testkit::binary(binary));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.bootstrap()).envs(more.iter().copied()).env("VOICEAI_OPERATOR", "test");
        let done = tokio::time::timeout(SOON * 4, command.stdin(Stdio::null()).kill_on_drop(true).output());
        let done = done.await.expect("the command ends").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr))
    }

    /// One call of the JSON services, as moto takes it: without a signature.
    async fn call(&self, target: &str, body: &Value) -> Value {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "--noproxy",
            "*",
            "-H",
            "content-type: application/x-amz-json-1.1",
        ]);
        // The name of the service stands in the scope of the key.
        let service = if target.starts_with("AmazonSSM") { "ssm" } else { "secretsmanager" };
        let authorization = format!(
            "authorization: AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        curl.args(["-H", &authorization, "-H", &format!("x-amz-target: {target}")]);
        curl.args(["--data-binary", &body.to_string(), &self.moto.endpoint()]);
        let output = curl.output().await.unwrap();
        assert!(output.status.success(), "{target}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Writes `/voiceai/staging/ops/<name>`.
    pub(crate) async fn put(&self, name: &str, value: &str) {
        let body = serde_json::json!({
            "Name": format!("/voiceai/staging/ops/{name}"), "Value": value, "Type": "SecureString", "Overwrite": true,
        });
        self.call("AmazonSSM.PutParameter", &body).await;
    }

    pub(crate) async fn delete(&self, name: &str) {
        let body = serde_json::json!({ "Name": format!("/voiceai/staging/ops/{name}") });
        self.call("AmazonSSM.DeleteParameter", &body).await;
    }

    /// Makes or replaces `voiceai/staging/ops/<name>`.
    pub(crate) async fn secret(&self, name: &str, text: &str, is_new: bool) {
        let id = format!("voiceai/staging/ops/{name}");
        let (target, body) = if is_new {
            ("secretsmanager.CreateSecret", serde_json::json!({ "Name": id, "SecretString": text }))
        } else {
            ("secretsmanager.PutSecretValue", serde_json::json!({ "SecretId": id, "SecretString": text }))
        };
        self.call(target, &body).await;
    }

    /// What both binaries need beyond the bootstrap, as the platform would keep it.
    pub(crate) async fn fill(&self) {
        let stores = serde_json::json!({ "REDIS_URL": self.redis.url(), "DATABASE_URL": self.database.url });
        self.secret("secrets", &stores.to_string(), true).await;
        self.put("LEADER_HEARTBEAT_INTERVAL_MS", "300").await;
        self.put("LEADER_LOCK_TTL_MS", "1000").await;
    }
}
