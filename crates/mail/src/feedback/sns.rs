use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{
    RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;
use voiceai_egress::Rule;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error as CertError, KeyUsage};

/// The most that is read of a certificate's file.
const CERTIFICATE_LARGEST: usize = 64 * 1024;
/// How long a certificate is used before it is fetched again.
const CERTIFICATE_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most certificates that are remembered: SNS uses one at a time.
const CERTIFICATES_MOST: usize = 32;
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// The name that SNS's certificates are for, whatever the region.
const NAME: &str = "sns.amazonaws.com";

/// What SNS posts.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Message {
    /// `Notification`, `SubscriptionConfirmation` or `UnsubscribeConfirmation`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Unique; a repeated delivery has the same.
    pub message_id: String,
    /// The topic.
    pub topic_arn: String,
    /// The subject, which few have.
    pub subject: Option<String>,
    /// What it is about: for a notification the text of SES.
    pub message: String,
    /// When it was published.
    pub timestamp: String,
    /// By which a subscription is confirmed.
    pub token: Option<String>,
    /// Where somebody could be sent to confirm it; never followed.
    #[serde(rename = "SubscribeURL")]
    pub subscribe_url: Option<String>,
    /// `1` or `2`.
    pub signature_version: String,
    /// In base64.
    pub signature: String,
    /// Where the certificate lies.
    #[serde(rename = "SigningCertURL")]
    pub signing_cert_url: String,
}

/// Why a message is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not of SNS's form.
    #[error("the message is none that SNS sends: {0}")]
    Malformed(String),
    /// Of a topic that nobody named.
    #[error("the topic {0} is not among SES_FEEDBACK_TOPIC_ARNS")]
    Topic(String),
    /// The certificate would come from somewhere else.
    #[error("the signing certificate does not lie at SNS")]
    CertificatePlace,
    /// The certificate is not SNS's, or not valid now.
    #[error("the signing certificate is not valid: {0}")]
    Certificate(String),
    /// The signature is not of this message.
    #[error("the signature does not hold")]
    Signature,
    /// The certificate cannot be fetched now: worth another try.
    #[error("the signing certificate cannot be fetched: {0}")]
    Unreachable(String),
}

/// Gets what lies at an `https` address.
pub trait Fetch: Send + Sync {
    /// The body of a 200.
    fn get(&self, url: Url) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// By HTTPS, out as the proxy rule says.
pub struct Https(Rule);

impl Https {
    /// Out as `rule` says.
    #[must_use]
    pub const fn new(rule: Rule) -> Self {
        Self(rule)
    }
}

impl Fetch for Https {
    fn get(&self, url: Url) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let client = voiceai_egress::http_client(&self.0).timeout(FETCH_LIMIT).https_only(true);
            let client = client.build().map_err(|error| error.to_string())?;
            let mut answer = client.get(url).send().await.map_err(|error| error.to_string())?;
            if !answer.status().is_success() {
                return Err(format!("the answer is {}", answer.status()));
            }
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
                body.extend_from_slice(&chunk);
                if body.len() > CERTIFICATE_LARGEST {
                    return Err("the answer is longer than 64 KiB".to_owned());
                }
            }
            Ok(body)
        })
    }
}

