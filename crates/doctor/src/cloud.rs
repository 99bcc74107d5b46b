//! What AWS knows of this host: the metadata service, the instance's role, and whose the credentials are.

use std::time::Duration;

use serde_json::Value;
use voiceai_aws::{AwsAccess, caller_identity};
use voiceai_cli::doctor::{Doctor, Finding};
use voiceai_config::catalogue::platform::NAMESPACE;
use voiceai_config::catalogue::storage::{S3_ACCESS_KEY, S3_BUCKET};
use voiceai_config::catalogue::transport::{EMAIL_TRANSPORT, EmailTransport};
use voiceai_config::{Binary, Reader};
use voiceai_egress::{METADATA, Rule, http_client};

use crate::BOUND;

/// The answer comes from the same machine: what takes longer was lost on the way.
const METADATA_WITHIN: Duration = Duration::from_millis(1500);
const CALL_WITHIN: Duration = Duration::from_secs(8);
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const HOP_LIMIT: &str = "Run `aws ec2 modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 2`: a container is one hop further away than its host.";

/// What of AWS a service uses.
#[derive(Debug)]
pub(crate) struct Cloud {
    access: AwsAccess,
    used_for: Vec<&'static str>,
}

impl Cloud {
    pub(crate) fn read(reader: &Reader<'_>) -> Self {
        let mut used_for = Vec::new();
        if reader.is_given(&NAMESPACE) {
            used_for.push("SSM and Secrets Manager");
        }
        if reader.binary() == Binary::Tasker {
            if reader.is_given(&S3_BUCKET) && !reader.is_given(&S3_ACCESS_KEY) {
                used_for.push("S3");
            }
            if reader.get(&EMAIL_TRANSPORT) == EmailTransport::Ses {
                used_for.push("SES");
            }
        }
        Self { access: AwsAccess::read(reader), used_for }
    }
}

pub(crate) fn add(doctor: &mut Doctor, cloud: &Cloud) {
    let endpoint = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").ok().filter(|url| !url.is_empty());
    let endpoint = endpoint.unwrap_or_else(|| format!("http://{}", METADATA[0]));
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let profile = cloud.access.instance_profile;
    let of = endpoint.clone();
    doctor.check("aws.hop_limit", BOUND, async move {
        if !profile {
            return Finding::skipped("AWS_USE_INSTANCE_PROFILE is false");
        }
        match token(&of).await {
            Ok(_) => Finding::ok(format!("{of} gives tokens of version 2 to this process")),
            Err(finding) => finding,
        }
    });
    doctor.check("aws.role", BOUND, async move {
        if !profile {
            return Finding::skipped("AWS_USE_INSTANCE_PROFILE is false");
        }
        role(&endpoint).await.unwrap_or_else(|finding| finding)
    });
    let (access, used_for) = (cloud.access.clone(), cloud.used_for.clone());
    doctor.check("aws.credentials", BOUND, async move {
        if used_for.is_empty() {
            return Finding::skipped("nothing that is set up asks AWS");
        }
        match caller_identity(&access, CALL_WITHIN).await {
            Ok(arn) => Finding::ok(format!("{arn}, for {}", used_for.join(", "))),
            Err(error) => Finding::failed(error.to_string(), error.remedy),
        }
    });
}

fn client() -> Result<reqwest::Client, Finding> {
    // Never through a proxy, which would answer for another host or for none.
    let client =
        http_client(&Rule::default()).connect_timeout(METADATA_WITHIN).timeout(METADATA_WITHIN).build();
    client.map_err(|error| Finding::failed(error.to_string(), "Report this."))
}

/// The token that every other question needs.
async fn token(endpoint: &str) -> Result<String, Finding> {
    let asked = client()?
        .put(format!("{endpoint}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "60")
        .send()
        .await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => {
            return Err(Finding::failed(
                format!("no metadata service answers at {endpoint}"),
                "Turn it on for this instance; elsewhere than on EC2 set AWS_USE_INSTANCE_PROFILE=false.",
            ));
        }
        Err(_) => {
            return Err(Finding::failed(
                format!(
                    "{endpoint} takes the question for a token, and its answer never arrives: the hop limit is 1"
                ),
                HOP_LIMIT,
            ));
        }
    };
    let status = answer.status().as_u16();
    match answer.text().await {
        Ok(token) if status == 200 && !token.is_empty() => Ok(token),
        _ => Err(Finding::failed(
            format!("{endpoint} answers {status} to the question for a token of version 2"),
            "Turn the instance's metadata service on, with tokens required.",
        )),
    }
}

async fn role(endpoint: &str) -> Result<Finding, Finding> {
    let token = token(endpoint).await.map_err(|_| Finding::skipped("the metadata service gives no token"))?;
    let client = client()?;
    let get = async |path: String| {
        let asked = client.get(format!("{endpoint}{path}")).header("x-aws-ec2-metadata-token", &token);
        let answer = asked.send().await.ok()?;
        (answer.status().as_u16() == 200).then_some(())?;
        answer.text().await.ok()
    };
    let none = || {
        Finding::failed(
            "the instance has no role",
            "Attach an instance profile whose role may do what this service does.",
        )
    };
    let name = get(ROLES.to_owned()).await.ok_or_else(none)?;
    let name = name.lines().next().unwrap_or_default().trim().to_owned();
    if name.is_empty() {
        return Err(none());
    }
    let text = get(format!("{ROLES}{name}")).await.unwrap_or_default();
    let credentials: Value = serde_json::from_str(&text).unwrap_or_default();
    let word = |key: &str| credentials[key].as_str().unwrap_or("unknown").to_owned();
    if word("Code") == "Success" {
        return Ok(Finding::ok(format!("role {name}, credentials until {}", word("Expiration"))));
    }
    Err(Finding::failed(
        format!("role {name} gives no credentials: {}", word("Code")),
        "Look at the role's trust policy: ec2.amazonaws.com must be allowed to assume it.",
    ))
}

#[cfg(test)]
mod tests {
    use voiceai_cli::doctor::Verdict;
    use voiceai_testkit::{Imds, ImdsOptions};

    use super::*;

    async fn ask(options: ImdsOptions) -> (Result<String, Finding>, Finding, Vec<String>) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let imds = Imds::start(options).await;
        let token = token(imds.endpoint()).await;
        let role = role(imds.endpoint()).await.unwrap_or_else(|finding| finding);
        (token, role, imds.asked())
    }

    #[tokio::test]
    async fn a_hop_limit_of_one_is_told_apart_from_no_role_and_no_service() {
        let (token_given, role_given, asked) = ask(ImdsOptions::default()).await;
        assert!(token_given.is_ok() && role_given.verdict() == Verdict::Ok, "{role_given:?}");
        assert!(role_given.evidence().contains("role ops"), "{role_given:?}");
        assert!(asked.iter().all(|line| line.ends_with(" 200")), "{asked:?}");

        let (token_given, role_given, _) = ask(ImdsOptions { hop_limit: 1, ..ImdsOptions::default() }).await;
        let finding = token_given.expect_err("no answer");
        assert!(finding.evidence().contains("hop limit is 1"), "{finding:?}");
        assert_eq!(role_given.verdict(), Verdict::Skipped);

        let (_, role_given, _) = ask(ImdsOptions { role: None, ..ImdsOptions::default() }).await;
        assert!(role_given.evidence().contains("has no role"), "{role_given:?}");
        let finding = token("http://127.0.0.1:1").await.expect_err("nobody");
        assert!(finding.evidence().contains("no metadata service"), "{finding:?}");
    }
}
