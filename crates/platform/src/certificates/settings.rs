use std::path::PathBuf;
use std::time::Duration;

use voiceai_config::Reader;
use voiceai_config::catalogue::duty as names;
use voiceai_runtime::Secret;

/// The settings of certificates.
#[derive(Debug, Clone)]
pub struct CertificateSettings {
    /// `DEVICE_CA_CERT_PATH`.
    pub ca_certificate: Option<PathBuf>,
    /// `DEVICE_CA_KEY_PATH`.
    pub ca_key: Option<PathBuf>,
    /// `CRL_OUTPUT_PATH`.
    pub crl_path: PathBuf,
    /// `CRL_LIFETIME`.
    pub crl_lifetime: Duration,
    /// `CRL_RELOAD_URL`.
    pub crl_reload: Option<Secret>,
    /// `CERT_EXPIRY_WARNING_DAYS`.
    pub warning_days: u32,
    /// `CERT_ENDPOINTS`.
    pub endpoints: Vec<String>,
}

impl CertificateSettings {
    /// Reads them.
    pub fn read(reader: &Reader<'_>) -> Self {
        Self {
            ca_certificate: reader.optional(&names::DEVICE_CA_CERT_PATH),
            ca_key: reader.optional(&names::DEVICE_CA_KEY_PATH),
            crl_path: reader.get(&names::CRL_OUTPUT_PATH),
            crl_lifetime: reader.get(&names::CRL_LIFETIME),
            crl_reload: reader.optional(&names::CRL_RELOAD_URL),
            warning_days: reader.get(&names::CERT_EXPIRY_WARNING_DAYS),
            endpoints: reader.optional(&names::CERT_ENDPOINTS).unwrap_or_default(),
        }
    }
}