/// The certificates of SNS, fetched when they are needed and kept for a day.
pub struct Certificates {
    fetch: Arc<dyn Fetch>,
    known: Mutex<HashMap<String, (Vec<CertificateDer<'static>>, Instant)>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Certificates {
    /// Fetched by `fetch`, and trusted when the system's authorities do.
    #[must_use]
    pub fn new(fetch: Arc<dyn Fetch>) -> Self {
        Self::trusting(fetch, rustls_native_certs::load_native_certs().certs)
    }

    /// The same with these authorities.
    #[must_use]
    pub fn trusting(fetch: Arc<dyn Fetch>, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { fetch, known: Mutex::new(HashMap::new()), roots }
    }

    async fn at(&self, url: Url) -> Result<Vec<CertificateDer<'static>>, Refused> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((chain, since)) = known().get(url.as_str())
            && since.elapsed() < CERTIFICATE_AGE
        {
            return Ok(chain.clone());
        }
        let name = url.as_str().to_owned();
        let pem = self.fetch.get(url).await.map_err(Refused::Unreachable)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| Refused::Certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(Refused::Certificate("there is none in the file".to_owned()));
        }
        self.check(&chain)?;
        let mut known = known();
        if known.len() >= CERTIFICATES_MOST {
            known.clear();
        }
        known.insert(name, (chain.clone(), Instant::now()));
        Ok(chain)
    }

    /// Valid now, for SNS, and issued by somebody whom the system trusts.
    ///
    /// SNS may publish the certificate without the one in the middle. Its place, which HTTPS has proved to be SNS's, stands in
    /// for the chain then; a chain that is there and does not lead to an authority is refused.
    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<(), Refused> {
        let unfit = |error: CertError| Refused::Certificate(error.to_string());
        let leaf = chain.first().ok_or_else(|| Refused::Certificate("there is none".to_owned()))?;
        let leaf = EndEntityCert::try_from(leaf).map_err(unfit)?;
        let name = ServerName::try_from(NAME).map_err(|_| Refused::CertificatePlace)?;
        leaf.verify_is_valid_for_subject_name(&name).map_err(unfit)?;
        let anchors: Vec<_> =
            self.roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
        let now = UnixTime::since_unix_epoch(
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        );
        let usage = KeyUsage::server_auth();
        match leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &chain[1..], now, usage, None, None) {
            Ok(_) => Ok(()),
            Err(CertError::UnknownIssuer) if chain.len() == 1 => Ok(()),
            Err(error) => Err(unfit(error)),
        }
    }
}

/// Tells messages of SNS from everybody else's.
pub struct Sns {
    topics: Vec<String>,
    certificates: Certificates,
}

impl fmt::Debug for Sns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sns").field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl Sns {
    /// Believes messages of `topics` (`SES_FEEDBACK_TOPIC_ARNS`), and of no other.
    #[must_use]
    pub fn new(topics: Vec<String>, certificates: Certificates) -> Self {
        Self { topics, certificates }
    }

    /// Reads a message and makes sure that it is SNS's.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn read(&self, body: &[u8]) -> Result<Message, Refused> {
        let message: Message =
            serde_json::from_slice(body).map_err(|error| Refused::Malformed(error.to_string()))?;
        if !self.topics.iter().any(|topic| topic == &message.topic_arn) {
            return Err(Refused::Topic(
                message.topic_arn.chars().take(120).flat_map(char::escape_default).collect(),
            ));
        }
        let place = place(&message.signing_cert_url, &message.topic_arn)?;
        let chain = self.certificates.at(place).await?;
        verify(&message, &chain)?;
        Ok(message)
    }

    /// Confirms a subscription at SNS itself, by a request made here: the address in the message is never followed.
    ///
    /// # Errors
    /// What stood in the way.
    pub async fn confirm(&self, message: &Message) -> Result<(), String> {
        let token = message.token.as_deref().ok_or("the message has no token")?;
        let host = host(&message.topic_arn).ok_or("the topic names no region")?;
        let mut url = Url::parse(&format!("https://{host}/")).map_err(|error| error.to_string())?;
        url.query_pairs_mut()
            .append_pair("Action", "ConfirmSubscription")
            .append_pair("Version", "2010-03-31")
            .append_pair("TopicArn", &message.topic_arn)
            .append_pair("Token", token);
        self.certificates.fetch.get(url).await.map(drop)
    }
}

/// `sns.<region>.amazonaws.com`, and `.cn` in China, by the topic's own region.
fn host(topic: &str) -> Option<String> {
    let mut parts = topic.split(':');
    let (arn, partition, service, region) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let plain = !region.is_empty()
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let end = if partition == "aws-cn" { ".cn" } else { "" };
    (arn == "arn" && service == "sns" && plain).then(|| format!("sns.{region}.amazonaws.com{end}"))
}

