//! The certificate that a TLS endpoint shows. Looked at, not trusted: one that has expired must be seen too.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;
use voiceai_egress::{Purpose, Rule};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Small hexadecimal digits.
    pub fingerprint: String,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// The issuer's name.
    pub issuer: String,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Not `host:port`.
    #[error("{0:?} is not host:port")]
    Name(String),
    /// Nobody answers there.
    #[error(transparent)]
    Connect(#[from] voiceai_egress::EgressError),
    /// What answers speaks no TLS, or not to the end.
    #[error("TLS with {endpoint}: {reason}")]
    Tls {
        /// Which.
        endpoint: String,
        /// Why not.
        reason: String,
    },
}

/// Connects to `host:port` as `rule` says and reads the certificate. Takes at most `limit` to connect, and as long again for TLS.
///
/// # Errors
/// [`LookError`].
pub async fn look(endpoint: &str, rule: &Rule, limit: Duration) -> Result<Shown, LookError> {
    let name = || LookError::Name(endpoint.to_owned());
    let (host, port) = endpoint.trim().rsplit_once(':').ok_or_else(name)?;
    let port: u16 = port.parse().map_err(|_| name())?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let server = ServerName::try_from(bare.to_owned()).map_err(|_| name())?;
    let tls = |reason: String| LookError::Tls { endpoint: endpoint.to_owned(), reason };
    let config = looking().map_err(|error| tls(error.to_string()))?;
    let stream = voiceai_egress::connect(rule, Purpose::Https, host, port, limit).await?;
    let handshake = tokio::time::timeout(limit, TlsConnector::from(config).connect(server, stream)).await;
    let stream = handshake
        .map_err(|_| tls(format!("no answer within {limit:?}")))?
        .map_err(|error| tls(error.to_string()))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let der = shown.ok_or_else(|| tls("it shows no certificate".to_owned()))?;
    read(der).ok_or_else(|| tls("its certificate cannot be read".to_owned()))
}

fn read(der: &[u8]) -> Option<Shown> {
    let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
    let body = certificate.tbs_certificate();
    let end = body.validity().not_after.to_unix_duration().as_secs();
    let digest = aws_lc_rs_digest(der);
    Some(Shown {
        fingerprint: digest,
        not_after: Timestamp::from_second(i64::try_from(end).ok()?).ok()?,
        issuer: body.issuer().to_string(),
    })
}

fn aws_lc_rs_digest(der: &[u8]) -> String {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes every certificate, but still asks for proof that its key is there.
#[derive(Debug)]
struct Looking(WebPkiSupportedAlgorithms);

fn looking() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Looking(provider.signature_verification_algorithms));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Nothing is sent over the connection: whom it leads to is not relied upon.
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
