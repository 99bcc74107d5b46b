//! The authority: its certificate, its key, and what it signs.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use voiceai_runtime::Secret;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{Any, ObjectIdentifier, OctetString};
use x509_cert::ext::pkix::{KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");

/// The elliptic curves that a certificate's key may be on, each with the signature that fits it.
const CURVES: [(&EcdsaSigningAlgorithm, ObjectIdentifier); 3] = [
    (&ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_SHA256),
    (&ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_SHA384),
    (&ECDSA_P521_SHA512_ASN1_SIGNING, ECDSA_SHA512),
];

/// Why nothing can be signed in the authority's name. Never tells the key.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate's file holds none.
    #[error("{path} holds no certificate in PEM: {reason}", path = path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key's file holds none that can be used.
    #[error("{path} holds no private key that can be used: {reason}", path = path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// Both are sound, but not of one authority.
    #[error("the key in {key} does not belong to the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate says that its key signs no revocation lists.
    #[error("the certificate in {path} does not allow its key to sign revocation lists (keyUsage without cRLSign); issue it anew with it", path = path.display())]
    Usage {
        /// The certificate's file.
        path: PathBuf,
    },
    /// The signature did not come about.
    #[error("sign with the authority's key")]
    Sign,
    /// What was to be signed cannot be encoded.
    #[error("encode the revocation list: {0}")]
    Encode(#[from] x509_cert::der::Error),
}

enum Key {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
}

/// An authority that can sign. Read anew for each use, so that a renewed file is taken up by itself.
pub struct Authority {
    subject: Name,
    key_id: Option<Vec<u8>>,
    algorithm: AlgorithmIdentifierOwned,
    key: Key,
    random: SystemRandom,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("subject", &self.subject.to_string()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads both files and checks that they belong together.
    ///
    /// # Errors
    /// [`AuthorityError`], which names the file.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| AuthorityError::Read { path: path.to_owned(), source })
        };
        let certificate_text = read(certificate)?;
        let key_text = Secret::new(read(key)?);
        let wrong = |reason: String| AuthorityError::Certificate { path: certificate.to_owned(), reason };
        let chain = CertificateInner::<Raw>::load_pem_chain(certificate_text.as_bytes())
            .map_err(|error| wrong(error.to_string()))?;
        let own = chain.first().ok_or_else(|| wrong("the file is empty".to_owned()))?;
        let body = own.tbs_certificate();
        let usage = body.get_extension::<KeyUsage>().map_err(|error| wrong(error.to_string()))?;
        if usage.is_some_and(|(_, usage)| !usage.crl_sign()) {
            return Err(AuthorityError::Usage { path: certificate.to_owned() });
        }
        let key_id =
            body.get_extension::<SubjectKeyIdentifier>().map_err(|error| wrong(error.to_string()))?;
        let unusable = |reason| AuthorityError::Key { path: key.to_owned(), reason };
        let (pair, algorithm) = parse_key(&key_text).map_err(unusable)?;
        let public = match &pair {
            Key::Rsa(pair) => pair.public_key().as_ref(),
            Key::Ecdsa(pair) => pair.public_key().as_ref(),
        };
        if public != body.subject_public_key_info().subject_public_key.raw_bytes() {
            let (certificate, key) = (certificate.to_owned(), key.to_owned());
            return Err(AuthorityError::Mismatch { certificate, key });
        }
        Ok(Self {
            subject: body.subject().clone(),
            key_id: key_id.map(|(_, id)| id.0.as_bytes().to_vec()),
            algorithm,
            key: pair,
            random: SystemRandom::new(),
        })
    }

    /// The name that stands as issuer, byte for byte as in the certificate.
    pub(super) const fn subject(&self) -> &Name {
        &self.subject
    }

    /// The certificate's own subject key identifier.
    pub(super) fn key_id(&self) -> Result<Option<OctetString>, AuthorityError> {
        Ok(self.key_id.as_deref().map(OctetString::new).transpose()?)
    }

    pub(super) const fn algorithm(&self) -> &AlgorithmIdentifierOwned {
        &self.algorithm
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        match &self.key {
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                    .map_err(|_| AuthorityError::Sign)?;
                Ok(signature)
            }
            Key::Ecdsa(pair) => pair
                .sign(&self.random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| AuthorityError::Sign),
        }
    }
}

/// A key out of PEM, with the name of the signature that it makes.
fn parse_key(text: &Secret) -> Result<(Key, AlgorithmIdentifierOwned), &'static str> {
    const UNKNOWN: &str = "it is neither RSA (2048 to 8192 bits) nor ECDSA on P-256, P-384 or P-521";
    if text.expose().contains("ENCRYPTED") {
        return Err("it is encrypted; keep it in a file that only this service reads, without a passphrase");
    }
    let Ok(der) = PrivateKeyDer::from_pem_slice(text.expose().as_bytes()) else {
        return Err("there is no PEM block of a private key in it");
    };
    let with_null = |oid| -> Result<_, &'static str> {
        let null = Any::from_der(&[5, 0]).map_err(|_| UNKNOWN)?;
        Ok(AlgorithmIdentifierOwned { oid, parameters: Some(null) })
    };
    let rsa = match &der {
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
        _ => None,
    };
    if let Some(pair) = rsa {
        return Ok((Key::Rsa(pair), with_null(RSA_SHA256)?));
    }
    for (curve, oid) in CURVES {
        let pair = match &der {
            PrivateKeyDer::Pkcs8(key) => EcdsaKeyPair::from_pkcs8(curve, key.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Sec1(key) => EcdsaKeyPair::from_private_key_der(curve, key.secret_sec1_der()).ok(),
            _ => None,
        };
        if let Some(pair) = pair {
            return Ok((Key::Ecdsa(pair), AlgorithmIdentifierOwned { oid, parameters: None }));
        }
    }
    Err(UNKNOWN)
}

/// The bytes of something encodable.
pub(super) fn der(value: &impl x509_cert::der::Encode) -> Result<Vec<u8>, AuthorityError> {
    Ok(value.to_der()?)
}