/// The certificate's address, where it lies at SNS in the topic's region and nowhere else.
fn place(url: &str, topic: &str) -> Result<Url, Refused> {
    let url = Url::parse(url).map_err(|_| Refused::CertificatePlace)?;
    let is_plain = url.scheme() == "https"
        && url.port().is_none()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.path().ends_with(".pem");
    let is_sns = host(topic).is_some_and(|host| url.host_str() == Some(host.as_str()));
    if is_plain && is_sns { Ok(url) } else { Err(Refused::CertificatePlace) }
}

fn verify(message: &Message, chain: &[CertificateDer<'static>]) -> Result<(), Refused> {
    let algorithm: &'static dyn VerificationAlgorithm = match message.signature_version.as_str() {
        // What SNS signs with unless a topic is told otherwise.
        "1" => &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        "2" => &RSA_PKCS1_2048_8192_SHA256,
        _ => return Err(Refused::Signature),
    };
    let leaf = chain.first().ok_or(Refused::Signature)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| Refused::Signature)?;
    let key = leaf.subject_public_key_info();
    let signature = STANDARD.decode(&message.signature).map_err(|_| Refused::Signature)?;
    let key = UnparsedPublicKey::new(algorithm, key.as_ref());
    key.verify(canonical(message)?.as_bytes(), &signature).map_err(|_| Refused::Signature)
}

/// What SNS signs: names and values in the order of the names, each on a line of its own.
fn canonical(message: &Message) -> Result<String, Refused> {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        for part in [name, value] {
            text.push_str(part);
            text.push('\n');
        }
    };
    let missing = |name: &str| Refused::Malformed(format!("`{name}` is missing"));
    add("Message", &message.message);
    add("MessageId", &message.message_id);
    match message.kind.as_str() {
        "Notification" => {
            if let Some(subject) = &message.subject {
                add("Subject", subject);
            }
            add("Timestamp", &message.timestamp);
        }
        "SubscriptionConfirmation" | "UnsubscribeConfirmation" => {
            add("SubscribeURL", message.subscribe_url.as_deref().ok_or_else(|| missing("SubscribeURL"))?);
            add("Timestamp", &message.timestamp);
            add("Token", message.token.as_deref().ok_or_else(|| missing("Token"))?);
        }
        _ => return Err(Refused::Malformed("`Type` is none of SNS's".to_owned())),
    }
    add("TopicArn", &message.topic_arn);
    add("Type", &message.kind);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_lie_at_sns_and_nowhere_else() {
        let topic = "arn:aws:sns:eu-central-1:123456789012:mail";
        let good = "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem";
        assert!(place(good, topic).is_ok());
        let china = "https://sns.cn-north-1.amazonaws.com.cn/SimpleNotificationService-1.pem";
        assert!(place(china, "arn:aws-cn:sns:cn-north-1:1:mail").is_ok());
        for bad in [
            "http://sns.eu-central-1.amazonaws.com/a.pem",
            "https://sns.eu-central-1.amazonaws.com.evil.example/a.pem",
            "https://evil.example/sns.eu-central-1.amazonaws.com/a.pem",
            "https://sns.eu-central-1.amazonaws.com@evil.example/a.pem",
            "https://sns.eu-central-1.amazonaws.com:8443/a.pem",
            "https://sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.eu-central-1.amazonaws.com.cn/a.pem",
            "https://sns.eu-central-1.amazonaws.com/a.pem?x=1",
            "https://sns.eu-central-1.amazonaws.com/a.txt",
            "https://s3.amazonaws.com/sns.eu-central-1.amazonaws.com.pem",
            "nonsense",
        ] {
            assert_eq!(place(bad, topic), Err(Refused::CertificatePlace), "{bad}");
        }
    }
}
