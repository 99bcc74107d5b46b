//! Certificates of an authority that lives as long as a test.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

/// A server's certificate with its key, and the authority that issued it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The authority's certificate: what a client is told to trust.
    pub authority_pem: String,
    /// The server's certificate.
    pub pem: String,
    /// Its key.
    pub key_pem: String,
}

impl Certificate {
    /// For `localhost` and `127.0.0.1`, good now.
    #[must_use]
    pub fn localhost() -> Self {
        Self::issue(&["localhost", "127.0.0.1"], false)
    }

    /// For these names, good now.
    #[must_use]
    pub fn named(names: &[&str]) -> Self {
        Self::issue(names, false)
    }

    /// For `localhost` and `127.0.0.1`, good until some years ago.
    #[must_use]
    pub fn expired() -> Self {
        Self::issue(&["localhost", "127.0.0.1"], true)
    }

    fn issue(names: &[&str], expired: bool) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).expect("no names are sound");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "testkit authority");
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(authority, key).expect("an authority");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut server = CertificateParams::new(names).expect("names");
        if expired {
            server.not_before = date_time_ymd(2019, 1, 1);
            server.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = server.signed_by(&key, &authority).expect("a certificate");
        Self { authority_pem: authority.pem(), pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// Writes the authority's certificate where a client can be pointed to it.
    pub fn write_authority(&self, path: &Path) {
        std::fs::write(path, &self.authority_pem)
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// TLS for a server with this certificate.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        let certificate = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("PEM");
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a key that fits its certificate");
        Arc::new(config)
    }
}
