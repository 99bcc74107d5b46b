//! The instance's own role, over version 2 of the metadata service and nothing else.

use voiceai_testkit::{AwsFault, Imds, ImdsOptions};

use super::Cloud;
use crate::BINARIES;

#[tokio::test]
async fn the_role_is_used_without_a_proxy_and_never_by_version_1() {
    let cloud = Cloud::start().await;
    cloud.fill().await;
    let imds = Imds::start(ImdsOptions::default()).await;
    // Nothing listens at the proxy: whatever goes through it fails. Keys are empty, which is unset.
    let role = [
        ("AWS_USE_INSTANCE_PROFILE", "true"),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.endpoint()),
    ];
    for binary in BINARIES {
        let (code, stdout, stderr) = cloud.command(binary, &["config", "check"], &role).await;
        assert_eq!(code, 0, "{stdout} {stderr}");
    }
    let keys = cloud.aws.keys();
    assert!(!keys.is_empty() && keys.iter().all(|key| key == "ASIATESTROLE"), "{keys:?}");
    let asked = imds.asked();
    assert!(asked.iter().any(|line| line == "PUT /latest/api/token 200"), "{asked:?}");
    assert!(asked.iter().all(|line| line.ends_with(" 200")), "no request without a token: {asked:?}");

    let behind: Vec<_> = role
        .iter()
        .copied()
        .chain([("HTTP_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "169.254.169.254")])
        .collect();
    let before = imds.asked().len();
    let (code, _, stderr) = cloud.command("voiceai-scaler", &["config", "check"], &behind).await;
    assert_eq!(code, 5, "SSM itself is asked through the proxy: {stderr}");
    assert!(stderr.contains("through the proxy 127.0.0.1:1"), "{stderr}");
    assert!(imds.asked().len() > before, "the role is asked for directly: {stderr}");
}

#[tokio::test]
async fn a_hop_limit_of_one_and_static_keys_beside_the_role_end_the_start_with_their_reason() {
    let cloud = Cloud::start().await;
    let imds = Imds::start(ImdsOptions { hop_limit: 1, ..ImdsOptions::default() }).await;
    let role = [
        ("AWS_USE_INSTANCE_PROFILE", "true"),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.endpoint()),
    ];
    let (code, _, stderr) = cloud.command("voiceai-tasker", &["run"], &role).await;
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("hop limit 2"), "{stderr}");
    for binary in BINARIES {
        let (code, stdout, stderr) =
            cloud.command(binary, &["run"], &[("AWS_USE_INSTANCE_PROFILE", "true")]).await;
        assert_eq!(code, 4, "{stdout} {stderr}");
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_USE_INSTANCE_PROFILE"] {
            assert!(stderr.contains(name), "{stderr}");
        }
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_ends_the_start_with_the_call_the_place_and_what_to_do() {
    let cloud = Cloud::start().await;
    cloud.fill().await;
    let denied = AwsFault::error("AccessDeniedException", "User: ops is not authorized to perform this");
    let cases = [
        ("GetParametersByPath", denied.clone(), "Grant the role of this host ssm:GetParametersByPath"),
        ("GetParametersByPath", AwsFault::Truncated(10), "ssm:GetParametersByPath"),
        ("GetSecretValue", denied, "Grant the role of this host secretsmanager:GetSecretValue"),
        (
            "GetParametersByPath",
            AwsFault::error(
                "InvalidSignatureException",
                "Signature expired: 20261122T200000Z is now earlier",
            ),
            "Set this host's clock",
        ),
    ];
    for (operation, fault, part) in cases {
        cloud.aws.set(operation, Some(fault));
        let (code, _, stderr) = cloud.command("voiceai-scaler", &["run"], &[]).await;
        assert!(code == 5 && stderr.contains(part), "{operation}: {code} {stderr}");
        cloud.aws.set(operation, None);
    }
    cloud.secret("plain", "canary-no-json", true).await;
    let (code, _, stderr) = cloud.command("voiceai-tasker", &["run"], &[]).await;
    assert!(code == 5 && stderr.contains("voiceai/staging/ops/plain"), "{stderr}");
    assert!(!stderr.contains("canary"), "{stderr}");
}
